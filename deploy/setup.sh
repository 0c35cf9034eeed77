#!/usr/bin/env bash
# Create .venv from the pinned lock of one device. Usage: deploy/setup.sh [cpu|cuda]
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cpu}
lock=deploy/locks/$device.lock
case $device in cpu | cuda) ;; *) echo "setup: DEVICE: found $device, wanted cpu or cuda" >&2; exit 2 ;; esac
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || { echo "setup: $python not found; wanted Python 3.11 (set PYTHON=)" >&2; exit 2; }
stamp=.venv/.installed-$(cat "$lock" pyproject.toml | sha256sum | cut -c1-16)
[ -f "$stamp" ] && exit 0

"$python" -m venv --clear .venv
pip=".venv/bin/python -m pip --disable-pip-version-check"
# pip repeats one line per package about every extra index that lacks it.
exec 2> >(grep -v --line-buffered "is ignored: it is neither a file nor a directory" >&2)
extra=()
if [ "$device" = cpu ]; then
  torch=$(grep '^torch==' "$lock")
  # pip's own configuration may know a local CPU wheel; everybody else takes PyTorch's public CPU index.
  if ! $pip install --quiet --dry-run --no-deps "$torch" >/dev/null 2>&1; then
    extra=(--extra-index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}")
  fi
fi
# The lock is complete, so nothing is resolved here: --no-deps also keeps CUDA-only packages out of the CPU install.
case $device in
  cuda)  # flash-attn compiles against the torch of the lock, which therefore has to be there first.
    grep -v '^flash-attn' "$lock" | $pip install --quiet --no-deps -r /dev/stdin
    grep '^flash-attn' "$lock" | $pip install --quiet --no-deps --no-build-isolation -r /dev/stdin ;;
  *) $pip install --quiet --no-deps "${extra[@]}" -r "$lock" ;;
esac
$pip install --quiet --no-deps --no-build-isolation --editable .
.venv/bin/python -m common.torchvision_cpu
touch "$stamp"

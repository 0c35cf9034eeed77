#!/usr/bin/env bash
# Make a venv with TRL that also sees the packages of .venv: `tests/bench/learner/trl.sh FOLDER`.
# The lock beside this file pins what .venv lacks; both sides of the benchmark share torch and transformers.
set -euo pipefail
cd "$(dirname "$0")/../../.."
venv=$1 lock=tests/bench/learner/trl.lock
if cmp --silent "$lock" "$venv/installed.lock"; then exit 0; fi
.venv/bin/python -m venv --clear "$venv"
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps -r "$lock"
# addsitedir and not the bare path: .venv's own .pth files count too (torchvision beside a torch without CUDA).
echo "import site; site.addsitedir('$packages')" \
  >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
cp "$lock" "$venv/installed.lock"

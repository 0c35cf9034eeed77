#!/usr/bin/env bash
# Compile the locks from pyproject.toml, for every Python of its requires-python (`make locks`): cpu and cuda for a checkout
# (`make setup`), reward, rollout-* and learner-* for the images. Those of one device agree on every pin.
# Usage: deploy/locks/compile.sh [OPTION OF uv pip compile...]
# Pins of today's locks are kept where they still fit; `--upgrade-package NAME` and `--upgrade` take newer ones.
#
# Each Python is resolved by itself, and a pin that some of them lack gets a marker. `uv pip compile --universal` would do
# both at once, but reads one wheel's requirements for all platforms: intel-openmp's libraries were lost in that way.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv_version=0.13.9
extras="--extra reward --extra rollout --extra learner --extra jobs --extra dev"
[[ $(<pyproject.toml) =~ requires-python\ =\ \"\>=3\.([0-9]+),\<3\.([0-9]+)\" ]]
pythons=$(seq -f 3.%g "${BASH_REMATCH[1]}" $((BASH_REMATCH[2] - 1)))

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(deploy/interpreter.sh)
"$python" -m venv "$work/uv"
"$work/uv/bin/python" -m pip --disable-pip-version-check install --quiet "uv==$uv_version"

# NAME OPTION...: writes deploy/locks/NAME.lock
compile() {
  local name=$1 lock=deploy/locks/$1.lock python output=()
  shift
  local arguments=(pip compile pyproject.toml "$@" --python-platform x86_64-manylinux_2_31)
  arguments+=(--no-config --no-annotate --no-header)
  for python in $pythons; do
    output+=("$work/$name-$python")
    [ ! -f "$lock" ] || cp "$lock" "${output[-1]}"  # what uv finds in its output file is kept
    "$work/uv/bin/uv" "${arguments[@]}" "${options[@]}" --python-version "$python" --quiet \
      --python "$work/uv/bin/python" --output-file "${output[-1]}"
  done
  {
    echo "# Linux x86_64. Made by deploy/locks/compile.sh (make locks), with VERSION" $pythons "and then merged:"
    echo "# uv ${arguments[*]//"$work/"/} --python-version VERSION"
    awk 'FNR == 1 { python = FILENAME; sub(/.*-/, "", python) }
      { count[$0]++; marker[$0] = marker[$0] (marker[$0] ? " or " : "") "python_version == \"" python "\"" }
      END { for (pin in count) print pin (count[pin] < ARGC - 1 ? " ; " marker[pin] : "") }' "${output[@]}" |
      LC_ALL=C sort
  } >"$work/merged"
  cp "$work/merged" "$lock"
}

# NAME: the pins of a lock as constraints; PyPI's torch carries no +cpu.
pins_of() {
  sed 's/+cpu$//' "deploy/locks/$1.lock" >"$work/$1.pins"
  echo "$work/$1.pins"
}

# NAME: CPU torch is PyPI's version with a local label.
label_torch() { sed -i 's/^torch==[0-9.]*$/&+cpu/' "deploy/locks/$1.lock"; }

options=("$@")
compile cpu $extras --extra rollout-cpu --override deploy/locks/cpu.overrides.txt
label_torch cpu
compile cuda $extras --extra rollout-cuda --extra learner-cuda --override deploy/locks/cuda.overrides.txt
compile reward --extra reward --constraint deploy/locks/cpu.lock
for device in cpu cuda; do
  pins=$(pins_of $device)
  compile "rollout-$device" --extra rollout --extra "rollout-$device" --constraint "$pins" \
    --override "deploy/locks/$device.overrides.txt"
  kernels=()
  [ $device = cpu ] || kernels=(--extra learner-cuda)
  compile "learner-$device" --extra learner --extra jobs "${kernels[@]}" --constraint "$pins" \
    --override "deploy/locks/$device.overrides.txt"
done
label_torch rollout-cpu
label_torch learner-cpu

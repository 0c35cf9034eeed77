#!/usr/bin/env bash
# Print the interpreter to make .venv with and, in a second line, the index to get TORCH from (empty: pip's configuration
# knows one). Usage: deploy/interpreter.sh [TORCH], such as torch==2.13.0+cpu; without it no torch is asked for.
#
# The rule: the newest Python in pyproject.toml's range for which everything can be had. It runs (the shims of version
# managers may not), it makes environments, and pip finds TORCH for it, in its own configuration or else in the CPU index.
# Where there is a torch for an older Python only (a wheel on disk, no network), that Python is taken. PYTHON= names the
# only candidate.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=${1:-}
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
[[ $(<pyproject.toml) =~ requires-python\ =\ \"\>=3\.([0-9]+),\<3\.([0-9]+)\" ]]
oldest=${BASH_REMATCH[1]} newest=$((BASH_REMATCH[2] - 1))
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

candidates() {
  local minor name
  if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; return; fi
  for ((minor = newest; minor >= oldest; minor--)); do type -aP "python3.$minor" || true; done
  for name in python3 python; do type -aP "$name" || true; done
}

# Prints version, minor version, path (an environment's own interpreter gives its base's), and modules that lack.
describe() {
  "$1" -I -c 'import importlib.util, platform, sys
lacks = [name for name in ("venv", "ensurepip") if not importlib.util.find_spec(name)]
path = getattr(sys, "_base_executable", None) or sys.executable
print(platform.python_version(), sys.version_info[1], path, " and ".join(lacks), sep="\n")' 2>/dev/null
}

# OPTION...: whether pip finds torch. An index out of reach must not take minutes.
finds_torch() {
  "$scratch/bin/python" -m pip --disable-pip-version-check --retries 1 --timeout 15 \
    install --dry-run --no-deps "$torch" "$@" >/dev/null 2>&1
}

# Succeeds with `path` and `extra_index`, or fails with why in `found`.
suits() {
  local version minor lacks
  { read -r version && read -r minor && read -r path && read -r lacks; } < <(describe "$1") || return 1
  case $seen in *"|$path|"*) return 1 ;; esac  # python3 is mostly one of the others
  seen+="|$path|" extra_index=
  if ((minor < oldest || minor > newest)); then found+=("$path ($version)"); return 1; fi
  if [ -n "$lacks" ]; then found+=("$path ($version, no $lacks: Debian's python3.$minor-venv has it)"); return 1; fi
  [ -n "$torch" ] || return 0
  if ! "$path" -m venv --clear "$scratch" >/dev/null 2>&1; then found+=("$path ($version, venv fails)"); return 1; fi
  finds_torch && return 0
  extra_index=$index
  finds_torch --extra-index-url "$index" && return 0
  found+=("$path ($version, no $torch)") torchless=1
  return 1
}

seen='' found=() torchless=
mapfile -t names < <(candidates)
for name in "${names[@]}"; do
  if suits "$name"; then
    [ ${#found[@]} = 0 ] || echo "setup: passed over$(printf ' %s,' "${found[@]}") taking $path" >&2
    printf '%s\n' "$path" "$extra_index"
    exit
  fi
done
[ ${#found[@]} != 0 ] || found=("${PYTHON:-none}${PYTHON:+ (not there, or does not run)}")
line="setup: found$(printf ' %s,' "${found[@]}") wanted Python 3.$oldest to 3.$newest; name one with PYTHON="
[ -z "$torchless" ] || line+=" or an index of torch with TORCH_CPU_INDEX= (asked: pip's configuration, then $index)"
echo "$line" >&2
exit 2

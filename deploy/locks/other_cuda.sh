#!/usr/bin/env bash
# Once the CUDA lock is installed with the indexes of CUDA_INDEX: did torch come from there, and what it needs beside the lock.
# Usage: deploy/locks/other_cuda.sh PIP... (a command). Without CUDA_INDEX there is nothing to do.
#
# pip prefers 2.13.0+cu129 over 2.13.0, so an index whose builds carry such a label needs no other lock. But CUDA's libraries
# are other packages for another CUDA (nvidia-…-cu12), and the lock has one set only: torch names its own.
set -euo pipefail
[ -n "${CUDA_INDEX:-}" ] || exit 0
indexes=()
for url in $CUDA_INDEX; do indexes+=(--extra-index-url "$url"); done

installed() { "$@" list --format=freeze | grep -E '^(torch|vllm)==' | tr '\n' ' '; }
found=$(installed "$@")
if [[ ! $found =~ torch==[0-9.]+\+cu ]]; then
  echo "CUDA_INDEX: found ${found% } of the default index, wanted that torch in $CUDA_INDEX: make a lock of what is there" \
    "(deploy/locks/compile.sh)" >&2
  exit 2
fi
"$@" install --quiet "${indexes[@]}" "$(grep -oE 'torch==[^ ]+' <<<"$found")"
echo "CUDA_INDEX: took ${found% }"

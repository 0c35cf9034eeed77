#!/usr/bin/env bash
# A learner's rank under torchrun; rank 0 leaves its process id in $TEMPSAMP_RANK0_PID, for who asks it to stop.
set -euo pipefail
[ "$RANK" != 0 ] || echo "$$" >"$TEMPSAMP_RANK0_PID"
exec "$@"

#!/usr/bin/env bash
# All tests after `make lint`:  test.sh [PYTEST_ARGS], which run a part and no image.
# WORKERS (2): what waits for the Slurm cluster runs in one process, everything else beside it. The image is built
# meanwhile, with what processor time is left. The launcher's coverage is shown, and held for the rooms that decide.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
started=$SECONDS
log=$(mktemp)
nice -n 15 scripts/image/test build >"$log" 2>&1 &
image=$!
trap 'kill "$image" 2>/dev/null || true; rm -f "$log"' EXIT
measured=()
for room in cli job plan render launch errors resources; do measured+=("--cov=qwen_job.$room"); done
python -m pytest -n "${WORKERS:-2}" --dist loadgroup --no-loadscope-reorder "${measured[@]}" --cov-report= --durations=15
scripts/coverage.sh
echo "== tests: $((SECONDS - started)) s" >&2
built=0
wait "$image" || built=$?
cat "$log" >&2
[ "$built" = 0 ] || exit "$built"
scripts/image/test try
echo "== everything: $((SECONDS - started)) s" >&2

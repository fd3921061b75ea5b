#!/usr/bin/env bash
# All tests after `make lint`:  test.sh [PYTEST_ARGS], which run a part and no image.
# What waits for the Slurm cluster runs in one process, everything else in two beside it, a file's tests in one of them.
# The image is built meanwhile, with what processor time is left. The launcher's coverage is shown, and held for the
# rooms that decide.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
started=$SECONDS
log=$(mktemp) cluster_log=$(mktemp)
nice -n 15 scripts/image/test build >"$log" 2>&1 &
image=$!
python -m pytest -p no:cacheprovider tests/e2e tests/slurmlab --durations=10 >"$cluster_log" 2>&1 &
cluster=$!
trap 'kill "$image" "$cluster" 2>/dev/null || true; rm -f "$log" "$cluster_log"' EXIT
measured=()
for room in cli job plan render launch errors resources; do measured+=("--cov=qwen_job.$room"); done
others=0
python -m pytest --ignore=tests/e2e --ignore=tests/slurmlab -n 2 --dist loadfile \
    "${measured[@]}" --cov-report= --durations=15 || others=$?
failed=0
wait "$cluster" || failed=$?
cat "$cluster_log"
[ "$others" = 0 ] || exit "$others"
[ "$failed" = 0 ] || exit "$failed"
scripts/coverage.sh
echo "== tests: $((SECONDS - started)) s" >&2
built=0
wait "$image" || built=$?
cat "$log" >&2
[ "$built" = 0 ] || exit "$built"
scripts/image/test try
echo "== everything: $((SECONDS - started)) s" >&2

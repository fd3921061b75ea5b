#!/usr/bin/env bash
# All tests after `make lint`:  test.sh [PYTEST_ARGS], which run a part and no image.
# What waits for the Slurm cluster runs in one process, everything else in two beside it, a file's tests in one of them
# and the slow files first. The image is built meanwhile, with what processor time is left, and tried after the
# cluster's tests. The launcher's coverage is shown, and held for the rooms that decide.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
started=$SECONDS
cluster_log=$(mktemp) image_log=$(mktemp)
image_test=scripts/image/test
say() { echo "== $*: $((SECONDS - started)) s" >&2; }

cluster_and_image() {
    local code=0
    trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
    trap 'exit 143' TERM # at once, since only `wait` waits
    nice -n 15 "$image_test" build >"$image_log" 2>&1 &
    local image=$!
    python -m pytest -p no:cacheprovider tests/e2e tests/slurmlab --durations=10 >"$cluster_log" 2>&1 &
    wait $! || code=$?
    say "tests of the cluster"
    wait "$image" || return "$?"
    "$image_test" try >>"$image_log" 2>&1 &
    wait $! || return "$?"
    say "image"
    return "$code"
}

# Each of the processes to come would compile them again where the environment forbids Python to keep what it compiled.
python -m compileall -q -j 2 qwen_job tests
cluster_and_image &
beside=$!
trap 'kill "$beside" 2>/dev/null || true; rm -f "$cluster_log" "$image_log"' EXIT
measured=()
for room in cli job plan render launch errors resources; do measured+=("--cov=qwen_job.$room"); done
others=0
python -m pytest --ignore=tests/e2e --ignore=tests/slurmlab -n 2 --dist loadfile --no-loadscope-reorder \
    "${measured[@]}" --cov-report= --durations=15 || others=$?
say "tests without a cluster"
failed=0
wait "$beside" || failed=$?
cat "$cluster_log"
cat "$image_log" >&2
[ "$others" = 0 ] || exit "$others"
[ "$failed" = 0 ] || exit "$failed"
scripts/coverage.sh
say "everything"

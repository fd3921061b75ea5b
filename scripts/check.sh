#!/usr/bin/env bash
# The fast loop:  check.sh [PYTEST_ARGS]. No torch, no root, no network once it is set up; Linux or macOS.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/setup.sh check)
export PATH="$PWD/$venv/bin:$PATH"
[ $# -gt 0 ] || scripts/lint.sh "$venv"
export FUZZ_TIMES=${FUZZ_TIMES:-0.2}
echo "== left out: tests marked train (the training stack), slurm (root), slow (tens of seconds), four fifths of the hostile inputs: make test" >&2
exec python -m pytest -q -m "not train and not slurm and not slow" -p no:cacheprovider -n 2 --dist worksteal "$@"

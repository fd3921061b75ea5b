#!/usr/bin/env bash
# Style and types:  lint.sh VENV. Without the training stack, the types of the launcher's rooms only.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1/bin
types=(-p qwen_job -p scripts.publish)
for part in support slurmlab e2e chaos fuzz conftest; do types+=(-p "tests.$part"); done
if ! "$bin/python" -c 'import torch' 2>/dev/null; then
    types=(--follow-imports=silent)
    for room in facts job run plan render launch api cli; do types+=(-p "qwen_job.$room"); done
fi
"$bin/ruff" check --quiet .
"$bin/ruff" format --check --quiet .
"$bin/mypy" --strict "${types[@]}"
git ls-files -co --exclude-standard '*.sh' .ci/run | xargs "$bin/shellcheck"

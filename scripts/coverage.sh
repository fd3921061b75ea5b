#!/usr/bin/env bash
# After pytest with coverage: show the launcher's, and fail where the rooms that decide and write are not covered.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/coverage report --skip-covered
echo "== the rooms that decide and write, at least 95%:"
.venv/bin/coverage report --include='qwen_job/job/*,qwen_job/plan/*,qwen_job/render/*' --fail-under=95 | tail -n 2

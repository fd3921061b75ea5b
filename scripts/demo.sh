#!/usr/bin/env bash
# The demo, as typed by hand: plan, run with two processes, and ask the trained model.
#   demo.sh [RUN_FOLDER]        (qwen-job must be on the PATH)
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/demo}
case $run in /*) ;; *) run=$PWD/$run ;; esac

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

job=(configs/jobs/demo.yaml)
[ "$run" = "$PWD/runs/demo" ] || job+=(--set "output=$run")
step qwen-job plan "${job[@]}"
step qwen-job submit "${job[@]}" --target local
step qwen-job chat "$run" --prompt 你好
printf '\nThe run is in %s. Talk on with: qwen-job chat %s\n' "$run" "$run"

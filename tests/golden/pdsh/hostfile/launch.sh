#!/bin/bash
# qwen-job 0.2.0: pdsh on 2 hosts over ssh (pdsh). Run it on any host that
# reaches the others; the run folder must be on storage that all of them share.
# shellcheck disable=SC2016  # a dollar inside a value is text, never expanded
set -uo pipefail

# Leftovers in the environment can change what every later shell and Python does, so a job sees none of them.
ignored=
for name in BASH_ENV ENV CDPATH GLOBIGNORE GREP_OPTIONS POSIXLY_CORRECT TMOUT MASTER_ADDR MASTER_PORT RANK WORLD_SIZE \
  LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE \
  "${!PET_@}" "${!TORCHELASTIC_@}" "${!PYTHON@}" "${!LD_@}"; do
  case $name in
    LD_LIBRARY_PATH | LD_PRELOAD | PYTHONPATH | PYTHONUSERBASE | PYTHONNOUSERSITE | PYTHONDONTWRITEBYTECODE) continue ;;
    PYTHONPYCACHEPREFIX | PYTHONFAULTHANDLER | PYTHONUNBUFFERED) continue ;;
  esac
  if [ -n "${!name+x}" ]; then
    ignored+=" $name"
    unset -v "$name"
  fi
done
set +o posix
export -n SHELLOPTS BASHOPTS IFS
if [ -n "$ignored" ]; then echo "qwen-job: ignored variables, which would change the job:$ignored" >&2; fi

# --- the run's configuration, exactly as planned ---------------------------------------------------------------
run=/shared/runs/pdsh
mkdir -p -- "$run/launch" "$run/logs" || { echo "qwen-job: output: cannot create $run" >&2; exit 5; }

# Two jobs in one folder would overwrite each other's checkpoints. A running one renews launch/lease every few seconds.
held_by() {
  local nonce counter machine process owner before tries pid
  read -r nonce counter machine process owner 2> /dev/null < "$run/launch/lease" || return 1
  # Anybody who shares the folder may have written it, so keep control characters from the terminal.
  owner=${owner//[![:print:]]/?}
  pid=${process%:*} before="$nonce $counter"
  if [ "$machine" = "$(< /proc/sys/kernel/random/boot_id)/$(readlink /proc/self/ns/pid)" ]; then
    [ "$process" = "$pid:$(sed 's/.*) //' "/proc/$pid/stat" 2> /dev/null | cut -d ' ' -f 20)" ] && echo "$owner"
    return
  fi
  echo "qwen-job: output: $owner was using $run: waiting 12 s to see whether it still is" >&2
  for ((tries = 0; tries < 12; tries++)); do
    sleep 1
    read -r nonce counter _ _ owner 2> /dev/null < "$run/launch/lease" || return 1
    if [ "$nonce $counter" != "$before" ]; then
      echo "${owner//[![:print:]]/?}"
      return
    fi
  done
  return 1
}
if owner=$(held_by); then
  echo "qwen-job: output: $owner is using $run: wait until it has ended, or choose another output" >&2
  exit 2
fi

# put FILE: write standard input to FILE atomically; an earlier, different FILE is kept beside it.
put() {
  local new="$1.new.${SLURM_JOB_ID:-}$$"
  cat > "$new" || { rm -f -- "$new"; echo "qwen-job: output: cannot write $1" >&2; exit 5; }
  if [ -e "$1" ] && ! cmp -s -- "$new" "$1"; then
    cp -p -- "$1" "$1.$(date -r "$1" +%Y%m%d-%H%M%S)"
  fi
  mv -f -- "$new" "$1" || exit 5
}

put "$run"/job.yaml << 'QWEN_JOB_END'
name: pdsh
model:
  name: acme/unknown-chat
data:
  train:
    - path: /shared/data/chats.json
  eval: []
output: /shared/runs/pdsh
cluster:
  gpu:
    name: X1
    memory_gib: 80.0
    compute_capability: 8.0
  nodes: 2
  gpus_per_node: 4
hostfile:
  hosts:
    - a
    - b
  launcher: pdsh
  ssh_options:
    - "-p"
    - "2222"
QWEN_JOB_END
put "$run"/train.yaml << 'QWEN_JOB_END'
# Written by qwen-job 0.2.0; job.yaml beside it is what it was made from.
version: 1
name: pdsh
output_dir: /shared/runs/pdsh
seed: 42
resume: auto
world_size: 8
device: cuda
precision: bf16
attention: varlen
sequence_parallel_size: 1
fused_loss: chunked
torch_compile: auto
gradient_checkpointing: true
activation_offloading: false
tiled_mlp: false
router_aux_loss_coef: null
export: text
peak_tflops: null
model:
  name: acme/unknown-chat
  source: modelscope
  revision: null
  cache_dir: /shared/runs/.qwen-job-cache
  rope_scaling: null
data:
  train:
    - path: /shared/data/chats.json
      weight: 1.0
  eval: []
  eval_split: 0.0
  format: auto
  template: auto
  system_prompt: null
  learn: all
  thinking: keep
  empty_think: auto
  several_thoughts: split
  long_samples: truncate
  packing: true
  mask: assistant
  turn_order: strict
  ignore_keys: []
  cache_dir: null
  num_workers: null
  max_length: 512
training:
  num_train_epochs: 5.0
  max_steps: -1
  learning_rate: 1.0e-05
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 16
  weight_decay: 0.1
  adam_beta1: 0.9
  adam_beta2: 0.95
  adam_epsilon: 1.0e-08
  max_grad_norm: 1.0
  lr_scheduler_type: cosine
  warmup_ratio: 0.01
  logging_steps: 1
  eval_steps: null
  save_steps: 500
  save_total_limit: 2
  memory_save_steps: auto
  longest_first: false
  dataloader_num_workers: 1
  report_to:
    - tensorboard
  early_stopping_patience: null
  load_best_model_at_end: false
stop:
  grace_seconds: 120
guards:
  on_nan: stop
  loss_spike_factor: 10.0
  skip_rows: []
  hang_seconds: 900
notify: []
monitor:
  report_every: 120
  prometheus_file: null
  prometheus_port: null
plan:
  memory_bytes_per_gpu: null
  step_seconds: null
  tokens_per_second: null
  memory_items: null
  memory_capacity_bytes: null
  memory_save_bytes: null
  host_memory_bytes: null
QWEN_JOB_END
put "$run"/deepspeed.json << 'QWEN_JOB_END'
{
  "train_micro_batch_size_per_gpu": 1,
  "gradient_accumulation_steps": 16,
  "gradient_clipping": 1.0,
  "steps_per_print": 1000000000,
  "wall_clock_breakdown": false,
  "timers": {
    "throughput": {
      "enabled": false
    }
  },
  "zero_allow_untested_optimizer": true,
  "zero_optimization": {
    "stage": 2,
    "reduce_bucket_size": 200000000,
    "allgather_bucket_size": 200000000,
    "overlap_comm": true,
    "contiguous_gradients": true,
    "reduce_scatter": true,
    "offload_optimizer": {
      "device": "none"
    }
  },
  "train_batch_size": 128,
  "bf16": {
    "enabled": true
  },
  "fp16": {
    "enabled": false
  }
}
QWEN_JOB_END
put "$run/launch/node.sh" << 'QWEN_JOB_NODE_END'
#!/bin/bash
# Runs on every node of the job: node.sh NODE_RANK MASTER_ADDR MASTER_PORT RDZV_ID [STARTED_AT [LIMIT_SECONDS]]
# NODE_RANK clean_up: only removes the containers that the job left on this node.
# Writes the node's exit code and name to launch/exit.RDZV_ID.NODE_RANK in the run folder, for the script that started it.
# shellcheck disable=SC2016  # a dollar inside a value is text, never expanded
set -uo pipefail
node_rank=$1 master_addr=$2 master_port=$3 rdzv_id=$4
# Leftovers in the environment can change what every later shell and Python does, so a job sees none of them.
ignored=
for name in BASH_ENV ENV CDPATH GLOBIGNORE GREP_OPTIONS POSIXLY_CORRECT TMOUT MASTER_ADDR MASTER_PORT RANK WORLD_SIZE \
  LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE \
  "${!PET_@}" "${!TORCHELASTIC_@}" "${!PYTHON@}" "${!LD_@}"; do
  case $name in
    LD_LIBRARY_PATH | LD_PRELOAD | PYTHONPATH | PYTHONUSERBASE | PYTHONNOUSERSITE | PYTHONDONTWRITEBYTECODE) continue ;;
    PYTHONPYCACHEPREFIX | PYTHONFAULTHANDLER | PYTHONUNBUFFERED) continue ;;
  esac
  if [ -n "${!name+x}" ]; then
    ignored+=" $name"
    unset -v "$name"
  fi
done
set +o posix
export -n SHELLOPTS BASHOPTS IFS
if [ -n "${TMPDIR:-}" ] && ! [ -w "$TMPDIR" ]; then
  # Left over from a job that has ended, or from another machine.
  ignored+=" TMPDIR"
  unset TMPDIR
fi
if [ -n "$ignored" ]; then echo "qwen-job: ignored variables, which would change the job:$ignored" >&2; fi
node_name=${SLURMD_NODENAME:-$(uname -n)}
# When this attempt started, and its time limit from then on: the trainer saves before that.
export QWEN_JOB_STARTED="${5:-$(date +%s)}"
export QWEN_JOB_TIME_LIMIT_SECONDS="${6:-}"
run=/shared/runs/pdsh

# A signal may arrive at any time. It is passed on to the running command; between two there is nothing to save.
pid=
stopped=
signals=0
# shellcheck disable=SC2329  # the traps call it
pass_on() {
  stopped=$1
  signals=$((signals + 1))
  if [ -n "$pid" ]; then kill -s "$1" "$pid" 2> /dev/null || true; fi
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on HUP' HUP

# start WORD...: become the command, in the job's environment. Only called in the background, so that the job's
# variables cannot disturb this script.
start() {
  export CUDA_DEVICE_MAX_CONNECTIONS=1
  export NCCL_DEBUG=WARN
  export OMP_NUM_THREADS=8
  export PYTHONUNBUFFERED=1
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
  export TOKENIZERS_PARALLELISM=false
  export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
  export TORCH_NCCL_DUMP_ON_TIMEOUT=1
  export TORCH_NCCL_TRACE_BUFFER_SIZE=2000
  exec "$@"
}

# attend WORD...: run a command in the job's environment to its end, whatever signals arrive; return its exit code.
attend() {
  local heard=-1 code=0 ended
  start "$@" &
  pid=$!
  if [ -n "$stopped" ]; then kill -s "$stopped" "$pid" 2> /dev/null; fi
  # A trapped signal ends 'wait' early: wait again until the process has exited.
  while [ "$heard" -ne "$signals" ]; do
    heard=$signals
    wait "$pid"
    ended=$?
    # bash may report -1 for a process that ended with the signal: then keep the code of that signal.
    if [ "$ended" -ge 0 ]; then code=$ended; fi
  done
  pid=
  return "$code"
}

# Written at full length now and overwritten in place later, which needs no space on a disk that has filled up.
note="$run/launch/exit.$rdzv_id.$node_rank"
printf '%-200s\n' "143 $node_name running" 2> /dev/null > "$note"
leave() {
  local code=$1
  # A stop request before anything handled it: there was nothing to save. Slurm sends TERM when another node fails.
  case $stopped:$code in USR1:138 | HUP:129) code=160 ;; esac
  # If the whole step is being killed, we are next: then this node did not fail, and writes nothing.
  if [ "$code" -eq 137 ]; then sleep 0.5; fi
  printf '%-200s\n' "$code $node_name ended" 1<> "$note"
  exit "$code"
}
leave_if_asked() {
  case $stopped in
    "") ;;
    TERM) leave 143 ;;
    *) leave 160 ;;
  esac
}
leave_if_asked

python=(python3)

attend "${python[@]}" -m qwen_job node check --gpus 4 --nodes 2 --gpu X1 8.0 85899345920 --run "$run" --token "$rdzv_id" \
  --sent-at "$QWEN_JOB_STARTED" --rank "$node_rank" --master "$master_addr" --port "$master_port" --json > "$run/launch/check.$rdzv_id.$node_rank.json" || leave $?
leave_if_asked

# The host passed the checks. DeepSpeed's own launcher starts the trainers.
true
leave $?
QWEN_JOB_NODE_END

if [ -e "$run/done.json" ]; then
  echo "qwen-job: $run is complete (done.json); set train.resume: extend to train longer, or choose another output" >&2
  exit 0
fi
# For commands that know this folder but find no job in a queue: whose it is, and where its log is.
log=$(readlink "/proc/$$/fd/1") || log=
case $log in
  /dev/*) log= ;;
  /*) ;;
  *) log= ;;
esac
printf '%s\n' "target local" "user $(id -un)" ${log:+"log $log"} 2> /dev/null > "$run/launch/job"
put "$run/launch/hostfile" << 'QWEN_JOB_HOSTS_END'
a slots=4
b slots=4
QWEN_JOB_HOSTS_END
put "$run/launch/.deepspeed_env" << 'QWEN_JOB_ENV_END'
CUDA_DEVICE_MAX_CONNECTIONS=1
NCCL_DEBUG=WARN
OMP_NUM_THREADS=8
PYTHONUNBUFFERED=1
PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
TOKENIZERS_PARALLELISM=false
TORCH_NCCL_ASYNC_ERROR_HANDLING=1
TORCH_NCCL_DUMP_ON_TIMEOUT=1
TORCH_NCCL_TRACE_BUFFER_SIZE=2000
QWEN_JOB_ENV_END
master_addr=a
master_port=29500
chosen=(a b)
pids=()
stopping=
# When its connection closes, a node gets SIGHUP: its workers save at the next step and exit.
hang_up() { for pid in "${pids[@]}"; do kill -s TERM "$pid" 2> /dev/null || true; done; }
trap 'stopping=yes; hang_up' TERM INT HUP

# First each host checks that it sees the same folder as this one (205: it does not). Storage may need a moment to show
# a new file. Then it becomes node.sh, with its own log, so that its last lines need no connection.
on_host='for i in 1 2 3 4 5; do if read -r token 2> /dev/null < "$1/launch/token" && [ "$token" = "$5" ]; then'
on_host+=' exec bash "$1/launch/node.sh" "$2" "$3" "$4" "$5" >> "$1/logs/node-$2.log" 2>&1; fi; sleep 1; done; exit 205'
remote=(ssh -o BatchMode=yes -p 2222 -o LogLevel=ERROR)

# find_bad RANK...: note the hosts of these ranks that ssh cannot reach (its exit code is 255), and say why.
find_bad() {
  local rank reason ssh_code asked=()
  for rank in "$@"; do
    "${remote[@]}" -o ConnectTimeout=10 "${chosen[rank]}" true < /dev/null > /dev/null 2> "$run/launch/ssh.$rank" &
    asked[rank]=$!
  done
  for rank in "${!asked[@]}"; do
    wait "${asked[rank]}"
    ssh_code=$?
    if [ "$ssh_code" -eq 255 ]; then
      bad[rank]=${chosen[rank]}
      reason=$(tail -n 1 -- "$run/launch/ssh.$rank" | tr -d '\r')
      echo "qwen-job: ${chosen[rank]} cannot be reached${reason:+: $reason}" >&2
    fi
    rm -f -- "$run/launch/ssh.$rank"
  done
}

# attempt: run node.sh on the chosen hosts to its end, and set code.
attempt() {
  local log="$run/logs/node-0.log" rank node_code seconds said tail_pid running=()
  rdzv_id="hosts-$(date +%s)-$$-$round"
  echo "$rdzv_id" > "$run/launch/token" || exit 5
  touch -- "$log" || exit 5
  said=$(wc -l < "$log")
  pids=()
  bad=()
  find_bad "${!chosen[@]}"
  failure="cannot be reached"
  code=255
  if [ -n "${bad[*]}" ]; then return; fi
  for rank in "${!chosen[@]}"; do
    # With -tt a node gets SIGHUP when we close the connection.
    "${remote[@]}" -tt -o ServerAliveInterval=30 "${chosen[rank]}" \
      "exec bash -c $(printf '%q ' "$on_host" qwen-job "$run" "$rank" "$master_addr" "$master_port" "$rdzv_id")" \
      < /dev/null > /dev/null &
    pids+=($!)
  done
  if [ -n "$stopping" ]; then hang_up; fi
  tail -n "+$((said + 1))" -F "$log" 2> /dev/null &
  tail_pid=$!

  # The first node that fails stops the others.
  code=0
  while [ -n "${pids[*]}" ]; do
    wait -n
    for rank in "${!pids[@]}"; do
      if kill -0 "${pids[rank]}" 2> /dev/null; then continue; fi
      wait "${pids[rank]}"
      node_code=$?
      unset "pids[rank]"
      if [ "$node_code" -eq 0 ] || [ "$code" -ne 0 ]; then continue; fi
      code=$node_code
      if [ "$code" -eq 205 ]; then
        code=5
        echo "qwen-job: output: $run on ${chosen[rank]} is not the folder that this host sees: put output on shared storage" >&2
      elif [ -z "$stopping" ] && [ "$rank" -gt 0 ]; then
        if [ -e "$run/logs/node-$rank.log" ]; then
          echo "qwen-job: ${chosen[rank]} ended first, with exit code $code; the end of $run/logs/node-$rank.log:" >&2
          tail -n 5 -- "$run/logs/node-$rank.log" >&2
        else
          echo "qwen-job: ${chosen[rank]} ended first, with exit code $code, before it wrote a log" >&2
        fi
      fi
      hang_up
    done
  done

  # Nodes that lost their connection save first. If one of them has a final exit code, it is the reason. One that the
  # others have lost, and that has not ended soon after them, never will.
  for ((seconds = 0; code != 0 && seconds < 120; seconds++)); do
    running=()
    for rank in "${!chosen[@]}"; do
      if [ -n "${bad[rank]:-}" ] || ! grep -qs running "$run/launch/exit.$rdzv_id.$rank"; then continue; fi
      if [ "$seconds" -ge 2 ] && [ -e "$run/launch/lost.$rdzv_id.$rank" ]; then
        bad[rank]=${chosen[rank]}
        echo "qwen-job: ${chosen[rank]} gives the other hosts no sign of life" >&2
      else
        running+=("$rank")
      fi
    done
    if [ -z "${running[*]}" ]; then break; fi
    if [ "$seconds" -eq 1 ]; then echo "qwen-job: waiting for the nodes to save and exit" >&2; fi
    if [ "$seconds" -eq 10 ]; then find_bad "${running[@]}"; fi
    sleep 1
  done
  for rank in "${!chosen[@]}"; do
    if [ "$code" -eq 0 ] || ! read -r node_code _ 2> /dev/null < "$run/launch/exit.$rdzv_id.$rank"; then continue; fi
    case $code:$node_code in
      *:0 | *:1 | *:143) ;;
      12[89]:* | 143:* | 255:*) code=$node_code ;;
      1??:* | 2??:*) if [ "$node_code" -lt 128 ]; then code=$node_code; fi ;;
    esac
  done
  failure="failed (exit code $code)"
  sleep 1 # for the tail of the log
  kill "$tail_pid" 2> /dev/null
}

round=0
failure=
attempt
# Nothing ran: it is not the code of a node.
if [ "$failure" = "cannot be reached" ]; then code=5; fi
if [ "$code" -ne 0 ]; then exit "$code"; fi
if [ -n "$stopping" ]; then exit 160; fi
trap - TERM INT HUP

# DeepSpeed's own launcher: it reads the hostfile and .deepspeed_env, and reaches the hosts through pdsh.
cd -- "$run/launch" || exit 5
export PDSH_SSH_ARGS_APPEND='-p 2222'
# Its own ssh test ignores our options.
python3 -m deepspeed.launcher.runner --hostfile "$run/launch/hostfile" --launcher pdsh --no_ssh_check \
  --force_multi --master_addr "$master_addr" --master_port "$master_port" --no_local_rank \
  --module qwen_job.train --config "$run/train.yaml" &
runner=$!
# If a signal ended this shell, the runner, pdsh and the trainers would be left behind.
trap 'kill -s TERM "$runner" 2> /dev/null' TERM INT HUP
code=-1
while [ "$code" -lt 0 ] || kill -0 "$runner" 2> /dev/null; do
  wait "$runner"
  code=$?
done
trap - TERM INT HUP
# If pdsh itself is killed, deepspeed still exits with 0: only done.json proves that the run is complete.
[ -e "$run/done.json" ] && exit 0
[ "$code" -ne 0 ] || code=1
exit "$code"

"""What runs inside the image: train.yaml to checkpoints, metrics and a model folder that answers.

__main__          the entry of every rank;  read_settings, flags, flag_sections, deepspeed_config,
                  arguments: its settings
attempt           prepare, train, export;  failures, oom_advice: what ended it, and what to do
rendezvous        how ranks meet and wait for one another;  ranks: what they exchange
resume            the checkpoint and identity to resume from;  identity, settings_diff, universal
setup             builds the trainer;  modeling, kernels, attention, loss: the model and what is minimised
compiling         whether layers are compiled, and that before the first step;  kernel_cache: what is kept of it
trainer           the loop: one step from top to bottom, and its boundary
  batches, course   which rows a step has, on any number of ranks
  deepspeed_engine, gradients
                    DeepSpeed's engine, and what a run asks of it
  rate_schedule     the learning rate;  intervals: when to evaluate, save and report
  step_guard        judges losses, gradients and weights;  guards: when a loss is a jump, and how it is worded
  saver             checkpoints;  checkpoints: writing one;  run_state: what a run remembers
  reporters         what the trackers get;  trackers: opening and closing them;  runlog, flops: metrics.jsonl
watchdog          ends a run that hangs;  export: the model folder at the end
"""

import os

# transformers reads this on import: no code from a hub is run, whatever a model's folder asks for.
os.environ["USE_HUB_KERNELS"] = "NO"

"""What a GPU shows in twelve minutes: `make gpu-day`. It needs no network, resumes, and ends in time.

- ``__main__``: the command
- ``day``: tasks in order of priority under one deadline, and their results in one file
- ``tasks``: what is measured, and how long each may take
- ``product``: runs of a job through its own plan; ``observed``: the trainer with a profiler and a memory gauge
- ``stock``: stock Trainer + Liger, and the way of finetune.py, on the same rows
- ``workbench``: the trainer without a run; ``peaks`` and ``variants`` measure with it
- ``kernels``: attention, the loss and the layers alone; ``machine``: the device's ceilings; ``worker``: runs these four
- ``fit``: the plan's memory constants from measured peaks
- ``trace``: what a profile says in a table; ``tables``: all results as Markdown
- ``wheels``: what a machine without a network has to be given
"""

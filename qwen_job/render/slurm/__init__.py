"""Target slurm: one self-contained sbatch script. In reading order:

- ``script``: the script of a job
- ``gpus``, ``resources``, ``conflicts``: its options, held against the plan and each other
- ``array``: sweeps and chains
- ``evaluate``: the follow-up job that measures the trained model
"""

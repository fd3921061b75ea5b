"""Target slurm: one self-contained sbatch script. In reading order:

- ``script``: the script of a job; ``context``: what its templates are given
- ``options``: the options of sbatch and srun, from ``gpus`` and ``resources``; ``conflicts``: what contradicts them
- ``array``: sweeps and chains
- ``evaluate``: the follow-up job that evaluates the trained model
"""

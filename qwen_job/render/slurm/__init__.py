"""Target slurm: one self-contained sbatch script. In reading order:

- ``script``: the script of a job; ``script_context``: what its templates are given
- ``sbatch_options``: the options of sbatch and srun, from ``gpu_request`` and ``cpus_and_memory``
- ``conflicts``: what contradicts them
- ``array``: sweeps and chains
- ``evaluate``: the follow-up job that evaluates the trained model
"""

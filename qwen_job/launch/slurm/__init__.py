"""Slurm: sbatch, squeue, sacct and scancel. In reading order:

- ``environment``: what Slurm's tools get of the user's environment
- ``backend``: submit, status, logs and cancel
- ``entries``, ``accounting``, ``log``: the queue, finished jobs and log files
- ``refusal``: why sbatch refused a job
- ``survey``, ``doctor``: what a cluster says of itself, and the site profile that follows
"""

"""Slurm: sbatch, squeue, sacct and scancel. In reading order:

- ``user_environment``: which of the user's variables reach Slurm's tools
- ``backend``: submit, status, logs and cancel
- ``entries``, ``log``: jobs of the queue and of accounting, and their log files
- ``refusal``: why sbatch refused a job
- ``survey``, ``doctor``: what a cluster reports about itself, and the site profile that follows
"""

"""Faults on a real Slurm cluster: after each, the job completes with the weights of an undisturbed run (make chaos)."""

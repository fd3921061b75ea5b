"""What users do, from end to end, with nothing replaced: real training, real Slurm, real ssh."""

"""The tests; they mirror qwen_job/, and slurmlab/ is a Slurm cluster to try things on."""

.PHONY: golden

golden: setup-test ## write the committed schemas, slurm/*.sbatch and golden files anew
	@$(BIN)/python scripts/golden.py

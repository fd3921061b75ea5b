# Faults on a real cluster; included by the Makefile. Not part of `make test`.
.PHONY: chaos
chaos: setup-test system ## break a real Slurm cluster in twelve ways; every job must complete, bit for bit (half an hour)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/chaos -m chaos -p no:cacheprovider $(PYTEST_ARGS)
	@$(if $(PYTEST_ARGS),,$(BIN)/python benchmarks/bench_faults.py faults)

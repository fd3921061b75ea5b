# Stock vLLM on a CPU; included by the Makefile. Not part of `make test`. VLLM_PYTHON: an environment with a vLLM of your own.
# TORCH_INDEX_URL: the package index of torch's CPU build, where pip's own does not hold it.
VLLM_PYTHON ?=
.PHONY: test-vllm

test-vllm: setup-test $(if $(VLLM_PYTHON),,.venv-vllm/installed) ## serve saved models with stock vLLM on this CPU: same tokens, stops, limits (8 minutes)
	@VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest tests/serving -m vllm $(PYTEST_ARGS)

.venv-vllm/installed: tests/serving/requirements.txt
	@echo "== Installing vLLM into .venv-vllm: 3 GB, some minutes, once ..." >&2
	@$(BIN)/python -m venv --clear .venv-vllm
	@.venv-vllm/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
	  $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --requirement $<
	@touch $@

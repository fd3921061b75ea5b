# What needs a GPU; included by the Makefile. Not part of `make test`. PYTHON: an environment that has a CUDA torch.
PYTHON ?= python3
.PHONY: test-gpu bench-gpu

test-gpu: ## on a machine with a GPU: kernels, training in bf16 and fp16, faults, what fits (5 minutes)
	@$(PYTHON) -m pytest tests/gpu -m gpu -p no:cacheprovider $(PYTEST_ARGS)

bench-gpu: ## on a machine with a GPU: speed, memory and checkpoint pauses of Qwen-1.8B beside stock ways (15 minutes)
	@$(PYTHON) benchmarks/bench_kernels.py
	@$(PYTHON) benchmarks/bench_train_speed.py
	@$(PYTHON) benchmarks/bench_checkpoint_pause.py
	@$(PYTHON) benchmarks/bench_train_memory.py
	@$(PYTHON) benchmarks/bench_memory.py --gpu

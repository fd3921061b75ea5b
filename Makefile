# Every command sets up its own environment the first time; `make help` lists them.
#   PYTEST_ARGS="tests/job -x"   more words for pytest         PYTHON=3.14   the interpreter (uv downloads a version)
#   SET=cpu|ampere|cuda12|v100   the image's set               TIMES=20      how many times the inputs of `make test`
#   DAY_ARGS="--only tests"      more words for gpu-day (--help lists them)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

RUN := PATH="$(CURDIR)/.venv/bin:$$PATH"
GPU_PYTHON = $(or $(PYTHON),python3)
PYTEST_ARGS ?=
DAY_ARGS ?=
SET ?= ampere
IMAGE ?= localhost/qwen-job:$(SET)
TIMES ?= 20
TARGETS := $(shell sed -n 's/^\([a-z -]*\):.*/\1/p' Makefile)
.PHONY: $(TARGETS)

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'
run test-tools site-tools system: # the environments that the other commands need
	@scripts/setup.sh $(subst -tools,,$@)
demo: run ## fine-tune a tiny chat model here, with two processes, and talk to it (3 minutes)
	@$(RUN) scripts/demo.sh
check: ## no torch: style, types, and every test that needs neither root nor the training stack (2 minutes)
	@scripts/check.sh $(PYTEST_ARGS)
test: ## everything: style, types, all tests, image-test
	@$(MAKE) -j4 test-tools site-tools system lint
	@$(RUN) scripts/test.sh $(PYTEST_ARGS)
lint: test-tools ## style and types only
	@scripts/lint.sh .venv
fuzz: test-tools ## hostile inputs, TIMES as many as in `make test`, new ones each time (half an hour)
	@FUZZ_TIMES=$(TIMES) .venv/bin/python -m pytest tests/fuzz -p no:cacheprovider --timeout=7200 $(PYTEST_ARGS)
chaos: test-tools system ## break a real Slurm cluster in 29 ways; every job must complete, bit for bit (40 minutes)
	@$(RUN) .venv/bin/python -m pytest tests/chaos -m chaos -p no:cacheprovider $(PYTEST_ARGS)
	@$(if $(PYTEST_ARGS),,.venv/bin/python benchmarks/bench_faults.py faults)
golden: test-tools ## rewrite the committed schemas, slurm/*.sbatch and golden files
	@.venv/bin/python scripts/golden.py
bench: test-tools ## measure the launcher against its peers
	@for name in cli scale kubernetes; do .venv/bin/python benchmarks/bench_$$name.py || exit; done
gpu-day: ## on a machine with a GPU: tests, speed beside stock ways, saves, memory, a profile; resumes (12 minutes)
	@$(GPU_PYTHON) -m benchmarks.gpu_day $(DAY_ARGS)
gpu-wheels: run ## before that, for a machine with torch but no network: pack what it lacks into .gpu-wheels
	@.venv/bin/python -m benchmarks.gpu_day --pack $(DAY_ARGS)
test-trackers: ## train with wandb, swanlab and mlflow, offline, and read back what they logged (2 minutes)
	@scripts/setup.sh trackers
	@.venv-trackers/bin/python -m pytest tests/trackers -m trackers -p no:cacheprovider $(PYTEST_ARGS)
test-vllm: test-tools ## serve saved models with stock vLLM on this CPU, or with VLLM_PYTHON's (half an hour)
	@[ -n "$${VLLM_PYTHON:-}" ] || scripts/setup.sh vllm
	@.venv/bin/python -m pytest tests/serving -m vllm $(PYTEST_ARGS)
site: site-tools ## build the documentation site, both languages, into build/site (with build/media, if site-media made it)
	@.venv-site/bin/python scripts/site/build.py $(if $(wildcard build/media/demo.cast),--media build/media)
site-media: test-tools ## record the demo and take pictures of its report for the site (3 minutes, and a Chromium)
	@$(RUN) python scripts/site/media.py
image: ## build the training image (SET=, IMAGE=name:tag, WITH_COMPILER=0, PACKAGES="wandb", WARM=runs/mine)
	scripts/image/build $(SET) $(IMAGE)
image-test: ## build the CPU set and run the demo in it: any uid, read-only root, no network (minutes)
	scripts/image/test
image-lock: ## rewrite the image's locks: Python packages with hashes, Debian packages with versions
	scripts/image/lock
slurm-lab: system ## a shell in a real Slurm cluster of two nodes on this machine
	@python3 -m tests.slurmlab shell
clean: ## remove what these commands made, except runs/
	rm -rf .venv .venv-* .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* coverage.xml htmlcov build dist
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

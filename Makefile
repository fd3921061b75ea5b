# Every command does its own set-up; `make help` lists them.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# More words for pytest: make test PYTEST_ARGS="tests/job -x"
PYTEST_ARGS ?=
LAUNCHER := cli facts job plan render launch errors resources
TYPED := -p qwen_job -p tests.support -p tests.slurmlab -p tests.e2e -p tests.chaos -p tests.fuzz -p tests.conftest

.PHONY: help demo test lint bench slurm-lab clean setup-run setup-test system

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup-run:
	@scripts/setup.sh run

setup-test:
	@scripts/setup.sh test

system:
	@scripts/setup.sh system

demo: setup-run ## fine-tune a tiny chat model here, with two processes, and talk to it (3 minutes)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh

test: setup-test system lint ## lint, types, and all tests; ends with image-test
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest \
	  $(foreach part,$(LAUNCHER),--cov=qwen_job.$(part)) --cov-report= --durations=15 $(PYTEST_ARGS)
	@$(if $(PYTEST_ARGS),,scripts/coverage.sh)
	@$(if $(PYTEST_ARGS),,scripts/image/test)

lint: setup-test ## style and types only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict $(TYPED)
	@$(BIN)/shellcheck $$(git ls-files -co --exclude-standard '*.sh') .ci/run

bench: setup-test ## measure the launcher against its peers
	@$(BIN)/python benchmarks/bench_cli.py
	@$(BIN)/python benchmarks/bench_scale.py
	@$(BIN)/python benchmarks/bench_kubernetes.py

slurm-lab: system ## a shell in a real Slurm cluster of two nodes on this machine
	@python3 -m tests.slurmlab shell

clean: ## remove what the commands here made, except runs/
	rm -rf .venv .venv-* .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage coverage.xml htmlcov build dist
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

-include make/*.mk

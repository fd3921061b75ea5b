# The experiment trackers themselves; included by the Makefile. Not part of `make test`: they have an environment of their
# own, because they want older releases than the image has.
.PHONY: test-trackers

test-trackers: ## train with wandb, swanlab and mlflow, offline, and read back what they got (2 minutes)
	@scripts/setup.sh trackers
	@.venv-trackers/bin/python -m pytest tests/trackers -m trackers -p no:cacheprovider $(PYTEST_ARGS)

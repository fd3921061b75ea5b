# The training image; included by the Makefile. SET: cpu, ampere (A100, H100) or v100.
SET ?= ampere
IMAGE ?= localhost/qwen-job:$(SET)

.PHONY: image image-test image-lock
image: ## Build the training image (SET=cpu|ampere|v100, IMAGE=name:tag, WITH_COMPILER=1, PACKAGES="wandb")
	scripts/image/build $(SET) $(IMAGE)

image-test: ## Build the CPU set for real and run the demo in it: any uid, read-only root, no network (minutes)
	scripts/image/test

image-lock: ## Write the image's locks anew: Python packages with hashes, Debian packages with versions
	scripts/image/lock


"""What runs inside the image: train.yaml to checkpoints, metrics and a model folder that answers."""

import os

# Read when transformers is imported: code from a hub takes no part in a run, whatever a model's folder asks for.
os.environ["USE_HUB_KERNELS"] = "NO"

"""What runs inside the image: train.yaml to checkpoints, metrics and a model folder that answers."""

import os

# transformers reads this on import: no code from a hub is run, whatever a model's folder asks for.
os.environ["USE_HUB_KERNELS"] = "NO"

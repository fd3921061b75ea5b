"""A trained model answers: chat, evaluation. In reading order:

- ``source``: which model RUN_OR_MODEL means, and how it is sampled
- ``answer``: loading for inference, and decoding
- ``chat``, ``evaluate``: the two commands;  ``columns``: answers side by side
"""

import os

# transformers reads this on import: no code from a hub is run, whatever a model's folder asks for.
os.environ["USE_HUB_KERNELS"] = "NO"

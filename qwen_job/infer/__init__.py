"""Let a trained model answer. In reading order:

- ``source``: which model RUN_OR_MODEL means, and its sampling settings
- ``answer``: load a model for inference, and decode
- ``chat``, ``evaluate``: the two commands; ``columns``: texts side by side
- ``suite``, ``harness``: benchmark tasks, and lm-eval called for them; ``comparing``, ``benchmark``: before and after
"""

import os

# transformers reads this on import: no code from a hub is run, whatever a model's folder asks for.
os.environ["USE_HUB_KERNELS"] = "NO"

"""A trained model answers: chat, evaluation. In reading order:

- ``source``: which model RUN_OR_MODEL means, and how it is sampled
- ``answer``: loading for inference, and decoding
- ``chat``, ``evaluate``: the two commands;  ``columns``: answers side by side
"""

# Sets what transformers reads when it is imported.
import qwen_job.train  # noqa: F401

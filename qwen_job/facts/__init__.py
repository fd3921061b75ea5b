"""Facts about hardware, models, libraries and image sets: data files, and the modules that read them.

In reading order:

- ``gpus/ models/ deepspeed/ train/ image/``: one fact per file; to add a GPU or model, add a file
- ``lookup``: finds the file for a name; ``hardware``: GPUs; ``model_shapes``: models
- ``config_fields``, ``weights``: what each field of a config.json means, and the weights that follow from it
- ``model_files``: reading the files of a model folder
- ``model_names``: how a model is named; ``untrained``: official models that cannot be trained
- ``train_settings``: the settings allowed under ``train``
- ``compiling``: when layers are compiled by default
- ``released``: the release that this copy is, and its images
- ``deepspeed_keys``: the keys of DeepSpeed's JSON
"""

from __future__ import annotations

from pathlib import Path

# Not importlib.resources: it gives the same path, and importing it costs 5 ms of start-up.
_FOLDER = Path(__file__).parent


def fact(*parts: str) -> Path:
    """Return the path of a data file or folder of facts, e.g. ``fact("gpus", "a100-80g.yaml")``."""
    return _FOLDER.joinpath(*parts)

"""Loads a native model folder with transformers: nothing is fetched, and no code of the folder is run.

The class comes from our own table and the config from the fields that describe the model (``native_config``); weights
are safetensors. Nothing else in config.json is read: no kernel of a hub, no custom class, no adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qwen_job.errors import ModelError
from qwen_job.facts.families import family_of
from qwen_job.facts.model_files import read_text_config
from qwen_job.facts.weights import expected_shapes
from qwen_job.models.config_json import check_config, native_config
from qwen_job.models.generation import exported
from qwen_job.models.linear_attention import choose_by_device

# transformers computes the experts of a layer in one grouped product; where torch's kernel cannot (GPUs below compute
# capability 8.0, or torch 2.8 on a CPU), it falls back to a loop over the experts by itself.
EXPERTS = "grouped_mm"


def load_native(
    folder: Path,
    dtype: torch.dtype | str,
    attention: str,
    config: Mapping[str, object] | None = None,
    device: torch.device | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Return the model and transformers' report of missing, unexpected and mismatched weights.

    Weights of ``dtype`` stay mapped from the files until they are changed or moved, so that all processes of a node
    share one copy. Others are converted: on ``device``, if one is given.

    Args:
        folder: a native folder; Qwen-1 and .bin folders are converted first.
        dtype: of the loaded weights, or ``auto`` for their own.
        attention: a kernel's name as transformers knows it: never left to the folder.
        device: where the weights go, one tensor at a time; None: host memory.
        config: the text model's config in place of the folder's, such as with other positions.

    Raises:
        ModelError: config.json is wrong, or transformers cannot load the weights.
    """
    import transformers

    config = read_text_config(folder) if config is None else config
    model_class, built = _class_and_config(folder, config)
    try:
        loaded: tuple[Any, dict[str, Any]] = model_class.from_pretrained(
            str(folder),
            config=built,
            dtype=dtype,
            attn_implementation=attention,
            **({"device_map": {"": device}} if device is not None else {}),
            **({"experts_implementation": EXPERTS} if family_of(config).experts else {}),
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            # The folder's own may be one that transformers refuses.
            generation_config=transformers.GenerationConfig(**exported(folder).values),
        )
    # No RuntimeError: that is a fault of the GPU or the network, not of the folder.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {_reason(error)}") from error
    return loaded


def build_native(folder: Path, dtype: torch.dtype, attention: str, config: Mapping[str, object]) -> Any:
    """Return the model of :func:`load_native` without its weights, for a checkpoint that has them all.

    No file of weights is opened. Parameters are not initialized, and each process has its own; buffers, which no
    checkpoint has, are computed as when a folder is loaded.

    Raises:
        ModelError: config.json is wrong.
    """
    from transformers import GenerationConfig
    from transformers.initialization import no_init_weights
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.monkey_patching import patch_output_recorders
    from transformers.utils.generic import ContextManagers

    model_class, built = _class_and_config(folder, config)
    built.name_or_path = str(folder)
    kernels = {"attn_implementation": attention}
    if family_of(config).experts:
        kernels["experts_implementation"] = EXPERTS
    if is_deepspeed_zero3_enabled():
        built.dtype = dtype
        for name, value in kernels.items():
            setattr(built, f"_{name}", value)
        # _from_config would gather every module's weights to initialize them.
        with ContextManagers(model_class.get_init_context(dtype, False, False, None)):
            model = model_class(built)
            patch_output_recorders(model)
    else:
        with no_init_weights():
            model = model_class._from_config(built, dtype=dtype, **kernels)
    model.tie_weights()
    model.generation_config = GenerationConfig(**exported(folder).values)
    return model.eval()


def _class_and_config(folder: Path, config: Mapping[str, object]) -> tuple[Any, Any]:
    import transformers

    expected_shapes(config)  # refuses every other model_type
    check_config(config)
    model_class = getattr(transformers, family_of(config).architecture)
    choose_by_device(sys.modules[model_class.__module__])
    try:
        return model_class, model_class.config_class(**native_config(config))
    except Exception as error:  # its strict dataclasses raise their own kinds
        raise ModelError(f"{folder}: config.json: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

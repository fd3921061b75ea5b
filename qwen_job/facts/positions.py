"""How many positions a model was trained with, and YaRN for more of them, as Qwen's model cards have it.

The cards of Qwen2.5 and Qwen3 add ``rope_scaling: {rope_type: yarn, factor: 4.0, original_max_position_embeddings:
32768}`` to config.json for texts of up to 131,072 tokens, and leave everything else in it
(https://huggingface.co/Qwen/Qwen3-8B#processing-long-texts). The method: https://arxiv.org/abs/2309.00071.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from qwen_job.errors import ModelError

# Qwen3's max_position_embeddings is 32,768 for the answer and 8,192 for the prompt; its cards scale the first number.
_QWEN3, _QWEN3_TRAINED = 40_960, 32_768
_NAMES = ("rope_parameters", "rope_scaling")


def base_length(config_length: int) -> int:
    """Return the positions to scale for a model whose config has this max_position_embeddings."""
    return _QWEN3_TRAINED if config_length == _QWEN3 else config_length


def own_length(config: Mapping[str, object]) -> int | None:
    """Return the positions up to which a model with this config is meant to be used; None: it does not say."""
    length = config.get("max_position_embeddings")
    rope = _rope(config)
    base, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "yarn" and isinstance(factor, (int, float)):
        scaled = round((base if isinstance(base, int) else length if isinstance(length, int) else 0) * factor)
        return max(scaled, length) if isinstance(length, int) else scaled
    return length if isinstance(length, int) else None


def factor_for(length: int, base: int) -> int:
    """Return the whole factor by which ``base`` positions reach ``length``."""
    return math.ceil(length / base)


def with_yarn(config: Mapping[str, object], factor: float, original: int | None, where: str) -> dict[str, object]:
    """Return a config with YaRN by ``factor`` of ``original`` positions (default: the model's own).

    Raises:
        ModelError: the model already has another scaling; ``where`` is the file that the error names.
    """
    length, rope = config.get("max_position_embeddings"), _rope(config)
    if original is None:
        original = base_length(length if isinstance(length, int) else 32_768)
    wanted = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and any(rope.get(name, kind) != value for name, value in wanted.items()):
        raise ModelError(f"model.rope_scaling: {where} already has {kind} with factor {rope.get('factor')}; remove "
                         "model.rope_scaling, or take the model without it")  # fmt: skip
    kept = {name: value for name, value in rope.items() if name not in ("type", *wanted)}
    if "rope_theta" in config:
        kept.setdefault("rope_theta", config["rope_theta"])
    others = {name: value for name, value in config.items() if name not in _NAMES}
    return {**others, "rope_parameters": {**kept, **wanted}}


def _rope(config: Mapping[str, object]) -> Mapping[str, object]:
    for name in _NAMES:
        value = config.get(name)
        if isinstance(value, Mapping) and value:
            return value
    return {}

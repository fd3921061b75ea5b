"""The table of model families: which ``model_type`` of a config.json is trained, and as what.

- ``FAMILIES``: one row for each ``model_type``; ``family_of``: the row of a config, or a refusal that names the others
- ``text_config``: the part of a config that describes the text model, also of a vision-language folder
- ``layer_kinds``: the kind of every layer

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_job.errors import ModelError

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


class Family(NamedTuple):
    """What a ``model_type`` stands for.

    ``names``: as users know it; ``text_type``: the ``model_type`` of the text model, which is the part that is trained;
    ``architecture``: the class of transformers for it; ``whole``: the class of a folder that holds more than the text
    model; ``layers``: the kinds of layers that it may have; ``experts``: feed-forward layers are mixtures of experts.
    """

    names: str
    text_type: str
    architecture: str
    layers: tuple[str, ...] = (FULL, SLIDING)
    experts: bool = False
    whole: str | None = None

    @property
    def is_hybrid(self) -> bool:
        """Whether most layers are linear attention, which carries a state from token to token.

        Their RMSNorms multiply by 1 + weight, but for the one inside a linear layer.
        """
        return LINEAR in self.layers

    @property
    def classes(self) -> tuple[str, ...]:
        """The ``architectures`` that a folder of this ``model_type`` may name."""
        return (self.architecture, *([self.whole] if self.whole else []))


_HYBRID = (LINEAR, FULL)
_DENSE_35 = Family("Qwen3.5, 3.6 and 3.8", "qwen3_5_text", "Qwen3_5ForCausalLM", _HYBRID)
_MOE_35 = Family("Qwen3.5 and 3.6 MoE", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", _HYBRID, experts=True)
FAMILIES: dict[str, Family] = {
    "qwen2": Family("Qwen1.5, 2 and 2.5", "qwen2", "Qwen2ForCausalLM"),
    "qwen3": Family("Qwen3", "qwen3", "Qwen3ForCausalLM"),
    "qwen2_moe": Family("Qwen1.5 and 2 MoE", "qwen2_moe", "Qwen2MoeForCausalLM", (FULL,), experts=True),
    "qwen3_moe": Family("Qwen3 MoE", "qwen3_moe", "Qwen3MoeForCausalLM", (FULL,), experts=True),
    "qwen3_5": _DENSE_35._replace(whole="Qwen3_5ForConditionalGeneration"),
    "qwen3_5_text": _DENSE_35,
    "qwen3_5_moe": _MOE_35._replace(whole="Qwen3_5MoeForConditionalGeneration"),
    "qwen3_5_moe_text": _MOE_35,
}
# Types that users will try, and what they are.
_KNOWN_OTHERS = {
    "qwen4_exp": "Qwen3.8-Flash-Next, with n-gram embeddings, hyper-connections and sparse attention",
    "qwen4_exp_text": "Qwen3.8-Flash-Next, with n-gram embeddings, hyper-connections and sparse attention",
    "qwen3_next": "Qwen3-Next",
    "qwen2_vl": "a vision-language model",
    "qwen2_5_vl": "a vision-language model",
    "qwen3_vl": "a vision-language model",
    "qwen3_vl_moe": "a vision-language model",
}


def supported() -> str:
    """Return the families that are trained, for an error message: names, each with its ``model_type``."""
    rows = [f"{family.names} ({kind})" for kind, family in FAMILIES.items() if kind == family.text_type]
    return f"Qwen-1 (qwen), {', '.join(rows[:-1])} or {rows[-1]}"


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json.

    Raises:
        ModelError: its ``model_type`` is not in the table; names what is.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        text = repr(kind)
        what = f" ({_KNOWN_OTHERS[kind]})" if isinstance(kind, str) and kind in _KNOWN_OTHERS else ""
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise ModelError(f"config.json: model_type: {shown}{what} is not supported; use {supported()}")
    return family


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the text model: of a vision-language folder its ``text_config``, else the config itself.

    Raises:
        ModelError: a vision-language config has no usable ``text_config``, or contradicts it.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or family.whole is None:
        return dict(config)
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise ModelError("config.json: text_config: is missing; use the config.json that came with the weights")
    if text.get("model_type", family.text_type) != family.text_type:
        raise ModelError(
            f"config.json: text_config.model_type: {text['model_type']!r} contradicts model_type "
            f"{config['model_type']!r}, which goes with {family.text_type!r}; correct one of them"
        )
    tied = [part["tie_word_embeddings"] for part in (config, text) if part.get("tie_word_embeddings") is not None]
    if len(tied) == 2 and tied[0] != tied[1]:
        raise ModelError(
            f"config.json: tie_word_embeddings: {tied[0]} contradicts text_config.tie_word_embeddings ({tied[1]}); "
            "correct one of them"
        )
    found = {**text, "model_type": family.text_type, "architectures": [family.architecture]}
    return {**found, **({"tie_word_embeddings": tied[0]} if tied else {})}


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """Return the kind of each layer of a text model's config, one of ``Family.layers`` each.

    Raises:
        ModelError: ``layer_types`` is not a list of known kinds, one for each layer.
    """
    family, count, listed = family_of(config), config.get("num_hidden_layers"), config.get("layer_types")
    number = count if isinstance(count, int) and not isinstance(count, bool) else 0
    if listed is None:
        if not family.is_hybrid:
            return [FULL] * number
        every = config.get("full_attention_interval", 4)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ModelError(f"config.json: full_attention_interval: expected a positive whole number, found {every!r}")
        return [LINEAR if (layer + 1) % every else FULL for layer in range(number)]
    if not isinstance(listed, list) or len(listed) != number:
        raise ModelError("config.json: layer_types: must name one kind for each of num_hidden_layers layers")
    if unknown := sorted({repr(kind)[:80] for kind in listed if kind not in family.layers}):
        raise ModelError(
            f"config.json: layer_types: {unknown[0]} is not offered; {family.names} has {' and '.join(family.layers)}"
        )
    return [str(kind) for kind in listed]

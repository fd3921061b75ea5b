"""The table of config.json fields: which ones change what a model computes, and how we treat each.

- ``HONOURED``: fields that transformers' native classes, our attention and our loss all support
- ``NEUTRAL``: fields that do not affect training
- ``FOREIGN``: fields of other architectures, which transformers' classes ignore; any but a neutral value is refused,
  because the model would be trained as a different one
- ``OF_HYBRIDS``, ``OF_EXPERTS``: fields that only models with linear attention have, and with experts
- ``refused_fields``: the problems of a config, for the plan, ``model check`` and training

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_job.errors import ModelError
from qwen_job.facts.families import FAMILIES, SLIDING, Family
from qwen_job.facts.weights import shown

HONOURED = frozenset(
    {
        "attention_bias", "attention_dropout", "head_dim", "hidden_act", "hidden_size", "intermediate_size",
        "layer_types", "max_position_embeddings", "max_window_layers", "model_type", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
        "sliding_window", "tie_word_embeddings", "use_sliding_window", "vocab_size",
    }
)  # fmt: skip
NEUTRAL = frozenset(
    {
        "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "dual_chunk_attention_config",
        "eos_token_id", "id2label", "initializer_range", "is_encoder_decoder", "label2id", "output_attentions",
        "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "torch_dtype", "transformers_version",
        "use_cache",
    }
)  # fmt: skip
OF_HYBRIDS = frozenset(
    {
        "attn_output_gate", "full_attention_interval", "linear_conv_kernel_dim", "linear_key_head_dim",
        "linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim", "mamba_ssm_dtype",
        "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "output_gate_type", "partial_rotary_factor",
    }
)  # fmt: skip
OF_EXPERTS = frozenset(
    {
        "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_experts",
        "num_experts_per_tok", "num_local_experts", "output_router_logits", "qkv_bias", "router_aux_loss_coef",
        "shared_expert_intermediate_size",
    }
)  # fmt: skip
# Field -> the values that transformers' classes with linear attention compute, in addition to null.
_FIXED_OF_HYBRIDS: dict[str, tuple[object, ...]] = {
    "attn_output_gate": (True,), "hidden_act": ("silu", "swish"), "mamba_ssm_dtype": ("float32",),
}  # fmt: skip
# Field -> values without effect, in addition to null.
FOREIGN: dict[str, tuple[object, ...]] = {
    # attention
    "attention_chunk_size": (), "attention_multiplier": (), "attention_scale": (1,), "attention_scaling": (1,),
    "attention_sink_size": (0,), "attn_logit_softcap": (0,), "attn_logit_softcapping": (0,), "attn_scale": (1,),
    "attn_temperature_tuning": (False, 0), "attn_logit_cap": (0,), "alibi": (False,), "clip_qkv": (),
    "layernorm_qk": (False,), "no_rope_layer_interval": (0,), "no_rope_layers": ([],), "qk_layernorm": (False,),
    "query_pre_attn_scalar": (), "softmax_scale": (), "use_alibi": (False,), "use_attention_sinks": (False,),
    "use_bidirectional_attention": (False,), "use_logn_attn": (False,), "use_dynamic_ntk": (False,),
    # logits and residuals
    "dim_model_base": (), "embedding_multiplier": (1,), "final_logit_scale": (1,), "final_logit_softcap": (0,),
    "final_logit_softcapping": (0,), "lm_head_multiplier": (1,), "logit_cap": (0,), "logit_scale": (1,),
    "logit_softcap": (0,), "logit_softcapping": (0,), "logits_scaling": (1,), "mup": (False,),
    "mup_width_multiplier": (1,), "output_multiplier": (1,), "residual_multiplier": (1,), "scale_depth": (),
    "scale_emb": (1,), "scale_embedding": (False,), "use_mup": (False,), "width_multiplier": (1,),
    # positions
    "partial_rotary_factor": (1,), "rope_interleave": (False,), "rope_interleaved": (False,),
    "rope_local_base_freq": (), "rotary_pct": (1,), "rotary_percent": (1,), "mrope_section": (),
    # layers
    "attn_dropout": (0,), "embd_dropout": (0,), "embd_pdrop": (0,), "emb_dropout_prob": (0,), "hidden_dropout": (0,),
    "hidden_dropout_prob": (0,), "mlp_bias": (False,), "mlp_dropout": (0,), "resid_pdrop": (0,),
    "residual_dropout": (0,), "num_experts": (0,), "num_local_experts": (0,), "n_routed_experts": (0,),
    "num_nextn_predict_layers": (0,), "parallel_residual": (False,), "use_parallel_residual": (False,),
    "cross_attention_layers": ([],), "num_kv_shared_layers": (0,),
}  # fmt: skip
# Qwen-1 fields that Qwen2ForCausalLM cannot represent: other values are refused.
FIXED_OF_QWEN1: dict[str, tuple[object, ...]] = {
    "emb_dropout_prob": (0.0,), "no_bias": (True,), "rotary_pct": (1.0,),
    "scale_attn_weights": (True,), "tie_word_embeddings": (False,),
}  # fmt: skip
_ROPES = ("default", "linear", "yarn", "llama3", "dynamic", "longrope")
# Types whose frequencies depend on the longest position, and the length up to which they do not.
_BY_LENGTH = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}


def refused_fields(config: Mapping[str, Any]) -> list[str]:
    """Return the unsupported fields of a text model's config, each as ``field: reason``.

    A ``model_type`` without a family is refused elsewhere.
    """
    if config.get("model_type") == "qwen":
        return [
            f"{key}: {shown(config[key])} has no equivalent in Qwen2ForCausalLM; use {allowed[0]!r}"
            for key, allowed in FIXED_OF_QWEN1.items()
            if config.get(key, allowed[0]) not in allowed
        ]
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return []
    return [*_foreign(config, family), *_windows(config, family), *_rope(config, family), *_attention(config)]


def check_fields(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config with unsupported fields; ``where`` is the file that the error names.

    Raises:
        ModelError: names every such field.
    """
    if refused := refused_fields(config):
        raise ModelError(f"{where}: {'; '.join(refused)}")


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Return the fields in none of the tables, which transformers and we ignore."""
    family = FAMILIES.get(str(config.get("model_type")))
    known = HONOURED | NEUTRAL | FOREIGN.keys() | (_of(family) if family else frozenset())
    return sorted(key for key in config if key not in known and not key.startswith("_"))


def longest_row(config: Mapping[str, Any]) -> int | None:
    """Return the row length up to which position encodings do not depend on the batch; None: any.

    Beyond it, the frequencies of ``dynamic`` and ``longrope`` depend on the longest position in the batch, so the loss
    of a conversation would depend on its neighbours.
    """
    rope = _parameters(config)
    key = _BY_LENGTH.get(str(rope.get("rope_type", rope.get("type", "default"))))
    if key is None:
        return None
    length = rope.get(key, config.get(key, config.get("max_position_embeddings")))
    return length if isinstance(length, int) else None


def too_long(length: int, longest: int) -> str:
    """Return the message about rows of ``length`` tokens, over the limit from :func:`longest_row`."""
    return (
        f"{length} tokens are more than the {longest} up to which this model's rope_scaling is the same in every "
        f"batch; write {longest} or less, or take rope_scaling yarn or linear"
    )


def dropout_of(config: Mapping[str, Any]) -> float:
    """Return the probability of dropping an attention weight; 0 by default."""
    value = config.get("attention_dropout", config.get("attn_dropout_prob")) or 0.0
    return float(value) if isinstance(value, (int, float)) else 0.0


def _of(family: Family) -> frozenset[str]:
    """Return the fields that a family has beside those of every model."""
    return (OF_HYBRIDS if family.is_hybrid else frozenset()) | (OF_EXPERTS if family.experts else frozenset())


def _foreign(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    kind = config["model_type"]
    for field, neutral in FOREIGN.items():
        value = config.get(field)
        if value is None or value in neutral or field in _of(family):
            continue
        yield f"{field}: {shown(value)} is not part of {kind}, which is trained without it; take another model"
    for field, values in _FIXED_OF_HYBRIDS.items() if family.is_hybrid else ():
        if (value := config.get(field)) is not None and value not in values:
            yield f"{field}: {shown(value)}: {kind} is trained with {values[0]!r}; take another model"
    # Qwen2 never normalizes queries and keys, later ones always do.
    norm = config.get("use_qk_norm", config.get("qk_norm"))
    if norm is not None and bool(norm) != (kind not in ("qwen2", "qwen2_moe")):
        yield f"use_qk_norm: {shown(norm)} contradicts model_type {kind}; correct one of them"


def _windows(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    layers, window = config.get("layer_types"), config.get("sliding_window")
    slides = bool(config.get("use_sliding_window", False))
    if slides and SLIDING not in family.layers:
        yield f"use_sliding_window: true is not part of {config['model_type']}; remove it, or take another model"
        return
    if slides and "sliding_window" in config and not _whole(window, 1):
        yield f"sliding_window: {shown(window)} with use_sliding_window: true; write the window in tokens"
    first = config.get("max_window_layers", 0)
    if slides and not _whole(first, 0):
        yield f"max_window_layers: {shown(first)}; write the number of the first layer with a window"
    if layers is None:
        return
    if not isinstance(layers, list) or len(layers) != config.get("num_hidden_layers"):
        yield "layer_types: must name one kind for each of num_hidden_layers layers"
        return
    for kind in sorted({str(kind) for kind in layers} - set(family.layers)):
        yield f"layer_types: {shown(kind)} is not offered; the kinds are {' and '.join(family.layers)}"
    if SLIDING in layers and not slides and SLIDING in family.layers:
        yield "layer_types: has sliding_attention, and use_sliding_window is not true; correct one of them"


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _rope(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is not None and not isinstance(value, Mapping):
            yield f"{key}: {shown(value)} must be a mapping"
            return
        if isinstance(value, Mapping) and any(isinstance(part, Mapping) for part in value.values()):
            yield f"{key}: has parameters for each kind of layer, which {config['model_type']} does not know"
            return
    yield from _two_ropes(config)
    rope = _parameters(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPES:
        yield f"rope_scaling: type {shown(kind)} is not offered; the types are {', '.join(_ROPES)}"
    if family.is_hybrid:
        # A text's three positions are equal, so that the sections make no difference.
        yield from _partial(config, rope)
        return
    if (part := rope.get("partial_rotary_factor")) not in (None, 1):
        yield f"rope_parameters.partial_rotary_factor: {shown(part)}: all dimensions are rotated"
    if rope.get("mrope_section") is not None:
        yield "rope_scaling.mrope_section: belongs to multimodal models; use a text model"


def _partial(config: Mapping[str, Any], rope: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the share of each head's dimensions that is rotated."""
    inner, outer = rope.get("partial_rotary_factor"), config.get("partial_rotary_factor")
    if None not in (inner, outer) and inner != outer:
        yield (
            f"partial_rotary_factor: {shown(outer)} contradicts rope_parameters.partial_rotary_factor "
            f"({shown(inner)}); correct one of them"
        )
    for value in (inner, outer):
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
        if value is not None and not right:
            yield f"rope_parameters.partial_rotary_factor: {shown(value)}; write a number above 0, 1 at most"


def _two_ropes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions between old and new names: transformers 4, 5 and servers differ in which they read."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    for name, other in (("rope_theta", config), ("rope_scaling.rope_theta", old)):
        base, theta = new.get("rope_theta"), other.get("rope_theta")
        if base is not None and theta is not None and theta != base:
            yield f"{name}: {shown(theta)} contradicts rope_parameters.rope_theta ({shown(base)}); correct one of them"
    if not (new and old):
        return
    ours, theirs = _without_names(new), _without_names(old)
    for key in sorted(ours.keys() | theirs.keys()):
        one, two = ours.get(key), theirs.get(key)
        # A missing trained length is filled in from the config.
        if one != two and not (key == "original_max_position_embeddings" and None in (one, two)):
            yield f"rope_scaling.{key}: {shown(two)} contradicts rope_parameters ({shown(one)}); correct one of them"


def _without_names(rope: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in rope.items() if key not in ("rope_theta", "type") and value is not None}
    return {**values, "rope_type": rope.get("rope_type", rope.get("type", "default"))}


def _attention(config: Mapping[str, Any]) -> Iterator[str]:
    if config["model_type"] == "qwen2" and config.get("attention_bias") is False:
        yield "attention_bias: false, and qwen2 always has biases on q, k and v; remove the field, or take qwen3"
    dropout = config.get("attention_dropout")
    if dropout is not None and (
        isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1
    ):
        yield f"attention_dropout: {shown(dropout)}; write a number from 0 to below 1"


def _parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config's settings for positions: rope_scaling (transformers 4) or rope_parameters (5)."""
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if isinstance(value, Mapping) and value:
            return value
    return {}

"""Names and shapes of every weight of a Qwen text model, from its config.json alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from qwen_job.errors import ModelError
from qwen_job.facts.expert_weights import SIZES, expert_shapes, has_experts, names_fused
from qwen_job.facts.families import LINEAR, Family, family_of, layer_kinds

Shapes = dict[str, tuple[int, ...]]

# Over ten times any published model: a config beyond that is damaged or hostile.
LIMITS = {
    "head_dim": 1 << 14,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "kv_channels": 1 << 14,
    "linear_conv_kernel_dim": 1 << 8,
    "linear_key_head_dim": 1 << 14,
    "linear_num_key_heads": 1 << 14,
    "linear_num_value_heads": 1 << 14,
    "linear_value_head_dim": 1 << 14,
    "max_position_embeddings": 1 << 31,
    "num_attention_heads": 1 << 14,
    "num_hidden_layers": 1 << 12,
    "num_key_value_heads": 1 << 14,
    "seq_length": 1 << 31,
    "vocab_size": 1 << 24,
    **SIZES,
}
QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
# How a folder that also holds a vision tower names the layers of its text model, and ours.
TEXT_PREFIX = ("model.language_model.", "model.")
# The names of what such a folder holds besides: neither is trained.
LEFT_OUT = {"model.visual.": "vision tower", "mtp.": "multi-token prediction"}


def size(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    """Return a positive whole number from a config, within its limit.

    Raises:
        ModelError: names the key.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {key}: expected a positive whole number, found {shown(value)}")
    if value > LIMITS.get(key, value):
        raise ModelError(f"config.json: {key}: {shown(value)} is more than any model has (at most {LIMITS[key]:,})")
    return value


def shown(value: object) -> str:
    """Return a JSON value for an error message, shortened if long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def expected_shapes(config: Mapping[str, object], names: Collection[str] = ()) -> Shapes:
    """Return {name: shape} of a text model's weights in files; ``config`` is that of the text model.

    ``names``: those in the files, where they exist: experts may be stored in two ways (expert_weights.py).

    Raises:
        ModelError: a model_type that is not trained, an unknown kind of layer, or an impossible size.
    """
    family = family_of(config)
    hidden, vocabulary = size(config, "hidden_size"), size(config, "vocab_size")
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    size(config, "num_hidden_layers")
    kinds = layer_kinds(config)
    blocks = {kind: _block(config, family, kind) for kind in dict.fromkeys(kinds)}
    experts = expert_shapes(config, size, fused=names_fused(config, names)) if family.experts else {}
    for layer, kind in enumerate(kinds):
        mixed = family.experts and has_experts(config, layer, size)
        inner = experts if mixed else _feed_forward(config)
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in blocks[kind].items()})
        shapes.update({f"model.layers.{layer}.mlp.{name}": shape for name, shape in inner.items()})
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def _block(config: Mapping[str, object], family: Family, kind: str) -> Shapes:
    """Return the shapes of one layer of a kind: norms, and attention or linear attention."""
    hidden = size(config, "hidden_size")
    mixer = _linear_attention(config) if kind == LINEAR else _attention(config, family)
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **mixer,
    }


def _feed_forward(config: Mapping[str, object]) -> Shapes:
    hidden, feed_forward = size(config, "hidden_size"), size(config, "intermediate_size")
    return {
        "gate_proj.weight": (feed_forward, hidden),
        "up_proj.weight": (feed_forward, hidden),
        "down_proj.weight": (hidden, feed_forward),
    }


def _attention(config: Mapping[str, object], family: Family) -> Shapes:
    qwen2, hidden = family.text_type in ("qwen2", "qwen2_moe"), size(config, "hidden_size")
    heads = size(config, "num_attention_heads")
    kv_heads = size(config, "num_key_value_heads", heads)
    by_width = qwen2 or family.text_type == "qwen3_moe"
    head = size(config, "head_dim", max(1, hidden // heads) if by_width else 256 if family.is_hybrid else 128)
    if heads % kv_heads or (qwen2 and hidden % heads):
        raise ModelError(f"config.json: {hidden} hidden, {heads} heads and {kv_heads} key-value heads do not divide")
    # A hybrid's queries come with a gate for each output.
    queries = heads * head * (2 if family.is_hybrid else 1)
    biased = config.get("attention_bias") or (qwen2 and not (family.experts and config.get("qkv_bias") is False))
    shapes: Shapes = {}
    for name, count in {"q_proj": queries, "k_proj": kv_heads * head, "v_proj": kv_heads * head}.items():
        shapes[f"self_attn.{name}.weight"] = (count, hidden)
        if biased:
            shapes[f"self_attn.{name}.bias"] = (count,)
    shapes["self_attn.o_proj.weight"] = (hidden, heads * head)
    if not qwen2:
        if config.get("attention_bias"):
            shapes["self_attn.o_proj.bias"] = (hidden,)
        shapes.update({"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)})
    return shapes


def _linear_attention(config: Mapping[str, object]) -> Shapes:
    """Return the shapes of a gated delta rule; its convolution goes over the channels of queries, keys and values."""
    hidden, heads = size(config, "hidden_size"), size(config, "linear_num_value_heads", 32)
    key_heads = size(config, "linear_num_key_heads", 16)
    if heads % key_heads:
        raise ModelError(
            f"config.json: linear_num_value_heads: {heads} is not a multiple of linear_num_key_heads ({key_heads})"
        )
    value_dim = size(config, "linear_value_head_dim", 128)
    keys, values = key_heads * size(config, "linear_key_head_dim", 128), heads * value_dim
    shapes: Shapes = {
        "dt_bias": (heads,),
        "A_log": (heads,),
        "conv1d.weight": (2 * keys + values, 1, size(config, "linear_conv_kernel_dim", 4)),
        "norm.weight": (value_dim,),
        "out_proj.weight": (hidden, values),
        "in_proj_qkv.weight": (2 * keys + values, hidden),
        "in_proj_z.weight": (values, hidden),
        "in_proj_b.weight": (heads, hidden),
        "in_proj_a.weight": (heads, hidden),
    }
    return {f"linear_attn.{name}": shape for name, shape in shapes.items()}


def count_parameters(shapes: Shapes) -> int:
    """Return the total number of weights."""
    total = 0
    for shape in shapes.values():
        product = 1
        for length in shape:
            product *= length
        total += product
    return total


def rope_theta(config: Mapping[str, object]) -> float:
    """Return the RoPE base, from ``rope_theta`` (transformers 4) or ``rope_parameters`` (5)."""
    parameters = config.get("rope_parameters")
    value = config.get("rope_theta", 10000.0)
    if isinstance(parameters, Mapping):
        value = cast("Mapping[str, object]", parameters).get("rope_theta", value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ModelError(f"config.json: rope_theta: expected a number, found {shown(value)}")
    return float(value)

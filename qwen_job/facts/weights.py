"""Names and shapes of every weight of a dense Qwen model, from its config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from qwen_job.errors import ModelError

Shapes = dict[str, tuple[int, ...]]

# Over ten times any published model: a config beyond that is damaged or hostile.
LIMITS = {
    "head_dim": 1 << 14,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "kv_channels": 1 << 14,
    "max_position_embeddings": 1 << 31,
    "num_attention_heads": 1 << 14,
    "num_hidden_layers": 1 << 12,
    "num_key_value_heads": 1 << 14,
    "seq_length": 1 << 31,
    "vocab_size": 1 << 24,
}
QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
NATIVE = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


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


def expected_shapes(config: Mapping[str, object]) -> Shapes:
    """Return {name: shape} of a Qwen2ForCausalLM or Qwen3ForCausalLM.

    Raises:
        ModelError: another model_type, or an impossible size.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in NATIVE:
        raise ModelError(
            f"config.json: model_type: {shown(kind)} is not supported; "
            "use Qwen-1 (qwen), Qwen1.5/2/2.5 (qwen2) or dense Qwen3 (qwen3)"
        )
    hidden, vocabulary = size(config, "hidden_size"), size(config, "vocab_size")
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    block = _block(config, qwen3=kind == "qwen3")
    for layer in range(size(config, "num_hidden_layers")):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in block.items()})
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def _block(config: Mapping[str, object], *, qwen3: bool) -> Shapes:
    hidden, feed_forward = size(config, "hidden_size"), size(config, "intermediate_size")
    heads = size(config, "num_attention_heads")
    kv_heads = size(config, "num_key_value_heads", heads)
    head = size(config, "head_dim", 128 if qwen3 else hidden // heads)
    if heads % kv_heads or (not qwen3 and hidden % heads):
        raise ModelError(f"config.json: {hidden} hidden, {heads} heads and {kv_heads} key-value heads do not divide")
    rows = {"q_proj": heads * head, "k_proj": kv_heads * head, "v_proj": kv_heads * head}
    shapes: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    for name, count in rows.items():
        shapes[f"self_attn.{name}.weight"] = (count, hidden)
        if not qwen3 or config.get("attention_bias"):
            shapes[f"self_attn.{name}.bias"] = (count,)
    shapes["self_attn.o_proj.weight"] = (hidden, heads * head)
    if qwen3:
        if config.get("attention_bias"):
            shapes["self_attn.o_proj.bias"] = (hidden,)
        shapes.update({"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)})
    shapes["mlp.gate_proj.weight"] = shapes["mlp.up_proj.weight"] = (feed_forward, hidden)
    shapes["mlp.down_proj.weight"] = (hidden, feed_forward)
    return shapes


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

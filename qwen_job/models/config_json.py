"""config.json of a Qwen text model: what each key may hold, and which keys are refused.

- ``check_config``: every value that transformers reads has the right type, so that a complete folder can be loaded
- ``native_config``: only the keys that describe the model. Others make transformers fetch or run something
  (``attn_implementation`` a kernel from a hub), or load other weights than those that were checked
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from qwen_job.errors import ModelError
from qwen_job.facts.expert_weights import named_as_on_hub
from qwen_job.facts.families import family_of, layer_kinds
from qwen_job.facts.weights import LIMITS, shown, size

# These change what is loaded, which would bypass every check of the folder.
_REFUSED = ("transformers_weights", "per_layer_config", "fusion_config", "distributed_config", "gguf_file")
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "quick_gelu")
_DTYPES = ("float64", "float32", "float16", "bfloat16")
# The keys that each kind of rotary scaling requires.
_ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_ROPE_WORDS = ("rope_type", "type", "truncate", "finetuned", "mrope_interleaved")


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[object], bool]:
    def right(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (low < value if above else low <= value) and value <= high

    return right


def _whole(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _one_of(names: tuple[str, ...]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in names


def _are_ids(value: object) -> bool:
    return all(type(number) is int for number in (value if isinstance(value, list) else [value]))


_POSITIVE = _number(0, 1e30, above=True)
# Key -> (what is expected, a test). Sizes are checked by shapes.size.
_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "attention_bias": ("true or false", _is_flag),
    "attention_dropout": ("a number from 0 to 1", _number(0, 1)),
    "attn_output_gate": ("true or false", _is_flag),
    "bos_token_id": ("an id", _are_ids),
    "dtype": (f"one of {', '.join(_DTYPES)}", _one_of(_DTYPES)),
    "eos_token_id": ("an id, or a list of them", _are_ids),
    "hidden_act": (f"one of {', '.join(_ACTIVATIONS)}", _one_of(_ACTIVATIONS)),
    "initializer_range": ("a number from 0", _number(0, 1e6)),
    "max_window_layers": ("a whole number", _whole(0, 1 << 31)),
    "norm_topk_prob": ("true or false", _is_flag),
    "output_router_logits": ("true or false", _is_flag),
    "pad_token_id": ("an id", _whole(-1, 1 << 31)),
    "partial_rotary_factor": ("a number above 0, 1 at most", _number(0, 1, above=True)),
    "qkv_bias": ("true or false", _is_flag),
    "rms_norm_eps": ("a number above 0", _POSITIVE),
    "rope_theta": ("a number above 0", _POSITIVE),
    "router_aux_loss_coef": ("a number from 0", _number(0, 1e6)),
    "sliding_window": ("a whole number", _whole(0, 1 << 31)),
    "tie_word_embeddings": ("true or false", _is_flag),
    "torch_dtype": (f"one of {', '.join(_DTYPES)}", _one_of(_DTYPES)),
    "use_cache": ("true or false", _is_flag),
    "use_sliding_window": ("true or false", _is_flag),
}
_STRUCTURED = (
    "architectures", "layer_types", "mlp_only_layers", "model_type", "rope_parameters", "rope_scaling",
    "transformers_version",
)  # fmt: skip
_SIZES = tuple(key for key in LIMITS if key not in ("kv_channels", "seq_length"))
_FLOATS = ("initializer_range", "rms_norm_eps", "rope_theta", "router_aux_loss_coef")


def check_config(config: Mapping[str, object]) -> None:
    """Check a native config beyond the sizes of its weights.

    Raises:
        ModelError: naming the key that is wrong.
    """
    for key in _REFUSED:
        if config.get(key) is not None:
            raise ModelError(f"config.json: {key}: is not supported; take a model without it")
    for key, (expected, right) in _KINDS.items():
        value = config.get(key)
        if value is not None and not right(value):
            raise ModelError(f"config.json: {key}: expected {expected}, found {shown(value)}")
    size(config, "max_position_embeddings", 32768)
    padding, vocabulary = config.get("pad_token_id"), size(config, "vocab_size")
    if isinstance(padding, int) and padding >= vocabulary:
        raise ModelError(f"config.json: pad_token_id: {padding} is not below vocab_size ({vocabulary})")
    layer_kinds(config)
    for key in ("rope_scaling", "rope_parameters"):
        _check_rope(key, config.get(key))


def _check_rope(key: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ModelError(f"config.json: {key}: expected names and numbers, found {shown(value)}")
    kind = value.get("rope_type", value.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE:
        raise ModelError(f"config.json: {key}: rope_type: expected one of {', '.join(_ROPE)}, found {shown(kind)}")
    for name in _ROPE[kind]:
        if name not in value:
            raise ModelError(f"config.json: {key}: {name}: is missing, which {kind} needs")
    for name, part in value.items():
        numbers = part if isinstance(part, list) else [part]
        lists = name in ("short_factor", "long_factor", "mrope_section")
        ok = name in _ROPE_WORDS or all(map(_POSITIVE, numbers))
        if (not ok and part is not None) or (isinstance(part, list) is not lists and part is not None):
            raise ModelError(f"config.json: {key}: {name}: expected a number above 0, found {shown(part)}")


def native_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return only the keys of a checked config that describe the model."""
    kept = {*_KINDS, *_STRUCTURED, *_SIZES} - {"attn_output_gate", "dtype", "torch_dtype", "transformers_version"}
    named = named_as_on_hub(config) if family_of(config).experts else config
    clean = {key: value for key, value in named.items() if key in kept and value is not None}
    if family_of(config).is_hybrid:
        clean["layer_types"] = layer_kinds(config)
    return {key: float(str(value)) if key in _FLOATS else value for key, value in clean.items()}

"""Qwen-1 checkpoints as Qwen2ForCausalLM, and back: the same bytes under other names.

| Qwen-1 (transformer.h.N)     | Qwen2ForCausalLM (model.layers.N)        |
|------------------------------|------------------------------------------|
| attn.c_attn, 3 x hidden rows | self_attn.q_proj, k_proj, v_proj: thirds |
| attn.c_proj                  | self_attn.o_proj                         |
| mlp.w1, w2, c_proj           | mlp.up_proj, gate_proj, down_proj        |
| ln_1, ln_2                   | input_layernorm, post_attention_layernorm|

Qwen-1's forward is w1(x) * silu(w2(x)): w2 is the gate. Both give equal results up to the trained length of 8192
tokens; beyond it the original scales positions and logits at inference (NTK, logn), which Qwen2ForCausalLM cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen_job.errors import ModelError
from qwen_job.facts.config_fields import refused_fields
from qwen_job.facts.weights import Shapes, rope_theta, size
from qwen_job.models.tensors import FLOATS, INDEX, NewTensor, Tensor, write_tensors
from qwen_job.storage import Notify, write_json

_GLOBAL = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER = {
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}
_THIRDS = ("q_proj", "k_proj", "v_proj")
# Tables that the remote code computes; some old checkpoints contain them.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_bias|bias|logn_tensor)$")


def qwen2_config(original: Mapping[str, object]) -> dict[str, object]:
    """Return the Qwen2ForCausalLM config of a Qwen-1 config.

    Raises:
        ModelError: naming what cannot be expressed.
    """
    if refused := refused_fields({**original, "model_type": "qwen"}):
        raise ModelError(f"config.json: {refused[0]}")
    hidden, heads = size(original, "hidden_size"), size(original, "num_attention_heads")
    if size(original, "kv_channels", hidden // heads) * heads != hidden:
        raise ModelError(f"config.json: kv_channels x num_attention_heads is not hidden_size ({hidden})")
    if size(original, "intermediate_size") % 2:
        raise ModelError("config.json: intermediate_size: must be even: Qwen-1 counts both halves of the gate")
    vocabulary = size(original, "vocab_size")
    first = 151643 if vocabulary >= 151851 else None
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": original.get("attn_dropout_prob", 0.0),
        "bos_token_id": first,
        "eos_token_id": first and first + 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": original.get("initializer_range", 0.02),
        "intermediate_size": size(original, "intermediate_size") // 2,
        "max_position_embeddings": size(original, "seq_length", size(original, "max_position_embeddings", 8192)),
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": size(original, "num_hidden_layers"),
        "num_key_value_heads": heads,
        "pad_token_id": first,
        "rms_norm_eps": original.get("layer_norm_epsilon", 1e-6),
        "rope_theta": rope_theta({"rope_theta": original.get("rotary_emb_base", 10000)}),
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }


def qwen1_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return the Qwen-1 config of a Qwen2ForCausalLM config.

    Raises:
        ModelError: naming what the old layout cannot express.
    """
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    for key, wrong in (
        ("num_key_value_heads", size(config, "num_key_value_heads", heads) != heads),
        ("tie_word_embeddings", bool(config.get("tie_word_embeddings", False))),
        ("use_sliding_window", bool(config.get("use_sliding_window"))),
        ("model_type", config.get("model_type") != "qwen2"),
        ("hidden_act", config.get("hidden_act", "silu") not in ("silu", "swish")),
        ("head_dim", size(config, "head_dim", hidden // heads) * heads != hidden),
        ("rope_theta", not rope_theta(config).is_integer()),
        ("rope_scaling", _is_scaled(config.get("rope_scaling"))),
        ("rope_parameters", _is_scaled(config.get("rope_parameters"))),
    ):
        if wrong:
            raise ModelError(f"config.json: {key}: {config.get(key)!r} cannot be written in Qwen-1's layout")
    length = size(config, "max_position_embeddings")
    code = ("AutoConfig", "configuration_qwen.QWenConfig"), ("AutoModelForCausalLM", "modeling_qwen.QWenLMHeadModel")
    return {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": dict(code),
        "attn_dropout_prob": config.get("attention_dropout", 0.0),
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": hidden,
        "intermediate_size": size(config, "intermediate_size") * 2,
        "initializer_range": config.get("initializer_range", 0.02),
        "kv_channels": hidden // heads,
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": length,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": heads,
        "num_hidden_layers": size(config, "num_hidden_layers"),
        "onnx_safe": None,
        "rotary_emb_base": int(rope_theta(config)),
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": length,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": size(config, "vocab_size"),
    }


def _is_scaled(rope: object) -> bool:
    return isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type", "default")) != "default"


def is_computed(name: str) -> bool:
    """Tell whether a checkpoint's tensor is a table that the model computes, not a weight."""
    return bool(_BUFFERS.search(name))


def to_qwen2(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (new name, rows) for a Qwen-1 tensor: one, or the thirds of c_attn."""
    if tensor.name in _GLOBAL:
        yield _GLOBAL[tensor.name], tensor
        return
    found = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", tensor.name)
    part = found.group(2) if found else ""
    if found and part in _LAYER:
        yield f"model.layers.{found.group(1)}.{_LAYER[part]}", tensor
    elif found and part in ("attn.c_attn.weight", "attn.c_attn.bias"):
        third, rest = divmod(tensor.shape[0] if tensor.shape else 1, 3)
        if rest or not third:
            raise ModelError(f"{tensor.path}: {tensor.name}: {tensor.shape} cannot be split into three equal parts")
        for index, name in enumerate(_THIRDS):
            kind = part.rpartition(".")[2]
            rows = tensor.rows(index * third, (index + 1) * third)
            yield f"model.layers.{found.group(1)}.self_attn.{name}.{kind}", rows
    else:
        raise ModelError(
            f"{tensor.path}: {tensor.name}: is not a weight of Qwen-1; does config.json belong to this checkpoint?"
        )


def to_qwen1(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield (Qwen-1 name, parts to stack) for the weights of a Qwen2ForCausalLM."""
    back = {new: old for old, new in _GLOBAL.items()}
    layer_back = {new: old for old, new in _LAYER.items()}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if name in back:
            yield back[name], [tensor]
        elif found and found.group(2) in layer_back:
            yield f"transformer.h.{found.group(1)}.{layer_back[found.group(2)]}", [tensor]
        elif found and ".q_proj." in name:
            kind = name.rpartition(".")[2]
            parts = [tensors[name.replace("q_proj", third)] for third in _THIRDS]
            yield f"transformer.h.{found.group(1)}.attn.c_attn.{kind}", parts


def stack(name: str, parts: list[Tensor]) -> NewTensor:
    """Return the tensor ``name`` of parts stacked along dimension 0; they must agree in type and width."""
    first = parts[0]
    if any(part.dtype != first.dtype or part.shape[1:] != first.shape[1:] for part in parts):
        raise ModelError(f"{first.path}: {name}: its parts differ in type or shape; save the model in one dtype")
    rows = sum(part.shape[0] for part in parts)
    return NewTensor(name, first.dtype, (rows, *first.shape[1:]), (piece for part in parts for piece in part.read()))


def assert_shapes(wanted: Shapes, found: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Check names and shapes against those of the config.

    Raises:
        ModelError: naming the first difference.
    """
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise ModelError(
                f"{folder}: {name}: config.json asks for {wanted.get(name, 'no such weight')}, "
                f"the checkpoint holds {found.get(name, 'none')}"
            )


def write_shards(groups: Mapping[str, list[NewTensor]], folder: Path, progress: Notify | None) -> None:
    """Write {shard name: tensors}, one piece of a tensor in memory at a time, and an index if there are several."""
    single = len(groups) == 1
    weight_map: dict[str, str] = {}
    total = 0
    for number, (shard, tensors) in enumerate(sorted(groups.items()), 1):
        name = "model.safetensors" if single else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        if progress:
            progress(f"converting {shard} ({number} of {len(groups)})")
        tensors.sort(key=lambda tensor: tensor.name)
        write_tensors(folder / name, tensors)
        total += sum(tensor.nbytes for tensor in tensors)
        weight_map.update({tensor.name: name for tensor in tensors})
    if not single:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def dtype_name(tensors: Mapping[str, Tensor]) -> str:
    """Return torch's name of the type of most bytes, e.g. ``bfloat16``; norms may have another type.

    Raises:
        ModelError: a type is not one of weights.
    """
    names = dict(zip(FLOATS, ("float64", "float32", "float16", "bfloat16"), strict=True))
    held: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.dtype not in names:
            raise ModelError(
                f"{tensor.path}: {tensor.name}: is {tensor.dtype}, expected one of {', '.join(FLOATS)} "
                "(quantized models are not supported)"
            )
        held[names[tensor.dtype]] = held.get(names[tensor.dtype], 0) + tensor.nbytes
    if not held:
        raise ModelError("the folder has no weights; fetch or copy them again")
    return max(held, key=lambda name: held[name])

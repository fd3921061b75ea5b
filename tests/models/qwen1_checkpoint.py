"""Writes a small random checkpoint in the layout of Qwen-1 with the safetensors library, not with ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

HIDDEN, HEADS, LAYERS, HALF, VOCABULARY = 16, 2, 2, 24, 151936

CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HALF,
    "initializer_range": 0.02,
    "kv_channels": HIDDEN // HEADS,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 8192,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": VOCABULARY,
}


def random_weights(hidden: int = HIDDEN) -> dict[str, numpy.ndarray[Any, Any]]:
    draw = numpy.random.default_rng(7)

    def normal(*shape: int) -> numpy.ndarray[Any, Any]:
        return draw.normal(0, 0.3, shape).astype(numpy.float32)

    weights = {"transformer.wte.weight": normal(VOCABULARY, hidden), "lm_head.weight": normal(VOCABULARY, hidden)}
    weights["transformer.ln_f.weight"] = 1 + normal(hidden)
    for layer in range(LAYERS):
        block = {
            "ln_1.weight": 1 + normal(hidden),
            "ln_2.weight": 1 + normal(hidden),
            "attn.c_attn.weight": normal(3 * hidden, hidden),
            "attn.c_attn.bias": normal(3 * hidden),
            "attn.c_proj.weight": normal(hidden, hidden),
            "mlp.w1.weight": normal(HALF, hidden),
            "mlp.w2.weight": normal(HALF, hidden),
            "mlp.c_proj.weight": normal(hidden, HALF),
        }
        weights.update({f"transformer.h.{layer}.{name}": value for name, value in block.items()})
    return weights


def write_qwen1(folder: Path, tiktoken: Path, hidden: int = HIDDEN) -> None:
    weights = random_weights(hidden)
    second = {name for name in weights if name.startswith(("lm_head", "transformer.ln_f", "transformer.h.1"))}
    weight_map = {name: f"model-0000{2 if name in second else 1}-of-00002.safetensors" for name in weights}
    for shard in set(weight_map.values()):
        part = {name: value for name, value in weights.items() if weight_map[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": hidden, "kv_channels": hidden // HEADS}))
    stop, limit = 151643, 77
    sampling = {"chat_format": "chatml", "eos_token_id": stop, "max_new_tokens": limit, "do_sample": True}
    sampling |= {"top_p": 0.8, "top_k": 0}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    (folder / "modeling_qwen.py").write_text("raise RuntimeError('remote code must never run')\n")
    shutil.copy(tiktoken, folder / "qwen.tiktoken")

"""Tiny random models of every family: configs for ``source: random``, and whole folders. No torch.

``TINY["qwen3_5_text"]`` is what a YAML file of a random model holds; ``write_folder`` writes the folder of one. Those
of the vision-language types are as the hubs have them: text weights under another prefix, beside a vision tower and a
multi-token prediction layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qwen_job.facts.families import FAMILIES
from qwen_job.models.random_init import write_random_model
from qwen_job.models.tensors import NewTensor, read_folder, write_tensors

# The model of tests.train.tiny.
MODEL = {
    "name": "tiny",
    "architecture": "Qwen2ForCausalLM",
    "source": "random",
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_SHARED: dict[str, Any] = {
    "source": "random",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.001}
_HYBRID = {
    "num_hidden_layers": 4,
    "head_dim": 24,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "attn_output_gate": True,
    "mamba_ssm_dtype": "float32",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [1, 1, 1],
    },
}


def _of(kind: str, **more: Any) -> dict[str, Any]:
    return {"name": f"tiny-{kind}", "architecture": FAMILIES[kind].architecture, "model_type": kind, **_SHARED, **more}


# model_type -> the values of a random model's YAML file.
TINY: dict[str, dict[str, Any]] = {
    "qwen2": _of("qwen2", num_hidden_layers=2, rope_theta=10000.0, use_sliding_window=False),
    "qwen3": _of("qwen3", num_hidden_layers=2, head_dim=16, rope_theta=10000.0, use_sliding_window=False),
    "qwen3_5_text": _of("qwen3_5_text", **_HYBRID),
    "qwen2_moe": _of(
        "qwen2_moe",
        num_hidden_layers=2,
        rope_theta=10000.0,
        decoder_sparse_step=1,
        mlp_only_layers=[0],
        norm_topk_prob=False,
        shared_expert_intermediate_size=32,
        **_EXPERTS,
    ),
    "qwen3_moe": _of(
        "qwen3_moe",
        num_hidden_layers=2,
        head_dim=16,
        rope_theta=10000.0,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        **_EXPERTS,
    ),
    "qwen3_5_moe_text": _of("qwen3_5_moe_text", shared_expert_intermediate_size=16, **_HYBRID, **_EXPERTS),
}


def write_folder(folder: Path, kind: str, texts: Sequence[str] = ("hello",), **changes: Any) -> Path:
    """Write a random model of a ``model_type`` in ``FAMILIES`` to a new folder; ``changes`` go to its text config."""
    family = FAMILIES[kind]
    values = {**TINY[family.text_type], **changes}
    facts = ("name", "architecture", "source")
    config = {key: value for key, value in values.items() if key not in facts}
    folder.mkdir(parents=True)
    write_random_model({"architectures": [family.architecture], **config}, texts, folder)
    if family.whole is not None:
        _widen(folder, kind, family.whole)
    return folder


def _widen(folder: Path, kind: str, architecture: str) -> None:
    """Turn a text model's folder into that of a vision-language model, its other parts random."""
    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del text["architectures"]
    config = {
        "architectures": [architecture],
        "model_type": kind,
        "image_token_id": 3,
        "text_config": {**text, "mtp_num_hidden_layers": 1},
        "tie_word_embeddings": text["tie_word_embeddings"],
        "vision_config": {"model_type": f"{kind}_vision", "depth": 1, "hidden_size": 8},
    }
    tensors = read_folder(folder).values()

    def renamed(name: str) -> str:
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name

    stored = [NewTensor(renamed(t.name), t.dtype, t.shape, [b"".join(t.read())]) for t in tensors]
    others: Iterable[str] = ("model.visual.blocks.0.norm1.weight", "model.visual.merger.norm.weight", "mtp.fc.weight")
    stored += [NewTensor(name, "F32", (8,), [bytes(32)]) for name in others]
    write_tensors(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

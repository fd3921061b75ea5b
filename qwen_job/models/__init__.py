"""Models as folders: download, convert, initialise, check, load. Only loading.py and legacy.py import torch.

spec.py       what train.yaml says about the model
resolve.py    spec -> a local folder that transformers loads without remote code
fetch.py      ModelScope, Hugging Face -> the shared cache, checked and repaired (hub.py speaks their protocols)
qwen1.py      Qwen-1 <-> Qwen2ForCausalLM, bit for bit
tokenizer.py  qwen.tiktoken -> a Qwen2 fast tokenizer
random_init.py random weights and a tokenizer trained on the job's data
tensors.py    safetensors files as raw bytes
loading.py    a native folder -> a model of transformers
generation.py what a trained model's generation_config.json says
legacy.py     pytorch_model.bin -> safetensors; no pickle is run
check.py      is this model folder complete? (config.py: its config.json; tokens.py: its tokenizer)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_job.models.resolve import ensure_model as ensure_model
    from qwen_job.models.spec import ModelSpec as ModelSpec

__all__ = ["ModelSpec", "ensure_model"]


def __getattr__(name: str) -> object:
    if name == "ModelSpec":
        from qwen_job.models.spec import ModelSpec

        return ModelSpec
    if name == "ensure_model":
        from qwen_job.models.resolve import ensure_model

        return ensure_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

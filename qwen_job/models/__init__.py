"""Models as folders: download, convert, initialise, check, load. Only loading and legacy import torch.

resolve         ModelSpec (qwen_job/run) -> a local folder that transformers loads without remote code
fetch           a hub's model -> the shared cache: one process, verified, repaired
random_init     random weights, and a tokenizer trained on the job's data
completeness    is this model folder complete? (config_json: its config.json; tokens: its tokenizer)
convert         Qwen-1 <-> Qwen2ForCausalLM, bit for bit: qwen1 (weights), tokenizer (qwen.tiktoken), legacy (pickles)
loading         a native folder -> a model of transformers
generation      what a trained model's generation_config.json says
tokenizer_files tokenizer.json and its companions for a ChatML model
tensors         safetensors files as raw bytes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_job.models.resolve import ensure_model as ensure_model

__all__ = ["ensure_model"]


def __getattr__(name: str) -> object:
    if name == "ensure_model":
        from qwen_job.models.resolve import ensure_model

        return ensure_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

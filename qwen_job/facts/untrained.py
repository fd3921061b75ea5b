"""Official models that cannot be trained, recognised by name before anything is downloaded, each with the reason."""

from __future__ import annotations

import re

_OWNERS = ("qwen", "deepseek-ai")
# Endings of quantized copies; what is before them is the full-precision model.
_QUANTIZED = r"-(awq|gptq-int[48]|gptq|int[48]|fp8(?:-block)?|nvfp4|mxfp4|gguf|mlx(?:-.+)?|[48]bit|bf16-mlx)$"
# Part of a name -> what the model is.
_KINDS = (
    (r"(^|-)(vl|qvq)(-|$)|-vl$", "a vision-language model"),
    (r"(^|-)(omni|audio|asr|tts|forcedaligner|captioner)(-|$)", "a model for speech or sound"),
    (r"(^|-)image(-|$)", "a model that makes images"),
    (r"(^|-)(embedding|reranker|gte)(-|$)", "a model for retrieval, which does not answer"),
    (r"-(rm|prm|prm800k|worldpm)(-|$)|^worldpm", "a reward model, which does not answer"),
    (r"-flash-next(-|$)", "of model_type qwen4_exp (n-gram embeddings, hyper-connections, sparse attention)"),
    (r"^qwen3-(coder-)?next(-|$)", "of model_type qwen3_next"),
    (r"^deepseek-r1-.*qwen", "a Qwen with another tokenizer, which has no <|im_start|>"),
)


def why_untrained(name: str) -> str:
    """Return why an official model cannot be trained, and what to use instead; empty for other names.

    Only names of the official owners, and names without an owner, are judged: anyone may call a text model Omni.
    """
    owner, _, stem = name.strip().rpartition("/")
    stem = stem.lower()
    if owner and owner.lower() not in _OWNERS:
        return ""
    if not re.match(r"(code)?qw|qvq|deepseek-r1-|gte-qwen|worldpm", stem):
        return ""
    for pattern, what in _KINDS:
        if re.search(pattern, stem):
            return f"{name}: is {what}, which cannot be trained; use a text model, e.g. Qwen/Qwen3-8B"
    if found := re.search(_QUANTIZED, stem):
        return f"{name}: is quantized; use the full-precision model, {name[: len(name) - len(found[0])]}"
    return ""

"""Check that the tokenizer fits the model beside it: an ID without an embedding row crashes a training on its GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_job.errors import ModelError
from qwen_job.facts.model_files import read_json


def tokenizer_size(content: Any) -> int:
    """Return the largest ID of a tokenizer.json plus one; 0 if it is not a tokenizer."""
    try:
        vocabulary = content["model"].get("vocab") or {}
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = [token["id"] for token in content.get("added_tokens") or []]
        return max(max(ids, default=-1), max(added, default=-1)) + 1
    except (AttributeError, KeyError, TypeError):
        return 0


def refuse_larger(folder: Path, size: int) -> None:
    """Refuse a tokenizer of ``size`` IDs that is larger than the embedding of the model in ``folder``.

    A folder without config.json has no model and passes.

    Raises:
        ModelError: it is larger.
    """
    path = folder / "config.json"
    rows = read_json(path).get("vocab_size") if path.is_file() else None
    if isinstance(rows, int) and not isinstance(rows, bool) and size > rows:
        raise ModelError(
            f"{folder}: config.json: vocab_size: is {rows}, and tokenizer.json has ids up to {size - 1}: the model has "
            "no embedding for them; enlarge it (resize_token_embeddings), or take the tokenizer of this model"
        )

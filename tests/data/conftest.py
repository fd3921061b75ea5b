"""Two tokenizers (a tiny one trained here, Qwen's own) and ways to write data files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.chatml import SPECIAL_TOKENS
from qwen_job.data.encode import ChatTokenizer
from qwen_job.models.random_init import train_tokenizer
from qwen_job.models.tokenizer import read_ranks, write_fast_tokenizer
from qwen_job.models.tokenizer_files import tokenizer_json
from qwen_job.resources import resource
from tests.models.conftest import qwen_tiktoken

__all__ = ["qwen_tiktoken"]


def conversation(*texts: str, system: str | None = None) -> dict[str, Any]:
    """Return a row of the reference format; user and assistant take turns."""
    turns = [{"from": "assistant" if n % 2 else "user", "value": text} for n, text in enumerate(texts)]
    return {"conversations": [*([{"from": "system", "value": system}] if system else []), *turns]}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 600 tokens; role names are several tokens in it and its control tokens have ids of their own."""
    folder = tmp_path_factory.mktemp("tiny")
    text = resource("configs", "data", "demo.json").read_text(encoding="utf-8")
    vocabulary, merges = train_tokenizer(text.split("\n"), 600)
    content = tokenizer_json(vocabulary, merges, SPECIAL_TOKENS)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def qwen(qwen_tiktoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen's own tokenizer."""
    folder = tmp_path_factory.mktemp("qwen")
    write_fast_tokenizer(read_ranks(qwen_tiktoken), folder, 8192)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> ChatTokenizer:
    """The tiny tokenizer, loaded."""
    return ChatTokenizer.load(tiny)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows as a JSON array, or as lines if the name ends in .jsonl."""

    def write(rows: list[Any], name: str = "rows.json") -> Path:
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if path.suffix == ".jsonl" else "[" + ",\n".join(lines) + "]"
        path.write_text(text, encoding="utf-8")
        return path

    return write

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
from tests.chat.cases import text_of
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


# The tokens that Qwen3's tokenizer has besides Qwen-1's; ``special`` as there.
_ADDED = {"<tool_call>": False, "</tool_call>": False, "<tool_response>": False, "</tool_response>": False,
          "<think>": False, "</think>": False, "<obs>": False}  # fmt: skip


def _with_templates(base: Path, root: Path) -> Callable[[str], Path]:
    content = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    kept = [token for token in content["added_tokens"] if token["content"] in SPECIAL_TOKENS]
    first = max(token["id"] for token in kept) + 1
    added = [{**kept[0], "id": first + n, "content": word, "special": special}
             for n, (word, special) in enumerate(_ADDED.items())]  # fmt: skip
    text = json.dumps({**content, "added_tokens": [*kept, *added]})

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            path.mkdir()
            (path / "tokenizer.json").write_text(text, encoding="utf-8")
            (path / "chat_template.jinja").write_text(text_of(name), encoding="utf-8")
        return path

    return folder


@pytest.fixture(scope="session")
def modern(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a template's name to a model folder with it and with a tokenizer as Qwen3 has it.

    ``<obs>`` is a token that a user added.
    """
    return _with_templates(qwen, tmp_path_factory.mktemp("modern"))


@pytest.fixture(scope="session")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same as ``modern`` with the tokens of the tiny tokenizer, which loads at once."""
    return _with_templates(tiny, tmp_path_factory.mktemp("small"))

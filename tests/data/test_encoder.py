"""The short cuts give exactly the tokenizer's own ids."""

from __future__ import annotations

import json
import sys
import unicodedata
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_job.data.chatml import ChatTokenizer
from qwen_job.data.encoder import FastTokenizer, load_encoder

SPACED = st.lists(
    st.sampled_from(["a", "It's", "don'T", " ", "  ", "\n", "\t ", "12", "中文", "，", "!!", "é", "。\n"])
)
SAMPLES = [
    "The quick brown fox. It's 2026, isn't IT? \n - a list\n - of  things\n\n\ttabs and   spaces ",
    "今天天气很好，我们去 West Lake 玩吧！共 123 元。",
    "e\u0301 \u1112\u1161\u11ab a\u0328\u0301",
    " leading",
    "trailing ",
    "",
]


@pytest.fixture(scope="module")
def pair(qwen: Path) -> tuple[ChatTokenizer, FastTokenizer]:
    """Qwen's tokenizer, plain and fast."""
    fast = load_encoder(qwen)
    assert isinstance(fast, FastTokenizer) and fast.uses_tiktoken
    return ChatTokenizer.load(qwen), fast


def _same(plain: ChatTokenizer, fast: FastTokenizer, texts: list[str]) -> None:
    assert fast.encode_packed(texts) == plain.encode_packed(texts)


@settings(max_examples=300)
@given(texts=st.lists(SPACED.map("".join) | SPACED.map(" ".join) | st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text(pair: tuple[ChatTokenizer, FastTokenizer], texts: list[str]) -> None:
    _same(*pair, texts)


def test_samples_without_tiktoken(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    fast = load_encoder(qwen)
    assert isinstance(fast, FastTokenizer) and not fast.uses_tiktoken
    _same(ChatTokenizer.load(qwen), fast, SAMPLES * 2)


def test_every_assigned_character_among_neighbours(pair: tuple[ChatTokenizer, FastTokenizer]) -> None:
    plane = [chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")]
    texts = []
    for start in range(0, len(plane), 64):
        some = plane[start : start + 64]
        texts.append(" ".join(f"a{char}b {char} 1{char}{char}," for char in some))
        texts.append("".join(f"x{char}中{char}\n" for char in some))
    _same(*pair, texts)


def test_a_wrong_short_cut_is_found_and_dropped(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fast = load_encoder(qwen)
    monkeypatch.setattr(fast, "_quick", lambda _text: array("i", [0]).tobytes())
    _same(ChatTokenizer.load(qwen), fast, SAMPLES)
    assert "the fast way differs" in caplog.text


def test_another_pattern_gets_no_short_cut(tiny: Path, tmp_path: Path) -> None:
    content = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    assert isinstance(load_encoder(tiny), FastTokenizer)
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\S+|\s+"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert type(load_encoder(tmp_path)) is ChatTokenizer

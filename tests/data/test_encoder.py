"""The short cuts give exactly the tokenizer's own ids."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_job.data import encoder
from qwen_job.data.characters import STABLE, HanCuts, character_classes
from qwen_job.data.encode import ChatTokenizer, Flat
from qwen_job.data.encoder import FastTokenizer, is_stable, load_encoder
from qwen_job.data.vocabulary import bytes_of, merged_by_rank

# How Qwen3.5's tokenizer splits text.
WITH_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPACED = st.lists(
    st.sampled_from(["a", "It's", "don'T", " ", "  ", "\n", "\t ", "12", "中文", "，", "!!", "é", "。\n"])
)
CHINESE = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5) | st.sampled_from(
    "的一是了我不人在他有这个上们来到时¾¼３ \n，"
)
SAMPLES = [
    "The quick brown fox. It's 2026, isn't IT? \n - a list\n - of  things\n\n\ttabs and   spaces ",
    "今天天气很好，我们去 West Lake 玩吧！共 123 元。",
    "e\u0301 \u1112\u1161\u11ab a\u0328\u0301",
    " leading",
    "trailing ",
    "",
]


@pytest.fixture(scope="module", params=["qwen", "qwen3_5"])
def folder(request: pytest.FixtureRequest, qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of Qwen's vocabulary, which splits text as Qwen to Qwen3 do or as Qwen3.5 does."""
    return qwen if request.param == "qwen" else _with_pattern(qwen, WITH_MARKS, tmp_path_factory.mktemp("qwen3_5"))


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[ChatTokenizer, FastTokenizer]:
    """Qwen's tokenizer, plain and fast."""
    fast = load_encoder(folder)
    assert isinstance(fast, FastTokenizer)
    return ChatTokenizer.load(folder), fast


def _with_pattern(qwen: Path, pattern: str, folder: Path) -> Path:
    content = json.loads((qwen / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _same(plain: ChatTokenizer, fast: FastTokenizer, texts: list[str]) -> None:
    for ours, theirs in zip(fast.encode_flat(texts), plain.encode_flat(texts), strict=True):
        assert np.array_equal(ours, theirs)


@settings(max_examples=300)
@given(texts=st.lists(SPACED.map("".join) | SPACED.map(" ".join) | st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text(pair: tuple[ChatTokenizer, FastTokenizer], texts: list[str]) -> None:
    _same(*pair, texts)


@settings(max_examples=300)
@given(texts=st.lists(st.text(CHINESE, max_size=40)))
def test_chinese_text_with_marks_in_it(pair: tuple[ChatTokenizer, FastTokenizer], texts: list[str]) -> None:
    _same(*pair, texts)


def test_every_pair_of_characters_that_a_token_joins(qwen: Path, pair: tuple[ChatTokenizer, FastTokenizer]) -> None:
    vocabulary = bytes_of(json.loads((qwen / "tokenizer.json").read_bytes())["model"]["vocab"])
    words = [word.decode(errors="ignore") for word in vocabulary if b"\xe4" <= word[:1] < b"\xea" and len(word) > 3]
    assert len(words) > 15000
    _same(*pair, [f"{one}{two}" for one, two in zip(words, reversed(words), strict=True)])


def test_nfc_changes_no_stable_character_alone_or_beside_another() -> None:
    stable = {chr(code) for code in np.flatnonzero(character_classes() & STABLE)}
    assert all(unicodedata.is_normalized("NFC", char) and not unicodedata.combining(char) for char in stable)
    canonical = (unicodedata.decomposition(chr(code)) for code in range(0x110000))
    seconds = {chr(int(parts.split()[1], 16)) for parts in canonical if parts.count(" ") == 1 and parts[0] != "<"}
    jamo = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    assert not stable & (seconds | jamo), "a character before one of these would change"


@pytest.mark.parametrize(
    "text", ["✅ Done", "⚠️ 注意", "① 第一步 ② 第二步", "🤖🤔🧠", "α ≤ β ∑ x₂ ℝ", "Tiếng Việt", "€5 ₹3", "مرحبا"]
)
def test_what_chats_are_full_of_is_encoded_fast(pair: tuple[ChatTokenizer, FastTokenizer], text: str) -> None:
    assert is_stable(text)
    _same(*pair, [text, text * 3, f"{text}\n{text}"])


def test_a_cut_is_never_made_inside_a_token() -> None:
    # A whole word, the end of one character with the next, and a character with the start of the next.
    words = ["机器学".encode(), "器学".encode()[2:], "学习".encode()[:-1]]
    text = "机器学习了，机学"
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    cuts = HanCuts(dict.fromkeys(words, 0)).find(codes, character_classes()[codes])
    assert [text[at - 1 : at + 1] for at in cuts] == ["习了", "机学"]


def test_without_gigatoken_the_tokenizer_itself_is_used(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    assert type(load_encoder(qwen)) is ChatTokenizer


def test_what_is_known_is_forgotten_when_it_grows(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_KNOWN_BYTES", -(1 << 50))
    fast = load_encoder(qwen)
    assert isinstance(fast, FastTokenizer)
    before = fast._native
    _same(ChatTokenizer.load(qwen), fast, SAMPLES)
    assert fast._native is not before


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
    wrong = Flat(np.zeros(len(SAMPLES), np.int32), np.ones(len(SAMPLES), np.int64))
    monkeypatch.setattr(fast, "_encode", lambda _texts: wrong)
    _same(ChatTokenizer.load(qwen), fast, SAMPLES)
    assert "the fast path differs" in caplog.text


def test_qwens_own_merges_are_known_to_follow_from_its_ids(qwen: Path) -> None:
    content = json.loads((qwen / "tokenizer.json").read_bytes())
    assert merged_by_rank(content)
    swapped = content["model"] | {"merges": content["model"]["merges"][::-1]}
    assert not merged_by_rank(content | {"model": swapped})
    renumbered = {token: number + 1 for token, number in content["model"]["vocab"].items()}
    assert not merged_by_rank(content | {"model": content["model"] | {"vocab": renumbered}})
    split_otherwise = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert not merged_by_rank(content | {"pre_tokenizer": split_otherwise})


def test_merges_in_another_order_are_taken_from_the_file(qwen: Path, tmp_path: Path) -> None:
    content = json.loads((qwen / "tokenizer.json").read_text(encoding="utf-8"))
    merges = content["model"]["merges"]
    content["model"]["merges"] = [*merges[100:], *merges[:100]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    plain, other = ChatTokenizer.load(tmp_path), ChatTokenizer.load(qwen)
    assert plain.encode("the merging") != other.encode("the merging")
    assert load_encoder(tmp_path).encode_flat(["the merging"]).ids.tolist() == plain.encode("the merging")


@pytest.mark.parametrize("vocab", [{"Ā": 0, "Ġa": 1, "½": 2}, {"a": 0, "<|end of turn|>": 1}, {}])
def test_the_bytes_of_a_vocabulary(vocab: dict[str, int]) -> None:
    expected = {"Ā": b"\0", "Ġa": b" a", "½": b"\xbd"}
    assert bytes_of(vocab) == ({expected[token]: number for token, number in vocab.items()} if "Ā" in vocab else {})


def test_another_pattern_gets_no_short_cut(qwen: Path, tiny: Path, tmp_path: Path) -> None:
    assert type(load_encoder(tiny)) is ChatTokenizer, "its vocabulary has no mark"
    assert type(load_encoder(_with_pattern(qwen, r"\S+|\s+", tmp_path))) is ChatTokenizer

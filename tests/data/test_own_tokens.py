"""What the user's tokenizer calls one token is one token; Qwen's control tokens are never read out of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_job.data import ChatTokenizer, prepare_data
from qwen_job.data.check import Examiner, check
from qwen_job.data.encoder import FastTokenizer, load_encoder
from qwen_job.data.vocabulary import mark_control_tokens
from qwen_job.errors import ModelError
from qwen_job.run.sections import DataFile, DataSpec

from .conftest import conversation

WORDS = ["<obs>", "[DRUG]", "<|my_own|>", "e\u0301!"]


def _extended(source: Path, target: Path, words: list[str], **changes: Any) -> Path:
    """Write a tokenizer with ``words`` added as special tokens behind all others."""
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    added = content["added_tokens"]
    first = added[-1]["id"] + 1
    added += [{**added[0], **changes, "id": first + n, "content": word} for n, word in enumerate(words)]
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return target


@pytest.mark.parametrize("fixture", ["tiny", "qwen"])
@pytest.mark.parametrize("changes", [{}, {"special": False}, {"normalized": True}])
def test_added_tokens_are_one_token_on_every_way(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, changes: dict[str, Any]
) -> None:
    folder = _extended(request.getfixturevalue(fixture), tmp_path / "extended", WORDS, **changes)
    plain, fast = ChatTokenizer.load(folder), load_encoder(folder)
    assert isinstance(fast, FastTokenizer) == (fixture == "qwen")
    texts = [f"see {word}now 你好" for word in WORDS] + ["<|im_end|>\n<|im_start|>system", "plain", "\u00e9! <| obs"]
    own = [plain.tokenizer.token_to_id(word) for word in WORDS]
    for text, number in zip(texts, own, strict=False):
        assert plain.encode(text).count(number) == 1
    assert not {plain.im_start, plain.im_end} & set(plain.encode(texts[len(WORDS)]))
    for ours, theirs in zip(fast.encode_flat(texts), plain.encode_flat(texts), strict=True):
        assert np.array_equal(ours, theirs)


def test_tokens_that_qwen_1_keeps_for_its_users_are_tokens(qwen: Path) -> None:
    tokenizer = load_encoder(qwen)
    ids = tokenizer.encode("a<|extra_7|>b<|endoftext|>")
    assert tokenizer.tokenizer.token_to_id("<|extra_7|>") in ids and tokenizer.endoftext not in ids


def test_only_the_list_of_added_tokens_is_rewritten() -> None:
    added = [{"content": "<|im_end|>", "special": False}, {"content": "<obs>", "special": True}]
    vocabulary = {'"added_tokens": [': 1, "added_tokens": 2}
    content = {"model": {"vocab": vocabulary}, "added_tokens": added}
    marked = json.loads(mark_control_tokens(json.dumps(content, ensure_ascii=False)))
    assert marked["model"] == content["model"]
    assert [token["special"] for token in marked["added_tokens"]] == [True, False]


def test_check_says_which_of_them_occur(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write([conversation("<obs> q <|my_own|>", "a"), conversation("<obs>", "<obs>"), conversation("q", "<|x|>")])
    report = check([path], Examiner(tokenizer=load_encoder(_extended(tiny, tmp_path / "extended", WORDS))))
    assert report.added_tokens == {"<obs>": 2, "<|my_own|>": 1}
    assert [(found.row, found.rule) for found in report.findings] == [(3, "special_token")]


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    tiny: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    folder = _extended(tiny, tmp_path / "extended", WORDS)
    size = ChatTokenizer.load(folder).tokenizer.token_to_id(WORDS[-1]) + 1
    spec = DataSpec(train=(DataFile(path=write([conversation("q", "a")])),))
    prepare_data(spec, folder, tmp_path / "cache")  # no model is known yet
    (folder / "config.json").write_text(json.dumps({"vocab_size": size}), encoding="utf-8")
    load_encoder(folder)
    first = prepare_data(spec, folder, tmp_path / "cache")
    (folder / "config.json").write_text(json.dumps({"vocab_size": size - 1}), encoding="utf-8")
    for cache in (first.parent, tmp_path / "new"):
        with pytest.raises(ModelError, match=f"vocab_size: is {size - 1}, and tokenizer.json has ids up to {size - 1}"):
            prepare_data(spec, folder, cache)
    with pytest.raises(ModelError, match="vocab_size"):
        load_encoder(folder)

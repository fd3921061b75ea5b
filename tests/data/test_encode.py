"""Encoding: exact ids on Qwen's tokenizer, and no control token out of text, ever."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.settle import Settler
from qwen_job.data.encode import ChatTokenizer, encode_conversation, encode_prompt
from qwen_job.data.writers import PLAIN_TRAITS, ChatmlWriter
from qwen_job.errors import ModelError

SYSTEM = "You are a helpful assistant."
CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_start|>system\n", "<|im_", "end|>", "\n"]
HOSTILE = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(CONTROL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
).map("".join)


def _talk(*texts: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    return Conversation("", system, tuple(Turn(roles[n % 2], text) for n, text in enumerate(texts)))


def test_the_ids_and_labels_of_qwen(qwen: Path) -> None:
    tokenizer = ChatTokenizer.load(qwen)
    encoded = encode_conversation(_talk("你好", "\n嗨"), tokenizer, system_prompt=SYSTEM)
    system = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    user = [151644, 872, 198, 108386, 151645, 198]
    assert encoded.input_ids == [*system, *user, 151644, 77091, 198, 198, 112488, 151645, 198]
    assert encoded.labels == [-100] * 20 + [198, 112488, 151645, -100]


def test_the_labels_of_the_reference(qwen: Path) -> None:
    tokenizer = ChatTokenizer.load(qwen)
    encoded = encode_conversation(_talk("你好", "嗨"), tokenizer, system_prompt=SYSTEM, mask="reference")
    frame = [151644, -100, -100]
    expected = [*frame, *[-100] * 6, 151645, 198, *frame, -100, 151645, 198, *frame, 112488, 151645, 198]
    assert encoded.labels == expected


def test_a_prompt_is_the_start_of_the_conversation(tokenizer: ChatTokenizer) -> None:
    whole = encode_conversation(_talk("q", "a", "r", "b"), tokenizer, system_prompt=SYSTEM).input_ids
    turns = [("user", "q"), ("assistant", "a"), ("user", "r")]
    prompt = encode_prompt(turns, tokenizer, system_prompt=SYSTEM)
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) :] == [*tokenizer.encode("b"), tokenizer.im_end, *tokenizer.newline]


def test_a_system_prompt_of_its_own_wins_and_an_empty_one_is_left_out(tokenizer: ChatTokenizer) -> None:
    own = encode_conversation(_talk("q", "a", system="be brief"), tokenizer, system_prompt=SYSTEM).input_ids
    assert "be brief" in tokenizer.decode(own) and SYSTEM not in tokenizer.decode(own)
    none = encode_conversation(_talk("q", "a"), tokenizer, system_prompt="").input_ids
    assert tokenizer.decode(none) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"


@given(texts=st.lists(HOSTILE, min_size=2, max_size=4), mask=st.sampled_from(["assistant", "reference"]))
def test_hostile_text_comes_back_and_makes_no_control_token(
    tokenizer: ChatTokenizer, texts: list[str], mask: str
) -> None:
    conversation = _talk(*texts)
    ids, labels = encode_conversation(conversation, tokenizer, system_prompt=SYSTEM, mask=mask)
    frames = len(texts) + 1
    assert (ids.count(tokenizer.im_start), ids.count(tokenizer.im_end), ids.count(tokenizer.endoftext)) == (
        frames,
        frames,
        0,
    )
    texts = [unicodedata.normalize("NFC", text) for text in (SYSTEM, *texts)]
    roles = ["system", *["user", "assistant"] * 2]
    expected = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, texts, strict=False))
    # Python and the tokenizer may know different versions of Unicode: what neither changes is enough.
    assert unicodedata.normalize("NFC", tokenizer.decode(ids)) == unicodedata.normalize("NFC", expected)
    assert all(label in (-100, number) for number, label in zip(ids, labels, strict=True))


@given(texts=st.lists(HOSTILE, min_size=2, max_size=4), mask=st.sampled_from(["assistant", "reference"]))
def test_the_way_by_arrays_gives_the_same(tokenizer: ChatTokenizer, texts: list[str], mask: str) -> None:
    ids, labels = encode_conversation(_talk(*texts), tokenizer, system_prompt=SYSTEM, mask=mask)
    settler = Settler(ChatSettings(), PLAIN_TRAITS, "ChatML")
    writer = ChatmlWriter(tokenizer, settler, SYSTEM, mask)
    one, other = (writer.documents(talk, Counter()) for talk in (_talk(*texts), _talk("q", "a")))
    signed, lengths = writer.encode([*one, *other])
    signed = signed[: int(lengths[0])]
    assert np.where(signed >= 0, signed, ~signed).tolist() == ids
    assert np.where(signed >= 0, signed, -100).tolist() == labels
    assert lengths.tolist() == [len(ids), writer.encode(other)[0].size]


def test_frames_marked_as_words_are_control_tokens_too_but_think_is_text(tiny: Path, tmp_path: Path) -> None:
    content = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    first = content["added_tokens"][-1]["id"] + 1
    for number, word in enumerate(["<|fim_prefix|>", "<think>"]):
        content["added_tokens"].append(
            {**content["added_tokens"][0], "id": first + number, "content": word, "special": False}
        )
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = ChatTokenizer.load(tmp_path)
    ids = tokenizer.encode("<|fim_prefix|><think>")
    assert first not in ids and ids[-1] == first + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "is not a tokenizer"), ("[]", "is not a tokenizer")],
)
def test_no_tokenizer(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        ChatTokenizer.load(tmp_path)


def test_not_a_chat_tokenizer(tiny: Path, tmp_path: Path) -> None:
    content = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = content["added_tokens"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=r"has no <\|im_start\|> or <\|im_end\|>"):
        ChatTokenizer.load(tmp_path)

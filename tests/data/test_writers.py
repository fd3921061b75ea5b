"""Documents in a model's own template: the tokens that a server computes, and which of them are learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qwen_job.chat.chosen import choose
from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import plain_messages
from qwen_job.data.writers import TemplateWriter, load_writer
from qwen_job.errors import DataError
from qwen_job.run.sections import DataFile, DataSpec
from tests.chat.cases import ALL, answer, talk
from tests.chat.generated import conversations

Modern = Callable[[str], Path]


@cache
def writer(folder: Path, **values: Any) -> TemplateWriter:
    spec = DataSpec(train=(DataFile(path=Path("a")),), **values)
    made = load_writer(spec, choose("auto", folder), folder)
    assert isinstance(made, TemplateWriter)
    return made


def signed(write: TemplateWriter, conversation: Conversation) -> list[list[int]]:
    documents = write.documents(conversation, Counter())
    if not documents:
        return []
    tokens, lengths = write.encode(documents)
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths[:-1]))]


def plain(tokens: list[int]) -> list[int]:
    return [token if token >= 0 else ~token for token in tokens]


@cache
def server(folder: Path) -> Tokenizer:
    """Return the tokenizer as a server has it: control tokens in a text are control tokens."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=6)
@given(data=st.data())
def test_every_learnt_turn_follows_the_tokens_of_the_servers_prompt(
    name: str, modern: Modern, data: st.DataObject
) -> None:
    write, chat = writer(modern(name)), data.draw(conversations(reasons=name not in ("qwen2_5", "qwen3_instruct_2507")))
    ids = server(modern(name))
    settled = write.maker.settler.settled(chat, Counter())
    messages = plain_messages(settled, settled.system)
    first = len(messages.messages) - len(settled.turns)
    documents = write.documents(chat, Counter())
    for document, tokens in zip(documents, signed(write, chat), strict=True):
        begins = [n for n, token in enumerate(tokens) if token >= 0 and (not n or tokens[n - 1] < 0)]
        assert len(begins) == len(document.turns)
        for turn, begin in zip(document.turns, begins, strict=True):
            thinks = settled.turns[turn].reasoning is not None
            options = {"enable_thinking": thinks} if write.maker.traits.has_switch else {}
            prompt = write.maker.template.render(messages.messages[: first + turn], messages.tools, True, **options)
            if write.maker.traits.opening and not thinks and not write.maker.traits.has_switch:
                prompt += "\n</think>\n\n"  # shown, where every prompt opens a thought
            assert plain(tokens[:begin]) == ids.encode(prompt, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_6"])
@settings(max_examples=6)
@given(data=st.data())
def test_equal_structures_give_equal_tokens(name: str, modern: Modern, data: st.DataObject) -> None:
    chat = data.draw(conversations(reasons=False))
    write = writer(modern(name))
    one, two, three = (signed(write, chat) for _ in range(3))  # rendered, outlined, filled
    assert one == two == three


def test_lookalikes_are_ordinary_tokens_and_a_users_own_token_is_not(modern: Modern) -> None:
    write = writer(modern("qwen3"))
    (tokens,) = signed(write, talk("a <|im_end|> <tool_call> <think> <obs>", "b <|im_end|> </think>"))
    text = write.tokenizer.decode(plain(tokens))
    assert "a <|im_end|> <tool_call> <think> <obs><|im_end|>" in text
    assert [plain(tokens).count(write.tokenizer.id_of(token)) for token in ("<|im_end|>", "<tool_call>", "<obs>")] == [
        2,
        0,
        1,
    ]


def test_control_tokens_are_learnt_where_the_assistant_writes_them(modern: Modern) -> None:
    write = writer(modern("qwen3"))
    (tokens,) = signed(write, talk("a", answer("b", "r")))
    learnt = [token for token in tokens if token >= 0]
    assert write.tokenizer.decode(learnt) == "<think>\nr\n</think>\n\nb<|im_end|>"
    assert learnt[0] == write.tokenizer.id_of("<think>")


def test_the_mask_of_the_reference_is_refused(modern: Modern) -> None:
    with pytest.raises(DataError, match=r"data.mask: reference .*data.template: chatml"):
        writer(modern("qwen3"), mask="reference")


def test_chatml_is_as_before_whatever_the_models_template(modern: Modern) -> None:
    spec = DataSpec(train=(DataFile(path=Path("a")),), template="chatml")
    write = load_writer(spec, choose("chatml", modern("qwen3")), modern("qwen3"))
    (document,) = write.documents(talk("q", "a"), Counter())
    tokens, _ = write.encode([document])
    text = write.tokenizer.decode(plain(tokens.tolist()))
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nq")


def test_chatml_masks_a_turn_that_the_data_excludes(modern: Modern) -> None:
    spec = DataSpec(train=(DataFile(path=Path("a")),), template="chatml")
    write = load_writer(spec, choose("chatml", modern("qwen3")), modern("qwen3"))
    chat = talk("q", answer("aa", learn=False), "r", "bb")
    tokens, _ = write.encode(write.documents(chat, Counter()))
    assert write.tokenizer.decode([token for token in tokens.tolist() if token >= 0]) == "bb<|im_end|>"
    counts: Counter[str] = Counter()
    assert write.documents(talk("q", answer("aa", learn=False)), counts) == []
    assert counts["nothing_learnt"] == 1


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_texts_that_samples_share_are_encoded_once_to_the_same_tokens(name: str, modern: Modern) -> None:
    write = writer(modern(name))
    chats = [talk("q one", answer("a"), "q two", answer("a")), talk("q one", answer("b <|im_end|>"), "a", answer("a"))]
    documents = [document for chat in chats for document in write.documents(chat, Counter())]
    apart, shared = write.encode(documents), write.encode(documents, shared=True)
    assert all(np.array_equal(one, other) for one, other in zip(apart, shared, strict=True))
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        encode = write.tokenizer.encode_flat
        patch.setattr(write.tokenizer, "encode_flat", lambda given: (texts.extend(given), encode(given))[1])
        write.encode(documents, shared=True)
    assert len(texts) == len(set(texts))

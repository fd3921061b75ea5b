"""What is learnt is what TRL's trainer learns, for every template that both know.

``make test-vllm`` runs this. TRL also learns tokens that no model has to emit, because a server writes them: the line
end after ``<|im_end|>``, for Qwen2.5 the one after ``assistant``, and the ``<think>`` with which the prompts of Qwen3.5
and later end. Nothing else differs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import plain_messages
from tests.chat.cases import maker, text_of
from tests.support.templated import templated_model

from .chats import TEXTS, chats
from .conftest import answered

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.timeout(900)]

COUNT = 200


class Case(NamedTuple):
    """Chats that TRL's template writes as the model's own does: it keeps all reasoning, and writes it always."""

    queries: int = 1
    reasoning: bool = True
    options: dict[str, Any] = {}


CASES = {
    "qwen2_5": Case(3, reasoning=False),
    "qwen3_instruct_2507": Case(3, reasoning=False),
    "qwen3": Case(),
    "qwen3_5_think": Case(),
    "qwen3_5_nothink": Case(),
    "qwen3_6": Case(3, options={"preserve_thinking": True}),
    "qwen3_8": Case(3),
}


class Compared(NamedTuple):
    """Ours and TRL's tokens of a chat, each with what is learnt."""

    ours: tuple[list[int], list[bool]]
    theirs: tuple[list[int], list[bool]]


@pytest.fixture(scope="module")
def prompter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What encodes with a small tokenizer of Qwen's kind."""
    from qwen_job.infer.prompting import Prompter

    return Prompter.load(templated_model(tmp_path_factory.mktemp("trl"), "qwen3", [*TEXTS, *TEXTS]))


@pytest.fixture(scope="module")
def compared(prompter: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Compared]]:
    """All chats of all templates, encoded by both."""
    asked = [
        (name, conversation._replace(options=case.options))
        for name, case in CASES.items()
        for conversation in chats(COUNT, 7, queries=case.queries, reasoning=case.reasoning)
    ]
    work = {
        "tokenizer": str(Path(prompter.tokenizer.name).parent),
        "chats": [_asked(name, one) for name, one in asked],
    }
    found = answered("in_trl.py", work, tmp_path_factory.mktemp("trl"))
    pairs: dict[str, list[Compared]] = {name: [] for name in CASES}
    for (name, conversation), theirs in zip(asked, found, strict=True):
        (sample,) = maker(name).samples(conversation, Counter())
        mask = [bool(learnt) for learnt in theirs["mask"]]
        pairs[name].append(Compared(prompter.encoded(sample.pieces), (theirs["ids"], mask)))
    return pairs


def _asked(name: str, conversation: Conversation) -> dict[str, Any]:
    messages = plain_messages(conversation, conversation.system)
    return {"template": text_of(name), **messages._asdict()}


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_are_those_of_trl(name: str, compared: dict[str, list[Compared]]) -> None:
    assert len(compared[name]) == COUNT
    assert all(ours[0] == theirs[0] for ours, theirs in compared[name])


@pytest.mark.parametrize("name", CASES)
def test_what_is_learnt_is_what_trl_learns(name: str, compared: dict[str, list[Compared]], prompter: Any) -> None:
    for (ids, ours), (_, theirs) in compared[name]:
        assert sum(ours) > 0
        furniture = _furniture(name, ids, prompter.tokenizer)
        assert [its and at not in furniture for at, its in enumerate(theirs)] == ours


def _furniture(name: str, ids: list[int], tokenizer: Any) -> set[int]:
    """Return the places of what TRL learns although it is a server that writes it."""
    line, think = tokenizer.newline[0], tokenizer.tokenizer.token_to_id("<think>")
    before = [[tokenizer.im_end]]
    if name == "qwen2_5":
        before.append([tokenizer.im_start, *tokenizer.roles["assistant"]])
    if name in ("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"):  # their prompts open the block
        before.append([think])
    lines = {at for at, number in enumerate(ids) if number == line and any(ids[at - len(b) : at] == b for b in before)}
    return lines | ({at for at, number in enumerate(ids) if number == think} if [think] in before else set())

"""vLLM's own prompts and answers, template by template: with tools, with reasoning on, off and unasked.

Its application runs without an engine, with the options that the model card gives.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.chat.messages import plain_messages
from qwen_job.report.serving import Serving, serving_of
from tests.chat.cases import ALL, maker
from tests.support.templated import templated_model

from .chats import TEXTS, chats
from .conftest import answered

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.timeout(900)]

COUNT = 40
THINKING = (None, True, False)


class Asked(NamedTuple):
    """What is asked about a chat: a prompt for its last turn, or what its last answer says."""

    conversation: Conversation
    answer: Turn | None = None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder for each template."""
    made = {}
    for name in ALL:
        made[name] = templated_model(tmp_path_factory.mktemp(name), name, [*TEXTS, *TEXTS])
    return made


def _prompts(serving: Serving) -> list[Asked]:
    """Return chats up to a turn of the assistant: after a question, or after results of tools."""
    found = []
    for number, whole in enumerate(chats(COUNT, 3, reasoning=serving.thinks)):
        answers = [at for at, turn in enumerate(whole.turns) if turn.role == "assistant"]
        thinking = THINKING[number % 3] if serving.switch else None
        options = {} if thinking is None else {"enable_thinking": thinking}
        at = answers[number % len(answers)]
        found.append(Asked(whole._replace(turns=whole.turns[:at], options=options)))
    return found


def _answers(serving: Serving) -> list[Asked]:
    """Return chats, each with an answer that it learns: reasoning, text and calls."""
    found = []
    for whole in chats(COUNT, 5, queries=1, reasoning=serving.thinks):
        at = next(at for at, turn in enumerate(whole.turns) if turn.role == "assistant")
        options = {"enable_thinking": True} if serving.switch else {}
        found.append(Asked(whole._replace(turns=whole.turns[:at], options=options), whole.turns[at]))
    return found


def _body(conversation: Conversation) -> dict[str, Any]:
    """Return a request, as a client writes it: arguments in a string."""
    messages, tools, options, _ = plain_messages(conversation, conversation.system)
    for message in messages:
        for number, call in enumerate(message.get("tool_calls", ())):
            call["id"] = f"call_{number}"
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        if "reasoning_content" in message:
            message["reasoning"] = message.pop("reasoning_content")
    return {"messages": messages, **({"tools": tools} if tools else {}), "chat_template_kwargs": dict(options)}


def _requests(asked: list[Asked], name: str, prompter: Any) -> list[dict[str, Any]]:
    requests = []
    for one in asked:
        body = _body(one.conversation)
        if one.answer is None:
            requests.append({"path": "/tokenize", "body": body})
            continue
        turns = (*one.conversation.turns, one.answer)
        (sample,) = maker(name, learn="last").samples(one.conversation._replace(turns=turns), Counter())
        ids, learnt = prompter.encoded(sample.pieces)
        *emitted, end = (number for number, known in zip(ids, learnt, strict=True) if known)
        assert end == prompter.tokenizer.im_end  # an engine keeps the stop token out of the text
        choice = {"index": 0, "finish_reason": "stop", "token_ids": emitted}
        response = {"request_id": "x", "choices": [choice]}
        chat = {**body, "model": str(Path(prompter.tokenizer.name).parent)}
        requests.append(
            {"path": "/v1/chat/completions/derender", "body": {"generate_response": response, "chat_request": chat}}
        )
    return requests


@pytest.fixture(scope="module")
def served(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[Asked], list[Any], Any]]:
    """What vLLM says of each template's chats: (asked, answers, what encodes for us)."""
    from qwen_job.infer.prompting import Prompter

    work, kept = [], {}
    for name, folder in folders.items():
        serving, prompter = serving_of(folder), Prompter.load(folder)
        asked = [*_prompts(serving), *_answers(serving)]
        flags = ["--model", str(folder), "--dtype", "float32", *serving.flags]
        work.append({"flags": flags, "requests": _requests(asked, name, prompter)})
        kept[name] = asked, prompter
    found = answered("in_vllm.py", work, tmp_path_factory.mktemp("vllm"))
    return {name: (asked, one, prompter) for (name, (asked, prompter)), one in zip(kept.items(), found, strict=True)}


@pytest.mark.parametrize("name", ALL)
def test_the_prompts_of_chat_are_those_of_vllm(
    name: str, served: dict[str, tuple[list[Asked], list[Any], Any]]
) -> None:
    asked, answers, prompter = served[name]
    pairs = [(prompter.prompt(one.conversation).ids, found["tokens"]) for one, found in zip(asked, answers, strict=True)
             if one.answer is None]  # fmt: skip
    assert len(pairs) == COUNT
    assert all(ours == theirs for ours, theirs in pairs)


@pytest.mark.parametrize("name", ALL)
def test_what_is_learnt_is_read_back_by_vllm(name: str, served: dict[str, tuple[list[Asked], list[Any], Any]]) -> None:
    asked, answers, _ = served[name]
    for one, found in zip(asked, answers, strict=True):
        if one.answer is None:
            continue
        message = found["choices"][0]["message"]
        calls = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ]
        assert calls == [(call.name, call.arguments) for call in one.answer.calls]
        assert (message.get("reasoning") or "").strip() == (one.answer.reasoning or "").strip()
        assert (message["content"] or "").strip() == one.answer.text.strip()

"""Stock vLLM serves the saved folders: the frames, the answers, the stops and the limits are those of training.

``make test-vllm`` runs this with a vLLM of its own.
"""

from __future__ import annotations

import subprocess
import urllib.error
from typing import Any

import pytest

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.chatml import END_OF_TEXT, IM_END, IM_START
from qwen_job.infer.source import Sampling
from qwen_job.models.completeness import read_config, stop_ids
from qwen_job.report.model_card import write_model_card
from tests.support.pages import blocks
from tests.support.templated import WEATHER

from .conftest import EXACT, PYTHON, ROUNDED, Server

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.timeout(1500)]

CHATS = [
    [("user", "你好")],
    [("user", "Count 3: d0 e1 f2 g3 h4")],
    [("system", "Be brief. 请简短。"), ("user", "介绍一下 Python 3.11、２０２４年的 café 😀")],
    [("user", "Count 1: b0 c1 d2"), ("assistant", "Here: b0 c1 d2. 好的 1."), ("user", "再来\n\n  1. x\t= 1  ")],
    [("user", " cafe\u0301 한국어 עברית"), ("assistant", "  two  \n\n"), ("user", "’s don't I'LL 12345 ...\r\n!")],
]


@pytest.fixture(scope="module")
def answerer(server: Server) -> Any:
    """Return what answers in qwen-job chat; it holds transformers' model in float32."""
    from qwen_job.infer.answer import load_answerer

    return load_answerer(server.folder)


def messages(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Return a chat as the server takes it."""
    return [{"role": role, "content": text} for role, text in chat]


def framed(chat: list[tuple[str, str]], server: Server, answerer: Any) -> list[int]:
    """Return the ids to answer ``chat`` from, as training frames them."""
    system = chat[0][1] if chat[0][0] == "system" else server.system_prompt
    turns = tuple(Turn(role, text) for role, text in chat if role != "system")
    return answerer.prompter.prompt(Conversation("", system, turns)).ids  # type: ignore[no-any-return]


@pytest.mark.parametrize("chat", CHATS)
def test_a_chat_is_framed_as_in_training(server: Server, answerer: Any, chat: list[tuple[str, str]]) -> None:
    found = server.ask("/tokenize", messages=messages(chat))
    assert found["tokens"] == framed(chat, server, answerer)


@pytest.mark.parametrize("server", EXACT, indirect=True)
@pytest.mark.parametrize("chat", CHATS)
def test_greedy_answers_are_those_of_transformers(server: Server, answerer: Any, chat: list[tuple[str, str]]) -> None:
    import torch

    prompt = framed(chat, server, answerer)
    asked = {"messages": messages(chat), "temperature": 0, "max_tokens": 40, "return_token_ids": True}
    found = server.ask("/v1/chat/completions", **asked)["choices"][0]
    ids = torch.tensor([prompt])
    whole = answerer.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert found["token_ids"] == whole[0, len(prompt) :].tolist()
    ours = list(answerer.tokens(prompt, Sampling(max_new_tokens=40)))
    assert ours == [token for token in found["token_ids"] if token not in answerer.stops]
    assert found["finish_reason"] == ("length" if len(ours) == 40 else "stop")


@pytest.mark.parametrize("server", ROUNDED, indirect=True)
@pytest.mark.parametrize("chat", CHATS)
def test_greedy_answers_in_bfloat16_have_the_probabilities_of_float32(
    server: Server, answerer: Any, chat: list[tuple[str, str]]
) -> None:
    """Every token is the likeliest of transformers in float32, or nearly: rounding decides where two are equal.

    Seen with a trained Qwen3.5: 0.09 at most between the log probabilities, and 0.0001 where it is sure.
    """
    import torch

    prompt = framed(chat, server, answerer)
    asked = {"messages": messages(chat), "temperature": 0, "max_tokens": 40, "return_token_ids": True}
    found = server.ask("/v1/chat/completions", **asked, logprobs=True)["choices"][0]
    ids = found["token_ids"]
    with torch.inference_mode():
        logits = answerer.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.float().log_softmax(-1)
    ours = expected.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
    assert (expected.amax(-1) - ours).max() < 0.25
    theirs = torch.tensor([token["logprob"] for token in found["logprobs"]["content"]])
    torch.testing.assert_close(theirs, ours, atol=0.25, rtol=0)
    assert found["finish_reason"] == ("stop" if ids[-1] in answerer.stops else "length")


@pytest.mark.parametrize("server", ["qwen2", "qwen3", "qwen1", "qwen3_moe", "qwen3_5"], indirect=True)
def test_a_trained_answer_ends_at_im_end(server: Server, answerer: Any) -> None:
    asked = {"messages": messages(CHATS[3][:1]), "temperature": 0, "max_tokens": 100, "return_token_ids": True}
    found = server.ask("/v1/chat/completions", **asked)["choices"][0]
    assert (found["finish_reason"], found["token_ids"][-1]) == ("stop", answerer.tokenizer.im_end)
    assert found["message"]["content"] == "Here: b0 c1 d2. 好的 1."


@pytest.mark.parametrize("server", ["template"], indirect=True)
def test_the_cards_request_gets_the_trained_answer(server: Server) -> None:
    """Thinking off and a tool offered, as the card's example asks, with the words of the training."""
    _, code = blocks(write_model_card(server.folder.parent), "python")
    assert "get_weather" in code and '"enable_thinking": False' in code
    code = code.replace("http://localhost:8000", server.address).replace("path/to/model", str(server.folder))
    code = code.replace("How warm is it in Paris?", CHATS[3][0][1]).replace("    tools=[weather],\n", "")
    code = code.replace("answer.choices[0].message", "answer.choices[0].message.content")
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("Here: b0 c1 d2. 好的 1.\n", 0), done.stderr


@pytest.mark.parametrize("server", ["template"], indirect=True)
def test_a_tool_and_reasoning_are_framed_as_in_training(server: Server, answerer: Any) -> None:
    asked = messages(CHATS[3])
    turns = tuple(Turn(role, text) for role, text in CHATS[3])
    for thinking in (True, False):
        options = {"enable_thinking": thinking}
        found = server.ask("/tokenize", messages=asked, tools=[WEATHER], chat_template_kwargs=options)
        chat = Conversation("", server.system_prompt, turns, tools=(WEATHER,), options=options)
        assert found["tokens"] == answerer.prompter.prompt(chat).ids


@pytest.mark.parametrize("stop", [IM_END, IM_START, END_OF_TEXT])
def test_it_stops_at_every_stop_of_the_folder(server: Server, answerer: Any, stop: str) -> None:
    number = answerer.tokenizer.tokenizer.token_to_id(stop)
    assert number in stop_ids(server.folder)
    forced = {"logit_bias": {str(number): 100}, "temperature": 0, "max_tokens": 5, "return_token_ids": True}
    found = server.ask("/v1/chat/completions", messages=messages(CHATS[0]), **forced)["choices"][0]
    assert (found["finish_reason"], found["token_ids"]) == ("stop", [number])
    assert not found["message"]["content"]  # null where a parser of reasoning looked for it


@pytest.mark.parametrize("server", ["qwen1", "converted"], indirect=True)
def test_the_folders_sampling_settings_are_the_default(server: Server, answerer: Any) -> None:
    found = server.ask("/v1/chat/completions", messages=messages(CHATS[0]), max_tokens=8, return_token_ids=True)[
        "choices"
    ][0]
    greedy = Sampling(max_new_tokens=8)
    assert found["token_ids"] == list(answerer.tokens(framed(CHATS[0], server, answerer), greedy))


def test_the_context_is_as_long_as_the_models(server: Server) -> None:
    limit = read_config(server.folder)["max_position_embeddings"]
    assert server.models()["max_model_len"] == limit
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.ask("/v1/chat/completions", messages=messages([("user", "a 1 " * int(str(limit)))]), max_tokens=1)

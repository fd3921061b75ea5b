"""Answers stream, stop where they should, and remember the conversation."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.errors import ModelError, UsageError
from qwen_job.infer.chat import Chat, Frame
from qwen_job.infer.source import Sampling, SamplingOptions, find_model
from tests.support.taught import ANSWER, QUESTION, REPLY, SECOND

pytestmark = pytest.mark.train


def said(chat: Chat, text: str) -> str:
    """Return the text that answers ``text``."""
    return "".join(piece.text for piece in chat.take(text) or ())


def test_the_taught_answer_streams_in_whole_characters_and_stops(taught: Path) -> None:
    from qwen_job.infer.chat import open_chat

    chat = open_chat(taught, Frame(), Sampling(max_new_tokens=100))
    pieces = [piece.text for piece in chat.take(QUESTION) or ()]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 3 and not any("\ufffd" in piece for piece in pieces)
    assert said(chat, SECOND) == REPLY
    assert [turn.text for turn in chat.turns] == [QUESTION, ANSWER, SECOND, REPLY]


def test_greedy_equals_transformers_own_generate(taught: Path) -> None:
    import torch

    from qwen_job.data.encode import encode_prompt
    from qwen_job.infer.answer import load_answerer

    answerer = load_answerer(taught / "model")
    for text in ("你是谁", "hello", QUESTION):
        prompt = encode_prompt([("user", text)], answerer.tokenizer, system_prompt="Be brief.")
        ours = list(answerer.tokens(prompt, Sampling(max_new_tokens=30)))
        ids = torch.tensor([prompt])
        whole = answerer.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
        theirs = [token for token in whole[0, len(prompt) :].tolist() if token not in answerer.stops]
        assert ours == theirs


def test_sampling_repeats_with_its_seed_and_keeps_to_the_nucleus() -> None:
    import torch

    from qwen_job.infer.answer import choose

    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(1)
    drawn = [choose(logits, Sampling(temperature=1.0, top_p=0.7), generator) for _ in range(300)]
    assert set(drawn) == {0, 1}
    again = torch.Generator().manual_seed(1)
    assert drawn == [choose(logits, Sampling(temperature=1.0, top_p=0.7), again) for _ in range(300)]


@pytest.mark.parametrize(
    ("saved", "asked", "wanted"),
    [
        ({}, SamplingOptions(), Sampling()),
        (
            {"do_sample": False, "temperature": 0.7, "top_p": 0.5},
            SamplingOptions(),
            Sampling(temperature=0.0, top_p=0.5),
        ),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1, "max_new_tokens": 64},
            SamplingOptions(),
            Sampling(max_new_tokens=64, temperature=0.7, top_k=20, repetition_penalty=1.1),
        ),
        (
            {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.1},
            SamplingOptions(temperature=0.3, max_new_tokens=9),
            Sampling(max_new_tokens=9, temperature=0.3, top_p=0.9, repetition_penalty=1.1),
        ),
        (
            {"max_new_tokens": -1, "top_k": 10**400, "repetition_penalty": -2, "min_p": True},
            SamplingOptions(),
            Sampling(),
        ),
        (
            {"do_sample": True, "temperature": "hot", "top_p": 7, "top_k": -1},
            SamplingOptions(),
            Sampling(temperature=1.0),
        ),
        ({"do_sample": True, "temperature": 1e-300, "repetition_penalty": 1e-300}, SamplingOptions(), Sampling()),
        ({}, SamplingOptions(temperature=1e-300), Sampling()),
    ],
)
def test_what_the_user_does_not_give_is_the_models(
    saved: dict[str, object], asked: SamplingOptions, wanted: Sampling, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(saved))
    assert asked.for_model(tmp_path) == wanted


def test_answers_are_drawn_as_transformers_draws_them(taught: Path) -> None:
    """With a penalty greedy answers are equal; sampling with top_k 1 gives the same one."""
    import torch

    from qwen_job.data.encode import encode_prompt
    from qwen_job.infer.answer import load_answerer

    answerer = load_answerer(taught / "model")
    prompt = encode_prompt([("user", QUESTION)], answerer.tokenizer, system_prompt="You are a helpful assistant.")
    ids = torch.tensor([prompt])
    more = {"max_new_tokens": 30, "repetition_penalty": 5.0, "do_sample": False}
    whole = answerer.model.generate(ids, attention_mask=torch.ones_like(ids), **more)
    theirs = [token for token in whole[0, len(prompt) :].tolist() if token not in answerer.stops]
    for ways in ({"temperature": 0.0}, {"temperature": 2.0, "top_k": 1}):
        asked = Sampling(max_new_tokens=30, repetition_penalty=5.0, **ways)  # type: ignore[arg-type]
        assert list(answerer.tokens(prompt, asked)) == theirs
    assert theirs != list(answerer.tokens(prompt, Sampling(max_new_tokens=30)))


def test_the_oldest_turns_go_when_there_is_no_room(taught: Path) -> None:
    from qwen_job.infer.chat import open_chat

    chat = open_chat(taught, Frame(""), Sampling(max_new_tokens=8))
    for number in range(12):
        said(chat, f"question {number} " + "x" * 20)
    assert len(chat.turns) < 24 and chat.turns[-2].text.startswith("question 11")
    with pytest.raises(UsageError, match="shorten it"):
        chat.take("y z " * 300)


def _run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen_job", "chat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def test_lines_of_standard_input_are_turns(taught: Path) -> None:
    run = _run([str(taught)], input=f"{QUESTION}\n\n{SECOND}\n")
    assert (run.returncode, run.stdout) == (0, f"{ANSWER}\n{REPLY}\n")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_message_that_is_not_utf8_is_refused(taught: Path, locale: str) -> None:
    command = [sys.executable, "-m", "qwen_job", "chat", str(taught)]
    environment = {**os.environ, "LC_ALL": locale}
    done = subprocess.run(command, input=b"hi \xff\n", capture_output=True, timeout=120, env=environment)
    assert done.returncode == 2 and b"message is not UTF-8" in done.stderr and b"Traceback" not in done.stderr


def test_on_a_terminal_it_is_a_conversation(taught: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "qwen_job", "chat", str(taught)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        os.write(ours, f"{QUESTION}\n/clear\n{SECOND}\n/exit\n".encode())
        out, told = process.communicate(timeout=120)
        os.close(ours)
    assert process.returncode == 0
    assert ANSWER.split("\n")[0] in out.decode() and "/clear: start a new conversation" in told.decode()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither a run .* nor a model"),
        ({"train.yaml": "name: x"}, "has no model/ yet: the run has not started"),
        (
            {"train.yaml": "name: x", "heartbeat": '{"state": "training", "step": 7, "total_steps": 90}'},
            "is training at step 7 of 90",
        ),
    ],
)
def test_what_cannot_be_talked_to_says_why(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        find_model(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        find_model(tmp_path / "nothing")


def test_weights_cut_short_are_a_models_fault(taught: Path, tmp_path: Path) -> None:
    from qwen_job.infer.answer import load_answerer

    shutil.copytree(taught / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: is \d+ bytes long where its header says"):
        load_answerer(tmp_path / "model")

"""data show: a row as the model sees it, in brackets, in colour and as JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.chatml import IM_END, IM_START, chat_template
from qwen_job.data.encode import ChatTokenizer, encode_conversation
from qwen_job.data.formats import parse_record
from qwen_job.errors import ModelError
from tests.chat import cases

from .conftest import conversation
from .test_cli import Run, run

__all__ = ["run"]
ROWS = [conversation("q", "a"), conversation("Who?", "Me.", "Why?", "So.", system="Be brief.")]
BRIEF = (
    f"{IM_START}system\nBe brief.{IM_END}\n{IM_START}user\nWho?{IM_END}\n{IM_START}assistant\n⟦Me.{IM_END}⟧\n"
    f"{IM_START}user\nWhy?{IM_END}\n{IM_START}assistant\n⟦So.{IM_END}⟧\n"
)


def body(out: str) -> str:
    """Return what is printed between the first two rules."""
    lines = out.splitlines(keepends=True)
    rules = [number for number, line in enumerate(lines) if line.startswith("──")]
    return "".join(lines[rules[0] + 1 : rules[1]])


def test_learnt_text_is_in_brackets(run: Run, write: Callable[..., Path]) -> None:
    path = write(ROWS)
    code, out, err = run("show", path, 2)
    assert (code, err) == (0, "")
    assert body(out) == BRIEF
    assert out.startswith(f"{path}:2 · 4 turns · template: ChatML, as no model is given\n")
    total, learnt = len(BRIEF) - 4, len(f"Me.{IM_END}So.{IM_END}")
    assert f"── {total} characters: prompt {total - learnt}, answer {learnt}; learnt {learnt} (15%) ──" in out


def test_the_first_row_is_the_default_and_gets_the_default_prompt(run: Run, write: Callable[..., Path]) -> None:
    code, out, _ = run("show", write(ROWS))
    assert code == 0 and "You are a helpful assistant." in out
    assert "Be kind." in run("show", write(ROWS), "--system-prompt", "Be kind.")[1]


def test_only_the_last_answer_is_learnt_on_request(run: Run, write: Callable[..., Path]) -> None:
    _, out, _ = run("show", write(ROWS), 2, "--learn", "last")
    assert body(out) == BRIEF.replace(f"⟦Me.{IM_END}⟧", f"Me.{IM_END}")
    assert "answers that are not learnt: turn 2\n" in out


def test_tokens_are_those_that_training_counts(run: Run, write: Callable[..., Path], tiny: Path) -> None:
    code, out, _ = run("show", write(ROWS), 2, "--model", tiny, "--json")
    shown = json.loads(out)
    encoded = encode_conversation(parse_record(ROWS[1]), ChatTokenizer.load(tiny), system_prompt="")
    amounts = shown["samples"][0]["amounts"]
    assert code == 0 and shown["unit"] == "tokens"
    assert amounts["total"] == len(encoded.input_ids)
    assert amounts["learnt"] == amounts["answer"] == sum(label >= 0 for label in encoded.labels)


def test_a_template_splits_the_row_and_the_kinds_are_counted(
    run: Run, write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "qwen3.jinja").write_text(cases.text_of("qwen3"), "utf-8")
    case = cases.example("3-qwen3-thinking-tools")
    path = write([{"messages": case["messages"], "tools": case["tools"]}])
    code, out, _ = run("show", path, 1, "--template", tmp_path / "qwen3.jinja")
    assert code == 0
    assert out.count("── sample ") == 2 and "so the row is split there" in out
    assert "sample 1 of 2: 1,137 characters: prompt 849, reasoning 62, call 170, answer 56; learnt 288 (25%)" in out
    assert f"{IM_START}assistant\n⟦<think>\nI need two calls.\n</think>\n\nLet me look.\n<tool_call>" in out


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        (3, 4, "has no row 3; the last is 2"),
        (0, 2, "0 is not in the range x>=1"),
        ("two", 2, "'two' is not a valid integer"),
    ],
)
def test_a_row_that_does_not_exist_is_refused(
    run: Run, write: Callable[..., Path], row: object, code: int, words: str
) -> None:
    found, out, err = run("show", write(ROWS), row)
    assert (found, out) == (code, "") and words in err


def test_a_bad_row_gets_the_message_of_the_check(run: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    path = write([conversation("q", ""), {"x": 1}])
    assert f"{path}:1: turn 2 (assistant): is empty" in run("show", path, 1)[2]
    code, _, err = run("show", path, 2)
    assert code == 4 and f"{path}:2: row: has no known layout" in err
    code, _, err = run("show", tmp_path / "no.json", 1)
    assert code == 4 and "does not exist" in err


@pytest.mark.parametrize(
    ("extra", "answer", "field"),
    [
        ({"tools": [{"name": "f"}]}, {}, "tools: this template knows no tools"),
        ({}, {"reasoning_content": "so"}, "turn 2 (assistant).reasoning: this template has no place for reasoning"),
    ],
)
def test_without_a_model_the_options_that_name_one_are_advised(
    run: Run, write: Callable[..., Path], tmp_path: Path, extra: dict[str, Any], answer: dict[str, Any], field: str
) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **answer}]
    path, template = write([{"messages": turns, **extra}]), tmp_path / "qwen3.jinja"
    code, _, err = run("show", path, 1)
    advice = "(ChatML, as no model is given); name the model with --model FOLDER|ID, or its template with --template"
    assert code == 4 and f"{path}:1: {field} {advice}" in err
    template.write_text(cases.text_of("qwen3"), "utf-8")
    assert run("show", path, 1, "--template", template)[0] == 0
    code, _, err = run("show", path, 1, "--template", "chatml")
    assert code == 4 and f"{field} (ChatML); " in err and "--model" not in err


def test_options_that_the_template_does_not_read_are_named(
    run: Run, write: Callable[..., Path], tmp_path: Path
) -> None:
    template = tmp_path / "qwen3.jinja"
    template.write_text(cases.text_of("qwen3"), "utf-8")
    options = {"enable_thinking": False, "budget": 3, "long" * 30: 1}
    _, out, _ = run("show", write([{**ROWS[0], "chat_template_kwargs": options}]), 1, "--template", template)
    assert f"note: the template ignores chat_template_kwargs: budget, {'long' * 10}\n" in out


def test_a_template_that_refuses_is_named_with_the_row(run: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    path, template = write(ROWS), tmp_path / "picky.jinja"
    refusal = "{% if messages[0].content == 'TEXT' %}{{ raise_exception('No user query found.') }}{% endif %}"
    template.write_text(refusal.replace("TEXT", ROWS[1]["conversations"][0]["value"]) + chat_template(""))
    code, _, err = run("show", path, 2, "--template", template)
    assert code == 4 and f"{path}:2: " in err and "No user query found." in err
    code, _, err = run("show", path, 2, "--template", tmp_path / "no.jinja")
    assert code != 0 and "no.jinja" in err


def test_what_looks_like_a_control_token_stays_text_and_is_named(run: Run, write: Callable[..., Path]) -> None:
    _, out, _ = run("show", write([conversation(f"say {IM_END}", "a\x07b")]), "--json")
    shown = json.loads(out)
    pieces = shown["samples"][0]["pieces"]
    assert [piece["text"] for piece in pieces if piece["control"]].count(IM_END) == 3
    assert f"user\nsay {IM_END}" in "".join(piece["text"] for piece in pieces)
    assert {finding["rule"] for finding in shown["findings"]} == {"special_token", "control_character"}
    _, out, _ = run("show", write([conversation(f"say {IM_END}", "a\x07b")]))
    assert "warning special_token: turn 1 (user): holds <|im_end|>" in out and r"⟦a\x07b<|im_end|>⟧" in out


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_colours_unless_it_wants_none(write: Callable[..., Path], colour: bool) -> None:
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "qwen_job", "data", "show", str(write(ROWS)), "2"]
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "" if colour else "1"}
    subprocess.run(command, stdout=terminal, env=env, check=True)
    os.close(terminal)
    out = os.read(master, 1 << 16).decode()
    os.close(master)
    assert ("\x1b[32mMe." in out) == colour
    assert ("⟦Me." in out) != colour


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_template_that_no_row_could_fit_is_one_error_of_its_file(
    command: str, run: Run, write: Callable[..., Path], tmp_path: Path
) -> None:
    template = tmp_path / "broken.jinja"
    template.write_text("a\n{{ messages|nothing }}")
    code, _, err = run(command, write(ROWS), *([1] if command == "show" else []), "--template", template)
    assert code == ModelError.exit_code and err.count("nothing") == 1
    assert f"{template}:2: is no Jinja template: No filter named 'nothing'" in err and "data clean" not in err


def test_a_row_that_asks_for_thinking_in_vain_gets_a_note(run: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    template = tmp_path / "qwen3.jinja"
    template.write_text(cases.text_of("qwen3"))
    path = write([conversation("q", "a") | {"enable_thinking": True}])
    note = "the row asks for thinking, but an answer has no reasoning"
    assert note in "".join(run("show", path, 1, "--template", template)[1:])
    assert note not in "".join(run("show", path, 1, "--template", template, "--empty-think", "learn")[1:])

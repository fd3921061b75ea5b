"""A chat with tools and reasoning: what is shown where, and what the next prompt holds."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qwen_job.chat.chosen import Chosen
from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.errors import UsageError
from qwen_job.infer.chat import Chat, Frame
from qwen_job.infer.prompting import Prompter
from qwen_job.infer.source import Sampling
from qwen_job.infer.terminal import Screen, answer_all, asked
from qwen_job.infer.tools import tools_in
from tests.chat.cases import template
from tests.support.templated import (
    ANSWER,
    PLAIN,
    PLAIN_ANSWER,
    QUESTION,
    RESULT,
    SECOND_THOUGHT,
    THOUGHT,
    WEATHER,
)

if TYPE_CHECKING:
    from qwen_job.infer.answer import Answerer

pytestmark = pytest.mark.train
CALL = ToolCall("get_weather", {"city": "Paris", "days": 2})
SHOWN = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n'


@pytest.fixture(scope="module")
def answerer(taught_tools: Path) -> Answerer:
    from qwen_job.infer.answer import load_answerer

    return load_answerer(taught_tools)


@pytest.fixture
def chat(answerer: Answerer) -> Chat:
    return Chat(answerer, Frame(tools=(WEATHER,)), Sampling(max_new_tokens=100))


def take(chat: Chat, text: str) -> tuple[str, str]:
    """Return the reasoning and the text that are shown in answer."""
    pieces = list(chat.take(text) or ())
    return tuple(
        "".join(piece.text for piece in pieces if piece.reasoning is part).strip("\n") for part in (True, False)
    )  # type: ignore[return-value]


def test_a_call_waits_for_its_result_and_the_history_is_a_clients(chat: Chat) -> None:
    assert take(chat, QUESTION) == (THOUGHT, "")
    assert chat.reply.calls == (CALL,) == (chat.pending,)
    assert take(chat, RESULT) == (SECOND_THOUGHT, ANSWER)
    assert chat.pending is None
    assert chat.turns == [
        Turn("user", QUESTION),
        Turn("assistant", "", THOUGHT, (CALL,)),
        Turn("tool", RESULT, name="get_weather"),
        Turn("assistant", ANSWER, SECOND_THOUGHT),
    ]


@pytest.mark.parametrize("thinking", [True, False, None])
def test_every_prompt_is_that_of_transformers(taught_tools: Path, thinking: bool | None) -> None:
    """At the question, after the result, and at a second question, which drops the earlier reasoning."""
    from transformers import AutoTokenizer

    function = {"name": CALL.name, "arguments": CALL.arguments}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": THOUGHT,
            "tool_calls": [{"type": "function", "function": function}],
        },
        {"role": "tool", "name": CALL.name, "content": RESULT},
        {"role": "assistant", "content": ANSWER, "reasoning_content": SECOND_THOUGHT},
        {"role": "user", "content": "And in Rome?\n"},
    ]
    turns = (
        Turn("user", QUESTION),
        Turn("assistant", "", THOUGHT, (CALL,)),
        Turn("tool", RESULT, name=CALL.name),
        Turn("assistant", ANSWER, SECOND_THOUGHT),
        Turn("user", "And in Rome?\n"),
    )
    tokenizer, prompter = AutoTokenizer.from_pretrained(taught_tools), Prompter.load(taught_tools)
    options = {} if thinking is None else {"enable_thinking": thinking}
    for count in (1, 3, 5):
        theirs = tokenizer.apply_chat_template(
            messages[: count + 1], tools=[WEATHER], add_generation_prompt=True, return_dict=False, **options
        )
        chat = Conversation("", "Be brief.", turns[:count], tools=(WEATHER,), options=options)
        assert prompter.prompt(chat).ids == theirs


def test_thinking_off_answers_at_once(answerer: Answerer) -> None:
    chat = Chat(answerer, Frame(thinking=False), Sampling(max_new_tokens=100))
    assert take(chat, PLAIN) == ("", PLAIN_ANSWER)
    assert chat.turns[-1] == Turn("assistant", PLAIN_ANSWER)


def test_several_calls_take_their_results_in_turn(chat: Chat) -> None:
    take(chat, QUESTION)
    rome = ToolCall("get_weather", {"city": "Rome"})
    chat.turns[-1] = chat.turns[-1]._replace(calls=(CALL, rome))
    assert chat.take("1") is None
    assert chat.pending == rome
    take(chat, "2")
    assert [turn.text for turn in chat.turns if turn.role == "tool"] == ["1", "2"]


def test_clear_forgets_the_calls_that_wait(chat: Chat) -> None:
    take(chat, QUESTION)
    chat.clear()
    assert (chat.pending, chat.turns) == (None, [])


def test_a_result_that_is_too_long_can_be_given_again(chat: Chat) -> None:
    take(chat, QUESTION)
    with pytest.raises(UsageError, match="shorten it"):
        chat.take("y z " * 3000)
    assert chat.pending == CALL
    assert take(chat, RESULT) == (SECOND_THOUGHT, ANSWER)


def test_the_screen_keeps_reasoning_apart(chat: Chat) -> None:
    out, aside = io.StringIO(), io.StringIO()
    answer_all(chat, [QUESTION, RESULT], Screen(out, aside))
    assert out.getvalue() == f"{SHOWN}{ANSWER}\n"
    assert [line for line in aside.getvalue().splitlines() if line] == [
        THOUGHT, f"result of get_weather(city='Paris', days=2): {RESULT}", SECOND_THOUGHT,
    ]  # fmt: skip


def test_the_end_of_input_before_a_result_is_reported(chat: Chat) -> None:
    out, aside = io.StringIO(), io.StringIO()
    answer_all(chat, [QUESTION], Screen(out, aside))
    assert out.getvalue() == SHOWN
    assert aside.getvalue().endswith(
        "result of get_weather(city='Paris', days=2): none is given; the input ends here\n"
    )


def test_reasoning_that_does_not_end_is_reported(answerer: Answerer) -> None:
    chat = Chat(answerer, Frame(tools=(WEATHER,)), Sampling(max_new_tokens=3))
    out, aside = io.StringIO(), io.StringIO()
    answer_all(chat, [QUESTION], Screen(out, aside))
    assert "give it more room with --max-new-tokens" in aside.getvalue()
    assert out.getvalue() == "\n"


def test_what_asks_for_a_result_is_one_line_however_long_its_arguments() -> None:
    shown = asked(ToolCall("f", {"code": "a\nb\x1b[2J", "n": [1, None], "long": "x" * 999}))
    assert shown.startswith("result of f(code='a\\nb\\x1b[2J', n=[1, None], long='xxx") and len(shown) < 400


def _tools_file(folder: Path, value: object) -> Path:
    path = folder / "tools.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("value", [[WEATHER], WEATHER, {"tools": [WEATHER]}, [WEATHER["function"]]])
def test_a_file_of_tools_may_have_several_forms(value: object, tmp_path: Path) -> None:
    assert tools_in(_tools_file(tmp_path, value)) == (WEATHER,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[", "is not JSON"), ([], "holds no tool"), ([1], "tools"), ([{"type": "function"}], "name"),
        ('"x"', "tools"), ("null", "tools"), ({"tools": None}, "tools"),
        ("{}", "tools.name"), ({"get_weather": {}}, "tools.name"),
    ],
)  # fmt: skip
def test_a_file_without_tools_is_refused(value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--tools: .*tools\.json: .*{message}"):
        tools_in(_tools_file(tmp_path, value))
    with pytest.raises(UsageError, match=r"--tools: .*: No such file"):
        tools_in(tmp_path / "no.json")


def _run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen_job", "chat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def test_lines_of_standard_input_answer_the_calls(taught_tools: Path, tmp_path: Path) -> None:
    tools = str(_tools_file(tmp_path, [WEATHER]))
    run = _run([str(taught_tools), "--tools", tools, "--thinking", "on"], input=f"{QUESTION}\n{RESULT}\n")
    assert (run.returncode, run.stdout) == (0, f"{SHOWN}{ANSWER}\n")
    assert THOUGHT in run.stderr and "\x1b" not in run.stderr


def test_on_a_terminal_reasoning_is_dimmed_and_a_result_is_asked_for(taught_tools: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    tools = str(_tools_file(tmp_path, [WEATHER]))
    command = [sys.executable, "-m", "qwen_job", "chat", str(taught_tools), "--tools", tools]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    streams: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, env=environment, **streams) as process:
        os.close(theirs)
        os.write(ours, f"{QUESTION}\n{RESULT}\n/exit\n".encode())
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError:  # Linux ends a terminal like this
            pass
        process.wait(120)
    os.close(ours)
    text = seen.decode().replace("\r\n", "\n")
    assert process.returncode == 0, text
    assert "\x1b[2m" in text and "result of get_weather(city='Paris', days=2):" in text
    assert ANSWER in text and SHOWN in text


def _prompter(name: str | None) -> Prompter:
    """Return what builds prompts with a template; None: ChatML."""
    return Prompter(Chosen(template(name) if name else None), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tools", "thinking", "message"),
    [
        (None, (WEATHER,), None, r"--tools: the chat template \(ChatML\) knows no tools"),
        (None, (), True, "--thinking on: .*no place for reasoning"),
        ("qwen2_5", (), True, "--thinking on: .*no place for reasoning"),
        ("qwen3_2507_thinking", (), False, "--thinking off: .*always asks for reasoning"),
    ],
)
def test_a_template_without_a_place_for_it_refuses(
    name: str | None, tools: tuple[dict[str, Any], ...], thinking: bool | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _prompter(name).check(tools, thinking)


@pytest.mark.parametrize(
    ("name", "tools", "thinking"),
    [
        (None, (), False),
        ("qwen2_5", (WEATHER,), False),
        ("qwen3", (WEATHER,), False),
        ("qwen3", (WEATHER,), True),
        ("qwen3_2507_thinking", (WEATHER,), True),
    ],
)
def test_a_template_with_a_place_for_it_takes_it(
    name: str | None, tools: tuple[dict[str, Any], ...], thinking: bool | None
) -> None:
    _prompter(name).check(tools, thinking)

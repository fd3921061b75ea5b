"""The one quoting place: what each format reads back is what went in."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml

from qwen_job.render import quote
from qwen_job.render.quote import Unrepresentable

HOSTILE = [
    "",
    " ",
    "a b",
    "'",
    '"',
    "`id`",
    "$(id)",
    "$HOME",
    "a\nb",
    "\\",
    "---",
    "{{ x }}",
    "你好",
    "😀",
    "#",
    "-x",
    "*",
]


def test_shell_words_come_back() -> None:
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {quote.sh_words(HOSTILE)}"], capture_output=True, check=True, env={}
    )
    assert done.stdout.decode().split("\0")[:-1] == HOSTILE


def test_here_documents_come_back() -> None:
    texts = [*(f"{text}\n" for text in HOSTILE), "END\n", "END\nEND_\n", "no newline at the end"]
    for text in texts:
        script = f"cat << {quote.heredoc(text)}\n"
        done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
        assert done.stdout.decode() == (text if text.endswith("\n") else f"{text}\n")


@pytest.mark.parametrize("value", [*HOSTILE, "yes", "null", "1e5", "0x1", "~", "a: b", "x\ny", "x\ny\n", " x\ny", "x \ny",
                                   "\ta", "x\n\n", "=", "<<", "\x85", "\u2028", "\ufeff", "\0", "a" * 10_000])  # fmt: skip
def test_yaml_text_comes_back_from_every_loader(value: str) -> None:
    text = quote.to_yaml({"k": value, value: [value]})
    for loader in (yaml.SafeLoader, yaml.CSafeLoader):
        assert yaml.load(text, Loader=loader) == {"k": value, value: [value]}


@pytest.mark.parametrize("value", [1e-5, 1e22, 0.1, 1, -1, True, None, [], {}, [[1]], 2**63])
def test_yaml_numbers_come_back(value: Any) -> None:
    assert yaml.safe_load(quote.to_yaml({"k": value})) == {"k": value}


def test_yaml_shares_nothing() -> None:
    shared = [1]
    assert "&" not in quote.to_yaml({"a": shared, "b": shared})


def test_yaml_lists_are_indented() -> None:
    assert quote.to_yaml({"a": ["b"]}) == "a:\n  - b\n"


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        quote.to_json(float("nan"))


@pytest.mark.parametrize(
    ("function", "value", "why"),
    [
        (quote.sh, "a\0b", "NUL"), (quote.heredoc, "a\0b", "NUL"), (quote.sbatch, "a\nb", "control character"),
        (quote.sbatch, "x" * 5000, "over 1000 bytes"),
        (quote.sbatch, "\u2028", "control character"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused(function: Any, value: str, why: str) -> None:
    with pytest.raises(Unrepresentable, match=why):
        function(value)


@pytest.mark.parametrize("value", ['"', "$x", "`", "\\", "a\nb", "\0", " x", "x "])
def test_deepspeed_env_refuses_what_is_alive_in_double_quotes(value: str) -> None:
    with pytest.raises(Unrepresentable):
        quote.deepspeed_env("A", value)


@pytest.mark.parametrize(("host", "slots"), [("", 1), ("a b", 1), ("#a", 1), ("a", 0), ("a\n", 1)])
def test_a_hostfile_line_is_a_host(host: str, slots: int) -> None:
    with pytest.raises(Unrepresentable):
        quote.hostfile_line(host, slots)


def test_comments_stay_on_their_line() -> None:
    assert quote.shell_comment("a\nrm -rf x\u2028\r\0b ") == "a rm -rf x b"


def test_inline_yaml_is_json_that_yaml_readers_take() -> None:
    for value in ["😀\x7f\x85\u2028\ufeff你", *HOSTILE, {"a": [1, None]}]:
        text = quote.to_yaml_inline(value)
        assert yaml.load(text, Loader=yaml.CSafeLoader) == json.loads(text) == value

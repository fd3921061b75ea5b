"""What others wrote reaches a terminal as text only; JSON of theirs is read within limits."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job import strict_json
from qwen_job.atomic import read_limited
from qwen_job.text import (
    GIB,
    HIDDEN,
    VisibleStream,
    did_you_mean,
    duration,
    gib,
    gib_or_mib,
    json_text,
    nearest,
    read_duration,
    visible,
    visible_lines,
)

ANY_TEXT = st.text(st.characters(), max_size=50)


@given(ANY_TEXT)
def test_no_control_sequence_is_left(text: str) -> None:
    shown = visible(text, None)
    assert not re.search(HIDDEN, shown)
    assert re.sub(HIDDEN, "", text).replace("\\", "") in text.replace("\\", "") or re.search(HIDDEN, text)
    assert visible(shown, None) == shown


@pytest.mark.parametrize("text", ["你好，世界", "😀👩‍💻", "naïve", "नमस्ते", "שלום", "a\u3000b", "C:\\x", ""])
def test_text_of_every_script_is_unchanged(text: str) -> None:
    assert visible(text) == text


def test_what_is_hidden_is_spelled_out() -> None:
    assert visible("\x1b]0;x\x07\n\x9b2J\u202e\ud800") == "\\x1b]0;x\\x07\\n\\x9b2J\\u202e\\ud800"
    assert visible_lines("a\r\nb\x1b") == "a\\r\nb\\x1b"


def test_what_is_too_long_is_cut_and_says_so() -> None:
    shown = visible("x" * 10_000, 100)
    assert len(shown) < 150 and "9,900 characters more" in shown


@given(st.recursive(ANY_TEXT, lambda inner: st.dictionaries(ANY_TEXT, inner, max_size=2)))
def test_json_text_shows_all_and_loses_nothing(value: object) -> None:
    text = json_text(value, indent=2)
    assert json.loads(text) == value and not re.search(HIDDEN, text.replace("\n", ""))


def test_the_stream_keeps_colour_on_a_terminal_only() -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    for raw, expected in ((Terminal(), b"\x1b[31ma\x1b[0m\\x1b[2J\n"), (io.BytesIO(), b"\\x1b[31ma\\x1b[0m\\x1b[2J\n")):
        stream = VisibleStream(io.TextIOWrapper(raw, "utf-8"))
        stream.write("\x1b[31ma\x1b[0m\x1b[2J\n")
        stream.flush()
        assert raw.getvalue() == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[" * 25_000, "nested too deeply"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested too deeply"),
        ('["' + '\\"' * 200_000, "not JSON"),
        ("1" * 5_000, "5,000 digits"),
        ("[1e400]", "1e400"),
        ("[NaN]", "NaN"),
        (b"\xff", "UTF-8"),
        ("", "not JSON"),
    ],
)
def test_json_beyond_the_limits_is_refused_with_a_reason(text: str | bytes, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        strict_json.loads(text)


@given(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT, lambda v: st.lists(v)))
def test_json_within_the_limits_is_read_as_ever(value: object) -> None:
    if "Infinity" not in (text := json.dumps(value)):
        assert strict_json.loads(text) == json.loads(text)


def test_brackets_in_strings_are_no_depth() -> None:
    assert strict_json.loads(json.dumps(["[" * 500 + '"\\'])) == ["[" * 500 + '"\\']
    assert strict_json.loads("[[]," * 90 + "1" + "]" * 90)


def test_only_regular_files_within_the_size_are_read(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.write_bytes(bytes(11))
    assert read_limited(large, 11) == bytes(11)
    for path, word in ((pipe, "a pipe"), (Path("/dev/zero"), "a device"), (large, "over 10 bytes")):
        with pytest.raises(ValueError, match=word):
            read_limited(path, 10)
    with pytest.raises(ValueError, match="nobody writes"):
        read_limited(pipe, 10, pipes=True)
    with pytest.raises(OSError, match="directory"):
        read_limited(tmp_path, 10)


def test_a_pipe_with_a_writer_is_read_where_it_may_be() -> None:
    read, write = os.pipe()
    os.write(write, b"x: 1")
    os.close(write)
    assert read_limited(f"/dev/fd/{read}", 10, pipes=True) == b"x: 1"
    os.close(read)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (45.9, "46 s"),
        (65, "1 min 5 s"),
        (599.7, "10 min"),
        (754, "13 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86399, "1 d"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds", [0, 46, 65, 600, 7500, 3 * 86400 + 4 * 3600])
def test_a_duration_can_be_read_back(seconds: float) -> None:
    assert read_duration(duration(seconds)) == seconds


def test_sizes_are_shown_in_gib_or_else_mib() -> None:
    assert gib(1.5 * GIB) == gib_or_mib(1.5 * GIB) == "1.5 GiB"
    assert gib_or_mib(GIB // 2) == "512 MiB"


def test_a_likely_word_is_suggested() -> None:
    assert did_you_mean("Lernin_rate", ["warmup", "learning_rate"], "train.") == "; did you mean 'train.learning_rate'?"


def test_an_unlikely_word_is_not_suggested() -> None:
    assert did_you_mean("xyz", ["warmup", "learning_rate"]) == ""


def test_of_several_suggestions_each_may_be_less_alike() -> None:
    assert "A100-80G" in nearest("A10O", ["A100-80G", "V100"], 3)

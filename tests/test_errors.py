"""The tree of errors and the table of exit codes."""

from __future__ import annotations

import re

from qwen_job import errors
from qwen_job.errors import JobError, Problem, QwenJobError, is_retryable, table


def tree(error: type[QwenJobError]) -> list[type[QwenJobError]]:
    return [error, *(found for child in error.__subclasses__() for found in tree(child))]


def ours() -> list[type[QwenJobError]]:
    return [error for error in tree(QwenJobError) if error.__module__ == "qwen_job.errors"]


def test_every_code_is_one_error_s() -> None:
    codes = [error.exit_code for error in ours()]
    assert len(codes) == len(set(codes)) and all(0 < code < 256 for code in codes)


def test_the_drawing_at_the_top_is_the_tree() -> None:
    drawn = re.findall(r"(\w+)\s+(\d+)\+?\s", errors.__doc__ or "")
    assert {(name, int(code)) for name, code in drawn} >= {(error.__name__, error.exit_code) for error in ours()}


def test_the_table_is_sorted_and_begins_with_success() -> None:
    rows = table()
    assert rows[0] == (0, "", "success") and rows == sorted(rows) and all(meaning for _, _, meaning in rows)


def test_retrying_begins_at_128() -> None:
    assert [is_retryable(code) for code in (0, 1, 127, 128, 137, 143, 160, 255)] == [False] * 3 + [True] * 5


def test_a_problem_is_one_line_with_its_place() -> None:
    assert str(Problem("job.yaml", 12, 5, "train.lr", "no")) == "job.yaml:12:5: train.lr: no"
    assert str(Problem("--set", 0, 0, "", "no")) == "--set: no"
    assert str(JobError("just words")) == "just words"
    assert str(JobError([Problem("a", 1, 1, "x", "y"), Problem("b", 0, 0, "x", "y")])) == "a:1:1: x: y\nb: x: y"

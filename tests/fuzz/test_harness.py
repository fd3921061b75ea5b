"""The harness itself: it sees each kind of fault, and lets what is right pass."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from qwen_job.errors import DataError
from tests.fuzz.harness import Box, fault


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hog() -> bytes:
    return bytes(2**31)


def _spin() -> None:
    while True:
        pass


def _raise() -> None:
    raise KeyError("x")


def _escape() -> None:
    print("\x1b[2J")


def _good() -> int:
    return 3


def _refuse() -> None:
    raise DataError("rows.jsonl:3: role: is missing")


@pytest.mark.parametrize(
    ("case", "word"), [(_crash, "SIGSEGV"), (_hog, "exit code 1"), (_raise, "exit code 1"), (_escape, "control")]
)
def test_a_fault_is_seen(box: Box, case: Callable[[], object], word: str) -> None:
    assert word in (fault(box.call(case)) or "")


def test_what_is_right_passes(box: Box) -> None:
    assert (good := box.call(_good)).value == 3 and fault(good) is None
    refused = box.call(_refuse)
    assert refused.code == 4 and fault(refused, places=["rows.jsonl:3"]) is None
    assert fault(refused, places=["other"]) == "an error that names none of ['other']"
    assert fault(box.command("exit-codes")) is None
    assert fault(box.command("plan", "none.yaml"), places=["none.yaml"]) is None


def test_processor_time_is_limited() -> None:
    with Box(seconds=1) as box:
        assert "SIGXCPU" in (fault(box.call(_spin)) or "")
        assert box.call(_good).value == 3  # a new worker

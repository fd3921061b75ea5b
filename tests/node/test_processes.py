"""Workers are started cold where the process that forks warm ones cannot be had."""

from __future__ import annotations

import sys
import time

import pytest

from qwen_job.node.processes import Warm


def test_a_process_that_dies_in_its_imports_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    workers = Warm([])
    deadline = time.monotonic() + 60
    while not workers.is_ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "ended while it did so" in workers.refusal
    monkeypatch.setattr(sys, "executable", "/bin/true")
    pid = workers.start({"RANK": "0"})
    ended = []
    while not ended and time.monotonic() < deadline:
        ended = workers.ended()
    assert [(one.pid, one.code) for one in ended] == [(pid, 0)]

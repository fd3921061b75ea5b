"""Why a node ended is known when its pod, and so its log, is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.errors import NoProgress
from qwen_job.node import attempts as tries
from qwen_job.run import ends


def test_a_kill_for_memory_is_named_when_the_job_gives_up(tmp_path: Path) -> None:
    tries.begin(tmp_path, 1)
    for node in (0, 1):
        ends.begin(tmp_path, node)
    ends.end(tmp_path, 0, 128, 0)
    ends.end(tmp_path, 1, 137, 2)
    ends.begin(tmp_path, 1)  # the next attempt has begun there before the first node looks
    with pytest.raises(NoProgress, match=r"node 1 \(.*\) had 2 processes killed for memory.*kubernetes\.memory"):
        tries.begin(tmp_path, 1)


def test_a_launcher_that_vanished_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends.time, "time", lambda: 1000.0)
    ends.begin(tmp_path, 0)
    ends.end(tmp_path, 0, 128, 0)
    ends.begin(tmp_path, 1)
    monkeypatch.undo()
    assert ends.last_words(tmp_path).startswith("node 1 (")
    assert "killed with its launcher" in ends.last_words(tmp_path)


def test_an_attempt_that_ended_by_itself_says_nothing(tmp_path: Path) -> None:
    ends.begin(tmp_path, 0)
    ends.end(tmp_path, 0, 7, 0)
    assert ends.last_words(tmp_path) == ""
    (tmp_path / "launch" / "node-1.json").write_text("[[[")
    assert ends.last_words(tmp_path) == ""


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/job/step\n", "job/step/memory.events", "low 0\noom 3\noom_kill 3\n"),
        ("0::/\n", "memory.events", "oom_kill 3\n"),
        ("5:cpu:/x\n4:memory:/job\n", "memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
    ],
)
def test_the_kernel_s_count_is_read_from_either_version(tmp_path: Path, group: str, file: str, text: str) -> None:
    (tmp_path / "own").write_text(group)
    (tmp_path / "cg" / file).parent.mkdir(parents=True)
    (tmp_path / "cg" / file).write_text(text)
    assert ends.oom_kills(tmp_path / "cg", tmp_path / "own") == 3
    assert ends.oom_kills(tmp_path / "none", tmp_path / "own") == 0

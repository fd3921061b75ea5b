"""A real run that a fault restarts in place, as a webhook hears it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.web_server import web_server
from tests.train import tiny

pytestmark = pytest.mark.train


def test_a_rank_that_is_killed_is_heard_once_and_the_run_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, one of them killed. 15 seconds on two cores."""
    hook = {"kind": "json", "url": "env:HOOK", "events": ["start", "done", "fault", "give_up"]}
    train_yaml = tiny.write_run(tmp_path / "run", notify=[hook], training__max_steps=12, training__save_steps=2)
    with web_server() as server:
        monkeypatch.setenv("HOOK", server.url)
        process = tiny.start(train_yaml, in_place=3)
        tiny.wait_for_step(tmp_path / "run", 5, process)
        tiny.workers(process)[1].kill()
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert [one.body["event"] for one in server.sent] == ["start", "fault", "done"], output
        assert "SIGKILL" in server.sent[1].body["reason"]

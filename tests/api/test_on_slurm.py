"""The page's example for a cluster, with stand-ins for Slurm's programs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from qwen_job.api import following
from qwen_job.errors import ClusterRefused
from tests.jobs import PINNED
from tests.support.pages import blocks
from tests.support.slurm_queue import Queue, stand_in


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(yaml.safe_dump(PINNED), "utf-8")
    return stand_in(tmp_path, monkeypatch)


def test_the_page_s_example_submits_and_follows_to_the_end(
    queue: Queue, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.holds({"job_id": 41, "name": "tiny"})
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        queue.holds({"job_id": 41, "name": "tiny", "job_state": "COMPLETED"})

    # Nobody else's: subprocess sleeps, too, while it waits for a program.
    monkeypatch.setattr(following, "time", SimpleNamespace(sleep=wait))
    exec(compile(blocks(checkout / "docs" / "python.md", "python")[1], "python.md", "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == ["running None None", "completed None None"] and waited == [60]
    assert len(queue.asked) == 1


def test_a_folder_in_use_is_refused_as_the_command_refuses_it(queue: Queue) -> None:
    import qwen_job

    queue.holds({"job_id": 7, "name": "first", "comment": "qwen-job:/runs/tiny"})
    plan = qwen_job.plan_job(qwen_job.load_job("job.yaml"))
    with pytest.raises(ClusterRefused, match="job 7 "):
        qwen_job.submit_job(plan, "slurm")

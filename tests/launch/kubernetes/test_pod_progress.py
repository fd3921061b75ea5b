"""A job's progress, from its pod's heartbeat or log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qwen_job.launch.backend import Entry
from qwen_job.launch.find import find
from qwen_job.launch.kubernetes.backend import KubernetesBackend
from qwen_job.launch.kubernetes.pod_progress import progress_of_log
from qwen_job.run.progress import Progress
from qwen_job.train.runlog import progress_text
from tests.support.kubectl import Recorded, items
from tests.support.kubernetes_objects import job, pod

BEAT = {"attempt": 2, "state": "training", "step": 7, "total_steps": 50, "loss": 1.5, "eta_seconds": 60.0, "time": 1.0}


def test_a_running_job_s_own_pod_tells_its_progress(kubectl: Recorded) -> None:
    kubectl.answers(("exec --namespace ml a-worker-0 -- cat /shared/run/heartbeat", BEAT))
    (found,) = KubernetesBackend().progress(
        [Entry("kubernetes", "ml/a", "a", "running", run="/shared/run", log="a-worker-0")], seconds=9
    )
    assert (found.step, found.total_steps, found.loss, found.eta_seconds) == (7, 50, 1.5, 60.0)
    assert found.age_seconds is not None and found.age_seconds > 1e9


@pytest.mark.parametrize("beat", ["", "{", "[1]"])
def test_where_exec_is_forbidden_the_log_tells_it(kubectl: Recorded, beat: str) -> None:
    line = "step 120/500 · loss 1.2345 · 34,289 tokens/s · MFU 45.2% · 2 h 5 min left"
    forbidden = (1, "", 'User "u" cannot create resource "pods/exec" in API group ""')
    kubectl.answers(
        ("exec", (0, beat, "") if beat else forbidden),
        ("logs --namespace ml a-worker-0 --tail=50", (0, f"step 119/500\n{line}\nqwen-job: saved step 120\n", "")),
    )
    (found,) = KubernetesBackend().progress(
        [Entry("kubernetes", "ml/a", "a", "running", run="/r", log="a-worker-0")], seconds=9
    )
    wanted = Progress("training", 120, 500, 1.2345, 34289.0, 7500.0)
    assert found == wanted


def test_the_log_s_line_is_the_trainer_s_own() -> None:
    values = {"loss": 0.5, "tokens_per_second": 1234.4, "mfu": 0.41, "step_seconds": 1}
    assert progress_of_log(progress_text(3, 9, values, 3725)) == Progress("training", 3, 9, 0.5, 1234.0, 3720.0)
    assert progress_of_log(progress_text(3, None, {}, None)) == Progress("training", 3)
    assert progress_of_log("nothing\n") == Progress()


def test_a_pod_that_does_not_answer_costs_no_more_than_its_time(kubectl: Recorded) -> None:
    (kubectl.folder / "kubectl").write_text("#!/bin/sh\nexec sleep 30\n")
    begin = time.monotonic()
    entry = Entry("kubernetes", "ml/a", "a", "running", run="/r", log="a-worker-0")
    assert KubernetesBackend().progress([entry] * 4, seconds=0.3) == [Progress()] * 4
    assert time.monotonic() - begin < 5


def test_a_thousand_jobs_in_three_seconds(kubectl: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    names = [f"run-{number}" for number in range(1000)]
    jobs = [job(name, annotations={"qwen-job/output": f"/shared/{name}"}) for name in names]
    kubectl.answers(
        ("get pods", items(*map(pod, names))), ("get pytorchjobs", items(*jobs)), ("get", items()), ("exec", BEAT)
    )  # fmt: skip
    begin = time.monotonic()
    found = find(None, "kubernetes")
    assert time.monotonic() - begin < 3
    assert {item.entry.restarts for item in found} == {0, 2}
    assert len(found) == 1000 and 0 < sum(item.progress.step == 7 for item in found) <= 16

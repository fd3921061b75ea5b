"""The status of a TrainJob, against a stub of the controller's server: what transformers' own callback would send."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from qwen_job.report import trainjob
from qwen_job.report.exposition import Figures
from qwen_job.report.live import Live
from tests.support.ports import free_port
from tests.support.run_folders import run_folder
from tests.support.web_server import WebServer, web_server

FIGURES = Figures(
    "r", {"state": "training", "total_steps": 10, "eta_seconds": 20.5}, {"step": 8, "loss": 0.25}, {"loss": 1.0}
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WebServer]:
    with web_server() as told:
        (tmp_path / "token").write_text("abc\n")
        monkeypatch.setenv(trainjob.URL, told.url)
        monkeypatch.setenv(trainjob.TOKEN, str(tmp_path / "token"))
        monkeypatch.delenv(trainjob.OFF, raising=False)
        yield told


def test_the_controller_gets_progress_time_and_metrics(server: WebServer) -> None:
    trainjob.send(FIGURES, 5.0)
    (sent,) = server.sent
    status = sent.body["trainerStatus"]
    assert sent.headers["Authorization"] == "Bearer abc"
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (80, 20)
    assert datetime.fromisoformat(status["lastUpdatedTime"]).timestamp() == 5.0
    metrics = {one["name"]: one["value"] for one in status["metrics"]}
    assert metrics == {"loss": "0.25", "current_step": "8", "total_steps": "10", "eval_loss": "1.0"}


def test_only_a_run_that_is_done_is_at_100(server: WebServer) -> None:
    assert (
        trainjob.trainer_status(Figures("r", {"state": "saving", "total_steps": 8}, {"step": 8}), 5.0)[
            "progressPercentage"
        ]
        == 99
    )
    done = trainjob.trainer_status(Figures("r", {"state": "done"}, {"step": 8}), 5.0)
    assert (done["progressPercentage"], done["estimatedRemainingSeconds"]) == (100, 0)
    assert "progressPercentage" not in trainjob.trainer_status(Figures("r"), 5.0)
    assert server.sent == []


def test_the_process_beside_the_training_reports(server: WebServer, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    said: list[str] = []
    Live(run, {"monitor": {"report_every": 0}}, said.append).tick()
    assert server.sent[0].body["trainerStatus"]["progressPercentage"] == 80 and said == []


@pytest.mark.parametrize("fault", ["dead", "slow", "unwilling", "without a token"])
def test_a_server_that_does_not_take_it_costs_a_line(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(trainjob, "SEND_SECONDS", 0.2)
    server.delay = 20.0 if fault == "slow" else 0.0
    server.status = 403 if fault == "unwilling" else 200
    if fault == "dead":
        monkeypatch.setenv(trainjob.URL, f"http://127.0.0.1:{free_port()}/x")
    if fault == "without a token":
        monkeypatch.delenv(trainjob.TOKEN)
    said: list[str] = []
    live = Live(run_folder(tmp_path / "run"), {"monitor": {"report_every": 0}}, said.append)
    began = time.monotonic()
    live.tick(last=True)
    live.tick(last=True)
    assert time.monotonic() - began < 10.0
    assert len(said) == 1 and "the TrainJob's status" in said[0] and "training is not affected" in said[0]


def test_it_is_off_without_an_address_and_by_transformers_own_switch() -> None:
    assert not trainjob.wanted({}) and trainjob.wanted({trainjob.URL: "http://x"})
    assert not trainjob.wanted({trainjob.URL: "http://x", trainjob.OFF: "true"})


@pytest.mark.train
def test_the_form_is_that_of_transformers_callback(server: WebServer) -> None:
    """The same server takes what the callback itself sends, with the same names. Two seconds, for the import."""
    from transformers import TrainerControl, TrainerState
    from transformers.integrations.integration_utils import KubeflowCallback

    state = TrainerState(is_world_process_zero=True, max_steps=10, global_step=8)
    callback = KubeflowCallback()
    callback.on_train_begin(None, state, TrainerControl())
    callback._last_update_time = 0.0
    callback.on_log(None, state, TrainerControl(), logs={"loss": 0.25})
    callback.on_step_end(None, state, TrainerControl())
    trainjob.send(FIGURES, 5.0)
    _, theirs, ours = server.sent
    assert ours.body["trainerStatus"].keys() == theirs.body["trainerStatus"].keys()
    assert ours.body["trainerStatus"]["progressPercentage"] == theirs.body["trainerStatus"]["progressPercentage"]
    names = [{one["name"] for one in sent.body["trainerStatus"]["metrics"]} for sent in (theirs, ours)]
    assert names[0] - {"current_epoch"} <= names[1]

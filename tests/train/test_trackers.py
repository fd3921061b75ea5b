"""Experiment trackers, played by modules that note what is done with them; tests/trackers runs the real ones."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qwen_job.errors import EnvironmentFault, StoppedAndSaved
from qwen_job.run.config import TrainConfig, parse_config
from qwen_job.train import trackers
from qwen_job.train.trackers import close_trackers, start_trackers
from tests.train import tiny


class UsageError(Exception):
    """As wandb's own."""


class Online(ModuleType):
    """wandb or swanlab: ``init`` raises what it is given, one a call."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.errors: list[Exception | None] = []
        self.begun: list[dict[str, Any]] = []
        self.ended: list[Any] = []
        self.run: Any = None

    def init(self, **settings: Any) -> None:
        self.begun.append({**settings, "typed": sys.stdin.read()})
        if self.errors and (error := self.errors.pop(0)):
            raise error
        self.run = SimpleNamespace(mark_preempting=lambda: self.ended.append("again"), finish=self.finish)

    def has_run(self) -> bool:
        return self.run is not None

    def finish(self, **how: Any) -> None:
        self.ended.append(how)


class Mlflow(ModuleType):
    """MLflow with the ids of the runs that its server knows."""

    MlflowException = type("MlflowException", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: list[str] = []
        self.open: str | None = None
        self.experiments: list[str] = []
        self.status: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.set_tag = self.tags.__setitem__
        self.flush_async_logging = lambda: None
        self.MlflowClient = lambda: SimpleNamespace(set_terminated=self.status.__setitem__)

    def set_experiment(self, name: str) -> None:
        self.experiments.append(name)

    def start_run(self, run_id: str | None = None, run_name: str = "") -> Any:
        if run_id and run_id not in self.runs:
            raise self.MlflowException(f"no run {run_id}")
        self.open = run_id or f"{run_name}-{len(self.runs)}"
        self.runs += [] if run_id else [self.open]
        return self.active_run()

    def active_run(self) -> Any:
        return self.open and SimpleNamespace(info=SimpleNamespace(run_id=self.open))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The three trackers, imported; the environment is as before when the test is over."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "SWANLAB_", "MLFLOW_")):
            del os.environ[name]
    modules: dict[str, Any] = {"wandb": Online("wandb"), "swanlab": Online("swanlab"), "mlflow": Mlflow()}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield modules
    os.environ.clear()
    os.environ.update(before)


def config(folder: Path, *names: str, **changes: Any) -> TrainConfig:
    values, _ = tiny.settings(folder, training__report_to=list(names), name="my-run", **changes)
    return parse_config(values, "train.yaml")


def begin(folder: Path, *names: str, **changes: Any) -> tuple[list[str], list[str]]:
    """Start the trackers; returns what is left of report_to and what was said."""
    said: list[str] = []
    return start_trackers(config(folder, *names, **changes), said.append), said


def test_every_try_of_a_run_has_the_same_ids_and_writes_into_its_folder(
    tmp_path: Path, installed: dict[str, Any]
) -> None:
    assert begin(tmp_path / "run", "tensorboard", "wandb", "swanlab", "mlflow") == (
        ["tensorboard", "wandb", "swanlab", "mlflow"],
        [],
    )
    first = dict(os.environ)
    assert first["WANDB_DIR"] == str(tmp_path / "run")
    assert first["SWANLAB_LOG_DIR"] == str(tmp_path / "run" / "swanlog")
    assert first["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/run/mlflow.db"
    assert first["WANDB_NAME"] == first["SWANLAB_EXP_NAME"] == "my-run"
    assert first["WANDB_RUN_ID"] == first["SWANLAB_RUN_ID"]
    assert first["WANDB_RESUME"] == first["SWANLAB_RESUME"] == "allow"
    assert installed["wandb"].begun[0]["config"]["job"]["attention"] == "sdpa"
    ids = {}
    for folder in ("run", "other"):
        for name in ("WANDB_RUN_ID", "SWANLAB_RUN_ID"):
            del os.environ[name]
        begin(tmp_path / folder, "wandb", "mlflow")
        ids[folder] = os.environ["WANDB_RUN_ID"]
    assert ids["run"] == first["WANDB_RUN_ID"] != ids["other"]
    assert installed["mlflow"].runs == ["my-run-0", "my-run-1"]


def test_what_the_user_wrote_is_left_as_it_is(tmp_path: Path, installed: dict[str, Any]) -> None:
    given = {"WANDB_PROJECT": "chat", "WANDB_RUN_ID": "mine", "WANDB_RESUME": "must", "SWANLAB_LOG_DIR": "/logs"}
    os.environ.update(given, MLFLOW_RUN_ID="theirs", SWANLAB_PROJECT="translated")
    installed["mlflow"].runs.append("my-run-0")
    begin(tmp_path, "wandb", "swanlab", "mlflow", training={"report_to": ["wandb", "mlflow"], "run_name": "named"})
    assert {name: os.environ[name] for name in given} == given
    assert os.environ["WANDB_NAME"] == "named"
    assert os.environ["SWANLAB_PROJ_NAME"] == "translated" and "SWANLAB_PROJECT" not in os.environ
    assert installed["mlflow"].experiments == []  # the run that the user names has its own


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("wandb", UsageError("No API key configured. Use `wandb login` to log in.")),
        ("swanlab", RuntimeError("no TTY is available for interactive login.")),
    ],
)
def test_a_missing_login_is_refused_and_nobody_is_asked(
    tmp_path: Path, installed: dict[str, Any], name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(read=lambda: "a person's key", isatty=lambda: True))
    installed[name].errors = [error]
    with pytest.raises(EnvironmentFault, match=f"{name}: .*{name.upper()}_API_KEY or set {name.upper()}_MODE=offline"):
        begin(tmp_path, name)
    assert installed[name].begun[0]["typed"] == ""
    assert sys.stdin.read() == "a person's key"


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_without_an_answer_the_records_are_kept_offline(tmp_path: Path, installed: dict[str, Any], name: str) -> None:
    installed[name].errors = [ConnectionError("no such host")]
    left, said = begin(tmp_path, name)
    assert left == [name] and installed[name].begun[1]["mode"] == os.environ[f"{name.upper()}_MODE"] == "offline"
    assert said == [f"report_to: {name} is unreachable (no such host): kept in {tmp_path}; '{name} sync' sends it"]


def test_a_tracker_that_cannot_begin_is_left_out(tmp_path: Path, installed: dict[str, Any]) -> None:
    installed["wandb"].errors = [OSError("no"), OSError("still no")]
    left, said = begin(tmp_path, "wandb", "tensorboard")
    assert left == ["tensorboard"]
    assert said == ["report_to: wandb cannot be used (still no): continuing without it"]


def test_a_signal_while_a_tracker_begins_ends_the_try(tmp_path: Path, installed: dict[str, Any]) -> None:
    installed["wandb"].errors = [StoppedAndSaved("signal SIGUSR1")]
    with pytest.raises(StoppedAndSaved):
        begin(tmp_path, "wandb")


@pytest.mark.usefixtures("installed")
def test_a_run_that_mlflow_has_lost_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text(json.dumps({"id": "a", "mlflow_run_id": "deleted"}))
    assert begin(tmp_path, "mlflow") == (["mlflow"], [])
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"id": "a", "mlflow_run_id": "my-run-0"}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("damaged", ["", "[]", "null", '{"mlflow_run_id": "a"}'])
def test_damaged_ids_are_replaced(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "trackers.json").write_text(damaged)
    begin(tmp_path, "wandb")
    assert json.loads((tmp_path / "trackers.json").read_text())["id"] == os.environ["WANDB_RUN_ID"]


@pytest.mark.usefixtures("installed")
def test_uploads_of_folders_that_do_not_exist_are_left_out(tmp_path: Path) -> None:
    os.environ.update(WANDB_LOG_MODEL="checkpoint", HF_MLFLOW_LOG_ARTIFACTS="0")
    _, said = begin(tmp_path, "wandb")
    assert len(said) == 1 and said[0].startswith("WANDB_LOG_MODEL: ignored")
    assert "WANDB_LOG_MODEL" not in os.environ


@pytest.mark.usefixtures("installed")
def test_without_these_trackers_nothing_is_written(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert begin(tmp_path / "run", "tensorboard") == (["tensorboard"], [])
    assert dict(os.environ) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "wandb", "swanlab", "mlflow"),
    [
        (0, [{"exit_code": 0}], {"state": "success", "error": None}, "FINISHED"),
        (7, [{"exit_code": 7}], {"state": "crashed", "error": "exit code 7"}, "FAILED"),
        (160, ["again", {"exit_code": 160}], {"state": "aborted", "error": None}, "KILLED"),
    ],
)
def test_the_end_of_a_try_is_told(
    tmp_path: Path, installed: dict[str, Any], code: int, wandb: list[Any], swanlab: dict[str, Any], mlflow: str
) -> None:
    begin(tmp_path, "wandb", "swanlab", "mlflow")
    close_trackers(code)
    assert installed["wandb"].ended == wandb
    assert installed["swanlab"].ended == [swanlab]
    assert installed["mlflow"].status == {"my-run-0": mlflow}


def test_a_tracker_that_cannot_end_does_not_hold_the_others(
    tmp_path: Path, installed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, "wandb", "swanlab", "mlflow")
    for_ever = threading.Event()
    installed["wandb"].run.finish = lambda **_: for_ever.wait()
    installed["swanlab"].finish = lambda **_: 1 / 0
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.3)
    close_trackers(0)
    assert installed["mlflow"].status == {"my-run-0": "FINISHED"}
    for_ever.set()

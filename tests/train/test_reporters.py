"""What the trackers get while a run trains; tests/trackers asks the real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qwen_job.run.config import parse_config
from qwen_job.train import reporters
from qwen_job.train.arguments import read_arguments
from qwen_job.train.reporters import Guarded, Reporters, Run, build_reporters, grouped, named_trackers
from tests.train import tiny

FIGURES = {"loss": 1.5, "learning_rate": 0.1, "eval_loss": 2.5}


def run(folder: Path, *names: str, **changes: Any) -> Run:
    """Return a run whose model has a config of one field."""
    config = parse_config(tiny.settings(folder, training__report_to=list(names), **changes)[0], "train.yaml")
    shape = SimpleNamespace(to_dict=lambda: {"hidden_size": 32}, to_json_string=lambda: '{"hidden_size": 32}')
    model = SimpleNamespace(config=shape, num_parameters=lambda: 7)
    return Run(config, read_arguments(config)[0], model)


class Recorded(ModuleType):
    """A tracker's module: whatever is called is noted, with its arguments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.config = _Config(self.calls)
        self.run = SimpleNamespace(summary={})
        self.context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: "me/space"))
        self.MAX_PARAM_VAL_LENGTH = 40

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **named: self.calls.append((name, named or arguments))

    def of(self, name: str) -> list[Any]:
        """Return what one function was called with."""
        return [given for called, given in self.calls if called == name]


class _Config(dict[str, Any]):
    def __init__(self, calls: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.update = lambda values, **_: dict.update(self, values)  # type: ignore[method-assign]


@pytest.fixture
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """The module of the tracker that the test is for, as if installed."""
    found = Recorded(request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    monkeypatch.setitem(sys.modules, "mlflow.utils.validation", found)
    return found


def report(folder: Path, name: str, **changes: Any) -> list[str]:
    """Train two steps for a tracker; returns what was logged about it."""
    said: list[str] = []
    found = build_reporters(run(folder, name, **changes), first=True, say=said.append)
    found.begin()
    found.log(3, 0.5, FIGURES)
    found.end(4, 1.0, 2)
    return said


@pytest.mark.parametrize("module", ["wandb"], indirect=True)
def test_wandb_gets_settings_curves_and_a_summary(tmp_path: Path, module: Recorded) -> None:
    assert report(tmp_path, "wandb") == []
    assert (module.config["learning_rate"], module.config["hidden_size"]) == (5e-3, 32)
    assert module.config["model/num_parameters"] == 7
    first, last = (given[0] for given in module.of("log"))
    assert first == {"train/loss": 1.5, "train/learning_rate": 0.1, "eval/loss": 2.5, "train/global_step": 3}
    assert last == {"train/epoch": 1.0, "train/global_step": 4}
    assert set(module.run.summary) == {"train_runtime", "train_samples_per_second", "train_steps_per_second"}


@pytest.mark.parametrize("module", ["swanlab"], indirect=True)
def test_swanlab_gets_settings_and_curves(tmp_path: Path, module: Recorded) -> None:
    assert report(tmp_path, "swanlab") == []
    assert (module.config["hidden_size"], module.config["model_num_parameters"]) == (32, 7)


@pytest.mark.parametrize("module", ["mlflow"], indirect=True)
def test_mlflow_gets_parameters_that_are_not_too_long_and_metrics(tmp_path: Path, module: Recorded) -> None:
    assert report(tmp_path, "mlflow", training__lr_scheduler_kwargs={"num_cycles": 0.5}) == []
    (parameters,) = module.of("log_params")
    assert parameters["synchronous"] is False
    assert module.of("log_metrics")[0] == {"metrics": FIGURES, "step": 3, "synchronous": False}


@pytest.mark.parametrize("module", ["trackio"], indirect=True)
def test_trackio_gets_the_space_that_its_settings_name(tmp_path: Path, module: Recorded) -> None:
    settings = {"training__project": "mine", "training__trackio_space_id": "me/space"}
    assert report(tmp_path, "trackio", **settings, training__trackio_static_space_id="me/static") == []
    (begun,) = module.of("init")
    assert (begun["project"], begun["name"], begun["space_id"]) == ("mine", "tiny", "me/space")
    assert module.of("freeze")[0]["new_space_id"] == "me/static"


@pytest.mark.train
def test_tensorboard_gets_its_curves_in_the_run_s_folder(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert report(tmp_path, "tensorboard") == []
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "eval/loss", "train/train_runtime"} <= set(events.Tags()["scalars"])
    assert events.Scalars("eval/loss")[0].step == 3


@pytest.mark.train
def test_another_name_of_report_to_gets_the_callback_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    heard: list[Any] = []

    class Callback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            heard.append(("begin", args.learning_rate, state.is_world_process_zero))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.append((state.global_step, state.epoch, logs.get("loss")))

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            heard.append("end")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "clearml", Callback)
    assert report(tmp_path, "clearml") == []
    assert heard == [("begin", 5e-3, True), (3, 0.5, 1.5), (4, 1.0, None), "end"]


def test_only_rank_0_reports(tmp_path: Path) -> None:
    assert build_reporters(run(tmp_path, "tensorboard"), first=False, say=print)._trackers == []


def test_all_means_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "installed", lambda name: name in ("wandb", "mlflow"))
    assert named_trackers(["all"]) == ["wandb", "mlflow"]
    assert named_trackers(["none"]) == []


def test_figures_are_grouped_as_transformers_groups_them() -> None:
    assert grouped({"loss": 1, "eval_loss": 2}) == {"train/loss": 1, "eval/loss": 2}


class Broken:
    """A tracker that counts its calls and fails in all of them."""

    calls = 0

    def begin(self) -> None:
        raise RuntimeError("no")

    def log(self, step: int, epoch: float, values: Any) -> None:
        self.calls += 1
        raise RuntimeError(f"step {step}\nwas lost")

    def end(self) -> None:
        raise RuntimeError("no")


def test_what_a_tracker_raises_is_logged_once_and_ends_nothing() -> None:
    said: list[str] = []
    broken = Broken()
    found = Reporters([("broken", broken)], 4, said.append)
    for step in range(3):
        found.log(step, 0.0, {})
    assert said == ["report_to: broken: log failed (step 0 was lost)"]
    assert broken.calls == 3


def test_a_tracker_that_fails_slowly_is_not_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "_PATIENCE_SECONDS", -1.0)
    said: list[str] = []
    broken = Broken()
    guarded = Guarded("broken", broken, said.append)
    for step in range(3):
        guarded.log(step, 0.0, {})
    assert broken.calls == 1
    assert said[0].endswith("it is not called again")

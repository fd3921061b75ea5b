"""Jobs that report to the real wandb, swanlab and mlflow, offline: what arrives, and what happens without a login."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.train import tiny

pytestmark = [pytest.mark.trackers, pytest.mark.train]

STEPS = 40
OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}
NOWHERE = "http://127.0.0.1:9"
FIGURES = {"loss", "learning_rate", "tokens_per_second", "mfu", "grad_norm"}


def write_run(folder: Path, *names: str, **changes: Any) -> Path:
    """Write a run that reports to ``names`` and evaluates every fourth step; returns its train.yaml."""
    evaluated = {"data__eval_split": 0.2, "training__eval_steps": 4, "training__num_train_epochs": 20.0}
    reported = {"training__report_to": list(names), "name": "counting", "peak_tflops": 1.0}
    forked = {"data__num_workers": 2, "training__dataloader_num_workers": 1}  # after the trackers' threads began
    return tiny.write_run(folder, **{**evaluated, **reported, **forked, "training__max_steps": STEPS, **changes})


def records(path: Path) -> Iterator[bytes]:
    """Read the records of wandb's and swanlab's files: LevelDB's log format after a header of seven bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (rest := 32768 - at % 32768) < 7:
            at += rest
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


class Job(NamedTuple):
    """A run that was stopped once and ran to its end when started again."""

    folder: Path
    left_in_working_directory: list[str]
    losses: dict[int, float]
    steps: list[int]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Stop a run of two ranks that reports to all three trackers, and start it again."""
    folder = tmp_path_factory.mktemp("job")
    (elsewhere := folder / "elsewhere").mkdir()
    run = write_run(folder / "run", "tensorboard", "wandb", "swanlab", "mlflow")
    before = Path.cwd()
    os.chdir(elsewhere)
    try:
        process = tiny.start(run, **OFFLINE)
        tiny.wait_for_step(run.parent, 6, process)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 160, output
        code, output = tiny.run(run, **OFFLINE)
        assert code == 0 and "report_to:" not in output, output
    finally:
        os.chdir(before)
    steps = tiny.metrics(run.parent, "step")
    losses = {line["step"]: line["loss"] for line in steps}
    assert sorted(losses) == list(range(1, STEPS + 1))
    return Job(run.parent, [path.name for path in elsewhere.iterdir()], losses, [line["step"] for line in steps])


def test_the_files_lie_in_the_run_s_folder(job: Job) -> None:
    assert job.left_in_working_directory == []
    assert {"wandb", "swanlog", "mlflow.db", "trackers.json"} <= {path.name for path in job.folder.iterdir()}
    assert list(job.folder.glob("events.*"))  # TensorBoard works with the older protobuf


def test_wandb_gets_one_run_in_two_parts(job: Job) -> None:
    from wandb.proto import wandb_internal_pb2  # type: ignore[import-not-found, unused-ignore]

    identity = json.loads((job.folder / "trackers.json").read_text())["id"]
    parts = sorted(job.folder.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(parts) == len(list(job.folder.glob("wandb/offline-run-*"))) == 2
    losses, ends, config, evaluated = [], [], {}, []
    for part in parts:
        for data in records(part):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                assert (record.run.run_id, record.run.display_name) == (identity, "counting")
                assert record.run.project == "qwen-job"
            for written in (record.config, record.run.config):
                config |= {item.key: json.loads(item.value_json) for item in written.update}
            if record.HasField("exit"):
                ends.append(record.exit.exit_code)
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in row:
                assert {f"train/{name}" for name in FIGURES} <= set(row)
                losses.append((row["train/global_step"], row["train/loss"]))
            elif "eval/loss" in row:
                evaluated.append(row["train/global_step"])
    assert [step for step, _ in losses] == job.steps
    assert dict(losses) == pytest.approx(job.losses)
    assert sorted(set(evaluated)) == list(range(4, STEPS + 1, 4))
    assert ends == [160, 0]
    assert config["learning_rate"] == 5e-3 and config["hidden_size"] == 32 and config["job"]["attention"] == "sdpa"


def test_swanlab_gets_one_run_in_two_parts(job: Job) -> None:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record  # type: ignore[import-not-found, unused-ignore]

    identity = json.loads((job.folder / "trackers.json").read_text())["id"]
    parts = sorted(job.folder.glob(f"swanlog/run-*-{identity}/run-{identity}.swanlab"))
    assert len(parts) == len(list(job.folder.glob("swanlog/run-*"))) == 2
    losses, keys, ends = [], set(), []
    for part in parts:
        for data in records(part):
            record = Record.FromString(data)
            if record.HasField("start"):
                start = record.start
                assert (start.id, start.name, start.project) == (identity, "counting", "qwen-job")
            if record.HasField("finish"):
                ends.append(record.finish.state)
            if record.HasField("scalar"):
                keys.add(record.scalar.key)
                if record.scalar.key == "train/loss":
                    losses.append((record.scalar.step, record.scalar.value.number))
        config = (part.parent / "files" / "config.yaml").read_text("utf-8")
        assert "learning_rate" in config and "hidden_size" in config and "attention: sdpa" in config
    assert {f"train/{name}" for name in FIGURES} | {"eval/loss"} <= keys
    assert [step for step, _ in losses] == job.steps
    assert dict(losses) == pytest.approx(job.losses)
    assert len(set(ends)) == 2  # aborted, then done


def test_mlflow_gets_one_run(job: Job) -> None:
    from mlflow import MlflowClient  # type: ignore[import-not-found, unused-ignore]

    client = MlflowClient(f"sqlite:///{job.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("qwen-job")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("counting", "FINISHED")
    assert FIGURES | {"eval_loss"} <= set(run.data.metrics)
    assert not {"train_loss", "total_flos"} & set(run.data.metrics)
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == sorted(job.steps)
    assert {point.step: point.value for point in history} == pytest.approx(job.losses)
    assert run.data.params["learning_rate"] == "0.005" and run.data.params["hidden_size"] == "32"
    assert "attention: sdpa" in run.data.tags["train.yaml"]


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_without_a_login_a_job_is_refused_before_the_model_is_prepared(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (f"{name.upper()}_API_KEY", f"{name.upper()}_MODE"):
        monkeypatch.delenv(variable, raising=False)
    run = write_run(tmp_path / "run", name)
    code, output = tiny.run(run, timeout=60, HOME=str(tmp_path))
    assert code == 5, output
    assert output.count(f"give the job {name.upper()}_API_KEY or set {name.upper()}_MODE=offline") == 1, output
    assert "preparing" not in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("name", "environment", "said"),
    [
        (
            "wandb",
            {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": NOWHERE, "WANDB_INIT_TIMEOUT": "5"},
            "wandb is unreachable",
        ),
        (
            "swanlab",
            {"SWANLAB_API_KEY": "0" * 21, "SWANLAB_API_HOST": NOWHERE, "SWANLAB_WEB_HOST": NOWHERE},
            "swanlab is unreachable",
        ),
        ("mlflow", {"MLFLOW_TRACKING_URI": NOWHERE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}, "mlflow cannot be used"),
    ],
)
def test_without_the_network_a_job_trains_to_its_end(
    tmp_path: Path, name: str, environment: dict[str, str], said: str
) -> None:
    run = write_run(tmp_path / "run", name, training__max_steps=8)
    code, output = tiny.run(run, HOME=str(tmp_path), **environment)
    assert code == 0 and output.count(f"report_to: {said}") == 1, output
    assert len(tiny.metrics(run.parent, "step")) == 8


def test_a_tracker_whose_process_dies_does_not_end_the_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "wandb", "mlflow", training__max_steps=60)
    process = tiny.start(run, **OFFLINE)
    tiny.wait_for_step(run.parent, 4, process)
    first = tiny.workers(process)[0]
    (core,) = [child for child in first.children(recursive=True) if "wandb-core" in child.name()]
    core.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count("report_to: wandb: log failed") == 1, output
    assert len(tiny.metrics(run.parent, "step")) == 60

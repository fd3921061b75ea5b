"""Opens and closes the trackers that report_to names; none of them can end a training.

- ``check_trackers``: refuses a tracker that is not installed
- ``start_trackers``: opens or resumes the tracker's run that belongs to the run folder; refuses a missing login
- ``close_trackers``: flushes what is buffered, since the process ends without Python's exit handlers
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml

from qwen_job.atomic import write_atomically
from qwen_job.errors import RETRYABLE_FROM, EnvironmentFault, JobError, Problem, QwenJobError
from qwen_job.run.config import TrainConfig
from qwen_job.run.folder import TRAIN
from qwen_job.text import did_you_mean

# By the names of transformers; any one of the packages will do.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "swanlab": ("swanlab",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "comet_ml": ("comet_ml",),
    "neptune": ("neptune",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
    "azure_ml": ("azureml",),
    "codecarbon": ("codecarbon",),
    "dagshub": ("dagshub",),
    "flyte": ("flytekit",),
    "kubeflow": (),  # the process beside the training reports: see qwen_job/report/trainjob.py
}
_STARTED = ("wandb", "swanlab", "mlflow")  # the others are begun by transformers
_PROJECT = "qwen-job"
_NAME = "trackers.json"  # in the run's folder: the ids of its runs
# They would upload transformers' checkpoint folders, which are not ours.
_UPLOADS = ("WANDB_LOG_MODEL", "HF_MLFLOW_LOG_ARTIFACTS")
_CLOSE_SECONDS = 20.0  # less than the 30 after which a launcher kills
_MOST_TAG = 5000  # characters of one MLflow tag

Say = Callable[[str], None]


def check_trackers(config: TrainConfig) -> None:
    """Refuse a tracker that is not known, or not installed here.

    Raises:
        JobError: names it, and what to do.
    """
    problems = []
    for name in config.training.report_to:
        packages = PACKAGES.get(name, ())
        if name not in (*PACKAGES, "all", "none"):
            text = f"{name!r} is not a tracker{did_you_mean(name, PACKAGES)}"
            problems.append(Problem(TRAIN, 0, 0, "training.report_to", text))
        if packages and not installed(name):
            advice = (
                f"is not installed here: build the image with PACKAGES={packages[0]} (without one: pip install "
                f"{packages[0]}), or write another name or none"
            )
            problems.append(Problem(TRAIN, 0, 0, "training.report_to", f"{name} {advice}"))
    if problems:
        raise JobError(problems)


def installed(name: str) -> bool:
    """Tell whether one of a tracker's packages can be imported here."""
    return any(find_spec(package) for package in PACKAGES[name])


def start_trackers(config: TrainConfig, say: Say) -> list[str]:
    """Open wandb, swanlab and mlflow if report_to names them; returns the names that can be used. For rank 0.

    Every attempt of a run resumes the same run of the tracker. Variables that are already set are kept.

    Raises:
        EnvironmentFault: a login or a setting is missing that the user must give.
    """
    names = list(config.training.report_to)
    everything = "all" in names
    wanted = [name for name in _STARTED if name in names or (everything and find_spec(name))]
    if not wanted:
        return names
    path = config.output_dir / _NAME
    kept = _kept(path)
    if "SWANLAB_PROJECT" in os.environ:
        # transformers' name for it, which makes swanlab 0.10 itself fail.
        os.environ.setdefault("SWANLAB_PROJ_NAME", os.environ.pop("SWANLAB_PROJECT"))
    for variable, value in _environment(config, kept["id"]).items():
        os.environ.setdefault(variable, value)
    for variable in _UPLOADS:
        if os.environ.pop(variable, "false").lower() not in ("", "0", "false", "no", "off"):
            say(f"{variable}: ignored; checkpoints and the model stay in {config.output_dir}")
    for name in wanted:
        try:
            with _no_prompt():
                if name == "mlflow":
                    _start_mlflow(config, kept)
                else:
                    _start_online(name, config, say)
        except QwenJobError:
            raise
        except Exception as error:
            names = [other for other in names if other != name]
            say(f"report_to: {name} cannot be used ({_short(error)}): continuing without it")
    write_atomically(path, json.dumps(kept) + "\n")
    return names


def close_trackers(code: int) -> None:
    """Flush and close the trackers, in at most 20 seconds; ``code`` is this process's exit code."""
    threads = [threading.Thread(target=_quietly, args=(close,), daemon=True) for close in _closings(code)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _CLOSE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _environment(config: TrainConfig, identity: str) -> dict[str, str]:
    """Return the trackers' own variables: where they write, and the name of their run."""
    run, name = config.output_dir.absolute(), _run_name(config)
    project = str(config.training.extra().get("project") or _PROJECT)
    return {
        "WANDB_DIR": str(run),
        "WANDB_PROJECT": project,
        "WANDB_NAME": name,
        "WANDB_RUN_ID": identity,
        "WANDB_RESUME": "allow",
        "SWANLAB_LOG_DIR": str(run / "swanlog"),
        "SWANLAB_PROJ_NAME": project,
        "SWANLAB_EXP_NAME": name,
        "SWANLAB_RUN_ID": identity,
        "SWANLAB_RESUME": "allow",
        "MLFLOW_TRACKING_URI": f"sqlite:///{run}/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": project,
        # Without these an unreachable server is asked for over four minutes, in every request.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }


def _run_name(config: TrainConfig) -> str:
    return str(config.training.extra().get("run_name") or config.name)


def _kept(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {"id": str(kept["id"]), **{key: str(value) for key, value in kept.items()}}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {"id": secrets.token_hex(8)}


def _start_online(name: str, config: TrainConfig, say: Say) -> None:
    """Open a run of wandb or swanlab, which share an interface; offline if the server is unreachable."""
    package = importlib.import_module(name)
    job = {"job": config.model_dump(mode="json")}
    key, mode = f"{name.upper()}_API_KEY", f"{name.upper()}_MODE"
    try:
        package.init(config=job)
    except QwenJobError:
        raise  # a signal came
    except Exception as error:
        if type(error).__name__ == "UsageError" or (type(error) is RuntimeError and "login" in str(error)):
            raise EnvironmentFault(
                f"report_to: {name}: {_short(error)}: give the job {key} or set {mode}=offline; see docs/training.md"
            ) from None
        os.environ[mode] = "offline"
        getattr(package, "teardown", int)()  # wandb's own process still holds the run's id
        package.init(config=job, mode="offline")
        say(f"report_to: {name} is unreachable ({_short(error)}): kept in {config.output_dir}; '{name} sync' sends it")


def _start_mlflow(config: TrainConfig, kept: dict[str, str]) -> None:
    mlflow = importlib.import_module("mlflow")
    given = os.environ.get("MLFLOW_RUN_ID")
    if not given and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
        mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    before = None if given else kept.get("mlflow_run_id")
    try:
        run = mlflow.start_run(run_id=before, run_name=_run_name(config))
    except mlflow.MlflowException:
        if before is None:
            raise
        run = mlflow.start_run(run_name=_run_name(config))  # another server, or it was deleted there
    kept["mlflow_run_id"] = run.info.run_id
    mlflow.set_tag(TRAIN, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)[:_MOST_TAG])


@contextlib.contextmanager
def _no_prompt() -> Iterator[None]:
    """Keep a tracker from prompting for its key."""
    stdin = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:  # noqa: PTH123
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


def _closings(code: int) -> Iterator[Callable[[], None]]:
    """Yield how to close each open run: finished, to be resumed, or failed."""
    again = code >= RETRYABLE_FROM
    wandb, swanlab, mlflow = map(sys.modules.get, _STARTED)
    if run := getattr(wandb, "run", None):

        def close_wandb() -> None:
            if again:
                run.mark_preempting()
            run.finish(exit_code=code)

        yield close_wandb
    if swanlab and swanlab.has_run():
        state, error = ("aborted", None) if again else ("crashed", f"exit code {code}") if code else ("success", None)
        yield lambda: swanlab.finish(state=state, error=error)
    # MLflow knows its open run in this thread only.
    if mlflow and (open_run := mlflow.active_run()):

        def close_mlflow() -> None:
            mlflow.flush_async_logging()
            status = "KILLED" if again else "FAILED" if code else "FINISHED"
            mlflow.MlflowClient().set_terminated(open_run.info.run_id, status)

        yield close_mlflow


def _quietly(close: Callable[[], None]) -> None:
    # The network or the tracker's own process may be gone; its files stay in the run's folder.
    with contextlib.suppress(Exception):
        close()


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error) or type(error).__name__)[:200]

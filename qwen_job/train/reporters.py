"""What the experiment trackers get while a run trains, through their own few functions. Rank 0 only.

- ``Reporters``: all trackers of report_to; what one raises is logged once and ends no training
- ``TensorBoard``, ``Wandb``, ``SwanLab``, ``Mlflow``, ``Trackio``: ours
- ``OfTransformers``: the other names of report_to, through the callbacks that transformers has for them

The runs themselves are begun and closed in trackers.py.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from qwen_job.run.config import TrainConfig
from qwen_job.train.arguments import Arguments
from qwen_job.train.trackers import PACKAGES, installed

Say = Callable[[str], None]
Values = Mapping[str, object]
# A tracker that fails and takes longer than this is not called again.
_PATIENCE_SECONDS = 5.0
# Figures of the whole run, which some trackers keep apart from the curves.
_OF_THE_RUN = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


class Run(NamedTuple):
    """What a tracker may keep beside the curves: the settings by their names, and the model."""

    config: TrainConfig
    arguments: Arguments
    model: Any

    def settings(self) -> dict[str, object]:
        """Return every setting of the training, below them the model's own."""
        training = self.config.training
        named = {"output_dir": str(self.config.output_dir), "seed": self.config.seed}
        own = {**training.model_dump(exclude=set(training.extra())), **training.extra(), **named}
        return {**self.model.config.to_dict(), **own}


class Reporter(Protocol):
    """One tracker."""

    def begin(self) -> None:
        """Hand over the settings."""

    def log(self, step: int, epoch: float, values: Values) -> None:
        """Hand over the figures of a step; those of the held-out rows begin with ``eval_``."""

    def end(self) -> None:
        """Hand over what is buffered."""


class Reporters:
    """The trackers that ``report_to`` names; ``rows`` is the global batch, for the figures of the end."""

    def __init__(self, trackers: Sequence[tuple[str, Reporter]], rows: int, say: Say) -> None:
        self._trackers = [Guarded(name, tracker, say) for name, tracker in trackers]
        self._rows, self._began = rows, 0.0

    def begin(self) -> None:
        """Begin with every tracker."""
        self._began = time.time()
        for tracker in self._trackers:
            tracker.begin()

    def log(self, step: int, epoch: float, values: Values) -> None:
        """Hand figures to every tracker."""
        for tracker in self._trackers:
            tracker.log(step, epoch, values)

    def end(self, step: int, epoch: float, steps: int) -> None:
        """Hand over the run's own figures, of the ``steps`` that this attempt took, and end."""
        seconds = max(time.time() - self._began, 1e-9)
        rates = (round(seconds, 4), round(steps * self._rows / seconds, 3), round(steps / seconds, 3))
        self.log(step, epoch, {**dict(zip(_OF_THE_RUN, rates, strict=True)), "epoch": epoch})
        for tracker in self._trackers:
            tracker.end()


class Guarded:
    """A tracker whose failures are logged once a function; one that also takes long is not called again."""

    def __init__(self, name: str, tracker: Reporter, say: Say) -> None:
        self._name, self._tracker, self._say = name, tracker, say
        self._failed: set[str] = set()
        self._off = False

    def begin(self) -> None:
        self._call("begin", self._tracker.begin)

    def log(self, step: int, epoch: float, values: Values) -> None:
        self._call("log", lambda: self._tracker.log(step, epoch, values))

    def end(self) -> None:
        self._call("end", self._tracker.end)

    def _call(self, function: str, work: Callable[[], None]) -> None:
        if self._off:
            return
        began = time.monotonic()
        try:
            work()
        except Exception as error:
            self._off = time.monotonic() - began > _PATIENCE_SECONDS
            if function not in self._failed:
                self._failed.add(function)
                rest = "; it is not called again" if self._off else ""
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self._say(f"report_to: {self._name}: {function} failed ({reason}){rest}")


class TensorBoard:
    """Event files in the run's folder, or where TENSORBOARD_LOGGING_DIR says."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or run.config.output_dir).expanduser()
        self._writer: Any = None

    def begin(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            from tensorboardX import SummaryWriter  # type: ignore[import-not-found, no-redef, unused-ignore]

        self._writer = SummaryWriter(log_dir=str(self._folder))
        self._writer.add_text("args", json.dumps(self._run.settings(), indent=2, default=str))
        self._writer.add_text("model_config", self._run.model.config.to_json_string())

    def log(self, step: int, epoch: float, values: Values) -> None:
        for name, value in grouped(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases; the run is open already."""

    def __init__(self, run: Run) -> None:
        self._run, self._wandb = run, importlib.import_module("wandb")

    def begin(self) -> None:
        self._wandb.config.update(self._run.settings(), allow_val_change=True)
        self._wandb.define_metric("train/global_step")
        self._wandb.define_metric("*", step_metric="train/global_step", step_sync=True)
        watched = os.environ.get("WANDB_WATCH", "false")
        if watched in ("all", "parameters", "gradients"):
            frequency = max(100, self._run.config.training.logging_steps)
            self._wandb.watch(self._run.model, log=watched, log_freq=frequency)
        self._wandb.config["model/num_parameters"] = self._run.model.num_parameters()

    def log(self, step: int, epoch: float, values: Values) -> None:
        for name in _OF_THE_RUN:
            if name in values:
                self._wandb.run.summary[name] = values[name]
        self._wandb.log({**grouped(_curves(values)), "train/global_step": step})

    def end(self) -> None:
        """The run is closed in trackers.py, with this process's exit code."""


class SwanLab:
    """SwanLab; the run is open already."""

    def __init__(self, run: Run) -> None:
        self._run, self._swanlab = run, importlib.import_module("swanlab")

    def begin(self) -> None:
        self._swanlab.config.update(self._run.settings())
        self._swanlab.config.update({"model_num_parameters": self._run.model.num_parameters()})

    def log(self, step: int, epoch: float, values: Values) -> None:
        for name in _OF_THE_RUN:
            if name in values:
                self._swanlab.log({f"single_value/{name}": values[name]}, step=step)
        self._swanlab.log({**grouped(_curves(values)), "train/global_step": step}, step=step)

    def end(self) -> None:
        """The run is closed in trackers.py, with this process's exit code."""


class Mlflow:
    """MLflow; the run is open already. Settings that its server refuses for their length are left out."""

    _MOST_PARAMETERS = 100  # of one request

    def __init__(self, run: Run) -> None:
        self._run, self._mlflow = run, importlib.import_module("mlflow")

    def begin(self) -> None:
        longest = importlib.import_module("mlflow.utils.validation").MAX_PARAM_VAL_LENGTH
        settings = self._run.settings()
        if os.environ.get("MLFLOW_FLATTEN_PARAMS", "").lower() in ("1", "true", "yes", "on"):
            settings = _flat(settings)
        items = [(name, value) for name, value in settings.items() if len(str(value)) <= longest]
        most = os.environ.get("MLFLOW_MAX_LOG_PARAMS", "")
        items = items[: int(most)] if most.isdigit() else items
        for start in range(0, len(items), self._MOST_PARAMETERS):
            self._mlflow.log_params(dict(items[start : start + self._MOST_PARAMETERS]), synchronous=False)
        if tags := os.environ.get("MLFLOW_TAGS"):
            self._mlflow.set_tags(json.loads(tags))

    def log(self, step: int, epoch: float, values: Values) -> None:
        self._mlflow.log_metrics(metrics=dict(values), step=step, synchronous=False)

    def end(self) -> None:
        """The run is closed in trackers.py, with this process's exit code."""


class Trackio:
    """Trackio, with the space that the trackio_ settings name."""

    def __init__(self, run: Run) -> None:
        self._run, self._trackio = run, importlib.import_module("trackio")
        self._project = run.arguments.project or "huggingface"

    def begin(self) -> None:
        config, arguments = self._run.config, self._run.arguments
        self._trackio.init(
            project=self._project,
            name=arguments.run_name or config.name,
            space_id=arguments.trackio_space_id,
            resume="allow",
            bucket_id=arguments.trackio_bucket_id,
        )
        self._trackio.config.update(self._run.settings(), allow_val_change=True)
        self._trackio.config["model/num_parameters"] = self._run.model.num_parameters()

    def log(self, step: int, epoch: float, values: Values) -> None:
        self._trackio.log({**grouped(_curves(values)), "train/global_step": step})

    def end(self) -> None:
        space = self._trackio.context_vars.current_space_id.get()
        self._trackio.finish()
        if space:
            name = self._run.arguments.trackio_static_space_id or _static_space(self._project)
            self._trackio.freeze(space_id=space, project=self._project, new_space_id=name)


class OfTransformers:
    """A tracker without functions of ours, through the callback that transformers has for it.

    The callback gets arguments and a state as transformers' Trainer would give them; it is imported only here.
    """

    def __init__(self, name: str, run: Run) -> None:
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        training = run.config.training
        known = set(TrainingArguments.__dataclass_fields__) - {"report_to", "eval_strategy", "save_strategy"}
        given = {key: value for key, value in training.model_dump().items() if key in known and value is not None}
        given |= {"output_dir": str(run.config.output_dir), "run_name": run.arguments.run_name or run.config.name}
        given |= {"report_to": [], "seed": run.config.seed, "load_best_model_at_end": False}
        self._arguments: Any = TrainingArguments(**given, use_cpu=run.config.device == "cpu")
        self._state, self._control = TrainerState(is_world_process_zero=True), TrainerControl()
        self._model = run.model
        self._callback: Any = INTEGRATION_TO_CALLBACK[name]()

    def begin(self) -> None:
        self._tell("on_init_end")
        self._tell("on_train_begin")

    def log(self, step: int, epoch: float, values: Values) -> None:
        self._state.global_step, self._state.epoch = step, epoch
        self._tell("on_log", logs=dict(values))
        self._tell("on_step_end")

    def end(self) -> None:
        self._tell("on_train_end")

    def _tell(self, event: str, **more: Any) -> None:
        call = getattr(self._callback, event)
        call(self._arguments, self._state, self._control, model=self._model, processing_class=None, **more)


_OURS: dict[str, Callable[[Run], Reporter]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "swanlab": SwanLab,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def build_reporters(run: Run, *, first: bool, say: Say) -> Reporters:
    """Return the trackers of ``report_to``; none where ``first`` is false: rank 0 of the run reports."""
    names = named_trackers(run.config.training.report_to) if first else []
    trackers: list[tuple[str, Reporter]] = []
    for name in names:
        if name == "kubeflow":
            continue  # transformers' callback would wait for its server within a step: see qwen_job/report/trainjob.py
        try:
            trackers.append((name, _OURS[name](run) if name in _OURS else OfTransformers(name, run)))
        except Exception as error:
            say(f"report_to: {name} cannot be used ({' '.join(str(error).split())[:200]}): continuing without it")
    return Reporters(trackers, run.config.global_batch_size, say)


def named_trackers(report_to: Sequence[str]) -> list[str]:
    """Return the trackers that ``report_to`` means: ``all`` are those that are installed."""
    if "all" in report_to:
        return [name for name in PACKAGES if installed(name)]
    return [name for name in report_to if name != "none"]


def grouped(values: Values) -> dict[str, object]:
    """Return figures by the names of transformers' curves: ``eval_loss`` as eval/loss, ``loss`` as train/loss."""
    return {
        re.sub(r"^(eval)_|^", lambda found: f"{found[1] or 'train'}/", name): value for name, value in values.items()
    }


def _curves(values: Values) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in _OF_THE_RUN}


def _flat(values: Values, prefix: str = "") -> dict[str, object]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _static_space(project: str) -> str:
    name = re.sub(r"-+", "-", re.sub(r"[^a-z0-9._-]", "-", project.strip().lower())).strip("-_.")
    return f"{(name or 'trackio-project')[:81]}-static"

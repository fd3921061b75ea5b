"""The product's trainer without a run around it: a plan's model on made-up rows, many settings in one process.

The weights are drawn on the device, so that a setting takes seconds. Everything else is what a run uses: the model's
kernels and compilation, the loss, DeepSpeed's engine with the plan's deepspeed.json, the trainer's steps.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import numpy as np
import torch

from qwen_job.data import PreparedData
from qwen_job.data.prepared import Row
from qwen_job.models.random_init import load_config
from qwen_job.plan import Plan
from qwen_job.plan.train_config import train_config
from qwen_job.run.config import TrainConfig
from qwen_job.run.signals import StopRequest
from qwen_job.train.arguments import read_arguments
from qwen_job.train.deepspeed_config import resolve
from qwen_job.train.identity import Identity
from qwen_job.train.rendezvous import Place, join, meet, place_from_environment
from qwen_job.train.resume import Beginning
from qwen_job.train.runlog import RunLog
from qwen_job.train.watchdog import Watchdog


def device() -> str:
    """Return cuda or cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Measured(NamedTuple):
    """``seconds`` and ``losses`` of every step; peaks in bytes: of tensors, of what the allocator held, of the device.

    ``graphs``: how many torch.compile made. ``before``: what was allocated before the model was made; more than nothing
    means that a model was not forgotten.
    """

    seconds: list[float]
    losses: list[float]
    allocated: int
    reserved: int
    device: int
    before: int
    graphs: int


class Rows:
    """Made-up packed rows of ``length`` tokens, of documents of the benchmark's lengths, the answers trained."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.count, self.length, self.vocabulary = count, length, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        draw = np.random.default_rng(index)
        lengths: list[int] = []
        left = self.length
        while left:
            size = int(np.clip(draw.lognormal(5.5, 0.4), 16, left))
            lengths.append(left if left - size < 16 else size)
            left -= lengths[-1]
        ids = draw.integers(0, self.vocabulary, self.length, dtype=np.int32)
        positions = np.concatenate([np.arange(size, dtype=np.int32) for size in lengths])
        ends = np.repeat(lengths, lengths)
        labels = np.where(positions >= 0.55 * ends, ids, -100).astype(np.int32)
        return Row(ids, labels, positions, np.asarray(lengths, dtype=np.int32), [(0, index + 1)] * len(lengths))


class Workbench:
    """Measures plans, one after the other, on this process's device; made once per process."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.device = device()
        self.place: Place = place_from_environment()
        self.store = meet(self.place)
        join(self.place, self.store, self.device)

    def measure(self, plan: Plan, steps: int) -> Measured:
        """Train ``steps`` optimizer steps of ``plan`` and forget the model."""
        config = _train_config(plan, steps)
        with _unchanged_kernels():
            clean(self.device)
            before = _held(self.device)
            recorder = _Recorder()
            try:
                self._train(config, plan, recorder)
            finally:
                forget()
                clean(self.device)
        peaks = recorder.allocated, recorder.reserved, recorder.device
        return Measured(recorder.seconds, recorder.losses, *peaks, before, recorder.graphs)

    def _train(self, config: TrainConfig, plan: Plan, recorder: _Recorder) -> None:
        from qwen_job.train import modeling, setup  # after DeepSpeed was made quiet

        folder = self.home / "workbench"
        folder.mkdir(parents=True, exist_ok=True)
        values = load_config(config.model.name)
        (folder / "config.json").write_text(json.dumps(values))
        (folder / "tokenizer.json").write_text("{}")
        deepspeed, _ = resolve(config, plan.deepspeed_config, "deepspeed.json")
        drawn = _drawing(values, self.device)
        with mock.patch.object(modeling, "load_native", drawn):
            model = modeling.build_model(config, deepspeed, folder)
        config.output_dir.mkdir(parents=True, exist_ok=True)
        log = RunLog(folder, active=False)
        attempt = setup.Attempt(config, deepspeed, self.place, self.store, StopRequest(), log)
        count = max(config.global_batch_size * (config.training.max_steps + 1), 8)
        rows = Rows(count, config.data.max_length, model.config.vocab_size)
        data = cast(PreparedData, _Data(rows, Rows(0, 1, 1)))
        loaded = setup.Loaded(model, read_arguments(config)[0], data, folder)
        del model
        watchdog = Watchdog(None, 0, 1, 0.0, folder)
        beginning = Beginning(None, Identity("", "", count, config.global_batch_size))
        trainer = setup.build_trainer(attempt, loaded, beginning, watchdog)
        del loaded
        trainer.saver.checkpointer.background = False  # no room for checkpoints: none is saved
        trainer.log.step = recorder.step  # type: ignore[method-assign, assignment]
        try:
            trainer.train()
        finally:
            trainer.engine.destroy()  # type: ignore[attr-defined]


class _Data(NamedTuple):
    """What the trainer reads of prepared data."""

    train: Rows
    eval: Rows
    files: tuple[str, ...] = ()


class _Recorder:
    """Takes the trainer's report of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.allocated = self.reserved = self.device = self.graphs = 0

    def step(self, _step: int, values: dict[str, Any]) -> None:
        self.seconds.append(values["step_seconds"])
        self.losses.append(values["loss"])
        self.graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            self.allocated, self.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self.device = max(self.device, total - free)


def _train_config(plan: Plan, steps: int) -> TrainConfig:
    """Return the plan's train.yaml for a few steps that save nothing and load their rows themselves."""
    config = train_config(plan)
    training = config.training.model_copy(
        update={"max_steps": steps, "save_steps": 0, "dataloader_num_workers": 0, "report_to": []}
    )
    guards = config.guards.model_copy(update={"hang_seconds": 0.0})
    return config.model_copy(update={"training": training, "guards": guards})


def _drawing(values: dict[str, object], device: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Return what takes the place of ``load_native``: the model with random weights, made on the device."""
    import transformers

    from qwen_job.facts.families import family_of
    from qwen_job.models.config_json import native_config

    def draw(_folder: Path, dtype: Any, attention: str, *_: object) -> tuple[Any, dict[str, Any]]:
        model_class = getattr(transformers, family_of(values).architecture)
        config = model_class.config_class(**native_config(values))
        config._attn_implementation = attention
        torch.manual_seed(0)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # as transformers does: buffers that are to stay in float32 do
        try:
            with torch.device(device):
                model = model_class(config).train()
        finally:
            torch.set_default_dtype(usual)
        return model, {"missing_keys": []}

    return draw


@contextmanager
def _unchanged_kernels() -> Iterator[None]:
    """Put back what a setting changed for the whole process: a compiled loss, a compiler's cache of graphs."""
    from qwen_job.train import loss

    try:
        yield
    finally:
        loss.compile_chunks(wanted=False)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()


def _held(device: str) -> int:
    return int(torch.cuda.memory_allocated()) if device == "cuda" else 0


def forget() -> None:
    """Free what a setting left on the GPU: DeepSpeed keeps the engines of ZeRO-3 alive, 16 bytes a parameter."""
    gc.collect()
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter) and item.is_cuda:
            item.untyped_storage().resize_(0)


def clean(device: str) -> None:
    """Give memory back, and count peaks from here."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Ledger:
    """Figures by name, kept in ``path`` after each one, so that what was measured outlives the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Measure ``name`` unless it is known; an error is its figure."""
        if name in self.rows and "error" not in self.rows[name]:
            return
        started = time.monotonic()
        try:
            row = work()
        except Exception as error:  # an out-of-memory error is a result, too
            row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        self.rows[name] = {**row, "took": round(time.monotonic() - started, 1)}
        print(f"{name}: {self.rows[name]}", flush=True)
        self.path.write_text(json.dumps(self.rows, indent=1))

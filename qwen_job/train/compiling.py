"""Compiled layers: whether a run has them, and their compilation, before the first step and outside every collective.

``compile_layers`` decides for all ranks alike, compiles on rows of the run, and falls back where that fails.

Layer by layer: one compilation serves all layers, and DeepSpeed's hooks stay outside. The first rank of a node compiles
while the others wait; they then find its kernels in the node's folder (graphs name their GPU, so each rank makes its
own). Every rank takes the gradients of a batch as large as those to come, but of the embedding only, so that no weight
and no gradient of the model is touched.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from qwen_job.facts.compiling import MIXTURE, TILED, why_eager
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.run.metrics import read_metrics
from qwen_job.toolchain import missing_tool
from qwen_job.train import kernel_cache, loss
from qwen_job.train.deepspeed_config import zero_stage
from qwen_job.train.experts import routers_of
from qwen_job.train.kernels import use_lean_rotation
from qwen_job.train.ranks import Ranks
from qwen_job.train.rendezvous import Place, tell
from qwen_job.train.runlog import RunLog
from qwen_job.train.shared_heads import ranks_apart

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_OPTIONS = {"torch_compile_backend": "backend", "torch_compile_mode": "mode"}
# A layer's arguments that differ from batch to batch: compiled for any value at once, not for the first ones.
_VARYING = r".*cu_seq_lens_q.*,.*max_length_q.*"
_FIELD = "train.torch_compile"


class Setting(NamedTuple):
    """What a compilation needs to know of an attempt."""

    config: TrainConfig
    deepspeed: DeepSpeedConfig
    place: Place
    store: Store
    ranks: Ranks
    log: RunLog


class Count(NamedTuple):
    """Kernels' graphs that were compiled, and those that were found in the cache."""

    compiled: int
    found: int


_NOTHING = Count(0, 0)


def compile_layers(
    setting: Setting, model: Any, model_folder: Path, rehearsals: list[Callable[[], torch.Tensor]], step: int
) -> bool:
    """Compile the layers of ``model`` where all ranks can; returns whether they are. A collective of all ranks.

    Args:
        rehearsals: compute the loss of a batch of the run, with its gradient (the first) or without.
        step: that the run resumes from.
    """
    if setting.config.torch_compile is False:
        return _record(setting, step, why="")
    why = _first(setting, _why_not(setting, model))
    if why:
        return _record(setting, step, why=why)
    began = time.monotonic()
    _wrap(setting.config, model)
    if zero_stage(setting.deepspeed) == 3:
        # Its layers gather weights: a rank that compiled alone would wait for the others.
        torch._dynamo.config.suppress_errors = True
        return _record(setting, step, compiled=True)
    setting.log.heartbeat("compiling")
    failure, cache, count = _in_turn(setting, model, model_folder, rehearsals)
    if failure := _first(setting, failure):
        _unwrap(setting.config, model)
        return _record(setting, step, why=failure)
    # What is compiled from now on is a rare shape: a failure there is torch's to warn about, not the end of a run.
    torch._dynamo.config.suppress_errors = True
    seconds = time.monotonic() - began
    anything = sum(setting.ranks.gather(count.compiled)) > 0
    if cache is not None and setting.place.is_first and (anything or not setting.config.folder.kernels.exists()):
        kernel_cache.keep_cache(cache, setting.config.folder, setting.log.say)
    return _record(setting, step, compiled=True, seconds=seconds, count=count, source=cache.source if cache else "")


def _why_not(setting: Setting, model: Any) -> str:
    """Return why this rank cannot compile or should not; empty: it does."""
    if routers_of(model):
        return MIXTURE
    if setting.config.tiled_mlp:
        return TILED
    config, variables = setting.config, ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
    if config.torch_compile == "auto":
        on_gpu = config.device == "cuda"
        capability = torch.cuda.get_device_capability() if on_gpu else None
        stage, shared = zero_stage(setting.deepspeed), config.sequence_parallel_size > 1
        why = why_eager(capability, packed=config.data.packing, zero_stage=stage, shared=shared)
        if why or (why := missing_tool(config.device)):
            return why
    return next((f"{name} is set" for name in variables if os.environ.get(name, "0") == "1"), "")


def _first(setting: Setting, mine: str) -> str:
    """Return what the lowest rank says that says something; with its host, unless all ranks say that."""
    everyone = setting.ranks.gather((mine, f" (rank {setting.place.rank} on {socket.gethostname()})"))
    words, where = next((found for found in everyone if found[0]), ("", ""))
    return words if all(said == words for said, _ in everyone) else words + where


def _wrap(config: TrainConfig, model: Any) -> None:
    if hasattr(torch.compiler.config, "dynamic_sources"):  # torch 2.8 and later
        torch.compiler.config.dynamic_sources = _VARYING
    # Two sizes that happen to be equal in the first batch are not the same.
    torch.fx.experimental._config.use_duck_shape = False
    torch._dynamo.config.suppress_errors = False
    wanted = config.training.extra()
    options = {name: wanted[field] for field, name in _OPTIONS.items() if wanted.get(field)}
    use_lean_rotation(model, wanted=False)
    for layer in model.model.layers:
        layer.compile(**options)
    loss.compile_chunks()


def _unwrap(config: TrainConfig, model: Any) -> None:
    for layer in model.model.layers:
        layer._compiled_call_impl = None
    use_lean_rotation(model, wanted=config.device == "cuda")
    loss.compile_chunks(wanted=False)


def _in_turn(
    setting: Setting, model: Any, model_folder: Path, rehearsals: list[Callable[[], torch.Tensor]]
) -> tuple[str, kernel_cache.KernelCache | None, Count]:
    """Compile on the node's first rank, then on its others; returns what failed, the cache of that first rank, counts.

    The others poll a store meanwhile: no collective is open.
    """
    place, opened, counted = setting.place, [], [_NOTHING]

    def lead() -> str:
        try:
            key = kernel_cache.key_of(setting.config, model_folder)
            opened.append(kernel_cache.open_cache(setting.config.folder, key, setting.log.say))
        except OSError as error:
            return f"\n{error}"
        failure, counted[0] = _rehearse(setting, model, rehearsals)
        return f"{opened[0].folder}\n{failure}"

    name = f"kernels@{socket.gethostname()}"
    folder, _, failure = tell(setting.store, name, place.local_rank == 0, lead).partition("\n")
    if failure or place.local_rank == 0:
        return failure, opened[0] if opened else None, counted[0]
    kernel_cache.follow_cache(Path(folder))
    failure, count = _rehearse(setting, model, rehearsals)
    return failure, None, count


def _rehearse(setting: Setting, model: Any, rehearsals: list[Callable[[], torch.Tensor]]) -> tuple[str, Count]:
    """Run each kind of batch once; returns what failed, in one line, and what was compiled."""
    before, device = _count(), setting.ranks.device
    kept = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=kept), ranks_apart():
            for number, rehearsal in enumerate(rehearsals):
                model.train(number == 0)
                with torch.set_grad_enabled(number == 0):
                    total = rehearsal()
                if number == 0:
                    # Of a weight before every layer; gradients that are asked for are not accumulated.
                    torch.autograd.grad(total, [model.get_input_embeddings().weight])
                total.item()
    except torch.OutOfMemoryError:
        raise  # the step would end the same way, and the run explains what to do
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", _NOTHING
    finally:
        model.train()
    after = _count()
    return "", Count(after.compiled - before.compiled, after.found - before.found)


def _count() -> Count:
    from torch._dynamo.utils import counters

    seen = counters["inductor"]
    compiled = seen["fxgraph_cache_miss"] + seen["fxgraph_cache_bypass"]
    return Count(compiled, seen["fxgraph_cache_hit"])


def _record(
    setting: Setting,
    step: int,
    *,
    compiled: bool = False,
    why: str = "",
    seconds: float = 0.0,
    count: Count = _NOTHING,
    source: str = "",
) -> bool:
    """Report what was decided, and what differs from the attempt before; returns ``compiled``."""
    log, config = setting.log, setting.config
    if not log.active:
        return compiled
    before = [line["compiled"] for line in read_metrics(config.output_dir) if line.get("type") == "compile"]
    log.write("compile", step, compiled=compiled, seconds=seconds, graphs=count.compiled, found=count.found, reason=why)
    if why:
        log.say(f"{_FIELD}: {_word(config)}: layers are not compiled: {why}")
    elif compiled:
        log.say(f"{_FIELD}: {_word(config)}: {_compiled(seconds, count, source)}")
    if before and step and before[-1] != compiled:
        now = "compiled, and were not before" if compiled else "not compiled, and were before"
        log.say(f"{_FIELD}: from step {step + 1} on, layers are {now}: numbers may differ in their last digits")
    return compiled


def _word(config: TrainConfig) -> str:
    return str(config.torch_compile).lower()


def _compiled(seconds: float, count: Count, source: str) -> str:
    if count.compiled:
        return f"layers were compiled in {seconds:.1f} s"
    if count.found:
        return f"compiled layers were loaded in {seconds:.1f} s from {source}"
    return "layers are compiled" + (f"; that took {seconds:.1f} s" if seconds else " in the first step")

"""Resolve RUN_OR_MODEL to a model folder, and the sampling settings. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.errors import ModelError
from qwen_job.facts.model_files import ADAPTER, read_config
from qwen_job.models import ensure_model
from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import read_object, read_settings
from qwen_job.run.sections import ModelSpec


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token: greedily with ``temperature`` 0, else sampled from the top ``top_p``.

    ``top_k`` 0, ``min_p`` 0 and ``repetition_penalty`` 1 have no effect; the penalty also applies to greedy decoding.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.8
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


_WITH_REASONING = 4096  # new tokens
# No sampling setting is as large; infinity is not a number of tokens.
_MOST = 1e9
# Logits divided by less overflow.
_LEAST = 1e-5


class SamplingOptions(NamedTuple):
    """The sampling settings that the user gave; None means the value in the model's generation_config.json."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def for_model(self, model: Path, thinks: bool = False) -> Sampling:
        """Return the settings: the user's override those of ``model``, which override our defaults.

        ``thinks``: the answers begin with reasoning, and get more room.
        """
        saved = read_object(model / "generation_config.json")
        numbers = {
            key: value
            for key, value in saved.items()
            if isinstance(value, (int, float)) and type(value) is not bool and abs(value) < _MOST
        }
        temperature = float(numbers.get("temperature", 1.0)) if saved.get("do_sample") is True else 0.0
        temperature = temperature if self.temperature is None else self.temperature
        top_p = float(numbers.get("top_p", Sampling.top_p))
        penalty = float(numbers.get("repetition_penalty", 0))
        return Sampling(
            max_new_tokens=self.max_new_tokens
            or max(0, int(numbers.get("max_new_tokens", 0)))
            or (_WITH_REASONING if thinks else Sampling.max_new_tokens),
            temperature=temperature if temperature >= _LEAST else 0.0,
            top_p=(top_p if 0 < top_p <= 1 else Sampling.top_p) if self.top_p is None else self.top_p,
            seed=self.seed,
            top_k=max(0, int(numbers.get("top_k", 0))),
            min_p=min(1.0, max(0.0, float(numbers.get("min_p", 0.0)))),
            repetition_penalty=penalty if penalty >= _LEAST else 1.0,
        )


class ChosenModel(NamedTuple):
    """A folder with a native model, and its run (None for a bare model folder)."""

    model: Path
    run: Path | None
    settings: Mapping[str, Any]

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the run's settings, empty if it is missing or not a mapping."""
        value = self.settings.get(name)
        return value if isinstance(value, Mapping) else {}


def find_model(path: Path) -> ChosenModel:
    """Return the model of a run folder or a model folder; a Qwen-1 folder is converted into the cache.

    Raises:
        ModelError: the folder does not exist or has no model, or the run has not finished.
    """

    if RunFolder(path).train.is_file():
        if not (RunFolder(path).model / "config.json").is_file():
            raise ModelError(f"{path}: has no model/ yet: {_state(path)}")
        return ChosenModel(RunFolder(path).model, path, read_settings(path))
    if not path.is_dir():
        raise ModelError(
            f"{path}: does not exist; give a run folder or a model folder ('qwen-job model fetch' prints one)"
        )
    if not (path / "config.json").is_file():
        if (path / ADAPTER).is_file() or any(path.glob("*.gguf")):
            read_config(path)  # raises an error that says what the folder is
        raise ModelError(f"{path}: is neither a run (no train.yaml) nor a model (no config.json)")
    return ChosenModel(ensure_model(ModelSpec(name=str(path), source="local"), output_dir=path), None, {})


def _state(run: Path) -> str:
    beat = read_object(RunFolder(run).heartbeat)
    if not beat:
        return "the run has not started; start it with 'qwen-job submit'"
    step = f" at step {beat.get('step')} of {beat.get('total_steps')}" if beat.get("step") is not None else ""
    return f"the run is {beat.get('state', 'in an unknown state')}{step}; model/ is written at the end"

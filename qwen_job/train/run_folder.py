"""What a user means by RUN_OR_MODEL and by its answers. Nothing here imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qwen_job.errors import ModelError
from qwen_job.models.chatml import SYSTEM_PROMPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest one at ``temperature`` 0, else a draw from the best ``top_p``."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.8
    seed: int | None = None


class Target(NamedTuple):
    """A folder with a native model, and the run it came from (None for a bare model folder)."""

    model: Path
    run: Path | None
    settings: Mapping[str, Any]

    @property
    def system_prompt(self) -> str:
        """The system prompt that the model was trained with; empty for none."""
        written = (self.settings.get("data") or {}).get("system_prompt")
        return SYSTEM_PROMPT if written is None else str(written)


def find_model(path: Path) -> Target:
    """Return the model of a run's folder or of a model folder; Qwen-1 folders come converted, from the cache.

    Raises:
        ModelError: there is no such folder, it holds no model, or the run has not finished.
    """
    from qwen_job.models import ModelSpec, ensure_model

    if (path / "train.yaml").is_file():
        if not (path / "model" / "config.json").is_file():
            raise ModelError(f"{path}: has no model/ yet: {_state(path)}")
        return Target(path / "model", path, read_settings(path))
    if not path.is_dir():
        raise ModelError(
            f"{path}: does not exist; name a run's folder, or a model's ('qwen-job model fetch' prints it)"
        )
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: is neither a run (no train.yaml) nor a model (no config.json)")
    return Target(ensure_model(ModelSpec(str(path), "local"), output_dir=path), None, {})


def read_settings(run: Path) -> dict[str, Any]:
    """Return a run's train.yaml as plain values; empty when it is missing or damaged."""
    try:
        values = yaml.safe_load((run / "train.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _state(run: Path) -> str:
    beat = read_object(run / "heartbeat")
    if not beat:
        return "the run has not started; 'qwen-job submit' starts it"
    step = f" at step {beat.get('step')} of {beat.get('total_steps')}" if beat.get("step") is not None else ""
    return f"the run is {beat.get('state', 'in an unknown state')}{step}; model/ is written at its end"

"""What a user means by RUN_OR_MODEL and by its answers. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job import strict_yaml
from qwen_job.errors import ModelError
from qwen_job.models.chatml import SYSTEM_PROMPT
from qwen_job.run_files import read_object


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
        written = self.section("data").get("system_prompt")
        return SYSTEM_PROMPT if written is None else str(written)

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the run's settings; empty where there is none, or it is no section."""
        value = self.settings.get(name)
        return value if isinstance(value, Mapping) else {}


def find_model(path: Path) -> Target:
    """Return the model of a run's folder or of a model folder; Qwen-1 folders come converted, from the cache.

    Raises:
        ModelError: there is no such folder, it holds no model, or the run has not finished.
    """
    from qwen_job.models import ModelSpec, ensure_model
    from qwen_job.models.config import ADAPTER, read_config

    if (path / "train.yaml").is_file():
        if not (path / "model" / "config.json").is_file():
            raise ModelError(f"{path}: has no model/ yet: {_state(path)}")
        return Target(path / "model", path, read_settings(path))
    if not path.is_dir():
        raise ModelError(
            f"{path}: does not exist; name a run's folder, or a model's ('qwen-job model fetch' prints it)"
        )
    if not (path / "config.json").is_file():
        if (path / ADAPTER).is_file() or any(path.glob("*.gguf")):
            read_config(path)  # tells what it is
        raise ModelError(f"{path}: is neither a run (no train.yaml) nor a model (no config.json)")
    return Target(ensure_model(ModelSpec(str(path), "local"), output_dir=path), None, {})


def read_settings(run: Path, unread: list[str] | None = None) -> dict[str, Any]:
    """Return a run's train.yaml as plain values; empty when it is missing or damaged, which goes to ``unread``."""
    try:
        values = strict_yaml.load(run / "train.yaml")
        if isinstance(values, dict):
            return values
        reason = "is no mapping of settings"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
    if unread is not None:
        unread.append(f"{run / 'train.yaml'}: {reason}")
    return {}


def _state(run: Path) -> str:
    beat = read_object(run / "heartbeat")
    if not beat:
        return "the run has not started; 'qwen-job submit' starts it"
    step = f" at step {beat.get('step')} of {beat.get('total_steps')}" if beat.get("step") is not None else ""
    return f"the run is {beat.get('state', 'in an unknown state')}{step}; model/ is written at its end"

"""What can be done with a finished run: the lines that work, for the end of a run and for the model card.

Nothing here imports torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_job.errors import ModelError

# The first releases of transformers that have the architecture; tested for Qwen2.
OLDEST = {"Qwen2ForCausalLM": "4.37.0", "Qwen3ForCausalLM": "4.51.0"}


def use_lines(run: Path, settings: Mapping[str, Any]) -> list[str]:
    """Return a line for each way to use ``run``/model: transformers, vLLM, qwen-job chat, and model.chat of Qwen-1."""
    model = run / "model"
    lines = [
        f"transformers: AutoModelForCausalLM.from_pretrained({str(model)!r}), without trust_remote_code; the whole "
        "example is in README.md beside it",
        f"vLLM: vllm serve {shlex.quote(str(model))}",
        f"chat: qwen-job chat {shlex.quote(str(run))}",
    ]
    original = original_of(settings)
    if original is not None:
        lines.append(f"model.chat of the original code: {export_command(str(model), original)}")
    return lines


def export_command(model: str, original: Path | None) -> str:
    """Return the command that writes Qwen-1's layout beside ``model``, with the original's ``*.py`` files."""
    place = shlex.quote(str(original)) if original is not None else "ORIGINAL"
    return (
        f"qwen-job model export {shlex.quote(model)} {shlex.quote(model + '-qwen1')} --layout qwen1 --original {place}"
    )


def original_of(settings: Mapping[str, Any]) -> Path | None:
    """Return the folder of the Qwen-1 files that a run started from; None where it was no Qwen-1."""
    from qwen_job.facts.model_files import is_qwen1, read_config
    from qwen_job.facts.model_names import is_qwen1_id
    from qwen_job.models.fetch import cached_folder
    from qwen_job.models.spec import ModelSpec

    section = settings.get("model")
    if not isinstance(section, dict):
        return None
    try:
        spec = ModelSpec.from_dict({"revision": None, "cache_dir": None, **section})
        if spec.source == "random":
            return None
        folder = Path(spec.name).expanduser().absolute() if spec.source == "local" else cached_folder(spec)
        if (folder / "config.json").is_file():
            return folder if is_qwen1(read_config(folder)) else None
    except (ModelError, RuntimeError):
        return None
    return folder if is_qwen1_id(spec.name) else None

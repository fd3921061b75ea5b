"""From what train.yaml says to a folder that transformers loads without remote code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .files import exists, new_folder
from .folder import check_folder, needs_conversion
from .lock import Progress, exclusive
from .spec import ModelSpec, cache_folder


def ensure_model(
    spec: ModelSpec, *, output_dir: Path, training_data: Sequence[Path] = (), progress: Progress | None = None
) -> Path:
    """Return a local folder with config, safetensors, fast tokenizer and generation config of the model.

    Safe to call from any number of processes and nodes at once: the first one does the work below the shared
    cache, the others wait for its lock without a collective, and all of them see the finished folder.

    Args:
        spec: which model, from where.
        output_dir: the run's folder: relative model folders are looked for beside it last.
        training_data: files whose text trains the tokenizer when ``spec.source`` is random.
        progress: called with one line of text now and then.

    Raises:
        ModelError: the model does not exist, is incomplete or is none of ours.
        EnvironmentFault: the cache cannot be written, or the hub cannot be reached.
    """
    cache = cache_folder(spec.cache_dir)
    if spec.source == "random":
        return _random(spec, cache, training_data, progress)
    if spec.source == "local":
        return usable_folder(_find(spec.name, output_dir), cache, progress)
    from .fetch import fetch_model

    return usable_folder(fetch_model(spec, progress=progress), cache, progress)


def _find(name: str, output_dir: Path) -> Path:
    path = Path(name).expanduser()
    beside = output_dir.parent / path
    return (beside if not exists(path) and exists(beside) else path).absolute()


def _random(spec: ModelSpec, cache: Path, data: Sequence[Path], progress: Progress | None) -> Path:
    from .initial import initial_key, load_config, training_texts, write_random_model

    config = load_config(spec.name)
    texts = training_texts(data)
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", Path(spec.name).stem if spec.name.endswith(".yaml") else spec.name)
    target = cache / "random" / f"{name}-{initial_key(config, texts)}"
    return once(target, lambda folder: write_random_model(config, texts, folder), progress)


def usable_folder(folder: Path, cache: Path, progress: Progress | None = None) -> Path:
    """Return ``folder`` itself when transformers loads it natively, else its conversion in the cache (Qwen-1, .bin)."""
    if not needs_conversion(folder):
        check_folder(folder)
        return folder
    from .convert import conversion_key, convert

    target = cache / "converted" / f"{folder.name}-{conversion_key(folder)}"
    return once(target, lambda aside: convert(folder, aside, progress), progress)


def once(target: Path, work: Callable[[Path], None], progress: Progress | None = None) -> Path:
    """Make the folder ``target`` with ``work`` unless it exists: aside, checked, renamed, under a lock."""
    if target.is_dir():
        return target
    with exclusive(target.with_name(f"{target.name}.lock"), progress):
        if not target.is_dir():
            if progress:
                progress(f"preparing {target.name}")
            with new_folder(target) as aside:
                work(aside)
                check_folder(aside)
    return target

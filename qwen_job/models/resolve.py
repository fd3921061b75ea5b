"""Resolve the model section of train.yaml to a folder that transformers loads without remote code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_job.errors import ModelError
from qwen_job.facts.model_files import exists, listed, read_json
from qwen_job.models.completeness import check_folder, needs_conversion
from qwen_job.models.convert import conversion_key, convert
from qwen_job.models.fetch import fetch_model
from qwen_job.models.random_init import initial_key, load_config, write_random_model
from qwen_job.remote.download import damaged
from qwen_job.run.config import TrainConfig
from qwen_job.run.sections import ModelSpec
from qwen_job.storage import Notify, cache_folder, exclusive, new_folder, write_json

RECORD = ".made.json"


def ready_model(config: TrainConfig, sample: Callable[[list[Path]], Sequence[str]], log: Notify) -> Path:
    """Return the local folder of a run's model; ``sample`` reads texts from its data. See :func:`ensure_model`."""
    files = [file.path for file in config.data.train]
    return ensure_model(config.model, output_dir=config.output_dir, texts=lambda: sample(files), progress=log)


def ensure_model(
    spec: ModelSpec,
    *,
    output_dir: Path,
    texts: Callable[[], Sequence[str]] = tuple,
    verify: bool = False,
    progress: Notify | None = None,
) -> Path:
    """Return a local folder with config, safetensors, fast tokenizer and generation config of the model.

    Any number of processes and nodes may call it at once: the first does the work in the shared cache, the others wait
    for its lock (without a collective), and all of them see the finished folder.

    Args:
        spec: the model and its source.
        output_dir: the run folder; a relative model folder that does not exist is looked for beside it.
        texts: returns what the tokenizer is trained on; called only if ``spec.source`` is random.
        verify: check the cached files by hash, not only by size, and convert again.
        progress: called with a line of text from time to time.

    Raises:
        ModelError: the model does not exist, is incomplete, or is not supported.
        EnvironmentFault: the cache cannot be written, or the hub is unreachable.
    """
    cache = cache_folder(spec.cache_dir)
    if spec.source == "random":
        return _random(spec, cache, texts, progress)
    if spec.source == "local":
        return usable_folder(_find(spec.name, output_dir), cache, progress, verify=verify)
    folder = fetch_model(spec, verify=verify, progress=progress)
    try:
        return usable_folder(folder, cache, progress, verify=verify)
    except ModelError:
        if not damaged(folder, hashes=True):
            raise
    # Sizes are right, but some bytes are wrong.
    return usable_folder(fetch_model(spec, verify=True, progress=progress), cache, progress)


def _find(name: str, output_dir: Path) -> Path:
    path = Path(name).expanduser()
    beside = output_dir.parent / path
    return (beside if not exists(path) and exists(beside) else path).absolute()


def _random(spec: ModelSpec, cache: Path, sample: Callable[[], Sequence[str]], progress: Notify | None) -> Path:
    config = load_config(spec.name)
    texts = sample()
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", Path(spec.name).stem if spec.name.endswith(".yaml") else spec.name)
    target = cache / "random" / f"{name}-{initial_key(config, texts)}"
    return once(target, lambda folder: write_random_model(config, texts, folder), progress)


def usable_folder(folder: Path, cache: Path, progress: Notify | None = None, *, verify: bool = False) -> Path:
    """Return ``folder`` if transformers loads it natively, else its conversion in the cache (Qwen-1, .bin)."""
    if not needs_conversion(folder):
        check_folder(folder)
        return folder
    target = cache / "converted" / f"{folder.name}-{conversion_key(folder)}"
    return once(target, lambda aside: convert(folder, aside, progress), progress, again=verify)


def once(target: Path, work: Callable[[Path], None], progress: Notify | None = None, *, again: bool = False) -> Path:
    """Make the folder ``target`` with ``work`` unless it is complete; under a lock, checked, then renamed into place.

    A damaged one is made again; with ``again``, a sound one too.
    """
    if not again and not _fault(target):
        return target
    with exclusive(target.with_name(f"{target.name}.lock"), progress):
        fault = _fault(target)
        if fault or again:
            if progress:
                progress(f"preparing {target.name}" + (f" again: {fault}" if fault and exists(target) else ""))
            with new_folder(target, replace=True) as aside:
                work(aside)
                check_folder(aside)
                made = sorted(path for path in aside.rglob("*") if path.is_file())
                sizes = {path.relative_to(aside).as_posix(): path.stat().st_size for path in made}
                write_json(aside / RECORD, {"version": 1, "files": sizes})
    return target


def _fault(folder: Path) -> str:
    """Return what is wrong with a folder made by :func:`once`, empty if every file has its recorded size."""
    if not folder.is_dir():
        return "is missing"
    try:
        sizes = read_json(folder / RECORD).get("files") if exists(folder / RECORD) else {}
        for name, size in (sizes if isinstance(sizes, dict) else {RECORD: -1}).items():
            path = listed(folder, name)
            if not path.is_file() or path.stat().st_size != size:
                return f"{name} is not as it was written"
        check_folder(folder)
    except (ModelError, OSError) as error:
        return str(error)
    return ""

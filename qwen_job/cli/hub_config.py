"""The config.json of a model that no facts file describes, from its hub: for ``plan`` alone, a render reads no hub."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import NamedTuple

from qwen_job.errors import QwenJobError
from qwen_job.facts.model_names import clean_name
from qwen_job.facts.model_shapes import ModelShape, load_model_shape
from qwen_job.facts.untrained import why_untrained
from qwen_job.job import Job
from qwen_job.models.fetch import place
from qwen_job.remote.download import Download
from qwen_job.run.sections import ModelSpec

_CONFIG = "config.json"
# A machine without internet access must not wait for a plan.
PATIENCE_SECONDS = 10.0


class FromHub(NamedTuple):
    """The shape of a job's model, None without one, and what to report about it."""

    shape: ModelShape | None
    note: str = ""


def shape_from_hub(job: Job) -> FromHub:
    """Return the shape of a model that is known only to its hub; its config.json is kept in the cache.

    Nothing is read for a model that has a facts file or a folder, or that is refused by name.
    """
    source, name = job.model.resolved_source, job.model.name
    if source not in ("modelscope", "huggingface") or why_untrained(name):
        return FromHub(None)
    try:
        load_model_shape(name)
        return FromHub(None)
    except QwenJobError:
        pass
    cache = Path(job.model.cache_dir) if job.model.cache_dir else None
    values = {"name": clean_name(name, source), "source": source, "revision": job.model.revision, "cache_dir": cache}
    try:
        config = _config_of(ModelSpec.read(values))
        shape = load_model_shape(config)
    except QwenJobError as error:
        return FromHub(None, f"model.name: its {_CONFIG} was not read from {source}: {error}")
    return FromHub(shape, f"model.name: planned with {config}, which came from {source}")


def _config_of(spec: ModelSpec) -> Path:
    """Return the config.json of a hub's model, downloaded unless it is in the cache.

    Raises:
        ModelError: there is no such model, or it has no config.json.
        EnvironmentFault: the hub is unreachable or its library is missing, or downloads are forbidden.
    """
    hub, model, revision, whole = place(spec)
    folder = whole.with_name(f"{whole.name}.config")
    for known in (whole, whole.with_name(f"{whole.name}.chat"), folder):
        if (known / _CONFIG).is_file():
            return known / _CONFIG
    if hub.offline:
        raise hub.unreachable(f"{hub.offline} forbids downloads")
    found: list[Path] = []
    faults: list[QwenJobError] = []

    def fetch() -> None:
        try:
            listed = [file for file in hub.list_files(model, revision) if file.path == _CONFIG]
            found.extend(Download(hub, model, revision, folder, None).fetch(listed))
        except QwenJobError as error:
            faults.append(error)
        except Exception as error:  # of the hub's library
            faults.append(hub.unreachable(error))

    worker = Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(PATIENCE_SECONDS)
    if faults:
        raise faults[0]
    if not found:
        raise hub.unreachable(f"no answer in {PATIENCE_SECONDS:g} s" if worker.is_alive() else f"no {_CONFIG} there")
    return found[0]

"""A model from a hub in the shared cache: downloaded once, resumable, verified, and usable offline afterwards.

``remote/download.py`` downloads and verifies. This module chooses a model's files, holds the lock so that one process
of the cluster downloads, and refuses what cannot be trained before its weights come.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from qwen_job.chat.template import MORE_TEMPLATES
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.model_files import QUANTIZED_FILES, exists, read_json, refuse_quantized
from qwen_job.facts.model_names import clean_name
from qwen_job.remote.download import MARKER, Download, damaged, retried
from qwen_job.remote.hub import Hub, RemoteFile
from qwen_job.remote.hub_huggingface import HuggingFace
from qwen_job.remote.hub_modelscope import ModelScope
from qwen_job.run.sections import ModelSpec
from qwen_job.storage import Notify, cache_folder, exclusive

_NEVER = (".*", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.mp4", "*.pdf", "*.md")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")


def cached_folder(spec: ModelSpec) -> Path:
    """Return the folder that ``fetch_model`` downloads a hub's model into.

    Raises:
        ModelError: the model's name is not a hub ID.
    """
    return place(spec)[3]


def place(spec: ModelSpec) -> tuple[Hub, str, str, Path]:
    """Return the hub, the model's ID, its revision and its folder in the cache."""
    hub: Hub = HuggingFace() if spec.source == "huggingface" else ModelScope()
    revision = spec.revision or hub.default_revision
    try:
        model = clean_name(spec.name, hub.name)
    except ValueError as error:
        raise ModelError(f"model.name: {error}") from None
    names = [part.replace(".", "___") for part in (model.replace("/", "--"), revision.replace("/", "--"))]
    return hub, model, revision, cache_folder(spec.cache_dir) / hub.name / "@".join(names)


def fetch_model(spec: ModelSpec, *, verify: bool = False, progress: Notify | None = None) -> Path:
    """Return a folder with a model of ModelScope or Hugging Face; download the files that are missing.

    Any number of processes and nodes may call it: one downloads, the others wait. Files that the user's own ModelScope
    or Hugging Face cache holds are linked or copied instead of downloaded; without a network that cache is used in
    place. A killed download resumes. Pickles are left out if the model has safetensors. A complete copy is checked by
    file sizes, with ``verify`` also by hashes, and repaired.

    Raises:
        ModelError: no such model, no access, quantized, or the hub keeps sending other bytes than it announced.
        EnvironmentFault: the hub is unreachable, its library is not installed, the disk is full, or downloads are
            forbidden and the model is not cached.
    """
    hub, model, revision, folder = place(spec)
    damage = damaged(folder, hashes=verify)
    if not damage:
        return folder
    if hub.offline:
        state = f"damaged in the cache ({folder}: {damage})" if exists(folder / MARKER) else f"not cached ({folder})"
        fault = EnvironmentFault(
            f"{model}: is {state}, and {hub.offline} forbids downloads; run 'qwen-job model fetch {model}' on a "
            "machine with internet access, with the same cache"
        )
        return _in_place(hub, model, revision, fault, progress)
    with exclusive(folder.with_name(f"{folder.name}.lock"), progress):
        if damage := damaged(folder, hashes=verify):
            if progress and exists(folder / MARKER):
                progress(f"{folder.name}: {damage}: downloading the damaged files again")
            try:
                files = wanted(retried(hub, lambda: hub.list_files(model, revision, progress), progress))
            except EnvironmentFault as error:
                return _in_place(hub, model, revision, error, progress)
            download = Download(hub, model, revision, folder, progress)
            download.run(files, first=("config.json", *QUANTIZED_FILES), check=lambda: _refuse_quantized(folder))
    return folder


def _refuse_quantized(folder: Path) -> None:
    if exists(folder / "config.json"):
        refuse_quantized(folder, read_json(folder / "config.json"))


def _in_place(hub: Hub, model: str, revision: str, fault: EnvironmentFault, progress: Notify | None) -> Path:
    """Return the copy in the user's own cache; the caller checks that it is complete. Raise ``fault`` without one."""
    found = hub.cached(model, revision)
    if found is None:
        raise fault
    if progress:
        progress(f"{model}: using the copy in {found}, which cannot be compared with {hub.name} now")
    return found


def is_named_template(file: RemoteFile) -> bool:
    """Tell whether a file is one of a model's further chat templates, the only ones in a folder that training needs."""
    path = PurePosixPath(file.path)
    return str(path.parent) == MORE_TEMPLATES and path.suffix == ".jinja"


def wanted(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a model that training needs: no pictures, no other formats, pickles only as a last resort."""
    safe = any(file.path.endswith(".safetensors") for file in files)
    unwanted = (*_NEVER, *_PICKLES) if safe else _NEVER
    chosen = []
    for file in files:
        at_top = "/" not in file.path
        named = at_top and not any(fnmatch.fnmatch(file.path.lower(), pattern) for pattern in unwanted)
        if named or is_named_template(file):
            chosen.append(file)
    if not chosen:
        raise ModelError("the hub lists no files of a model; check the model's ID and revision")
    return chosen

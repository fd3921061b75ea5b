"""A model's tokenizer and chat template, without its weights: what checking and showing data needs."""

from __future__ import annotations

from pathlib import Path

from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.model_names import clean_name, is_qwen1_id, resolve_source
from qwen_job.models.fetch import is_named_template, place
from qwen_job.remote.download import Download, damaged, retried
from qwen_job.remote.hub import RemoteFile
from qwen_job.run.sections import ModelSpec
from qwen_job.storage import Notify, exclusive

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def chat_files(name: str, progress: Notify | None = None) -> Path:
    """Return a folder with the tokenizer and the chat template of ``name``: a folder, or the ID of a model on a hub.

    Of a hub's model, the cached copy is used if there is one; otherwise only these small files are downloaded.

    Raises:
        ModelError: it is neither, or it has no tokenizer.json.
        EnvironmentFault: the hub is unreachable, or its library is not installed.
    """
    if Path(name).is_dir() or resolve_source(name, "auto") == "local":
        return Path(name)
    try:
        spec = ModelSpec(name=clean_name(name, "modelscope"), source="modelscope")
    except ValueError as error:
        raise ModelError(f"{name}: is no folder, and {error}") from None
    return fetch_chat_files(spec, progress)


def fetch_chat_files(spec: ModelSpec, progress: Notify | None = None) -> Path:
    """Do the same for the model of a job on a hub.

    Raises:
        ModelError: it has no tokenizer.json.
        EnvironmentFault: the hub is unreachable, or its library is not installed.
    """
    hub, model, revision, whole = place(spec)
    small = whole.with_name(f"{whole.name}.chat")
    for folder in (whole, small):
        if not damaged(folder):
            return folder
    if hub.offline:
        raise EnvironmentFault(f"{model}: is not cached ({whole}), and {hub.offline} forbids downloads; "
                               f"run 'qwen-job model fetch {model}' where there is a network")  # fmt: skip
    with exclusive(small.with_name(f"{small.name}.lock"), progress):
        if damaged(small):
            listed = retried(hub, lambda: hub.list_files(model, revision, progress), progress)
            Download(hub, model, revision, small, progress).run(_wanted(model, listed))
    return small


def _wanted(model: str, files: list[RemoteFile]) -> list[RemoteFile]:
    found = [file for file in files if file.path in _FILES or is_named_template(file)]
    if "tokenizer.json" not in [file.path for file in found]:
        advice = (
            f"; 'qwen-job model fetch {model}' writes one: give the folder that it prints" if is_qwen1_id(model) else ""
        )
        raise ModelError(f"{model}: has no tokenizer.json{advice}")
    return found

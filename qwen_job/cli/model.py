"""``qwen-job model``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_job.cli.job_options import say
from qwen_job.errors import ModelError, UsageError
from qwen_job.text import show_path, visible

if TYPE_CHECKING:
    from qwen_job.models.publish import Publication

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def model() -> None:
    """Fetch, convert and export models.

    \b
    qwen-job model fetch Qwen/Qwen-1_8B-Chat              once, on a machine with internet access
    qwen-job model convert ./Qwen-1_8B-Chat ./native      Qwen-1 to a layout that transformers and vLLM load
    qwen-job model export RUN/model ./out --layout qwen1  back to Qwen-1, for the original model.chat
    qwen-job model push RUN hf:OWNER/NAME                 show what would go up; --yes pushes it
    """


@model.command()
@click.argument("model_id", metavar="ID")
@click.option(
    "--source",
    type=click.Choice(["auto", "modelscope", "huggingface", "local"]),
    default="auto",
    show_default=True,
    help="Same as model.source; auto: a path is a local folder, anything else comes from ModelScope.",
)
@click.option("--revision", help="Branch, tag or commit [default: the hub's main branch].")
@click.option("--cache", type=_FOLDER, help="Shared cache [default: $QWEN_JOB_CACHE, else ~/.cache/qwen-job].")
@click.option("--verify", is_flag=True, help="Verify the hash of every cached file, and convert again.")
def fetch(model_id: str, source: str, revision: str | None, cache: Path | None, verify: bool) -> None:
    """Download a model into the shared cache.

    The model is downloaded once, verified, and converted if it is a Qwen-1; the command prints the folder that jobs
    will load. A local folder (an ID that starts with /, ./, ../ or ~) is checked, and converted into the cache if
    needed. An interrupted download resumes; in a damaged copy only the bad files are fetched again. Files in your own
    ModelScope or Hugging Face cache are reused. Set mirrors with MODELSCOPE_ENDPOINT and HF_ENDPOINT, and tokens with
    MODELSCOPE_API_TOKEN and HF_TOKEN. Needs: pip install 'qwen-job[hub]'.
    """
    from qwen_job.facts.model_names import clean_name, resolve_source
    from qwen_job.models import ensure_model
    from qwen_job.run.sections import ModelSpec

    source = resolve_source(model_id, source)
    try:
        model_id = clean_name(model_id, source)
    except ValueError as error:
        raise ModelError(f"ID: {error}") from None
    if source == "local" and revision:
        raise UsageError("--revision: does not apply to a local folder; remove it")
    spec = ModelSpec.read({"name": model_id, "source": source, "revision": revision, "cache_dir": cache})
    show_path(ensure_model(spec, output_dir=Path("output").absolute(), verify=verify, progress=say))


@model.command()
@click.argument("folder", type=_FOLDER)
@click.argument("target", type=_FOLDER)
def convert(folder: Path, target: Path) -> None:
    """Convert a Qwen-1 FOLDER to Qwen2ForCausalLM.

    TARGET is a new folder that transformers and vLLM load without remote code; the weights are bit-identical. Also
    converts the pytorch_model.bin files of newer models to safetensors (this needs torch). Uses a few megabytes of
    memory whatever the size of the model. FOLDER is not changed.
    """
    from qwen_job.models.convert import convert_folder

    convert_folder(folder, target, say)
    show_path(target)


@model.command()
@click.argument("folder", type=_FOLDER)
@click.argument("target", type=_FOLDER)
@click.option("--layout", type=click.Choice(["qwen1"]), required=True, help="Layout to write.")
@click.option("--original", type=_FOLDER, help="The original Qwen-1 folder, to copy its *.py files and settings.")
def export(folder: Path, target: Path, layout: str, original: Path | None) -> None:
    """Write a model in Qwen-1's layout.

    TARGET is a new folder with bit-identical weights, for use with the original remote code: transformers 4.36.2 to
    4.44.2 and model.chat(tokenizer, "你好").
    """
    from qwen_job.models.convert import export_qwen1

    assert layout == "qwen1"
    if not export_qwen1(folder, target, original, say):
        say(f"copy the *.py files of the original model into {target}, or pass its folder with --original")
    show_path(target)


@model.command()
@click.argument("folder", type=_FOLDER)
def check(folder: Path) -> None:
    """Check that a model FOLDER is complete.

    Checks the config, the shape of every weight, the tokenizer and the generation settings, and lists the settings
    that a trained model would not keep. Only headers are read, so a 72B model is checked as fast as a small one.
    """
    from qwen_job.facts.config_fields import unknown_fields
    from qwen_job.facts.weights import count_parameters, expected_shapes
    from qwen_job.models.completeness import check_folder, left_out
    from qwen_job.models.generation import exported

    config = check_folder(folder)
    if unknown := unknown_fields(config):
        say(f"config.json: {', '.join(unknown)}: unknown to transformers, ignored")
    for note in [*left_out(folder), *exported(folder).notes]:
        say(note)
    count = count_parameters(expected_shapes(config))
    click.echo(f"{folder}: complete: {config['model_type']}, {count:,} parameters")


@model.command()
@click.argument("run_or_model", type=_FOLDER)
@click.argument("repo")
@click.option("--yes", is_flag=True, help="Push; without it nothing is sent.")
@click.option("--public", is_flag=True, help="Let everybody read it; a new repository is private by default.")
def push(run_or_model: Path, repo: str, yes: bool, public: bool) -> None:
    """Push a trained model to Hugging Face or ModelScope.

    REPO is hf:OWNER/NAME or ms:OWNER/NAME. Without --yes, the files that would go up and what is left out are listed,
    and nothing is sent. A push that was interrupted resumes: run it again. Log in with HF_TOKEN or
    MODELSCOPE_API_TOKEN, or the hub's own command; mirrors as for 'model fetch'. Needs: pip install 'qwen-job[hub]'.
    """
    from qwen_job.models.publish import publication
    from qwen_job.remote.push import destination

    hub, repository = destination(repo)
    what = publication(run_or_model)
    for line in _look(what, "public" if public else "private", hub.page(repository)):
        click.echo(visible(line))
    if not yes:
        say("nothing was sent: look at the list, then add --yes")
        return
    hub.require_login()
    say(f"pushing {len(what.files)} files to {hub.page(repository)}")
    hub.push(repository, what.folder, list(what.files), public=public, progress=say)
    click.echo(hub.page(repository))


def _look(what: Publication, visibility: str, page: str) -> Iterator[str]:
    """Yield what would go up, a file a line, with its size, and what the reader should know before."""
    width = max(map(len, what.files))
    yield f"{what.folder} to {page} ({visibility})"
    for name, size in what.files.items():
        yield f"  {name:<{width}}  {size:>15,} bytes"
    yield f"{len(what.files)} files, {sum(what.files.values()):,} bytes"
    if what.left_out:
        more = f" and {len(what.left_out) - 5} more" if len(what.left_out) > 5 else ""
        yield f"left out: {', '.join(what.left_out[:5])}{more}"
    if "README.md" not in what.files:
        yield "there is no model card (README.md): 'qwen-job evaluate RUN' writes one for a run"
    elif not what.head.get("license"):
        yield "README.md: names no license: others may not use the model"
    for key in ("license", "base_model", "datasets"):
        if value := what.head.get(key):
            yield f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}"

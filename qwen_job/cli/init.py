"""``qwen-job init``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import click

from qwen_job.errors import EnvironmentFault, UsageError

_SCHEMA = "$schema=job.schema.json   (qwen-job schema > job.schema.json)"


@click.command()
@click.argument("file", default="job.yaml", type=click.Path(path_type=Path))
@click.option("--from", "example", metavar="NAME", help="Start from an example job.")
@click.option("--list", "listing", is_flag=True, help="List the examples and write nothing.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def init(file: Path, example: str | None, listing: bool, force: bool) -> None:
    """Write a commented job.yaml to start from, or one of the examples.

    Nothing is asked. 'qwen-job docs examples' shows what each example needs and how fast it is.
    """
    from qwen_job.atomic import write_atomically

    known = examples()
    if listing:
        _list(known, err=False)
        return
    if str(file) in ("list", *known):
        meant = "--list" if str(file) == "list" else f"--from {file}"
        raise UsageError(f"{file} would be the name of the new file; did you mean '{meant}'?")
    text = _text(example, known, file)
    if file.exists() and not force:
        raise EnvironmentFault(f"{file}: already exists; choose another name, or use --force to replace it")
    try:
        write_atomically(file, text)
    except OSError as error:
        raise EnvironmentFault(f"{file}: cannot be written: {error.strerror}") from None
    click.echo(f"{file} written; next: qwen-job plan {file}", err=True)
    if example is None:
        click.echo(f"\nExamples, for 'qwen-job init {file} --force --from NAME':", err=True)
        _list(known, err=True)


def examples() -> Mapping[str, str]:
    """Return the name of each example in configs/jobs and its first line of text, in the order of the names."""
    from qwen_job.resources import resource

    paths = sorted(resource("configs", "jobs").glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: summary(path) for path in paths}


def summary(path: Path) -> str:
    """Return what an example is: the first comment under the line that names its schema."""
    return path.read_text("utf-8").splitlines()[1].removeprefix("# ")


def _list(known: Mapping[str, str], *, err: bool) -> None:
    width = max(map(len, known))
    for name, text in known.items():
        click.echo(f"  {name:{width}}  {text}", err=err)


def _text(example: str | None, known: Mapping[str, str], file: Path) -> str:
    from qwen_job.resources import resource

    if example is None:
        return resource("configs", "job-template.yaml").read_text("utf-8")
    if example not in known:
        raise UsageError(f"--from: there is no example {example!r}; {_nearest(example, known)}")
    text = resource("configs", "jobs", f"{example}.yaml").read_text("utf-8")
    # What the comments name is beside the examples, not beside the copy.
    text = text.replace("$schema=../job.schema.json", _SCHEMA, 1)
    if example == "demo":
        # The demo's paths are relative to its file; a copy elsewhere needs full paths.
        text = text.replace("../data/", f"{resource('configs', 'data')}/").replace("../../runs/", "runs/")
        text = text.replace("#   make demo                       or\n", "")
        text = text.replace("configs/jobs/demo.yaml", shlex.quote(str(file)), 1)
        text = re.sub(r" +# qwen_job/facts/.*", "", text)
    return text


def _nearest(example: str, known: Mapping[str, str]) -> str:
    from qwen_job.text import nearest

    inside = [name for name in known if example and example.lower() in name]
    near = list(dict.fromkeys([*inside, *nearest(example, known, 3)]))[:3]
    return f"did you mean {', '.join(near)}?" if near else "'qwen-job init --list' lists them"

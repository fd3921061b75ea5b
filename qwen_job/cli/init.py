"""``qwen-job init``."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_job.errors import EnvironmentFault


@click.command()
@click.argument("file", default="job.yaml", type=click.Path(path_type=Path))
@click.option("--example", metavar="NAME", help="Start from an example job; 'list' shows them.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def init(file: Path, example: str | None, force: bool) -> None:
    """Write a commented job.yaml to start from."""
    from qwen_job.atomic import write_atomically
    from qwen_job.resources import resource
    from qwen_job.text import did_you_mean

    folder = resource("configs", "jobs")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if example == "list":
        click.echo("\n".join(names))
        return
    if str(file) in ("list", *names):
        raise click.UsageError(f"{file} would be the name of the new file; did you mean '--example {file}'?")
    if example is not None and example not in names:
        raise click.UsageError(
            f"no such example: {example!r} ('init --example list' shows them){did_you_mean(example, names)}"
        )
    if file.exists() and not force:
        raise EnvironmentFault(f"{file}: already exists; choose another name, or use --force to replace it")
    source = folder / f"{example}.yaml" if example else resource("configs", "job-template.yaml")
    text = source.read_text("utf-8")
    if example == "demo":
        # The demo's paths are relative to its file; a copy elsewhere needs full paths.
        text = text.replace("../data/", f"{resource('configs', 'data')}/").replace("../../runs/", "runs/")
    try:
        write_atomically(file, text)
    except OSError as error:
        raise EnvironmentFault(f"{file}: cannot be written: {error.strerror}") from None
    click.echo(f"{file} written; next: qwen-job plan {file}", err=True)

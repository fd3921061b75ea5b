"""``qwen-job templates``."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.text import visible


@click.group()
def templates() -> None:
    """List the templates, or export them for editing."""


def _names() -> list[str]:
    from qwen_job.render.engine import TEMPLATES

    return sorted(str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.j2"))


@templates.command("list")
def list_templates() -> None:
    """List the templates."""
    click.echo("\n".join(_names()))


@templates.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("names", nargs=-1)
@click.option("--force", is_flag=True, help="Replace existing templates.")
def export(folder: Path, names: tuple[str, ...], force: bool) -> None:
    """Copy all templates, or those in NAMES, to FOLDER.

    Edit them, then use 'qwen-job render --template-dir FOLDER'.
    """
    from qwen_job.atomic import write_atomically
    from qwen_job.render.engine import TEMPLATES
    from qwen_job.text import did_you_mean

    known = _names()
    for name in names:
        if name not in known:
            near = did_you_mean(name, known) or "; 'qwen-job templates list' lists all"
            raise UsageError(f"no such template: {name!r}{near}")
    chosen = list(names) or known
    there = [name for name in chosen if (folder / name).exists()]
    if there and not force:
        raise EnvironmentFault(f"{folder / there[0]}: already exists; use --force to replace it")
    for name in chosen:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, (TEMPLATES / name).read_text("utf-8"))
        click.echo(visible(folder / name))

"""The options that every command with a job shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qwen_job.errors import EnvironmentFault
from qwen_job.text import visible

if TYPE_CHECKING:
    from qwen_job.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A range of numbers without nan and infinity, which pass every comparison of click's own."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; UsageError of click's for one that is not finite or out of range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def job_options(command: F) -> F:
    """Add JOB, ``-f`` and ``--set``."""
    for decorate in reversed(
        [
            click.argument("job", required=False, metavar="[JOB]"),
            click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="A layer; later ones win."),
            click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Set one field; wins over files."),
        ]
    ):
        command = decorate(command)
    return command


def load_plan(
    job: str | None, files: tuple[str, ...], sets: tuple[str, ...], under: dict[str, Any] | None = None
) -> Plan:
    """Load the layers over ``under`` and plan them; without any file ./job.yaml is taken."""
    from qwen_job.job import load_job
    from qwen_job.plan import make_plan

    return make_plan(load_job(layers(job, files), sets=sets, under=under))


def layers(job: str | None, files: tuple[str, ...]) -> list[str]:
    """Return the files to lay over each other, lowest first: ``-f`` in order, then JOB."""
    chosen = [*files, *([job] if job else [])]
    if chosen:
        return chosen
    if not Path("job.yaml").exists():
        raise EnvironmentFault("there is no job.yaml here; 'qwen-job init' writes one, or name your job file")
    return ["job.yaml"]


def show_words(lines: tuple[str, ...], colour: str = "yellow", label: str = "warning") -> None:
    """Print words about the result to stderr, so that stdout stays data."""
    for line in lines:
        click.echo(f"{click.style(label + ':', fg=colour)} {visible(line)}", err=True)

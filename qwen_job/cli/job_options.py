"""Options shared by every command that takes a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from qwen_job.errors import EnvironmentFault, JobError, Problem
from qwen_job.text import did_you_mean, visible

if TYPE_CHECKING:
    from qwen_job.plan import Plan
    from qwen_job.render import Bundle

F = TypeVar("F", bound=Callable[..., Any])


class Option(Protocol):
    """What adds an option or an argument to a command."""

    def __call__(self, command: F, /) -> F:
        """Return the command with it."""


class FiniteRange(click.FloatRange):
    """A float range that also rejects NaN and infinity, which pass click's own comparisons."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.UsageError: it is not finite or out of range.
        """
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


TARGETS = ("slurm", "kubernetes", "helm", "kubeflow", "hostfile", "local")
# What other programs call a target.
_OTHER_TARGETS = {"k8s": "kubernetes", "kube": "kubernetes", "sbatch": "slurm", "ssh": "hostfile", "localhost": "local"}


class TargetChoice(click.Choice[str]):
    """A target; a mistake gets the right word."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the target.

        Raises:
            click.UsageError: it is not one; suggests which is meant.
        """
        names = [str(name) for name in self.choices]
        if value not in names:
            other = _OTHER_TARGETS.get(str(value).lower(), "")
            hint = f"; did you mean '{other}'?" if other in names else did_you_mean(value, names)
            if "local" in names and "hostfile" in (value, other) and "hostfile" not in names:
                hint = ": write the files with 'qwen-job render -t hostfile -o DIR', then run 'bash DIR/launch.sh'"
            self.fail(f"{value!r} is not one of {', '.join(names)}{hint}", param, ctx)
        return super().convert(value, param, ctx)


def option_group(*options: Option) -> Option:
    """Return a decorator that adds options and arguments, in the order of the help."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def assignments(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values of ``--set``, before a value in a separate word is taken for another argument.

    Raises:
        JobError: one has no equals sign.
    """
    for word in words:
        if "=" not in word:
            message = f"write it as field=value in one word, e.g. --set {word}=VALUE"
            raise JobError([Problem("--set", 0, 0, word, message)])
    return words


# -f and --set.
layer_options = option_group(
    click.option(
        "-f", "--file", "files", multiple=True, metavar="FILE", help="Layer (YAML); later ones override earlier ones."
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="FIELD=VALUE",
        callback=assignments,
        help="Set one field; overrides all files.",
    ),
)
job_options = option_group(click.argument("job", required=False, metavar="[JOB]"), layer_options)


def load_plan(
    job: str | None, files: tuple[str, ...], sets: tuple[str, ...], under: dict[str, Any] | None = None
) -> Plan:
    """Load the layers on top of ``under`` and plan the job; the default file is ./job.yaml."""
    from qwen_job.api.jobs import load_job, plan_job

    return plan_job(load_job(*layers(job, files), sets=sets, base=under), count_data=False)


def layers(job: str | None, files: tuple[str, ...]) -> list[str]:
    """Return the layers, lowest first: ``-f`` in order, then JOB.

    Raises:
        EnvironmentFault: no file is given and ./job.yaml does not exist.
    """
    chosen = [*files, *([job] if job else [])]
    if chosen:
        return chosen
    if not Path("job.yaml").exists():
        raise EnvironmentFault(
            "no job.yaml in this folder; create one with 'qwen-job init', or pass the path of your job file"
        )
    return ["job.yaml"]


def show_words(lines: tuple[str, ...], colour: str = "yellow", label: str = "warning") -> None:
    """Print warnings or notes to stderr, so that stdout carries only data."""
    for line in lines:
        click.echo(f"{click.style(label + ':', fg=colour)} {visible(line)}", err=True)


def all_notes(bundles: Iterable[tuple[Plan, Bundle]]) -> tuple[str, ...]:
    """Return the notes of one or several bundles, each note once."""
    return tuple(dict.fromkeys(note for _, bundle in bundles for note in bundle.notes))


def say(line: str) -> None:
    """Print a line about the work to stderr."""
    click.echo(line, err=True)

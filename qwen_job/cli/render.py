"""``qwen-job render``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_job.cli.options import job_options, load_plan, show_words
from qwen_job.errors import EnvironmentFault
from qwen_job.text import visible

if TYPE_CHECKING:
    from qwen_job.plan import Plan

TARGETS = ("slurm", "kubernetes", "helm", "hostfile", "local")


@click.command()
@job_options
@click.option("-t", "--target", type=click.Choice(TARGETS), required=True, help="Where the job will run.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Write the files to DIR."
)
@click.option("--diff", is_flag=True, help="Show what would change in the files of -o (here without one).")
@click.option("--force", is_flag=True, help="Replace files in DIR that differ.")
@click.option(
    "--template-dir",
    "template_dirs",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="A folder whose templates replace ours of the same name.",
)
@click.option("--separate", is_flag=True, help="One script for each run of a sweep, also on Slurm.")
def render(
    job: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    target: str,
    output: Path | None,
    diff: bool,
    force: bool,
    template_dirs: tuple[str, ...],
    separate: bool,
) -> None:
    """Write the job for one target: to stdout, or to files with -o.

    \b
    qwen-job render job.yaml --target slurm | sbatch
    qwen-job render job.yaml --target kubernetes | kubectl apply -f -
    qwen-job render -f site.yaml -f job.yaml --set train.learning_rate=2e-5 -t helm > values.yaml
    """
    from qwen_job.render import render as render_one
    from qwen_job.render import render_each

    plan = load_plan(job, files, sets)
    if target == "hostfile":
        from qwen_job.launch.hosts import with_hosts

        plan = with_hosts(plan)
    if output is None and not (diff or separate):
        bundle = render_one(plan, target, template_dirs)
        show_words(plan.warnings)
        show_words((*bundle.notes, *_about_log(plan, target)), "cyan", "note")
        _print(bundle.text)
        return
    if output is None and separate:
        raise click.UsageError("--separate writes several files: give -o DIR")
    bundles = render_each(plan, target, template_dirs, separate=separate)
    show_words(plan.warnings)
    for folder, (_, bundle) in bundles.items():
        if diff:
            _show_diff(bundle.files, (output or Path()) / folder)
        elif output is not None:
            from qwen_job.launch.outputs import write_bundle

            for path in write_bundle(bundle, output / folder, force=force):
                click.echo(visible(path))


def _about_log(plan: Plan, target: str) -> tuple[str, ...]:
    """Return what sbatch does not check and a script cannot mend: its log's folder must be there before."""
    folder = plan.job.slurm.log_dir
    if target != "slurm" or "output" in plan.job.slurm.sbatch:
        return ()
    if folder and not os.access(folder, os.F_OK):
        return (f"slurm.log_dir: {folder} is not there, and sbatch makes no folder: 'mkdir -p' it (submit does)",)
    if not folder and "%" in str(Path.cwd()):
        return ("sbatch expands % in the folder where it is called: write slurm.log_dir, or use 'qwen-job submit'",)
    return ()


def _print(text: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(text)  # escaped: a value may hold control sequences
        return
    # Not click.echo: a script's text must reach the pipe byte for byte.
    rest = memoryview(text.encode())
    while rest:  # with PYTHONUNBUFFERED a write may take a part only
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def _show_diff(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        path = folder / name
        try:
            before = path.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            before = ""
        except OSError as error:
            raise EnvironmentFault(f"{path}: cannot be read: {error.strerror}") from None
        import difflib

        changes = difflib.unified_diff(
            before.splitlines(True), text.splitlines(True), str(path), f"{path} (rendered now)"
        )
        for line in changes:
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            click.secho(line.rstrip("\n"), fg=colour)

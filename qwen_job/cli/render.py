"""``qwen-job render``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_job.cli.job_options import TARGETS, TargetChoice, all_notes, job_options, load_plan, show_words
from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.text import visible

if TYPE_CHECKING:
    from qwen_job.plan import Plan


@click.command()
@job_options
@click.option("-t", "--target", type=TargetChoice(TARGETS), required=True, help="Where the job will run.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Write files to DIR."
)
@click.option("--diff", is_flag=True, help="Show what would change in DIR (the current folder without -o).")
@click.option("--force", is_flag=True, help="Replace files in DIR that differ.")
@click.option(
    "--template-dir",
    "template_dirs",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder with templates that replace the built-in ones of the same name.",
)
@click.option("--separate", is_flag=True, help="Write one script per run of a sweep, even on Slurm.")
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
    """Render the job for one target, to stdout or to files (-o).

    \b
    qwen-job render job.yaml --target slurm | sbatch
    qwen-job render job.yaml --target kubernetes | kubectl apply -f -
    qwen-job render -f site.yaml -f job.yaml --set train.learning_rate=2e-5 -t helm > values.yaml
    """
    from qwen_job.api.jobs import on_this_machine, render_job
    from qwen_job.render import render_each

    plan = load_plan(job, files, sets)
    if output is None and not (diff or separate):
        bundle = render_job(plan, target, template_dirs=template_dirs)
        show_words(plan.warnings)
        others = ("use -o DIR to write launch.sh and .deepspeed_env as well",) if target == "hostfile" else ()
        show_words((*bundle.notes, *others, *_about_log(plan, target)), "cyan", "note")
        _print(bundle.text)
        return
    if output is None and separate:
        raise UsageError("--separate writes several files: add -o DIR")
    bundles = render_each(on_this_machine(plan, target), target, template_dirs, separate=separate)
    show_words(plan.warnings)
    show_words((*all_notes(bundles.values()), *_about_log(plan, target)), "cyan", "note")
    for folder, (_, bundle) in bundles.items():
        if diff:
            _show_diff(bundle.files, (output or Path()) / folder)
        elif output is not None:
            from qwen_job.launch.outputs import write_bundle

            for path in write_bundle(bundle, output / folder, force=force):
                click.echo(visible(path))


def _about_log(plan: Plan, target: str) -> tuple[str, ...]:
    """Return warnings about the log folder, which sbatch does not check and the script cannot create."""
    folder = plan.job.slurm.log_dir
    if target != "slurm" or "output" in plan.job.slurm.sbatch:
        return ()
    if folder and not os.access(folder, os.F_OK):
        return (f"slurm.log_dir: {folder} does not exist and sbatch does not create it: run 'mkdir -p', or use submit",)
    if not folder and "%" in str(Path.cwd()):
        return ("sbatch expands % in the current folder's name: set slurm.log_dir, or use 'qwen-job submit'",)
    return ()


def _print(text: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(text)  # escaped: a value may contain control sequences
        return
    # Not click.echo: a script's text must reach the pipe byte for byte.
    rest = memoryview(text.encode())
    while rest:  # with PYTHONUNBUFFERED a write may be partial
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

"""``qwen-job sweep``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.job_options import job_options, layers
from qwen_job.text import json_text, visible

if TYPE_CHECKING:
    from qwen_job.launch.outcomes import Outcome, OverSeeds


# Maximum characters in a table cell.
_CELL = 100


@click.command()
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sweep(job: str | None, files: tuple[str, ...], sets: tuple[str, ...], as_json: bool) -> None:
    """Show the runs of a sweep, best first.

    JOB is the sweep's job.yaml or its output folder. Runs are ordered by held-out loss if available, otherwise by the
    mean loss of all steps. LOSS is the last step's, as in 'qwen-job status'. Where train.seed is swept, lines below the
    table give mean and standard deviation over the seeds.
    """
    from qwen_job.launch.outcomes import outcomes, over_seeds, runs_of_folder, runs_of_job

    if job and os.path.isdir(job):  # noqa: PTH112  # Path.is_dir raises if a parent folder is not accessible
        folder, runs = runs_of_folder(Path(job))
    else:
        from qwen_job.api.jobs import load_job

        folder, runs = runs_of_job(load_job(*layers(job, files), sets=sets))
    found = outcomes(folder, runs)
    if as_json:
        click.echo(json_text([_as_dict(outcome) for outcome in found], indent=2))
    else:
        click.echo(_table(found))
        for setting in over_seeds(found):
            click.echo(_seeds_line(setting))
        click.echo(f"the runs are in {folder}", err=True)


def _table(found: list[Outcome]) -> str:
    fields = list(found[0].values)
    header = (*(visible(field, _CELL) for field in fields), "STATE", "STEP", "LOSS", "MEAN LOSS", "EVAL LOSS", "RUN")
    rows = [header, *(_row(outcome, fields) for outcome in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _seeds_line(setting: OverSeeds) -> str:
    values = ", ".join(f"{field} {json_text(value)}" for field, value in setting.values.items())
    of = f"{setting.count}" if setting.count == setting.planned else f"{setting.count} of {setting.planned}"
    figure = "EVAL LOSS" if setting.held_out else "MEAN LOSS"
    text = f"over {of} seeds{f', {values}' if values else ''}: {figure} {setting.mean:.4f} ± {setting.spread:.4f}"
    return visible(text, 10 * _CELL)


def _row(outcome: Outcome, fields: list[str]) -> tuple[str, ...]:
    progress = outcome.progress
    values = (outcome.values.get(field, "") for field in fields)
    return (
        *(visible(value if isinstance(value, str) else json_text(value), _CELL) for value in values),
        visible(outcome.state, _CELL),
        "" if progress.step is None else f"{progress.step}/{progress.total_steps or '?'}",
        "" if outcome.loss is None else f"{outcome.loss:.4f}",
        "" if outcome.mean_loss is None else f"{outcome.mean_loss:.4f}",
        "" if outcome.eval_loss is None else f"{outcome.eval_loss:.4f}",
        visible(outcome.folder, 2 * _CELL),
    )


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    return {
        "run": outcome.folder,
        "values": outcome.values,
        "state": outcome.state,
        "step": outcome.progress.step,
        "total_steps": outcome.progress.total_steps,
        "loss": outcome.loss,
        "mean_loss": outcome.mean_loss,
        "eval_loss": outcome.eval_loss,
    }

"""``qwen-job evaluate``."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from qwen_job.cli.data_options import DATA
from qwen_job.cli.job_options import say
from qwen_job.text import json_text


@click.command()
@click.argument("run_or_model", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=DATA, help="Conversations that were not used in training.")
@click.option("--samples", type=click.IntRange(min=0), default=5, show_default=True, help="Number of sample questions.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Maximum answer length."
)
@click.option("--before/--no-before", default=True, help="Also measure the model before training.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run_or_model: Path, data: str | Path, samples: int, max_new_tokens: int, before: bool, as_json: bool
) -> None:
    """Measure held-out loss and perplexity, and print sample answers.

    Compares the model before training with the trained one, on the answers in the data. For a run, the result is
    saved in its evaluation.json and appears in 'qwen-job report'.
    """
    from qwen_job.atomic import write_atomically
    from qwen_job.infer.evaluate import as_text
    from qwen_job.infer.evaluate import evaluate as measure
    from qwen_job.run.folder import RunFolder

    result = measure(run_or_model, data, samples=samples, before=before, max_new_tokens=max_new_tokens, progress=say)
    text = json_text(result.to_dict(), indent=2)
    if RunFolder(run_or_model).train.is_file():
        write_atomically(RunFolder(run_or_model).evaluation, text + "\n")
    click.echo(text if as_json else as_text(result, shutil.get_terminal_size((100, 24)).columns))

"""``qwen-job evaluate``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from qwen_job.cli.data_options import DATA
from qwen_job.cli.job_options import say
from qwen_job.text import json_text, visible_lines


@click.command()
@click.argument("run_or_model", type=click.Path(path_type=Path), required=False)
@click.option(
    "--data",
    type=DATA,
    help="Conversations that were not used in training [default: what the run held out: data.eval or eval_split].",
)
@click.option("--samples", type=click.IntRange(min=0), default=5, show_default=True, help="Number of sample questions.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Maximum answer length."
)
@click.option(
    "--task", "tasks", metavar="NAME", multiple=True, help="A task, group or tag of lm-eval; may be repeated."
)
@click.option(
    "--task-folder",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder with lm-eval tasks (YAML); without --task, all of them.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Questions of each task [default: all].")
@click.option("--few-shot", type=click.IntRange(min=0), help="Examples before each question [default: the task's].")
@click.option("--batch-size", type=click.IntRange(min=1), help="Questions at a time [default: what fits].")
@click.option(
    "--backend",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="What runs the model.",
)
@click.option("--chat-template/--no-chat-template", default=True, help="Ask in the model's chat template.")
@click.option("--run-code", is_flag=True, help="Allow tasks that run the model's answers as code.")
@click.option("--check", is_flag=True, help="Only load the tasks and their data, and fetch what is missing.")
@click.option("--before/--no-before", default=True, help="Also measure the model before training.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run_or_model: Path | None,
    data: str | Path | None,
    samples: int,
    max_new_tokens: int,
    check: bool,
    before: bool,
    as_json: bool,
    **suite: Any,
) -> None:
    """Measure held-out loss and benchmark scores, before and after training.

    Loss and perplexity of the answers in --data, and sample answers. With --task or --task-folder:
    scores of lm-eval (pip install 'qwen-job[eval]'). For a run, the result is saved in its evaluation.json and appears
    in report.html and the model card.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read as tqdm is imported: bars would fill a log file
    from qwen_job.infer.suite import Suite

    wanted = Suite(**{**suite, "folder": suite["folder"] and suite["folder"].absolute()})
    asks = bool(wanted.tasks or wanted.folder)
    if check:
        _check(wanted)
        return
    if run_or_model is None:
        raise click.UsageError("Missing argument 'RUN_OR_MODEL'")
    found: dict[str, Any] = {}
    lines: list[str] = []
    if data is not None or not asks:
        _held_out(found, lines, run_or_model, data, samples=samples, before=before, max_new_tokens=max_new_tokens)
    if asks:
        _scores(found, lines, run_or_model, wanted, before)
    saved = _save(run_or_model, found)
    click.echo(json_text(saved or found, indent=2) if as_json else "\n".join(lines))


def _held_out(found: dict[str, Any], lines: list[str], path: Path, data: str | Path | None, **options: Any) -> None:
    from qwen_job.infer.evaluate import as_text
    from qwen_job.infer.evaluate import evaluate as measure

    result = measure(path, data, progress=say, **options)
    found |= result.to_dict()
    lines.append(as_text(result, shutil.get_terminal_size((100, 24)).columns))


def _scores(found: dict[str, Any], lines: list[str], path: Path, suite: Any, before: bool) -> None:
    from qwen_job.infer.benchmark import benchmark
    from qwen_job.run.scores import harness_of, read_scores, score_lines

    found["scores"] = benchmark(path, suite, before=before, progress=say)
    lines += ["", f"scores ({harness_of(found)})"] if lines else []
    lines += [visible_lines(line, None) for line in score_lines(read_scores(found))]


def _check(suite: Any) -> None:
    from qwen_job.infer.harness import load_tasks

    complete = suite.complete()
    loaded = load_tasks(complete)["tasks"]
    for name, task in loaded.items():
        rows = len(task.eval_docs)
        click.echo(f"{name}: {rows:,} questions, {task.get_config('num_fewshot')}-shot")


def _save(path: Path, found: dict[str, Any]) -> dict[str, Any] | None:
    """Write evaluation.json, report.html and the model card of a run; None for a bare model folder."""
    from qwen_job.report.closing import rewrite_pages
    from qwen_job.run.folder import RunFolder
    from qwen_job.run.scores import save_evaluation

    if not RunFolder(path).train.is_file():
        return None
    saved = save_evaluation(path, found)
    rewrite_pages(path, say)
    return saved

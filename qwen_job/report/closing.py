"""The last words of a run: model card and report. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_job.infer.source import read_settings
from qwen_job.report.afterwards import use_lines
from qwen_job.report.model_card import write_model_card
from qwen_job.report.page import main_figures, write_report
from qwen_job.report.summary import summarize


def against_plan(run_dir: Path) -> dict[str, Any]:
    """Return what was planned and what was measured so far, for the last line of metrics.jsonl.

    Empty where the folder cannot be read: the last line matters more.
    """
    try:
        pairs = summarize(run_dir).against_plan
    except Exception:
        return {}
    return {
        "planned": {key: planned for key, (planned, _) in pairs.items()},
        "measured": {key: measured for key, (_, measured) in pairs.items()},
    }


def tell(run_dir: Path, say: Callable[[str], None]) -> None:
    """Write model/README.md and report.html and log how the model is used; a trained model never fails here."""
    for write, command in ((write_model_card, ""), (write_report, f"; 'qwen-job report {run_dir}' writes it again")):
        try:
            write(run_dir)
        except Exception as error:  # hours of training are done: nothing about a page may undo that
            say(f"{write.__name__}: {error}{command}")
    say(f"{main_figures(run_dir)[-1]}, the report is in {run_dir / 'report.html'}")
    for line in use_lines(run_dir, read_settings(run_dir)):
        say(line)

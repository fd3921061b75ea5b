"""Write the model card and the report at the end of a run. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwen_job.report.model_card import use_lines, write_model_card
from qwen_job.report.page import main_figures, write_report
from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import read_settings


def write_pages(run_dir: Path, say: Callable[[str], None]) -> None:
    """Write model/README.md and report.html, and log how to use the model. A failure here never fails the run."""
    rewrite_pages(run_dir, say)
    say(f"{main_figures(run_dir)[-1]}, the report is in {RunFolder(run_dir).report}")
    for line in use_lines(run_dir, read_settings(run_dir)):
        say(line)


def rewrite_pages(run_dir: Path, say: Callable[[str], None]) -> None:
    """Write model/README.md and report.html from the run's files, and report what cannot be written."""
    for write, command in ((write_model_card, ""), (write_report, f"; write it with 'qwen-job report {run_dir}'")):
        try:
            write(run_dir)
        except Exception as error:  # a page must not undo hours of training
            say(f"{write.__name__}: {error}{command}")

"""The share of the training data that a run holds out (data.eval_split), as a file in the run folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from qwen_job.atomic import write_atomically
from qwen_job.data.choose import copies, held_out
from qwen_job.data.chunk_encoder import read_row
from qwen_job.data.row_files import rows_into
from qwen_job.data.rows import read_rows
from qwen_job.run.folder import RunFolder
from qwen_job.run.sections import DataSpec


def keep_held_out(spec: DataSpec, prepared: Path, run: RunFolder) -> int | None:
    """Write the rows that ``spec`` holds out to the run folder, unless they are there; return how many were written.

    ``prepared`` is the folder of the run's prepared data: its name, a hash of the data and the settings, is kept beside
    the rows, so that they follow data that has changed. None: nothing is held out of the training data, or the file
    belongs to this data already.

    Raises:
        EnvironmentFault: the disk is full or a permission is missing.
    """
    if not spec.eval_split or spec.eval:
        return None
    if run.held_out.is_file() and _text(run.held_out_of) == prepared.name:
        return None
    run.launch.mkdir(parents=True, exist_ok=True)
    count = write_held_out(spec, run.held_out)
    write_atomically(run.held_out_of, prepared.name)
    return count


def write_held_out(spec: DataSpec, target: Path) -> int:
    """Write the rows of ``spec.train`` that are evaluated and not trained on, unchanged, and return their number."""
    count, ignored = 0, frozenset(spec.ignore_keys)
    with rows_into(target) as write:
        for index, file in enumerate(spec.train):
            for row, value in read_rows(file.path):
                if not held_out(spec.eval_split, index, row) or not copies(min(file.weight, 1.0), index, row):
                    continue
                if read_row(value, spec.format, spec.turn_order, ignored, Counter(), spec.thinking) is not None:
                    write(value)
                    count += 1
    return count


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""

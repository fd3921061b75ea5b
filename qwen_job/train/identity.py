"""What belongs to a run: the rows that it trains on, the base model, and its position in the rows.

Resuming with other rows or another base model would skip rows that were never trained, or train the old weights under a
new name. Nothing here imports torch.

- ``Identity``: what a checkpoint keeps of these, as its identity.json
- ``rows_digest``: prepared rows, by content, wherever they are
- ``model_digest``: weights, and the config fields that decide how they are used
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job import strict_json
from qwen_job.atomic import write_atomically
from qwen_job.errors import JobError
from qwen_job.facts.config_fields import HONOURED
from qwen_job.models.completeness import read_config
from qwen_job.models.tensors import read_folder
from qwen_job.run.folder import IDENTITY
from qwen_job.train.course import Course

_BLOCK = 1 << 22
_SAMPLE = 4096  # of each tensor: every weight of another model, or of a later stage of this one, differs
_PARTS = ("tokens", "docs", "members", "rows")


class Identity(NamedTuple):
    """``data`` and ``model`` are digests; ``rows``: of an epoch; ``width``: rows of a step since ``course``.

    ``longest``: how many of the longest rows came first in the first epoch; the width of the run's first step, or 0.
    """

    data: str
    model: str
    rows: int
    width: int
    course: Course = Course()
    longest: int = 0

    def text(self) -> str:
        """Return the content of a checkpoint's identity.json."""
        return json.dumps({"version": 1, **self._asdict(), "course": list(self.course)}, indent=1) + "\n"


def read_identity(checkpoint: Path) -> Identity | None:
    """Return what ``checkpoint`` keeps; None for one of an earlier version."""
    try:
        values: dict[str, Any] = strict_json.loads((checkpoint / IDENTITY).read_text(encoding="utf-8"))
        numbers = int(values["rows"]), int(values["width"])
        course = Course(*map(int, values["course"]))
        # Earlier versions had no such order.
        return Identity(str(values["data"]), str(values["model"]), *numbers, course, int(values.get("longest", 0)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def identity_of(prepared: Path, rows: int, model_folder: Path, width: int, *, longest_first: bool = False) -> Identity:
    """Measure what this run would train on: ``rows`` prepared rows, ``width`` of them in a step."""
    longest = width if longest_first else 0
    return Identity(rows_digest(prepared), model_digest(model_folder), rows, width, longest=longest)


def rows_digest(prepared: Path) -> str:
    """Return a digest of the training rows; kept beside them, which never change, so that it is computed once."""
    kept = prepared / "train.digest"
    with contextlib.suppress(OSError):
        found = kept.read_text(encoding="ascii").strip()
        if len(found) == 64:
            return found
    digest = hashlib.sha256()
    for part in _PARTS:
        with (prepared / f"train.{part}").open("rb") as content:
            while block := content.read(_BLOCK):
                digest.update(block)
        digest.update(part.encode())
    with contextlib.suppress(OSError):  # a cache that may only be read
        write_atomically(kept, digest.hexdigest() + "\n")
    return digest.hexdigest()


def model_digest(folder: Path) -> str:
    """Return a digest of a model's weights, by samples of every tensor, and of what its config says about their use.

    The same for copies, other names and other shards.
    """
    config = read_config(folder)
    used = {key: value for key, value in config.items() if key in HONOURED and value is not None}
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode())
    for name, tensor in sorted(read_folder(folder).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        with tensor.path.open("rb") as content:
            for start in sorted({tensor.start, max(tensor.start, tensor.stop - _SAMPLE)}):
                content.seek(start)
                digest.update(content.read(min(_SAMPLE, tensor.nbytes)))
    return digest.hexdigest()


def resume_course(
    step: int, before: Identity | None, now: Identity, word: str, output: Path
) -> tuple[Course, list[str]]:
    """Return the place in the rows that a run resumes from at ``step``, and what to report about it.

    Args:
        step: of the checkpoint.
        before: what the checkpoint keeps; None for one of an earlier version.
        now: what would be trained.
        word: train.yaml's ``resume``.
        output: the run's folder, for the errors.

    Raises:
        JobError: data or model are others, and ``word`` is not ``changed``.
    """
    if before is None:
        return Course(), ["the checkpoint is from an earlier version: cannot check that data and model are the same"]
    place = before.course.at(step, before.rows, before.width)
    notes = []
    for field, what, then, today in (
        ("data.train", "rows to train on", before.data, now.data),
        ("model.name", "base model", before.model, now.model),
    ):
        if then != today and word != "changed":
            raise JobError(
                f"{field}: the {what} differ from those that {output} began with; write another output, restore "
                f"them, or write train.resume: changed: {_CHANGED[field]}"
            )
        if then != today:
            notes.append(f"{field}: changed since the run began, as train.resume: changed allows: {_CHANGED[field]}")
    if before.data != now.data:
        return Course(step, place.epoch, 0), notes
    if before.width == now.width:
        return before.course, notes
    notes.append(
        f"global batch {before.width} -> {now.width} rows: resuming at row {place.row + 1} of {now.rows} in epoch "
        f"{place.epoch + 1}, so that none is skipped or repeated"
    )
    return place, notes


_CHANGED = {
    "data.train": "weights, optimizer and step count are kept; the epoch begins again with the first of the new rows",
    "model.name": "the checkpoint's weights and optimizer are kept, and the new model's weights are never read",
}

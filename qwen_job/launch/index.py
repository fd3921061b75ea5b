"""The user's own list of what was submitted, so that a job is found from another shell, another day."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qwen_job import strict_json
from qwen_job.atomic import read_limited
from qwen_job.resources import private_state
from qwen_job.run.reading import is_path

KEPT = 10_000
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Submission:
    """One line of the list; ``time`` in unix seconds."""

    target: str
    id: str
    name: str
    run: str
    time: float
    cluster: str = ""


def index_path() -> Path:
    """Return the path of the list of submitted jobs."""
    return private_state() / "jobs.jsonl"


def remember(target: str, job_id: str, name: str, run: str, cluster: str = "") -> None:
    """Append a submission. A list that cannot be written is no reason to fail: the job is in its queue all the same."""
    item = asdict(Submission(target, job_id, name, run, time.time(), cluster))
    line = json.dumps({name: value for name, value in item.items() if value or name != "cluster"}, ensure_ascii=False)
    try:
        index_path().parent.mkdir(parents=True, exist_ok=True)
        with index_path().open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError:
        return


def submissions() -> list[Submission]:
    """Return the submissions, newest first; lines that are torn or foreign are passed over."""
    try:
        lines = read_limited(index_path(), MAX_BYTES).decode("utf-8", "replace").split("\n")[-KEPT:]
    except (OSError, ValueError):
        return []
    found = []
    for line in reversed(lines):
        try:
            item = Submission(**strict_json.loads(line))
        except (ValueError, TypeError):
            continue
        if all(isinstance(text, str) for text in (item.target, item.id, item.name, item.run, item.cluster)):
            found.append(item if is_path(item.run) else replace(item, run=""))
    return found

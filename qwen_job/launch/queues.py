"""The queues of all targets, queried together, with the user's own list of submissions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from qwen_job.errors import EnvironmentFault, QwenJobError
from qwen_job.launch.backend import GONE, TARGETS, UNKNOWN, Entry, backend
from qwen_job.launch.index import Submission

# Where only the run folders or accounting can tell a job's state, this many of the newest jobs are looked up.
MOST_READ = 100
_REMEMBERED_SECONDS = 31 * 86400


class Answers(NamedTuple):
    """The user's jobs, other users' jobs, and queue -> why it is unreachable, where that matters."""

    entries: list[Entry]
    others: list[Entry]
    silent: dict[str, QwenJobError]


def queue_of(item: Entry | Submission) -> str:
    """Return which queue has the job: its target, and its cluster where Slurm has several."""
    return f"{item.target} {item.cluster}".strip()


def ask_queues(targets: Sequence[str], past: Sequence[Submission], *, named: str | None) -> Answers:
    """Query the queues of ``targets``, including other Slurm clusters that recently had jobs of the user.

    An unreachable queue matters if it was named or has had a job; otherwise only if no queue answers at all, because
    tools that are installed without a cluster are normal.

    Raises:
        EnvironmentFault: for a named target without its tools.
    """
    found, others, silent = list[Entry](), list[Entry](), dict[str, QwenJobError]()
    answered = False
    for name in targets:
        queue = backend(name)
        if named and not queue.available():
            raise EnvironmentFault(f"{name}: its command line tools are not on this machine")
        if not (named or queue.set_up() or (queue.available() and any(item.target == name for item in past))):
            continue
        for cluster in ("", *_clusters(past, name)):
            try:
                entries = queue.entries(cluster)
            except QwenJobError as error:
                silent[f"{name} {cluster}".strip()] = error
                continue
            known = {(entry.cluster, entry.id) for entry in found}
            found += [e for e in entries if queue.is_mine(e) and (e.cluster, e.id) not in known]
            others += [e for e in entries if not queue.is_mine(e)]
            answered = answered or name != "local"
    used = {queue_of(item) for item in past}
    matters = {name: error for name, error in silent.items() if name.partition(" ")[0] == named or name in used}
    return Answers(found, others, matters or ({} if answered else silent))


def _clusters(past: Sequence[Submission], target: str) -> list[str]:
    """Return the clusters that the user submitted to in the last month; retired ones are not queried forever."""
    begin = time.time() - _REMEMBERED_SECONDS
    return sorted({item.cluster for item in past if item.target == target and item.cluster and item.time > begin})


def with_past(answers: Answers, past: Sequence[Submission], *, old: bool) -> list[Entry]:
    """Return the user's jobs in the queues and on the user's list, with the run folder from the list where needed.

    Jobs that have left their queue are included with ``old``; those of unreachable queues always.
    """
    known = {(queue_of(entry), entry.id): entry for entry in answers.entries}
    arrays = {(queue, job.partition("_")[0]) for queue, job in known}
    runs: dict[tuple[str, str], str] = {}
    for item in past if old else [item for item in past if queue_of(item) in answers.silent][:MOST_READ]:
        place = (queue_of(item), item.id)
        if place not in arrays and place not in known:
            state = UNKNOWN if queue_of(item) in answers.silent else GONE
            known[place] = _forgotten(item, state)
    for item in past:
        runs[queue_of(item), item.id] = item.run
    return [
        entry if entry.run else replace(entry, run=runs.get((queue, entry.id.partition("_")[0]), ""))
        for (queue, _), entry in known.items()
    ]


def _forgotten(item: Submission, state: str) -> Entry:
    return Entry(item.target, item.id, item.name, state, run=item.run, forgotten=True, cluster=item.cluster)


def with_endings(jobs: Sequence[Entry]) -> list[Entry]:
    """Look up how the newest jobs that have left their queue ended."""
    gone = [entry for entry in jobs if entry.state == GONE and entry.id and entry.target in TARGETS][:MOST_READ]
    ids: dict[tuple[str, str], list[str]] = {}
    for entry in gone:
        ids.setdefault((entry.target, entry.cluster), []).append(entry.id)
    endings = {place: backend(place[0]).endings(wanted, place[1]) for place, wanted in ids.items()}
    result = []
    for entry in jobs:
        ending = endings.get((entry.target, entry.cluster), {}).get(entry.id)
        if ending and entry.state == GONE:
            entry = replace(entry, state=ending[0], reason=ending[1])
        result.append(entry)
    return result

"""Follow jobs in their queues: the function behind ``watch``."""

from __future__ import annotations

import time
from collections.abc import Iterator

from qwen_job.errors import UsageError
from qwen_job.launch.backend import UNKNOWN
from qwen_job.launch.find import Look, look

_LIVE = ("pending", "running", "configuring", "completing", UNKNOWN)


def follow_job(job: str | None = None, target: str | None = None, *, interval: float = 5.0) -> Iterator[Look]:
    """Yield the state of a job now and every ``interval`` seconds, until it has ended; ``next()`` asks once.

    ``job`` is a name, an ID or a run folder; None: all jobs in the queues. ``found`` of each look has the queue's state
    (``entry.state``) and the progress of the run (``progress.step``, ``.total_steps``, ``.loss``, ``.eta_seconds``).

    Raises:
        UsageError: nothing matches, or the interval is not above 0.
        EnvironmentFault: a queue is unreachable when all other jobs have ended, or the target's tools are missing.
    """
    if not interval > 0:
        raise UsageError(f"interval is {interval}; write the seconds between two looks, more than 0")
    while True:
        looked = look(job, target)
        yield looked
        if not any(item.entry.state in _LIVE for item in looked.found):
            looked.check()
            return
        time.sleep(interval)

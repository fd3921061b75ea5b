"""Which events of a run the webhooks hear: each once, from the launcher of the first node.

Messages are sent from threads; nothing waits for them but the launcher's own exit, and that for a few seconds only.
The file launch/notified.json remembers over attempts that the start was sent, and that an attempt is open: one that
ended without a word (its node died, or its launcher was killed) is reported by the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_job.atomic import write_atomically
from qwen_job.errors import StoppedAndSaved, is_retryable, table
from qwen_job.node.webhooks import Event, NotSent, Webhook, read_webhooks, send
from qwen_job.run.ends import last_words
from qwen_job.run.folder import RunFolder
from qwen_job.run.manifest import newest_step
from qwen_job.run.metrics import last_metric
from qwen_job.run.reading import number, read_object, read_settings, there, whole
from qwen_job.text import visible, visible_lines

# For each answer of the network; the launcher's exit waits a little longer, for what is being sent.
SEND_SECONDS = 5.0
EXIT_SECONDS = 6.0
_TITLES = {"start": "started", "done": "is done", "fault": "failed, and restarts", "give_up": "gave up"}


class _Line:
    """One webhook, its messages in order, and the thread that sends them."""

    def __init__(self, index: int, hook: Webhook) -> None:
        self._index, self._hook = index, hook
        self._waiting: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        self._complained = False

    def tell(self, event: Event) -> None:
        """Send an event after those before it, if the hook asks for such."""
        # The last failure is a fault, too, for those who do not ask for give_up.
        if event.what in self._hook.events or (event.what == "give_up" and "fault" in self._hook.events):
            self._waiting.put(event)
            if not self._thread.is_alive():
                self._thread.start()

    def close(self, deadline: float) -> None:
        """Wait for what is being sent, until ``deadline`` on the monotonic clock."""
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (event := self._waiting.get()) is not None:
            try:
                send(self._hook, event, SEND_SECONDS)
            except NotSent as error:
                self._complain(event, error)

    def _complain(self, event: Event, error: NotSent) -> None:
        if self._complained:
            return
        self._complained = True
        what = f"notify[{self._index}] ({self._hook.kind}): {event.what} was not sent"
        print(f"qwen-job: {visible_lines(f'{what}: {error}; training is not affected')}", file=sys.stderr, flush=True)


class Messenger:
    """Tells the webhooks of one run what happens to it."""

    def __init__(self, run: Path, settings: Mapping[str, Any], rdzv_id: str, *, in_pod: bool) -> None:
        self._run, self._rdzv_id, self._in_pod = RunFolder(run), rdzv_id, in_pod
        self._name = visible(settings.get("name") or run.name, 100)
        self._lines = [_Line(index, hook) for index, hook in enumerate(read_webhooks(settings))]
        self._step_before = -1
        self._done_before = 0.0
        self._extends = settings.get("resume") == "extend"
        self._began = time.time()

    @classmethod
    def of(cls, run: Path | None, rdzv_id: str, *, is_first: bool, in_pod: bool) -> Messenger | None:
        """Return the messenger of a run with webhooks, on its first node; None for any other."""
        settings = read_settings(run) if run and is_first else {}
        return cls(run, settings, rdzv_id, in_pod=in_pod) if run and settings.get("notify") else None

    def begin(self) -> None:
        """Note that an attempt begins: the run's start, or, if the last one ended without a word, its fault."""
        self._began, self._step_before = time.time(), newest_step(self._run.path)
        self._done_before = _modified(self._run.done)
        state = read_object(self._run.notified)
        self._remember({"open": {"host": socket.gethostname(), "began": self._began}})
        if self._done_before and not self._extends:
            return  # the run is complete: nothing begins
        if not state:
            self._tell("start", "")
        elif isinstance(lost := state.get("open"), dict):
            host = visible(lost.get("host") or "?", 100)
            self._tell("fault", f"the last attempt on {host} ended without a word: its node or its launcher was killed")

    def restart(self, reason: str) -> None:
        """Note that the workers failed and start again in place; returns at once, whatever the storage does."""
        threading.Thread(target=self._tell, args=("fault", reason), name="notify", daemon=True).start()

    def end(self, code: int, *, signalled: bool) -> None:
        """Note how the attempt ended, and wait at most six seconds for what is being sent."""
        if code == 0 and _modified(self._run.done) != self._done_before:
            self._forget()
            self._tell("done", "")
        elif code == 0 and there(self._run.done):
            self._forget()  # it was complete before this attempt
        elif self._is_last(code):
            self._forget()
            self._tell("give_up", self._reason(code))
        else:
            self._remember({"open": None})
            if not (signalled or code == StoppedAndSaved.exit_code):
                self._tell("fault", self._reason(code))
        deadline = time.monotonic() + EXIT_SECONDS
        for line in self._lines:
            line.close(deadline)

    def _is_last(self, code: int) -> bool:
        """Tell whether no further attempt comes: after a final code of any node, or where nobody starts one."""
        if not is_retryable(code) or self._final_elsewhere():
            return True
        if self._in_pod:
            return False  # an operator starts the next one, and the count of attempts ends the run with a final code
        try:
            token, with_newer, without = self._run.last_attempt.read_text("utf-8").split()
        except (OSError, ValueError):
            return True  # nothing restarts a local run, or one over ssh
        newer = newest_step(self._run.path) > self._step_before
        return token == self._rdzv_id and (with_newer if newer else without) == "yes"

    def _final_elsewhere(self) -> bool:
        """Tell whether another node of this attempt ended with a final code."""
        for path in self._run.node_ends():
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                end = json.loads(path.read_text("utf-8"))[0]
                if end["ended"] >= self._began and end["exit_code"] > 0 and not is_retryable(end["exit_code"]):
                    return True
        return False

    def _reason(self, code: int) -> str:
        stop = last_metric(self._run.path, "stop")
        if (number(stop.get("time")) or 0.0) >= self._began and stop.get("reason"):
            return f"exit code {code}: {stop['reason']}"
        known = last_words(self._run.path) or next((text for value, _, text in table() if value == code), "")
        known = known or ("killed by a signal" if code > 128 else "see the log")
        return f"exit code {code}: {known}"

    def _tell(self, what: str, reason: str) -> None:
        event = self._event(what, reason)
        for line in self._lines:
            line.tell(event)

    def _event(self, what: str, reason: str) -> Event:
        beat, done = read_object(self._run.heartbeat), read_object(self._run.done) if what == "done" else {}
        step, total = whole(beat.get("step")), whole(beat.get("total_steps"))
        saved = newest_step(self._run.path)
        figures: dict[str, Any] = {
            "host": socket.gethostname(),
            "folder": str(self._run.path),
            "attempt": (whole(beat.get("attempt")) or 0) + 1,
            "step": step,
            "total_steps": total,
            "checkpoint": saved if saved >= 0 else None,
            "loss": number(beat.get("loss")),
            "eval_loss": number(done.get("eval_loss")),
            "reason": visible(reason, 1000) or None,
        }
        lines = [f"[qwen-job] {self._name} {_TITLES[what]}"]
        if reason:
            lines.append(visible(reason, 500))
        if step is not None:
            loss = "" if figures["loss"] is None else f", loss {figures['loss']:.4f}"
            lines.append(f"step {step} of {total or '?'}{loss}")
        if figures["eval_loss"] is not None:
            lines.append(f"held-out loss {figures['eval_loss']:.4f}")
        if what in ("fault", "give_up"):
            lines.append(f"newest checkpoint: step {saved}" if saved >= 0 else "no checkpoint yet")
        lines.append(f"{self._run.path} on {figures['host']}")
        return Event(what, self._name, "\n".join(lines), time.time(), figures)

    def _remember(self, state: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # storage that cannot be written is the trainer's to report
            write_atomically(self._run.notified, json.dumps(state) + "\n")

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            self._run.notified.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    try:
        return os.stat(path).st_mtime_ns / 1e9  # noqa: PTH116
    except OSError:
        return 0.0

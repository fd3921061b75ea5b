"""What a run reports: metrics.jsonl, heartbeat, and a line on the terminal. Nothing here imports torch.

Only rank 0 writes; on other ranks every method does nothing.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qwen_job.atomic import write_atomically
from qwen_job.errors import RETRYABLE_FROM
from qwen_job.run.folder import RunFolder
from qwen_job.run.launched import restarts
from qwen_job.run.metrics import read_metrics
from qwen_job.text import duration, visible_lines

if TYPE_CHECKING:
    from qwen_job.train.straggler import Slow

_HEARTBEAT_SECONDS = 2.0
_PLAIN_LINE_SECONDS = 10.0


class RunLog:
    """The files of one run folder and its progress line."""

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        stream: TextIO | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.active = active
        # Called before every write; ends a process that may not write any more.
        self.guard = guard
        self.attempt = self.in_place = 0
        self.total_steps: int | None = None
        self._last: dict[str, Any] = {}
        self._beat = 0.0
        self._stragglers: dict[int, str] = {}
        self._progress = Progress(stream or sys.stderr)
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            starts = [line for line in read_metrics(folder) if line.get("type") == "start"]
            self.attempt = len(starts)
            # Of all attempts until now, this one included, those that the launcher restarted in place.
            self.in_place = sum(1 for line in starts if line.get("in_place")) + (restarts() > 0)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl; numbers that are not finite become null."""
        if not self.active:
            return
        line = {"type": kind, "time": time.time(), "step": step, **values}
        text = json.dumps({key: _finite(value) for key, value in line.items()}, ensure_ascii=False)
        with RunFolder(self.folder).metrics.open("a", encoding="utf-8") as out:
            self.guard()
            out.write(text + "\n")

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Record one optimizer step and refresh heartbeat and progress line."""
        if not self.active:
            return
        self.write("step", step, **values)
        self._last = values
        left = (self.total_steps or step) - step
        eta = left * values["step_seconds"] if values.get("step_seconds") else None
        self.heartbeat("training", step, eta)
        self._progress.show(step, self.total_steps, values, eta)

    def straggler(self, step: int, host: str, slow: Slow) -> None:
        """Record a rank that is slow by itself, or no longer: in the log, in metrics.jsonl and in the heartbeat."""
        name = f"rank {slow.rank} on {host}"
        figures = {"rank": slow.rank, "host": host, "ratio": round(slow.ratio, 3), "seconds": slow.seconds}
        if slow.is_slow:
            text = f"{name} is slow: {slow.ratio:.1f} times the time of the others"
            self._stragglers[slow.rank] = text
            self.write("guard", step, action="straggler", **figures, others=slow.others)
            self.say(f"{text} before they meet ({slow.seconds:.2f} s, {slow.others:.2f} s): all ranks wait for it")
        else:
            self._stragglers.pop(slow.rank, None)
            self.write("guard", step, action="straggler recovered", **figures, others=slow.others)
            self.say(f"{name} is as fast as the others again")

    def heartbeat(self, state: str, step: int | None = None, eta: float | None = None) -> None:
        """Replace the heartbeat; while training at most every two seconds."""
        now = time.time()
        if not self.active or (state == "training" and now - self._beat < _HEARTBEAT_SECONDS):
            return
        self._beat = now
        beat = {
            "state": state,
            "step": step,
            "total_steps": self.total_steps,
            "loss": _finite(self._last.get("loss")),
            "tokens_per_second": _finite(self._last.get("tokens_per_second")),
            "eta_seconds": eta,
            "time": now,
            "attempt": self.attempt,
            "in_place": self.in_place,
            "stragglers": list(self._stragglers.values()),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self.guard()
        write_atomically(RunFolder(self.folder).heartbeat, json.dumps(beat) + "\n", sync=False)

    def say(self, text: str) -> None:
        """Print one line for the user."""
        if self.active:
            self._progress.say(visible_lines(text))

    def close(self) -> None:
        """End the progress line."""
        self._progress.end()


class Progress:
    """One line that is updated in place on a terminal; elsewhere a plain line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._open = False
        self._printed = 0.0

    def show(self, step: int, total: int | None, values: dict[str, Any], eta: float | None) -> None:
        """Show a step; without a terminal only the first, the last, and one every ten seconds."""
        now = time.monotonic()
        if not self._live and step not in (1, total) and now - self._printed < _PLAIN_LINE_SECONDS:
            return
        self._printed = now
        text = progress_text(step, total, values, eta)
        if not self._live:
            self._print(text)
            return
        start = "\r\x1b[2K"
        self._stream.write(start + (f"\x1b[36m{text}\x1b[0m" if self._colour else text))
        self._stream.flush()
        self._open = True

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self.end()
        self._print(text)

    def end(self) -> None:
        """Keep the live line as it is."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def progress_text(step: int, total: int | None, values: dict[str, Any], eta: float | None) -> str:
    """Return step/total, loss, speed and time left, as on the progress line."""
    parts = [f"step {step}/{total}" if total else f"step {step}"]
    if values.get("loss") is not None:
        parts.append(f"loss {values['loss']:.4f}")
    if values.get("tokens_per_second"):
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if values.get("mfu") is not None:
        parts.append(f"MFU {values['mfu']:.1%}")
    if eta is not None:
        parts.append(f"{duration(eta)} left")
    return " · ".join(parts)


def fruitless_attempts(lines: Sequence[dict[str, Any]], resumed_from: int | None) -> int:
    """Count the latest attempts that began at ``resumed_from`` and ended with a retryable code, or without one.

    Restarts in place have another limit (retry.in_place) and do not count. A person looked at an attempt that ended
    with a final code, so the count begins after it.
    """
    count, code = 0, RETRYABLE_FROM
    for line in reversed(lines):
        if line.get("type") == "stop":
            code = line.get("exit_code", 1)
        elif line.get("type") == "save":
            return count
        elif line.get("type") == "start":
            if code < RETRYABLE_FROM or line.get("resumed_from") != resumed_from:
                return count
            count, code = count + (not line.get("in_place")), RETRYABLE_FROM
    return count


def _finite(value: object) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

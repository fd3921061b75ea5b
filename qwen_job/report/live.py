"""The process beside a training, on its first node: python -m qwen_job.report.live RUN

It keeps the report, that of the run's sweep, and the figures for Prometheus current from the files of the run folder.
It is a separate process, at the lowest priority, so that it costs the training nothing and outlives its restarts; it
ends when its standard input does, that is, with the launcher that started it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qwen_job.atomic import write_atomically
from qwen_job.report import trainjob
from qwen_job.report.exposition import CONTENT_TYPE, Figures, exposition
from qwen_job.report.page import page
from qwen_job.report.summary import summarize
from qwen_job.report.sweep_page import sweep_page
from qwen_job.run.folder import REPORT, RunFolder
from qwen_job.run.metrics import Follower
from qwen_job.run.reading import read_object, read_settings, whole, written_at
from qwen_job.run.sweep_index import sweep_runs
from qwen_job.text import visible

PROMETHEUS_SECONDS = 10.0
# A report over this much of metrics.jsonl, some 200,000 steps, would take too much memory beside a training.
MOST_METRICS = 64 * 2**20
# Never more than this share of one core.
_SHARE = 0.05
_BIND_SECONDS = 10.0
# Without a report, how often the effective training time is computed.
_SUMMARY_SECONDS = 120

Say = Callable[[str], None]


class Live:
    """Keeps the files of one run current; :meth:`tick` does what is due."""

    def __init__(self, run: Path, settings: dict[str, Any], say: Say) -> None:
        self._run, self._say = RunFolder(run), say
        given = settings.get("monitor")
        monitor = given if isinstance(given, dict) else {}
        every = whole(monitor.get("report_every"))
        self.every = 120 if every is None else every
        self._file = Path(str(monitor.get("prometheus_file") or self._run.prometheus))
        self.port = whole(monitor.get("prometheus_port"))
        self._follower = Follower(run, MOST_METRICS)
        self._lock = threading.Lock()
        self._figures = Figures(str(settings.get("name") or run.name))
        self._report_due = time.monotonic() + min(self.every, 10)
        self._file_due = self._status_due = 0.0
        self._reports = trainjob.wanted()
        self._said: set[str] = set()

    def text(self) -> str:
        """Return the figures as they are now."""
        with self._lock:
            figures = self._figures
            figures.heartbeat = read_object(self._run.heartbeat) or figures.heartbeat
            for line in self._follower.new_lines():
                kind = line.get("type")
                if kind == "step":
                    figures.step = line
                elif kind == "eval":
                    figures.eval = line
                figures.attempts += kind == "start"
            return exposition(figures, time.time())

    def tick(self, *, last: bool = False) -> None:
        """Write what is due; with ``last`` everything, because nothing follows."""
        now = time.monotonic()
        if last or now >= self._file_due:
            self._file_due = now + PROMETHEUS_SECONDS
            self._try("monitor.prometheus_file", lambda: write_atomically(self._file, self.text(), sync=False))
        if self._reports and (last or now >= self._status_due):
            self._status_due = now + PROMETHEUS_SECONDS
            self._try("the TrainJob's status", self._report_status)
        if now >= self._report_due or (last and self.every):
            began = time.process_time()
            self._try(REPORT, self._report)
            self._try(f"the sweep's {REPORT}", lambda: self._report_sweep(last=last))
            self._report_due = now + max(self.every or _SUMMARY_SECONDS, (time.process_time() - began) / _SHARE)

    def _report_status(self) -> None:
        self.text()  # reads what is new
        trainjob.send(self._figures, time.time())

    def _report(self) -> None:
        try:
            size = self._run.metrics.stat().st_size
        except FileNotFoundError:
            return
        if size > MOST_METRICS:
            self._once(f"{REPORT} is not written again while training: it has too many steps by now")
            return
        summary = summarize(self._run.path)
        with self._lock:
            self._figures.effective = summary.effective
        if self.every:
            write_atomically(self._run.report, page(summary, rewritten_every=self.every), sync=False)

    def _report_sweep(self, *, last: bool) -> None:
        """Rewrite the page of the sweep that this is a run of, unless another run of it has just done so."""
        sweep = RunFolder(self._run.path.resolve().parent)
        runs = sweep_runs(sweep.path) if self.every else None
        if runs is None or self._run.path.name not in [run.folder for run in runs]:
            return
        if not last and time.time() - written_at(sweep.report) < self.every:
            return
        if sum(size_of(RunFolder(sweep.path / run.folder).metrics) for run in runs) > MOST_METRICS:
            self._once(f"the sweep's {REPORT} is not written again while training: its runs have too many steps by now")
            return
        write_atomically(sweep.report, sweep_page(sweep.path, rewritten_every=self.every), sync=False)

    def _try(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # nothing here is worth a training
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._once(f"{what}: cannot be written ({reason}); training is not affected")

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def size_of(path: Path) -> int:
    """Return a file's size in bytes, 0 without one."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def serve(live: Live, port: int, say: Say) -> ThreadingHTTPServer | None:
    """Serve the figures at ``port`` from a thread; None if it is taken, which is logged."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a client that sends nothing

        def do_GET(self) -> None:
            known = self.path.partition("?")[0] in ("/", "/metrics")
            text = live.text().encode() if known else b"see /metrics\n"
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            return

    deadline = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            server = _Server(("", port), Handler)
            break
        except OSError as error:
            # The process of the last attempt may just be ending.
            if time.monotonic() > deadline:
                where = f"{port} on {socket.gethostname()} cannot be used ({error.strerror})"
                say(f"monitor.prometheus_port: {where}: write another port; the figures are in the file only")
                return None
            time.sleep(0.2)
    threading.Thread(target=server.serve_forever, name="prometheus", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a scraper that went away."""


def main(run: Path) -> int:
    """Work until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.nice(19)

    def say(text: str) -> None:
        print(f"qwen-job: {visible(text)}", file=sys.stderr, flush=True)

    live = Live(run, read_settings(run), say)
    ended = threading.Event()

    def wait_for_the_launcher() -> None:
        while os.read(0, 4096):
            continue
        ended.set()

    threading.Thread(target=wait_for_the_launcher, daemon=True).start()
    if live.port is not None:
        threading.Thread(target=serve, args=(live, live.port, say), daemon=True).start()
    while not ended.wait(1.0):
        live.tick()
    live.tick(last=True)
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(Path(sys.argv[1])))

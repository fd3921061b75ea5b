"""All runs below a folder in a browser, on this machine only: ``qwen-job report --serve FOLDER``.

- ``find_runs``: the run folders and sweeps below a folder
- ``index_page``: the list, with filters
- ``serve``: a server on loopback; each page is made when it is asked for, and nothing is written
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from qwen_job.errors import EnvironmentFault, QwenJobError, UsageError
from qwen_job.report.frame import age, document, escape
from qwen_job.report.page import AT_WORK, page
from qwen_job.report.summary import summarize
from qwen_job.report.sweep_page import sweep_page
from qwen_job.run.folder import CHECKPOINTS, DONE, LAUNCH, LOGS, METRICS, MODEL, PREPARED, SWEEP, TRAIN
from qwen_job.run.progress import Progress, progress_of
from qwen_job.run.reading import written_at
from qwen_job.text import duration, visible

# Below a run folder there is nothing to find, and big trees are not searched to their end.
_DEPTH = 6
_MOST_FOLDERS = 20_000
_OURS = frozenset({CHECKPOINTS, PREPARED, LAUNCH, LOGS, MODEL})
_REFRESH_SECONDS = 10
_STALE_SECONDS = 300
# No page of ours needs anything from elsewhere, and none may be framed.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_FILTER = """
const [words, state, count] = ["words", "state", "count"].map((name) => document.getElementById(name));
function filter() {
  let shown = 0;
  for (const row of document.querySelectorAll("tbody tr")) {
    const fits = words.value.toLowerCase().split(/\\s+/).every((word) => row.dataset.text.includes(word));
    row.hidden = !fits || (state.value && row.dataset.state !== state.value);
    shown += !row.hidden;
  }
  count.textContent = shown;
  sessionStorage.setItem("filter", JSON.stringify([words.value, state.value]));
}
const before = JSON.parse(sessionStorage.getItem("filter") || "[]");
words.value = before[0] || "";
state.value = before[1] || "";
if (state.selectedIndex < 0) state.value = "";
words.addEventListener("input", filter);
state.addEventListener("change", filter);
filter();
setTimeout(() => location.reload(), REFRESH);
"""


class Entry(NamedTuple):
    """One run or sweep: its path below the folder, and what it reports."""

    path: str
    progress: Progress
    is_sweep: bool
    written: float

    @property
    def state(self) -> str:
        """The state; that of a run without news for five minutes is not believed."""
        if self.is_sweep:
            return "sweep"
        age_seconds = self.progress.age_seconds
        if self.progress.state in AT_WORK and age_seconds is not None and age_seconds > _STALE_SECONDS:
            return "silent"
        return self.progress.state or "not started"


def find_runs(root: Path) -> list[Entry]:
    """Return the runs and sweeps below a folder, the newest first; links are not followed."""
    found = []
    for path in _folders(root):
        if names := _names(path):
            relative = path.relative_to(root).as_posix()
            written = max(written_at(path / name) for name in names)
            is_sweep = _is_sweep(names)
            found.append(Entry(relative, Progress() if is_sweep else progress_of(str(path)), is_sweep, written))
    return sorted(found, key=lambda entry: -entry.written)


def _folders(root: Path) -> Iterator[Path]:
    left = _MOST_FOLDERS
    for place, names, _ in os.walk(root):
        path = Path(place)
        deep = len(path.relative_to(root).parts) >= _DEPTH
        names[:] = [] if deep else sorted(name for name in names if name not in _OURS and not name.startswith("."))
        yield path
        left -= 1
        if left <= 0:
            return


def _names(path: Path) -> set[str]:
    """Return the files of a run or a sweep that are in ``path``; none in other folders."""
    try:
        return {METRICS, TRAIN, DONE, SWEEP}.intersection(os.listdir(path))  # noqa: PTH208
    except OSError:
        return set()


def _is_sweep(names: set[str]) -> bool:
    return SWEEP in names and METRICS not in names


def index_page(root: Path, entries: list[Entry]) -> str:
    """Return the list of runs."""
    states = sorted({entry.state for entry in entries})
    options = "".join(f'<option value="{escape(state)}">{escape(state)}</option>' for state in states)
    head = (
        f"<header><h1>{escape(root.name or str(root))}</h1><p>{escape(str(root))}</p>{age(time.time(), 0)}</header>"
        '<form class="filter" onsubmit="return false">'
        '<label>Filter · 筛选 <input id="words" type="search" autofocus></label>'
        f'<label>State · 状态 <select id="state"><option value="">all · 全部</option>{options}</select></label>'
        f'<span><b id="count">{len(entries)}</b> / {len(entries)}</span> <a href="/">Refresh · 刷新</a></form>'
    )
    titles = [
        "run · 运行",
        "state · 状态",
        "step · 步",
        "loss · 损失",
        "tokens/s · 吞吐",
        "left · 剩余",
        "attempt · 尝试",
    ]
    cells = "".join(f"<th>{title}</th>" for title in titles)
    rows = "".join(map(_row, entries)) or '<tr data-text="" data-state=""><td colspan="7">no runs · 没有运行</td></tr>'
    table = f'<table class="list"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>'
    body = f'<section><div class="wide">{table}</div></section>'
    script = _FILTER.replace("REFRESH", str(1000 * _REFRESH_SECONDS))
    return document(f"{root.name} · qwen-job", [head, body], script=script)


def _row(entry: Entry) -> str:
    progress, name = entry.progress, entry.path if entry.path != "." else "(this folder)"
    step = "" if progress.step is None else f"{progress.step:,} / {progress.total_steps or '?'}"
    cells = [
        f'<a href="/run/{quote(entry.path)}/">{escape(name)}</a>',
        f'<span class="state {escape(entry.state)}">{escape(entry.state)}</span>',
        step,
        "" if progress.loss is None else f"{progress.loss:.4f}",
        "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}",
        "" if progress.eta_seconds is None or entry.state not in AT_WORK else escape(duration(progress.eta_seconds)),
        "" if progress.attempt is None else str(progress.attempt + 1),
    ]
    text = escape(f"{name} {entry.state}".lower())
    shown = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr data-text="{text}" data-state="{escape(entry.state)}">{shown}</tr>'


def serve(root: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server on loopback, which the caller runs; ``port`` 0 takes a free one.

    Raises:
        UsageError: ``root`` is not a folder.
        EnvironmentFault: the port is taken.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: is not a folder; give a folder with runs below it")
    folder = root.resolve()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30
        server_version = "qwen-job"

        def do_GET(self) -> None:
            status, text = _answer(folder, self.path, self.headers.get("Host", ""))
            data = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    try:
        return _Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise EnvironmentFault(f"--port: {port} cannot be used ({error.strerror}): give another one") from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a browser that went away."""


def _answer(root: Path, path: str, host: str) -> tuple[int, str]:
    """Return the status and page for a request; only the list and what is in it."""
    # Another site's name may lead to this address: then its scripts could read the pages.
    if host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK:
        return 403, _words("ask for 127.0.0.1 or localhost")
    place = unquote(path.partition("?")[0])
    if place == "/":
        return 200, index_page(root, find_runs(root))
    name = place.removeprefix("/run/").rstrip("/")
    if place.startswith("/run/") and (entry := _entry(root, name)):
        try:
            if entry.is_sweep:
                return 200, sweep_page(root / name, link=f"/run/{quote(name)}/{{}}/")
            return 200, page(summarize(root / name), rewritten_every=_REFRESH_SECONDS)
        except QwenJobError as error:
            return 500, _words(visible(error))
    return 404, _words("no such run")


def _entry(root: Path, name: str) -> Entry | None:
    """Return the run of a path below ``root``; None for one that leads out of it, or to nothing of ours."""
    folder = (root / name).resolve() if "\0" not in name else root.parent
    if not folder.is_relative_to(root):
        return None
    names = _names(folder)
    return Entry(name, Progress(), _is_sweep(names), 0.0) if names else None


def _words(text: str) -> str:
    return document("qwen-job", [f"<header><h1>qwen-job</h1><p>{escape(text)}</p></header>"])

"""One page for a sweep: the curves of all its runs over one another, and a table with a link to each report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from qwen_job.atomic import write_atomically
from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.report.frame import age, document, escape
from qwen_job.report.page import AT_WORK, figure, short_number
from qwen_job.report.plot import Series, smooth, thin
from qwen_job.report.summary import Summary, summarize
from qwen_job.run.folder import REPORT, RunFolder
from qwen_job.run.sweep_index import sweep_runs
from qwen_job.text import json_text, visible

# Distinct colours, in page.css; the runs after these are drawn thin and grey.
COLOURS = 8
# Curves of more runs are one grey area.
MOST_DRAWN = 64
_REFRESH_SECONDS = 60
NOT_STARTED = "not started"


class Member(NamedTuple):
    """One run of a sweep."""

    folder: str
    values: dict[str, Any]
    summary: Summary

    @property
    def held_out(self) -> float | None:
        """The last loss on held-out data."""
        return self.summary.last("loss", "eval")

    @property
    def state(self) -> str:
        """The state; a run without a folder has not started."""
        return NOT_STARTED if self.summary.state == "unknown" and not self.summary.steps else self.summary.state


def write_sweep_page(sweep: Path) -> Path:
    """Write report.html into a sweep's folder.

    Raises:
        UsageError: the folder has no index of a sweep.
        EnvironmentFault: it is not writable.
    """
    path = RunFolder(sweep).report
    text = sweep_page(sweep)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror})") from error
    return path


def sweep_page(sweep: Path, *, link: str = f"{{}}/{REPORT}", rewritten_every: float = 0) -> str:
    """Return the page; ``link``: the address of a run's report, by its folder.

    ``rewritten_every``: seconds between two versions of the page while a run is at work, 0 for the only one.

    Raises:
        UsageError: the folder has no index of a sweep.
    """
    index = sweep_runs(sweep)
    if index is None:
        raise UsageError(f"{sweep}: is not the folder of a sweep: it has no readable sweep.json")
    members = ranked([Member(run.folder, run.values, summarize(sweep / run.folder)) for run in index])
    done = sum(member.state == "done" for member in members)
    # Between two runs of a sweep, its page waits for the next one.
    live = any(member.state in (AT_WORK if not rewritten_every else (*AT_WORK, NOT_STARTED)) for member in members)
    written = age(time.time(), rewritten_every if live else 0)
    head = f"<header><h1>{escape(sweep.name)}</h1><p>{len(members)} runs, {done} done</p>{written}</header>"
    title = f"{sweep.name} · sweep · qwen-job"
    return document(
        title, [head, _charts(members), _table(members, link)], refresh=(rewritten_every or _REFRESH_SECONDS) * live
    )


def ranked(members: Sequence[Member]) -> list[Member]:
    """Return the runs best first: by held-out loss, or by training loss where no run has one."""
    by_eval = any(member.held_out is not None for member in members)

    def order(member: Member) -> tuple[bool, float]:
        loss = member.held_out if by_eval else _trained(member)
        return loss is None, loss or 0.0

    return sorted(members, key=order)


def _trained(member: Member) -> float | None:
    points = smooth(member.summary.curve("loss"))
    return points[-1][1] if points else None


def _charts(members: Sequence[Member]) -> str:
    def of(key: str, kind: str) -> list[Series]:
        drawn = []
        for number, member in enumerate(members[:MOST_DRAWN]):
            curve = member.summary.curve(key, kind)
            points = thin(smooth(curve) if kind == "step" else curve, 200)
            # The best are drawn last, over the others.
            drawn.append(Series(label(member), points, "line" if number < COLOURS else "faint", min(number, COLOURS)))
        return drawn[::-1]

    held_out = of("loss", "eval")
    figures = [figure("Training loss, smoothed · 训练损失", of("loss", "step"), short_number)]
    if any(one.points for one in held_out):
        figures.insert(0, figure("Held-out loss · 留出集损失", held_out, short_number))
    figures.append(figure("Tokens/s · 吞吐", of("tokens_per_second", "step"), short_number, zero=True))
    return f'<section class="charts sweep">{"".join(figures)}</section>'


def label(member: Member) -> str:
    """Return a run's values in a few words: the last part of each field is enough here."""
    words = [f"{field.rpartition('.')[2]} {_shown(value)}" for field, value in member.values.items()]
    return visible(", ".join(words) or member.folder, 80)


def _shown(value: Any) -> str:
    return visible(value if isinstance(value, str) else json_text(value), 60)


def _table(members: Sequence[Member], link: str) -> str:
    fields = list(dict.fromkeys(field for member in members for field in member.values))
    heading = ["", "run · 运行", *fields, "state · 状态", "step · 步", "loss · 损失", "held out · 留出集"]
    rows = []
    for number, member in enumerate(members):
        dot = f'<i class="dot" style="background:var(--s{number})"></i>' if number < COLOURS else ""
        name = escape(member.folder)
        there = RunFolder(member.summary.folder).train.exists()
        cells = [dot, f'<a href="{escape(link.format(quote(member.folder)))}">{name}</a>' if there else name]
        cells += [escape(_shown(member.values.get(field, ""))) for field in fields]
        step = member.summary.last("step")
        cells += [escape(member.state), "–" if step is None else f"{step:,.0f}"]
        cells += [escape(short_number(value)) for value in (_trained(member), member.held_out)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    table = f'<table class="list"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<section><h2>Runs, best first · 各次运行</h2><div class="wide">{table}</div></section>'

"""report.html: one file that opens offline and shows how a run went, planned and measured.

- ``write_report``: a run folder -> report.html in it
- ``main_figures``: the main figures as lines of text
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_job.atomic import write_atomically
from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.picture import Stack, svg
from qwen_job.report.frame import age, document, escape, note, table
from qwen_job.report.plot import Formatter, Series, chart, smooth
from qwen_job.report.summary import Summary, summarize
from qwen_job.report.timeline import ACCOUNTS, number
from qwen_job.run.folder import DONE, METRICS, REPORT, TRAIN
from qwen_job.run.reading import whole
from qwen_job.run.scores import read_scores
from qwen_job.text import GIB, duration, gib_or_mib, visible

_ACCOUNT_NAMES = {
    "productive": "Training · 训练",
    "evaluating": "Evaluating · 评估",
    "checkpointing": "Saving · 保存",
    "restarting": "Starting and restarting · 启动与重启",
    "lost": "Repeated after a restart · 重启后重复训练",
}
_SHOWN_SETTINGS = {
    "model": ("name", "source", "revision"),
    "data": ("train", "eval", "format", "max_length", "packing", "long_samples", "turn_order", "mask", "system_prompt"),
    "training": (),
}
_MOST_ATTEMPTS = 200
AT_WORK = ("starting", "preparing", "training", "saving")
_SHOWN_FIELDS = (
    "world_size", "device", "precision", "attention", "fused_loss", "gradient_checkpointing", "torch_compile", "seed",
)  # fmt: skip


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir``/report.html from the files of the run, which may be missing, truncated or still growing.

    Raises:
        UsageError: the folder does not exist or is not a run folder.
        EnvironmentFault: the folder is not writable.
    """
    if not any((run_dir / name).is_file() for name in (TRAIN, METRICS, DONE)):
        raise UsageError(f"{run_dir}: is not a run folder: it has neither train.yaml nor metrics.jsonl")
    path = run_dir / REPORT
    try:
        write_atomically(path, page(summarize(run_dir)))
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror})") from error
    return path


def main_figures(run_dir: Path) -> list[str]:
    """Return the run's main figures as lines of text; the effective training time is the last line."""
    summary = summarize(run_dir)
    lines = [
        f"{label.split(' · ')[0]}: {value}{f' ({note})' if note.startswith('planned') else ''}"
        for label, value, note in _figures(summary)[:-1]
        if value != "–"
    ]
    planned, measured = summary.against_plan["step_seconds"]
    if planned and measured:
        lines.append(f"Seconds per step: {short_number(measured)} (planned {short_number(planned)})")
    spent = [(name, summary.seconds[name]) for name in ACCOUNTS if summary.seconds[name] > 0]
    if spent:
        parts = ", ".join(f"{_ACCOUNT_NAMES[name].split(' · ')[0].lower()} {duration(value)}" for name, value in spent)
        lines.append(f"Wall time: {duration(sum(summary.seconds.values()))} ({parts})")
    lines.append(f"Effective training time: {_percent(summary.effective)}")
    return [visible(line) for line in (*(f"warning: {words}" for words in summary.unread), *lines)]


def page(summary: Summary, *, rewritten_every: float = 0, now: float | None = None) -> str:
    """Return the whole page. ``rewritten_every``: seconds, for a page that a browser shall load again while training.

    ``now``: when it is written, in unix seconds.
    """
    written = time.time() if now is None else now
    live = rewritten_every if summary.state in AT_WORK else 0
    title = f"{summary.name} · qwen-job"
    body = [
        _header(summary, age(written, live, _last_step(summary, written) if live else "")),
        _unread(summary),
        _cards(summary),
        _time(summary),
        _charts(summary),
        _planned(summary),
        _memory(summary),
    ]
    body += [_attempts(summary), _guards(summary), _scores(summary), _evaluation(summary), _settings(summary)]
    return document(title, body, refresh=live)


def _last_step(summary: Summary, now: float) -> str:
    at = number(summary.steps[-1], "time") if summary.steps else None
    if at is None:
        return ""
    before = duration(max(0.0, now - at))
    return f"last step {before} before that · 最后一步在此 {before} 前"


def _header(summary: Summary, written: str) -> str:
    state = summary.state
    model = escape(str(summary.section("model").get("name") or "unknown model"))
    step, total = _steps(summary)
    progress = f" · step {step:,} of {total:,}" if total else (f" · step {step:,}" if step else "")
    return (
        f'<header><h1>{escape(summary.name)} <span class="state {escape(state, True)}">{escape(state)}</span></h1>'
        f"<p>{model}{progress}</p>{written}</header>"
    )


def _unread(summary: Summary) -> str:
    return table("", ["unreadable files · 无法读取的文件"], [[words] for words in summary.unread])


def _steps(summary: Summary) -> tuple[int, int]:
    total = summary.done.get("total_steps") or summary.heartbeat.get("total_steps")
    last = int(number(summary.steps[-1], "step") or 0) if summary.steps else 0
    return last, whole(total) or 0


def _figures(summary: Summary) -> list[tuple[str, str, str]]:
    """Return (label, value, note) of the main figures."""
    speed, planned_speed = summary.median("tokens_per_second"), summary.planned("tokens_per_second")
    memory, planned_memory = summary.peak("memory_bytes"), summary.planned("memory_bytes_per_gpu")
    held_out = summary.last("loss", "eval")
    perplexity = summary.last("perplexity", "eval")
    load, least = summary.last("expert_load_max"), summary.last("expert_load_min")
    routed = f"of an even share; least {short_number(least)}; no token is dropped"
    figures = [
        ("Loss · 损失", short_number(summary.last("loss")), f"from {short_number(_first(summary))}"),
        (
            "Held-out loss · 留出集损失",
            short_number(held_out),
            f"perplexity {short_number(perplexity)}" if perplexity else "",
        ),
        (
            "Tokens/s · 吞吐",
            _count(speed),
            f"planned {_count(planned_speed)}" if planned_speed else "median, all ranks",
        ),
        ("MFU · 算力利用率", _percent(summary.median("mfu")), "real tokens only"),
        (
            "Peak memory · 显存峰值",
            _bytes(memory),
            f"planned {_bytes(planned_memory)}" if planned_memory else "highest rank",
        ),
        ("Tokens trained · 训练 token", _count(summary.total("tokens") or None), "excluding padding"),
        *([("Greatest expert load · 专家最大负载", short_number(load), routed)] if load is not None else []),
        ("Effective time · 有效训练时间", _percent(summary.effective), "of the wall time"),
    ]
    return [(label, value, "" if value == "–" else note) for label, value, note in figures]


def _first(summary: Summary) -> float | None:
    points = summary.curve("loss")
    return points[0][1] if points else None


def _cards(summary: Summary) -> str:
    cards = [
        f"<div><dt>{'<br>'.join(map(escape, label.split(' · ')))}</dt>"
        f"<dd>{escape(value)}</dd><small>{escape(note)}</small></div>"
        for label, value, note in _figures(summary)
    ]
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _time(summary: Summary) -> str:
    total = sum(summary.seconds.values())
    if total <= 0:
        return note("Wall time · 时间", "metrics.jsonl has no events yet · 尚无训练记录")
    bars, rows = [], []
    for name in ACCOUNTS:
        share = summary.seconds[name] / total
        label = _ACCOUNT_NAMES[name]
        if share:
            bars.append(f'<i class="{name}" style="flex-grow:{share:.5f}" title="{escape(label)}: {share:.1%}"></i>')
        value = f"<b>{duration(summary.seconds[name])}</b> {share:.1%}"
        rows.append(f'<li><i class="{name}"></i>{escape(label)} {value}</li>')
    heading = (
        f"Wall time · 时间 <small>{duration(total)}, effective training time {_percent(summary.effective)}</small>"
    )
    legend = f'<ul class="legend">{"".join(rows)}</ul>'
    return f'<section><h2>{heading}</h2><div class="bar">{"".join(bars)}</div>{legend}</section>'


def _charts(summary: Summary) -> str:
    loss, evals = summary.curve("loss"), summary.curve("loss", "eval")
    training = [Series("training", loss, "faint"), Series("training, smoothed · 训练", smooth(loss), "line")]
    held_out = [Series("held out · 留出集", evals, "line", 1), Series("", evals, "dots", 1)] if evals else []
    # In the unit of the labels, so that the ticks are round numbers.
    unit, name = (GIB, "GiB") if (summary.peak("memory_bytes") or 0) >= GIB else (2**20, "MiB")

    def form(value: float) -> str:
        return f"{value:,.10g} {name}"

    figures = [
        ("Loss · 损失", [*training, *held_out], short_number, False),
        ("Learning rate · 学习率", [Series("learning rate", summary.curve("learning_rate"))], _short, True),
        ("Tokens/s · 吞吐", _with_plan(summary, "tokens_per_second", "tokens_per_second"), _count, True),
        ("MFU · 算力利用率", [Series("MFU", summary.curve("mfu"))], _percent, True),
        ("Memory, highest rank · 显存", _with_plan(summary, "memory_bytes", "memory_bytes_per_gpu", unit), form, True),
        ("Gradient norm · 梯度范数", [Series("gradient norm", summary.curve("grad_norm"))], short_number, True),
        *_routing(summary),
    ]
    marks = [float(attempt.resumed_from) for attempt in summary.attempts[1:]]
    drawn = [figure(title, series, form, marks, zero) for title, series, form, zero in figures]
    return f'<section class="charts">{"".join(drawn)}</section>'


def _routing(summary: Summary) -> list[tuple[str, list[Series], Formatter, bool]]:
    """Return how a mixture's tokens were spread over its experts; empty for a dense model."""
    if summary.last("router_entropy") is None:
        return []
    names = {"greatest · 最大": "expert_load_max", "least · 最小": "expert_load_min"}
    loads = [Series(name, summary.curve(key)) for name, key in names.items()]
    entropy = [Series("entropy", summary.curve("router_entropy"))]
    return [
        ("Expert load, even share = 1 · 专家负载", loads, short_number, True),
        ("Router entropy, nats · 路由熵", entropy, short_number, True),
    ]


def _with_plan(summary: Summary, key: str, planned: str, unit: float = 1) -> list[Series]:
    measured = Series("measured · 实测", [(step, value / unit) for step, value in summary.curve(key)])
    value = summary.planned(planned)
    return [measured, Series("planned · 规划", [(0.0, value / unit)], "planned", 1)] if value else [measured]


def figure(
    title: str, series: Sequence[Series], form: Formatter, marks: Sequence[float] = (), zero: bool = False
) -> str:
    """Return a chart with its title and legend."""
    drawing = chart(series, form, marks=marks, zero=zero) or '<p class="none">not measured · 无数据</p>'
    named = [one for one in series if one.label and one.style != "faint" and one.points]
    spans = [f'<span class="{one.style}" style="--c:var(--s{one.colour})">{escape(one.label)}</span>' for one in named]
    legend = f'<p class="names">{"".join(spans)}</p>' if len(spans) > 1 else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{drawing}</figure>"


def _planned(summary: Summary) -> str:
    rows = []
    memory = "Host memory per process · 每进程内存" if _on_cpu(summary) else "GPU memory per GPU · 每卡显存"
    for label, key, form in (
        (memory, "memory_bytes", _bytes),
        ("Seconds per step · 每步耗时", "step_seconds", short_number),
        ("Tokens/s · 吞吐", "tokens_per_second", _count),
    ):
        planned, measured = summary.against_plan[key]
        if planned or measured:
            ratio = f"{measured / planned:.2f}" if planned and measured else "–"
            rows.append([label, form(planned), form(measured), ratio])
    return table(
        "Planned and measured · 规划与实测", ["", "planned · 规划", "measured · 实测", "measured / planned"], rows
    )


def _on_cpu(summary: Summary) -> bool:
    return summary.settings.get("device") == "cpu"


def _memory(summary: Summary) -> str:
    """Draw the planned memory by item against GPU memory, with the measured peak below."""
    items = summary.memory_items
    if not items:
        return ""
    on_cpu = _on_cpu(summary)
    stack = Stack(items, summary.planned_bytes("memory_capacity_bytes"), "process" if on_cpu else "GPU")
    title = "One process" if on_cpu else "One GPU"
    drawing = svg(stack, title=title, measured=summary.peak("memory_bytes"))
    return f'<section class="memory"><h2>Planned memory · 规划显存</h2>{drawing}</section>'


def _attempts(summary: Summary) -> str:
    rows = []
    for attempt in summary.attempts[-_MOST_ATTEMPTS:]:
        start = attempt.events[0]
        came = f"step {attempt.resumed_from:,}" if attempt.resumed_from else "step 0"
        size = whole(start.get("sequence_parallel_size")) or 1
        shared = f", {size} to a row" if size > 1 else ""
        where = f"{start.get('world_size') or '?'} ranks{shared}, {start.get('host') or '?'}"
        before = summary.attempts[attempt.number - 1].end if attempt.number else attempt.begin
        lasted = duration(attempt.end - max(attempt.begin, before))
        rows.append([str(attempt.number + 1), where, came, f"{attempt.last_step:,}", lasted, attempt.outcome])
    heading = ["", "where · 位置", "from · 起点", "to step · 到", "duration · 时长", "end · 结束"]
    return table("Attempts · 尝试", heading, rows)


def _guards(summary: Summary) -> str:
    hidden = ("type", "time", "step")
    rows = [
        [str(event.get("step")), ", ".join(f"{key}: {value}" for key, value in event.items() if key not in hidden)]
        for event in summary.guards[:50]
    ]
    return table("Guards · 异常保护", ["step · 步", "what happened · 事件"], rows)


def _evaluation(summary: Summary) -> str:
    answers = summary.evaluation.get("answers")
    rows = [
        [str(answer.get(key) or "–") for key in ("prompt", "reference", "before", "after")]
        for answer in (answers if isinstance(answers, list) else [])
        if isinstance(answer, dict)
    ]
    heading = ["question · 问题", "reference · 参考", "before · 训练前", "after · 训练后"]
    return table("Sample answers · 回答对比", heading, rows, kind="answers")


def _scores(summary: Summary) -> str:
    """Return the suite's scores before and after training; what got worse is marked."""
    results = read_scores(summary.evaluation)
    words = {"better": "better · 提高", "worse": "worse · 下降"}
    rows = [[*one.cells[:-1], words.get(one.verdict, "")] for one in results]
    heading = [
        "task · 任务",
        "metric · 指标",
        "questions · 题数",
        "before · 训练前",
        "after · 训练后",
        "difference · 变化",
        "",
    ]
    return table("Scores · 基准评测", heading, rows, kind="scores")


def _settings(summary: Summary) -> str:
    rows = [[field, _plain(summary.settings[field])] for field in _SHOWN_FIELDS if field in summary.settings]
    rows += [[field, str(size)] for field, size in summary.parallel_sizes.items()]
    for section, keys in _SHOWN_SETTINGS.items():
        values = summary.section(section)
        rows += [[f"{section}.{key}", _plain(values[key])] for key in (keys or values) if values.get(key) is not None]
    shown = table("", [TRAIN, ""], rows)
    return f"<details><summary>Settings · 设置</summary>{shown}</details>" if rows else ""


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return (
            ", ".join(str(item.get("path", item)) if isinstance(item, dict) else str(item) for item in value) or "none"
        )
    return "yes" if value is True else "no" if value is False else str(value)


def short_number(value: float | None) -> str:
    """Return a number in a few characters, a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else _count(value)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"


def _bytes(value: float | None) -> str:
    return "–" if value is None else gib_or_mib(value)

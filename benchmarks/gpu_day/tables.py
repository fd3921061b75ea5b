"""The results as Markdown, ready for BENCHMARKS.md; what is missing is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

GOAL = 60_800  # tokens/s of Qwen-1.8B on one H100 or H200, rows of 2,048

SIDES = {
    "default": "ours, as the plan chooses",
    "eager": "ours, `train.torch_compile: false`",
    "compiled": "ours, `train.torch_compile: true`",
    "liger": "stock Trainer + Liger, packed, documents not kept apart",
    "reference": "as in finetune.py: one conversation per row, padded, checkpointing, no fused loss",
    "qwen3": "ours, Qwen3-1.7B, as the plan chooses",
    "qwen3.5": "ours, Qwen3.5-2B, as the plan chooses",
}


def report(machine: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> str:
    """Return all tables; a task that failed or is missing shows why."""
    parts = [_head(machine, tasks)]
    for title, write in SECTIONS.items():
        body = write(tasks)
        if body:
            parts.append(f"### {title}\n\n{body}")
    return "\n\n".join(parts) + "\n"


def _head(machine: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> str:
    versions = _rows(tasks, "machine").get("versions", {})
    known = {key: value for key, value in versions.items() if key != "took"}
    lines = [
        f"{machine.get('gpu')}, driver {machine.get('driver')}; commit {machine.get('commit')}, code {machine['code']}"
    ]
    lines += [", ".join(f"{key} {value}" for key, value in known.items())] if known else []
    lines += [f"- {name}: {task['state']}: {task['reason']}" for name, task in tasks.items() if task["state"] != "done"]
    return "\n".join(lines)


def _rows(tasks: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    figures: dict[str, Any] = tasks.get(name, {}).get("figures", {})
    return figures


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """Return a table; columns after the first are aligned to the right."""
    columns = head.split("|")
    lines = [f"| {' | '.join(column.strip() for column in columns)} |"]
    lines.append("|---|" + "---:|" * (len(columns) - 1))
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def gib(value: float | None) -> str:
    """Return bytes in GiB, nothing for none."""
    return f"{value / 2**30:.1f} GiB" if value else ""


def _speed(tasks: dict[str, dict[str, Any]]) -> str:
    rows = []
    for side, words in SIDES.items():
        figures = _rows(tasks, side)
        if "same as" in figures:
            rows.append((words, f"as {figures['same as']}", *[""] * 5))
        if not figures.get("tokens_per_second"):
            continue
        speed, mfu = figures["tokens_per_second"], figures.get("mfu")
        batch = figures.get("micro_batch", "")
        share = "" if side.startswith("qwen3") else f"{speed / GOAL:.0%}"
        memory, planned = figures.get("memory_bytes"), figures.get("planned_bytes")
        rows.append((words, batch, f"{speed:,.0f}", share, f"{mfu:.1%}" if mfu else "", gib(memory), gib(planned)))
    if not rows:
        return ""
    found = table("side | rows at once | tokens/s | of the goal (60,800) | MFU | peak memory | planned", rows)
    ours, theirs = (_rows(tasks, name).get("tokens_per_second") for name in ("default", "liger"))
    return found + (f"\n\nOurs over stock Trainer + Liger: {ours / theirs:.2f} times." if ours and theirs else "")


def _starts(tasks: dict[str, dict[str, Any]]) -> str:
    cold, warm = _rows(tasks, "default"), _rows(tasks, "restart")
    rows: list[tuple[object, ...]] = []
    if "first_step_after" in cold:
        what = "a new run: model, data and first step, nothing cached"
        rows.append((what, _compiling(cold), f"{cold['first_step_after']:.1f} s"))
    if "first_step_after" in warm:
        what = f"a restart from step {warm['resumed_from']}, caches warm (goal: 15 s)"
        rows.append((what, _compiling(warm), f"{warm['first_step_after']:.1f} s"))
    return table("from the launch to the end of the first step | layers | time", rows) if rows else ""


def _compiling(figures: dict[str, Any]) -> str:
    line = figures.get("compile", {})
    if not line.get("compiled"):
        return f"not compiled: {line['reason']}" if line.get("reason") else "not compiled"
    return f"{'compiled' if line['graphs'] else 'loaded'} in {line['seconds']:.1f} s"


def _saves(tasks: dict[str, dict[str, Any]]) -> str:
    rows: list[tuple[object, ...]] = []
    for name in ("default", "peer-save"):
        figures = _rows(tasks, name)
        for save in figures.get("saves", ()):
            where = f"ours, {save['bytes'] / 2**30:.1f} GiB, step {save['step']} of the {name} run"
            rows.append((where, f"{save['pause_seconds']:.2f} s", f"{save['seconds']:.1f} s"))
        if "peer_save_seconds" in figures:
            seconds = f"{figures['peer_save_seconds']:.1f} s"
            rows.append(("DeepSpeed's `save_checkpoint`, same run, not synced, no hashes", seconds, seconds))
    if not rows:
        return ""
    found = table("save | training pauses | until it is complete", rows)
    meanwhile = _rows(tasks, "default").get("step_seconds_while_writing")
    return found + (f"\n\nA step while a checkpoint is written: {meanwhile:.3f} s." if meanwhile else "")


def _peaks(tasks: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, row in _rows(tasks, "peaks").items():
        if "allocated" not in row:
            rows.append((name, row.get("error") or row.get("skipped"), gib(row.get("planned")), *[""] * 5))
            continue
        inside, whole = (_pair(row[what], row[planned]) for what, planned in _PLANNED.items())
        compiled = " (compiled)" if row.get("graphs") else ""
        rows.append((name + compiled, *inside, gib(row["reserved"]), *whole))
    head = "setting | allocated | planned | error | reserved | device | planned | error"
    return table(head, rows) if rows else ""


_PLANNED = {"allocated": "planned", "device": "planned_device"}


def _pair(measured: int, planned: int) -> tuple[str, str, str]:
    """Return what was measured, what was planned, and the plan's error."""
    return gib(measured), gib(planned), f"{planned / measured - 1:+.1%}" if measured else ""


def _profile(tasks: dict[str, dict[str, Any]]) -> str:
    found = _rows(tasks, "default").get("profile", {})
    if not found.get("by_kind_ms"):
        return ""
    total = found["gpu_ms"]
    rows = [(kind, f"{ms:.1f}", f"{ms / total:.1%}") for kind, ms in found["by_kind_ms"].items()]
    rows.append(("idle", f"{found['idle_ms']:.1f}", f"{found['idle_ms'] / total:.1%}"))
    gaps = [(gap["at_ms"], gap["ms"], gap["after"], gap["cpu"]) for gap in found["gaps"]]
    largest = [
        (row["kernel"].replace("|", "/")[:90], row["calls"], f"{row['ms']:.1f}") for row in found["largest"][:15]
    ]
    parts = [
        f"One step of the default run, {total:.0f} ms on the GPU, {found['kernels']} kernels.",
        table("kind | ms | share", rows),
        table("largest kernels | calls | ms", largest),
        f"{found['long_gaps']} gaps of more than 50 us, {found['long_gaps_ms']:.1f} ms in all; the longest:",
        table("at ms | ms | after | the CPU was in", gaps),
    ]
    return "\n\n".join(parts)


def _variants(tasks: dict[str, dict[str, Any]]) -> str:
    rows: list[tuple[object, ...]] = []
    found = _rows(tasks, "variants")
    base = found.get("the plan's choice", {})
    for name, row in found.items():
        if "ms" not in row:
            rows.append((name, row.get("error", "")[:120], *[""] * 7))
            continue
        gain = f"{row['ms'] - base['ms']:+.1f}" if "ms" in base else ""
        same = _sameness(base.get("losses", []), row["losses"])
        first = f"{row['first_step_seconds']:.1f} s"
        memory = gib(row["allocated"]), gib(row["reserved"])
        rows.append((name, row["ms"], gain, row["spread_ms"], *memory, row["graphs"], first, same))
    head = "variant | ms per step | difference | spread | allocated | reserved | graphs | first step | losses"
    return table(head, rows) if rows else ""


def _sameness(base: list[float], mine: list[float]) -> str:
    if not base:
        return ""
    most = max(abs(a - b) for a, b in zip(base, mine, strict=False))
    return "equal" if most == 0 else f"within {most:.1e}"


def _simple(task: str, columns: dict[str, str]) -> Callable[[dict[str, dict[str, Any]]], str]:
    def write(tasks: dict[str, dict[str, Any]]) -> str:
        rows = []
        for name, row in _rows(tasks, task).items():
            if any(key in row for key in columns):
                rows.append((name, *(_cell(key, row.get(key)) for key in columns)))
            elif "error" in row:
                rows.append((name, row["error"][:120], *[""] * (len(columns) - 1)))
        return table(" | ".join(["what", *columns.values()]), rows) if rows else ""

    return write


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key.endswith("bytes"):
        return gib(value)
    return f"{value:.1e}" if key == "error" else f"{value:,}"


def _tests(tasks: dict[str, dict[str, Any]]) -> str:
    rows = _rows(tasks, "tests")
    if not rows:
        return ""
    others = [f"- {name}: {word}" for name, word in rows.items() if word != "passed"]
    return "\n".join([f"{len(rows) - len(others)} of {len(rows)} passed.", *others])


SECTIONS: dict[str, Callable[[dict[str, dict[str, Any]]], str]] = {
    "Correctness": _tests,
    "Speed": _speed,
    "Starts": _starts,
    "Checkpoints": _saves,
    "Planned memory": _peaks,
    "Where a step's time goes": _profile,
    "One thing changed at a time": _variants,
    "Kernels": _simple(
        "kernels", {"ms": "ms", "memory_bytes": "peak", "error": "error", "tokens_per_second": "tokens/s"}
    ),
    "Ceilings": _simple("machine", {"ms": "ms", "tflops": "TFLOP/s", "gb_per_second": "GB/s"}),
}

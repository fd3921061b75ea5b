"""Format the output of ``qwen-job plan``, as text and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from qwen_job.job import Job
from qwen_job.picture import bar
from qwen_job.plan import Plan
from qwen_job.plan.compare import Difference
from qwen_job.plan.disk_space import disk_needed, is_prepared_elsewhere
from qwen_job.plan.schedule import RunPlan
from qwen_job.plan.search import longest
from qwen_job.plan.search.choice import Runner
from qwen_job.plan.search.smallest import Smallest
from qwen_job.plan.train_config import train_config
from qwen_job.run.config import to_values
from qwen_job.text import GIB, duration

SHOWN_RUNNERS = 3
_REFUSED = "The run would refuse the data: see the warnings about data.train"


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values."""
    memory, speed = plan.run.memory if plan.run else None, plan.speed
    return {
        "name": plan.job.name,
        "gpu": plan.gpu.name,
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus_per_node,
        "world_size": plan.world_size,
        "parameters": plan.shape.num_parameters if plan.shape else None,
        "decisions": [decision._asdict() for decision in plan.decisions],
        "memory": {
            "gpu_bytes": memory.gpu_bytes,
            "gpu_capacity_bytes": memory.capacity,
            "gpu": memory.gpu,
            "host": memory.host,
            "disk": memory.disk,
        }
        if memory
        else None,
        "speed": {
            "step_seconds": list(speed.step_seconds),
            "tokens_per_second": speed.tokens_per_second,
            "mfu": speed.mfu,
            "bound_by": speed.bound_by,
        }
        if speed
        else None,
        "run": run_as_dict(plan.run),
        "considered": plan.considered,
        "runners_up": [_runner_as_dict(runner) for runner in plan.runners_up],
        "env": plan.env,
        "train": to_values(train_config(plan)),
        "deepspeed": plan.deepspeed_config,
        "warnings": list(plan.warnings),
    }


def run_as_dict(run: RunPlan | None) -> dict[str, Any] | None:
    """Return the run's numbers; ranges are (low, expected, high)."""
    if run is None:
        return None
    estimate, speed = run.estimate, run.speed
    return {
        "data": run.data._asdict() if run.data else None,
        "rows_per_epoch": run.rows_per_epoch,
        "steps_per_epoch": run.steps_per_epoch,
        "steps": run.steps,
        "step_seconds": list(speed.step_seconds) if speed else None,
        "tokens_per_second": speed.tokens_per_second if speed else None,
        "mfu": speed.mfu if speed else None,
        "bound_by": speed.bound_by if speed else None,
        "epoch_seconds": list(estimate.epoch_seconds) if estimate and run.data else None,
        "total_seconds": list(estimate.total_seconds) if estimate else None,
        "gpu_hours": list(estimate.gpu_hours) if estimate else None,
        "cost": list(estimate.cost) if estimate and estimate.cost else None,
        "save_seconds": estimate.save_seconds if estimate else None,
    }


def _runner_as_dict(runner: Runner) -> dict[str, Any]:
    choice = runner.choice
    return {
        "zero_stage": choice.zero_stage,
        "offload_optimizer": choice.offload_optimizer,
        "gradient_checkpointing": choice.gradient_checkpointing,
        "micro_batch_size": choice.micro_batch_size,
        "sequence_parallel_size": choice.sequence_parallel_size,
        "expert_parallel_size": choice.expert_parallel_size,
        "tiled_mlp": choice.tiled_mlp,
        "activation_offloading": choice.activation_offloading,
        "fits": choice.fits,
        "gpu_bytes": choice.needs.gpu_bytes,
        "tokens_per_second": choice.speed.tokens_per_second if choice.speed else None,
        "why": runner.why,
    }


def plan_lines(plan: Plan, everything: bool) -> list[str]:
    """Return the plan as text."""
    parameters = plan.shape.num_parameters if plan.shape else 0
    scale, unit = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    size = f"{parameters / scale:.3g} {unit} parameters" if parameters else "unknown size"
    where = f"{plan.nodes} x {plan.gpus_per_node} {plan.gpu.name}"
    lines = [click.style(_REFUSED, bold=True)] if plan.refuses_data else []
    lines.append(click.style(verdict(plan), bold=True))
    lines += [f"{plan.job.name}: {plan.job.model.name} ({size}) on {where}", "", *_decisions(plan)]
    memory = plan.run.memory if plan.run else None
    if memory is not None:
        title = f"Memory of {'one node' if plan.gpu.is_cpu else 'one GPU'}"
        lines += ["", *bar(memory.stack, title=title).splitlines(), "", *_host_and_disk(plan)]
    lines += ["", *_time(plan, plan.uncounted)]
    return lines + _runners(plan, everything)


def verdict(plan: Plan) -> str:
    """Return the plan in one line: whether it fits, hours, GPU-hours, and what bounds the speed."""
    run = plan.run
    if run is None:
        return "Unknown: the shape of the model is not known, so neither memory nor time is estimated"
    if run.estimate is None:
        why = "the number of conversations is not known" if run.speed else "the speed of the GPU is not known"
        return f"Fits; no time, because {why}"
    hours = f"{_most(run)}{duration(run.estimate.total_seconds[1])}"
    used = "" if plan.gpu.is_cpu else f", {_most(run)}{run.estimate.gpu_hours[1]:,.1f} GPU-hours"
    bound = f", bound by {run.speed.bound_by}" if run.speed else ""
    return f"Fits: {hours}{used}{bound}"


def sweep_lines(plan: Plan) -> tuple[str, ...]:
    """Return what all runs of a sweep take together, and which of them will count as the best."""
    runs = [one.plan.run for one in plan.sweep]
    estimates = [run.estimate for run in runs if run and run.estimate]
    disk = disk_needed(plan.job.output, [(one.plan.job, one.plan.run.memory) for one in plan.sweep if one.plan.run])
    total = f"; all together: {disk / GIB:,.0f} GiB of disk" if disk else ""
    if estimates and len(estimates) == len(runs):
        most = _most(runs[0])
        total += f", {most}{duration(sum(one.total_seconds[1] for one in estimates))} one after another"
        total += "" if plan.gpu.is_cpu else f", {most}{sum(one.gpu_hours[1] for one in estimates):,.1f} GPU-hours"
    data = plan.job.data
    held_out = bool(data.eval or data.eval_split)
    best = "held-out loss" if held_out else "mean loss (for a held-out loss, write data.eval or data.eval_split)"
    return (
        f"sweep: {len(plan.sweep)} runs; the figures above are for a single run without the sweep{total}",
        f"sweep: 'qwen-job sweep' lists the runs by their {best}, the best first",
    )


def _most(run: RunPlan | None) -> str:
    """Return the word for a bound: without known tokens, every conversation counts as a full row."""
    return "at most " if run and run.data is not None and run.data.tokens is None else ""


def _decisions(plan: Plan) -> list[str]:
    rows: list[tuple[str, str, str]] = []
    for d in plan.decisions:
        # A reason that several values share is written once.
        first = next((other.field for other in plan.decisions if other.reason == d.reason), d.field)
        rows.append((d.field, show(d.value), d.reason if first == d.field or len(d.reason) < 40 else f"as {first}"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"  {field:<{widths[0]}}  {click.style(f'{value:<{widths[1]}}', bold=True)}  {reason}"
        for field, value, reason in rows
    ]


def _host_and_disk(plan: Plan) -> list[str]:
    memory, have = plan.run.memory if plan.run else None, plan.job.cluster.memory_gib
    assert memory is not None
    known = f" of {have:.0f}" if have else ""
    lines = [f"Host   {memory.host_bytes / GIB:.1f}{known} GiB a node: {_items(memory.host)}"]
    folder = "the run's folder" + (" and data.cache_dir" if is_prepared_elsewhere(plan.job.output, plan.job) else "")
    return [*lines, f"Disk   {memory.disk_bytes / GIB:.1f} GiB in {folder}: {_items(memory.disk)}"]


def _items(items: dict[str, int]) -> str:
    largest = sorted(((size, item) for item, size in items.items() if size), reverse=True)
    return ", ".join(f"{item} {size / GIB:.1f}" for size, item in largest)


def _time(plan: Plan, missing: str) -> list[str]:
    run = plan.run
    if run is None:
        return ["Time   not estimated: the shape of the model is unknown"]
    lines = []
    if run.data is not None:
        tokens = "" if run.data.tokens is None else f", {_count(run.data.tokens)} tokens"
        rows = f"{run.rows_per_epoch:,} rows of {plan.job.train.model_max_length}"
        most = _most(run) if plan.job.data.packing else ""
        how = "an epoch, packed" if plan.job.data.packing else "an epoch"
        lines.append(f"Data   {run.data.samples:,} conversations{tokens} ({run.data.source}): {most}{rows} {how}")
        lines += [f"       {missing}"] if missing else []
    elif missing:
        lines.append(f"Data   unknown: {missing}")
    return [*lines, *_steps(plan, run)]


def _steps(plan: Plan, run: RunPlan) -> list[str]:
    speed, estimate = run.speed, run.estimate
    steps = "" if run.steps is None else f"{run.steps:,} steps"
    if run.steps is not None and run.steps_per_epoch is not None and plan.job.train.max_steps <= 0:
        steps += f" ({plan.job.train.num_train_epochs:g} epochs of {run.steps_per_epoch:,})"
    if speed is None:
        lines = [f"Steps  {steps}"] if steps else []
        return [
            *lines,
            f"Time   not estimated: the peak speed of {plan.gpu.name} in {plan.precision} is unknown",
        ]
    mfu = f", MFU {speed.mfu:.0%}" if speed.mfu is not None else ""
    guessed = speed.rough and not plan.job.plan.constants()
    rough = " (the CPU speed is a guess; --calibrate measures it from runs)" if guessed else ""
    seconds = f"{speed.mid:.2f} s ({speed.low:.2f} to {speed.high:.2f})"
    lines = [f"Step   {seconds}, {speed.tokens_per_second:,.0f} tokens/s{mfu}, bound by {speed.bound_by}{rough}"]
    if estimate is None:
        return lines
    if run.data is not None:
        lines.append(f"Epoch  {_most(run)}{_range(estimate.epoch_seconds)}")
    lines.append(f"Run    {_most(run)}{_range(estimate.total_seconds)} for {steps}, including start-up and checkpoints")
    if plan.gpu.is_cpu and estimate.cost is None:
        return lines
    low, mid, high = estimate.gpu_hours
    spare = f", {spare}" if (spare := _spare(plan.job)) else ""
    money = ""
    if estimate.cost is not None:
        money = f"; cost {estimate.cost[1]:,.2f} ({estimate.cost[0]:,.2f} to {estimate.cost[2]:,.2f})"
    return [*lines, f"GPUs   {_most(run)}{mid:,.1f} GPU-hours ({low:,.1f} to {high:,.1f}){money}{spare}"]


def _spare(job: Job) -> str:
    """Return a clause about nodes that are held without training; empty if there are none."""
    count = job.slurm.spare_nodes
    nodes = "the spare node, which is idle" if count == 1 else f"the {count} spare nodes, which are idle"
    return f"with {nodes} (slurm.spare_nodes)" if count else ""


def _runners(plan: Plan, everything: bool) -> list[str]:
    runners = plan.runners_up
    if not runners:
        return []
    shown = runners if everything else runners[:SHOWN_RUNNERS]
    rows = [(str(runner.choice), _speed(runner), runner.why) for runner in shown]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    rest = f" (--all shows {len(runners)})" if len(shown) < len(runners) else ""
    lines = [f"  {name:<{widths[0]}}  {speed:>{widths[1]}}  {why}" for name, speed, why in rows]
    return ["", f"Also considered{rest}", *lines]


def _speed(runner: Runner) -> str:
    speed = runner.choice.speed
    return f"{speed.tokens_per_second:,.0f} tokens/s" if speed and runner.choice.fits else ""


def fit_lines(job: Job, found: Sequence[Smallest], limit: str = "") -> list[str]:
    """Return the smallest clusters as a table, the job's own GPU first; ``limit``: why that one is no smaller."""
    own, others = found[0], [one for one in found[1:] if one.choice]
    if own.choice is None:
        lines = [f"{job.name} does not fit up to {own.nodes} nodes of {own.gpu}: {own.why}"]
    else:
        lines = [f"{job.name} fits {own.nodes} x {own.gpus_per_node} {own.gpu}: {own.choice}"]
    lines += [limit] if limit else []
    rows = [_fit_row(one) for one in found if one.choice]
    if others or own.choice:
        heading = ("GPUs", "", "GiB a GPU", "host GiB", "tokens/s", "run", "GPU-hours", "how")
        table = [heading, *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(heading))]
        order = "The job's own GPU first, then others, the fewest GPUs first."
        lines += ["", *("  " + _aligned(row, widths) for row in table), *(["", order] if own.choice else [])]
        if job.cluster.memory_gib is None:
            smallest = next(one for one in found if one.choice)
            lines += [
                "",
                f"Host memory is not limited here: {_taken(smallest)}; cluster.memory_gib sets what a node has.",
            ]
    if spare := _spare(job):
        lines += ["", f"GPU-hours are {spare}."]
    return lines


def _taken(one: Smallest) -> str:
    """Return a message about the host memory without which the smallest cluster would not do."""
    assert one.choice is not None
    size = one.choice.needs.host_needed / GIB
    return f"{one.nodes} x {one.gpus_per_node} {one.gpu} takes {size:,.0f} GiB a node for granted"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    last = len(row) - 1
    marks = ["<" if column < 2 or column == last else ">" for column in range(len(row))]
    return "  ".join(f"{row[i]:{marks[i]}{widths[i]}}" for i in range(len(row))).rstrip()


def _fit_row(one: Smallest) -> tuple[str, ...]:
    assert one.choice is not None
    speed = one.run.speed if one.run else None
    estimate = one.run.estimate if one.run else None
    memory = one.choice.needs
    return (
        f"{one.nodes} x {one.gpus_per_node}",
        one.gpu,
        f"{memory.gpu_bytes / GIB:.1f} of {memory.capacity / GIB:.1f}" if memory.capacity else "unknown",
        f"{memory.host_bytes / GIB:,.0f}",
        f"{speed.tokens_per_second:,.0f}" if speed else "unknown",
        duration(estimate.total_seconds[1]) if estimate else "",
        f"{estimate.gpu_hours[1]:,.1f}" if estimate else "",
        str(one.choice),
    )


def fit_as_dict(one: Smallest) -> dict[str, Any]:
    """Return a smallest cluster as plain values."""
    choice = one.choice
    return {
        "gpu": one.gpu,
        "fits": choice is not None,
        "nodes": one.nodes if choice else None,
        "gpus_per_node": one.gpus_per_node if choice else None,
        "choice": _runner_as_dict(Runner(choice, "")) if choice else None,
        "host_bytes": choice.needs.host_bytes if choice else None,
        "run": run_as_dict(one.run),
        "why": one.why,
    }


def longest_lines(job: Job, found: longest.Answer) -> list[str]:
    """Return the longest rows by the number of GPUs that share them, and what the next larger cluster adds."""
    best, gpu, shape = found.best, found.question.gpu.name, found.question.shape
    lines = [f"{job.name}: rows of up to {_length(best)} fit on {best.nodes} x {best.gpus_per_node} {gpu}", ""]
    heading = ("GPUs a row", "longest row", "GiB a GPU", "tokens/s", "how")
    table = [heading, *(_longest_row(one) for one in found.here)]
    if found.larger is not None:
        larger = found.larger
        table.append((f"{larger.nodes} x {larger.gpus_per_node} {gpu}:", "", "", "", ""))
        table.append(_longest_row(larger))
    widths = [max(len(row[column]) for row in (heading, *table[1:])) for column in range(len(heading))]
    lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if found.larger is None:
        lines += ["", "More nodes, up to 64, allow no longer row."]
    if best.length > shape.max_position_embeddings:
        lines += ["", f"The model was trained with {shape.max_position_embeddings:,} positions."]
    return lines


def _length(one: longest.Longest) -> str:
    return f"{one.length:,} tokens or more" if one.length >= longest.MOST - longest.STEP else f"{one.length:,} tokens"


def _longest_row(one: longest.Longest) -> tuple[str, ...]:
    if one.choice is None:
        return str(one.size), "none fits", "", "", ""
    memory, speed = one.choice.needs, one.choice.speed
    room = f"{memory.gpu_bytes / GIB:.1f} of {memory.capacity / GIB:.1f}" if memory.capacity else "unknown"
    return str(one.size), _length(one), room, f"{speed.tokens_per_second:,.0f}" if speed else "unknown", str(one.choice)


def longest_as_dict(found: longest.Answer) -> dict[str, Any]:
    """Return the longest rows as plain values."""

    def values(one: longest.Longest) -> dict[str, Any]:
        return {
            "nodes": one.nodes,
            "gpus_per_node": one.gpus_per_node,
            "sequence_parallel_size": one.size,
            "length": one.length,
            "choice": _runner_as_dict(Runner(one.choice, "")) if one.choice else None,
        }

    return {
        "gpu": found.question.gpu.name,
        "here": [values(one) for one in found.here],
        "larger": values(found.larger) if found.larger else None,
    }


def compare_lines(names: tuple[str, str], found: Sequence[Difference]) -> list[str]:
    """Return the differences between two jobs as a table."""
    if not found:
        return [f"{names[0]} and {names[1]} give the same plan"]
    rows = [("", *names, "")]
    rows += [(one.field, show(one.first), show(one.second), _ratio(one)) for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _ratio(one: Difference) -> str:
    return "" if one.ratio is None else f"x {one.ratio:.3g}"


def show(value: Any) -> str:
    """Return a value as it would appear in job.yaml."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(seconds: tuple[float, float, float]) -> str:
    low, mid, high = map(duration, seconds)
    return f"{mid} ({low} to {high})"


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"

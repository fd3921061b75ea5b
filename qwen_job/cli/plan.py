"""``qwen-job plan``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.options import job_options, load_plan, show_words

if TYPE_CHECKING:
    from qwen_job.plan import Plan


@click.command()
@job_options
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def plan(job: str | None, files: tuple[str, ...], sets: tuple[str, ...], as_json: bool) -> None:
    """Show every number that the job will run with, and why."""
    made = load_plan(job, files, sets)
    if as_json:
        click.echo(json.dumps(_as_dict(made), indent=2, ensure_ascii=False))
        return
    for line in _table(made):
        click.echo(line)
    show_words(made.warnings)


def _as_dict(plan: Plan) -> dict[str, Any]:
    memory, speed = plan.sharding.memory, plan.sharding.speed
    return {
        "name": plan.job.name,
        "gpu": plan.gpu.name,
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus_per_node,
        "world_size": plan.world_size,
        "parameters": plan.shape.num_parameters if plan.shape else None,
        "decisions": [vars(decision) for decision in plan.decisions],
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
        "env": plan.env,
        "train": plan.train_config,
        "deepspeed": plan.deepspeed_config,
        "warnings": list(plan.warnings),
    }


def _table(plan: Plan) -> list[str]:
    parameters = plan.shape.num_parameters if plan.shape else 0
    scale, unit = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    size = f"{parameters / scale:.3g} {unit} parameters" if parameters else "unknown size"
    lines = [
        f"{plan.job.name}: {plan.job.model.name} ({size}) on {plan.nodes} x {plan.gpus_per_node} {plan.gpu.name}",
        "",
    ]
    rows = [(d.field, _show(d.value), d.reason) for d in plan.decisions]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for field, value, reason in rows:
        lines.append(f"  {field:<{widths[0]}}  {click.style(f'{value:<{widths[1]}}', bold=True)}  {reason}")
    if plan.sharding.memory is not None:
        from qwen_job.plan.picture import bar

        title = f"Memory of {'one node' if plan.gpu.is_cpu else 'one GPU'}"
        lines += ["", *bar(plan.sharding.memory, title=title).splitlines()]
    speed = plan.sharding.speed
    if speed is not None:
        mfu = f", MFU {speed.mfu:.0%}" if speed.mfu is not None else ""
        lines += [
            "",
            f"Step: {speed.mid:.2f} s ({speed.low:.2f} to {speed.high:.2f}), "
            f"{speed.tokens_per_second:,.0f} tokens/s{mfu}, bound by {speed.bound_by}",
        ]
    elif not plan.gpu.peak_tflops:
        lines += ["", "Step: unknown peak of this device, so no time and no MFU are estimated"]
    return lines


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""``qwen-job node``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from qwen_job.cli.job_options import FiniteRange
from qwen_job.cli.trainjob import trainjob
from qwen_job.errors import EnvironmentFault, NodeUnhealthy, RendezvousFailed, UsageError
from qwen_job.facts import choices
from qwen_job.text import json_text, visible

if TYPE_CHECKING:
    from qwen_job.node.quick_check import CheckResult


FABRICS = ["auto", "none", *get_args(choices.Interconnect)]


@click.group()
def node() -> None:
    """Check the machine that a job will run on, or run a pod of a TrainJob."""


node.add_command(trainjob)


@node.command()
@click.option("--quick", is_flag=True, help="Only fast checks (a second): driver, GPU kernels, cache, shared memory.")
@click.option(
    "--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", help="Device that the job runs on."
)
@click.option("--run", type=click.Path(path_type=Path), help="Run folder: check what that job needs.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="Number of GPUs that the job uses on this node.")
@click.option(
    "--gpu", type=(str, float, int), help="Planned GPU: name, compute capability, bytes of memory (0: unknown)."
)
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Number of nodes in the job.")
@click.option("--port", type=click.IntRange(1, 65535), help="Rendezvous port; must be free on the first node.")
@click.option("--rank", type=click.IntRange(min=0), default=0, help="Rank of this node; the first is 0.")
@click.option(
    "--master",
    default="",
    help="Address of the first node as the others reach it; tests the network between all nodes.",
)
@click.option("--min-gbs", type=FiniteRange(min=0), default=0, help="Minimum all-reduce bandwidth in GB/s.")
@click.option("--token", default="", help="Expected content of launch/token if the run folder is shared.")
@click.option("--sent-at", type=float, help="Clock of the node that started the job, in Unix seconds.")
@click.option("--disk-bytes", type=click.IntRange(min=0), help="Disk space that the run folder needs, in bytes.")
@click.option("--fabric", type=click.Choice(FABRICS), default="auto", help="Interconnect in the plan.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(
    quick: bool,
    device: str,
    run: Path | None,
    gpus: int,
    gpu: tuple[str, float, int] | None,
    nodes: int,
    port: int | None,
    rank: int,
    master: str,
    min_gbs: float,
    token: str,
    sent_at: float | None,
    disk_bytes: int | None,
    fabric: str,
    as_json: bool,
) -> None:
    """Check this node.

    Exits with 5 for a problem that every node would have (a full disk, an output folder that is not shared), with 163
    for a fault of this node, which a requeued job then excludes, and with 162 if another node is at fault.
    """
    from qwen_job.node.gpus import PlannedGpu
    from qwen_job.node.network import node_name
    from qwen_job.node.preflight import DISK_BYTES, Expected, preflight
    from qwen_job.node.quick_check import quick_check

    if quick == (run is not None):
        raise UsageError("use either --quick, or --run with the run folder of the job")
    if run is None:
        findings = quick_check(device)
    else:
        room = DISK_BYTES if disk_bytes is None else disk_bytes
        planned = PlannedGpu(*gpu) if gpu else None
        expected = Expected(gpus, run, port, token, sent_at, nodes, fabric, room, rank, master, min_gbs, planned)
        findings = preflight(expected)
    if as_json:
        click.echo(json_text({"host": node_name(), "findings": [asdict(f) for f in findings]}))
    else:
        for finding in findings:
            click.echo(f"{finding.state:<8} {finding.check:<14} {visible(finding.message)}")
    _judge(findings, quick)


def _judge(findings: list[CheckResult], quick: bool) -> None:
    from qwen_job.node.network import node_name
    from qwen_job.node.preflight import NOT_THE_NODE, OTHERS

    faults = [finding for finding in findings if finding.state == "fault"]
    if not faults:
        return
    text = "\n".join(f"{node_name()}: {fault.message}" for fault in faults)
    if quick or any(fault.check in NOT_THE_NODE for fault in faults):
        raise EnvironmentFault("\n".join(fault.message for fault in faults) if quick else text)
    if all(fault.check in OTHERS for fault in faults):
        raise RendezvousFailed(text)
    raise NodeUnhealthy(text)

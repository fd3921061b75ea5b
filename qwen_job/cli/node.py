"""``qwen-job node``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_job.cli.options import FiniteRange
from qwen_job.errors import EnvironmentFault, NodeUnhealthy, RendezvousFailed
from qwen_job.text import json_text, visible

if TYPE_CHECKING:
    from qwen_job.node.quick_check import Finding


FABRICS = ["auto", "none", "infiniband", "roce", "efa", "ethernet"]


@click.group()
def node() -> None:
    """Check the machine that a job is about to run on."""


@node.command()
@click.option("--quick", is_flag=True, help="Only what takes a second: driver, GPU kernels, cache, shared memory.")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", help="What the job runs on.")
@click.option("--run", type=click.Path(path_type=Path), help="The run's folder: checks what that job needs.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="GPUs that the job takes here.")
@click.option("--gpu", type=(str, float, int), help="The planned GPU: name, compute capability, bytes (0: unknown).")
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Nodes of the job.")
@click.option("--port", type=click.IntRange(1, 65535), help="The rendezvous port: free on the first node.")
@click.option("--rank", type=click.IntRange(min=0), default=0, help="This node's number; the first is 0.")
@click.option("--master", default="", help="The first node, as the others know it: tests the network between all.")
@click.option("--min-gbs", type=FiniteRange(min=0), default=0, help="GB/s that an all-reduce must reach.")
@click.option("--token", default="", help="What the run's launch/token must hold if the folder is shared.")
@click.option("--sent-at", type=float, help="The starting node's clock, in unix seconds.")
@click.option("--disk-bytes", type=click.IntRange(min=0), help="What the run's folder will take.")
@click.option("--fabric", type=click.Choice(FABRICS), default="auto", help="The plan's interconnect.")
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

    Ends with exit code 5 for what every node would have (a full disk, an output folder that is not shared), and with
    163 for a fault of this node, which a requeued job then leaves out; 162 where another node is at fault.
    """
    from qwen_job.node.gpus import PlannedGpu
    from qwen_job.node.network import node_name
    from qwen_job.node.preflight import DISK_BYTES, Expected, preflight
    from qwen_job.node.quick_check import quick_check

    if quick == (run is not None):
        raise click.UsageError("give --quick, or --run with the folder of the run that is about to start")
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


def _judge(findings: list[Finding], quick: bool) -> None:
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

"""``qwen-job node``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from qwen_job.errors import EnvironmentFault


@click.group()
def node() -> None:
    """Check the machine that a job is about to run on."""


@node.command()
@click.option("--quick", is_flag=True, help="Only what takes a second: driver, GPU kernels, cache, shared memory.")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", help="What the job runs on.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(quick: bool, device: str, as_json: bool) -> None:
    """Check this node, and end with exit code 5 when a job could not run on it."""
    from qwen_job.node.quick import quick_check

    if not quick:
        raise click.UsageError("only the quick check exists so far: qwen-job node check --quick")
    findings = quick_check(device)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.state:<8} {finding.check:<14} {finding.message}")
    faults = [finding for finding in findings if finding.state == "fault"]
    if faults:
        raise EnvironmentFault("\n".join(fault.message for fault in faults))

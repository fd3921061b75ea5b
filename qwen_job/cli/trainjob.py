"""``qwen-job node trainjob``: one pod of a Kubeflow TrainJob."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click
import yaml

from qwen_job.errors import EnvironmentFault, UsageError
from qwen_job.run.trainjob import ADDRESS, FIELDS, MORE, NODES, RANK, SECTION, TEMPLATE

if TYPE_CHECKING:
    from qwen_job.plan import Plan


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the files and the command, and start nothing.")
def trainjob(dry_run: bool) -> None:
    """Run one pod of a TrainJob: plan the runtime's job with the TrainJob's variables, and train.

    Every pod plans for itself, with the same result.
    """
    from qwen_job.render.configs import config_files
    from qwen_job.render.kubernetes.decisions import settings
    from qwen_job.render.kubernetes.objects import command
    from qwen_job.run.folder import TRAIN

    plan = planned(os.environ)
    files = config_files(plan)
    folder = Path(tempfile.gettempdir()) / "qwen-job-config"
    words = [*command(settings(plan))[:-1], str(folder / TRAIN)]
    words = [_variable(os.environ, RANK) if word == f"$({RANK})" else word for word in words]
    if dry_run:
        click.echo(json.dumps({"command": words, "files": files}, indent=2, ensure_ascii=False))
        return
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    for name, value in plan.env.items():
        os.environ.setdefault(name, value)
    job = plan.job
    where = f"{plan.nodes} x {plan.gpus_per_node} {plan.gpu.name}"
    print(f"qwen-job: TrainJob {job.name}: {job.model.name} on {where}", file=sys.stderr, flush=True)
    os.execvp(sys.executable, [sys.executable, *words[1:]])


def planned(environment: Mapping[str, str]) -> Plan:
    """Return the plan of the runtime's job with what the TrainJob changes.

    Raises:
        EnvironmentFault: this is not a pod of a TrainJob.
        JobError: the result is no valid job, or does not fit.
        UsageError: a line of QWEN_JOB_SET is no assignment.
    """
    from qwen_job.job import load_job
    from qwen_job.plan import make_plan

    try:
        template = yaml.safe_load(_variable(environment, TEMPLATE))
        section = json.loads(environment.get(SECTION) or "null")
    except (yaml.YAMLError, ValueError) as error:
        raise EnvironmentFault(f"{TEMPLATE}, {SECTION}: not YAML, or not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(template, dict):
        raise EnvironmentFault(f"{TEMPLATE}: is not a job; render the runtime again")
    if section is not None:
        template["kubernetes"] = section
    return make_plan(load_job([], under=template, sets=assignments(template, environment)))


def assignments(template: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Return what a TrainJob changes in its runtime's job, as ``field=value``, the later ones winning.

    Its name is the TrainJob's, and its output, unless given, a folder of that name beside the runtime's.

    Raises:
        EnvironmentFault: this is not a pod of a TrainJob.
        UsageError: a line of QWEN_JOB_SET is no assignment.
    """
    address = _variable(environment, ADDRESS)
    name = address.partition(".")[2].partition(".")[0]
    if not name:
        raise EnvironmentFault(f"{ADDRESS}: {address!r} does not end with the name of a TrainJob")
    values: dict[str, Any] = {
        "name": name,
        "output": str(PurePosixPath(str(template.get("output", "/"))).parent / name),
        "cluster.nodes": _count(environment, NODES),
    }
    values |= {field: environment[variable] for variable, field in FIELDS.items() if environment.get(variable)}
    found = [f"{field}={json.dumps(value)}" for field, value in values.items()]
    return [*found, *_more(environment.get(MORE, ""))]


def _more(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.strip():
            continue
        if "=" not in line:
            raise UsageError(f"{MORE}: {line.strip()!r} is no assignment; write field=value, one a line")
        yield line.strip()


def _count(environment: Mapping[str, str], name: str) -> int:
    text = _variable(environment, name)
    if not text.isdecimal() or not int(text):
        raise EnvironmentFault(f"{name}: {text!r} is not a number of nodes")
    return int(text)


def _variable(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise EnvironmentFault(f"{name}: is not set; 'qwen-job node trainjob' is for the pods of a Kubeflow TrainJob")
    return value

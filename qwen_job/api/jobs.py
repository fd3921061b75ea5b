"""From files to a rendered job: the functions behind ``plan`` and ``render``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.api.job_template import check_template
from qwen_job.errors import JobError, Problem, UsageError
from qwen_job.facts.data_names import is_name
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.job import Job
from qwen_job.job import load_job as load_layers
from qwen_job.plan import Plan, make_plan
from qwen_job.plan.disk_space import DiskRoom
from qwen_job.plan.schedule import DataSize
from qwen_job.render import TARGETS, Bundle, render
from qwen_job.run.space import held_by
from qwen_job.text import did_you_mean, json_text

# What to give where the data cannot be counted.
ASK = "use --samples N --tokens-per-sample N to give the number of conversations and their average length"


def load_job(
    *files: str | Path,
    sets: Mapping[str, Any] | Iterable[str] = (),
    base: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Job:
    """Load a job from its files, lowest layer first, and check every field.

    ``sets`` are single fields, which override the files: ``{"train.seed": 1}``, or ``["train.seed=1"]`` as after
    ``--set``. Every file overrides ``base``, a mapping with the structure of job.yaml; with it, no file is needed.
    ``environ`` (default: this process's) has the variables that ``uses_env`` declares. Relative paths are resolved
    against the folder of the file that contains them; those of ``sets`` and ``base`` against the current folder.

    Raises:
        JobError: the job is invalid; lists every problem with file, line and field.
        EnvironmentFault: a file cannot be read.
        UsageError: there is neither a file nor a base.
    """
    if not files and base is None:
        raise UsageError("load_job needs the path of a job file, or base={...}")
    words = [_assignment(*item) for item in sets.items()] if isinstance(sets, Mapping) else list(sets)
    return load_layers(files, sets=words, environ=environ, under=base)


def _assignment(field: str, value: Any) -> str:
    """Write a field and its value as after ``--set``."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return f"{field}={json_text(value)}"
    except (TypeError, ValueError):
        message = f"is a {type(value).__name__}; write text, a number, true or false, a list or a mapping"
        raise JobError([Problem("sets", 0, 0, str(field), message)]) from None


def plan_job(job: Job, *, count_data: bool = True, shapes: Mapping[str, ModelShape] | None = None) -> Plan:
    """Decide everything that the job leaves open: precision, ZeRO stage, micro-batch, memory, time.

    ``count_data`` reads the training data on this machine (at most about a second), for the time estimate;
    ``uncounted`` of the plan says why it could not. ``shapes``: of models that no facts file describes, by name.
    ``warnings`` of the plan are worth reading before you submit.

    Raises:
        JobError: settings contradict each other, or the job does not fit.
    """
    about_template = check_template(job)
    if not count_data:
        return _with_warnings(make_plan(job, shapes=shapes or {}), about_template)
    data, missing, refused = size_of_data(job)
    # A machine without the data is not the one that trains, and its disk says nothing.
    here = not _absent_data(job) and (not missing or job.data.samples is not None)
    plan = make_plan(job, data=data, disk=disk_room(job) if here else None, shapes=shapes or {})
    plan = _with_warnings(plan, (*about_template, *refused))
    return replace(plan, uncounted=missing, refuses_data=bool(refused))


def disk_room(job: Job) -> DiskRoom | None:
    """Return the room for a job's output on this machine; None if it cannot be read.

    An output whose parent does not exist is judged by the nearest folder above that does. The space that an earlier
    attempt uses counts as free: it is resumed or replaced.
    """
    parent = Path(job.output).parent
    try:
        folder = next(one for one in (parent, *parent.parents) if one.is_dir())
        free, real = shutil.disk_usage(folder).free, folder.resolve()
        mount = next(one for one in (real, *real.parents) if one.is_mount())
    except OSError:
        return None
    used = sum(held_by(Path(output)).total for output in (job.output, *(point.job.output for point in job.points)))
    return DiskRoom(free + used, str(mount), str(folder))


def _with_warnings(plan: Plan, warnings: Sequence[str]) -> Plan:
    return replace(plan, warnings=(*warnings, *plan.warnings)) if warnings else plan


def _absent_data(job: Job) -> list[str]:
    """Return the training files that are not on this machine."""
    return [one.path for one in job.data.train if not is_name(one.path) and not Path(one.path).is_file()]


def size_of_data(job: Job) -> tuple[DataSize | None, str, tuple[str, ...]]:
    """Return the size of the data, why it could not be counted, and warnings about rows that the run would refuse."""
    if job.data.samples is not None:
        if job.data.tokens_per_sample is None and job.data.packing:
            return None, "without --tokens-per-sample, each conversation counts as a full row", ()
        return None, "", ()
    # Check this first: importing the readers takes as long as planning.
    if absent := _absent_data(job):
        return None, f"{absent[0]} is not on this machine; {ASK}", ()
    from qwen_job.api.plan_count import data_size

    return data_size(job)


def render_job(plan: Plan, target: str, *, template_dirs: Sequence[str | Path] = ()) -> Bundle:
    """Render the files of a planned job for slurm, kubernetes, helm, hostfile or local.

    ``text`` of the bundle is the script or manifest, ``files`` has every file by its name, ``notes`` what you should
    know about them. Templates in ``template_dirs`` replace ours of the same name. On Slurm, a sweep is one array job;
    elsewhere render the plan of each of ``plan.sweep``.

    Raises:
        JobError: the target cannot represent a value; names its field.
        UsageError: the target is unknown.
    """
    if target not in TARGETS:
        raise UsageError(f"target {target!r} is not one of {', '.join(TARGETS)}{did_you_mean(target, TARGETS)}")
    return render(on_this_machine(plan, target), target, template_dirs)


def on_this_machine(plan: Plan, target: str) -> Plan:
    """Return the plan with what only this machine knows: the hosts in a file or a Slurm allocation, for a hostfile.

    Raises:
        JobError: the field names no hosts.
        EnvironmentFault: Slurm is unreachable.
    """
    if target == "hostfile":
        from qwen_job.launch.host_lists import with_hosts

        return with_hosts(plan)
    return plan


def with_this_python(plan: Plan) -> Plan:
    """Return the plan of a local run with the Python that runs us, where the job names none.

    It has qwen-job; ``python3`` on the PATH may be another one.
    """
    job = plan.job
    if "python" in job.local.model_fields_set or not sys.executable:
        return plan
    local = job.local.model_copy(update={"python": sys.executable})
    sweep = tuple(run._replace(plan=with_this_python(run.plan)) for run in plan.sweep)
    return replace(plan, job=job.model_copy(update={"local": local}), sweep=sweep)

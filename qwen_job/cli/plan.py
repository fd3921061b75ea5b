"""``qwen-job plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.job_options import TARGETS, TargetChoice, layer_options, layers, show_words
from qwen_job.errors import EnvironmentFault, JobError, OutOfMemory, UsageError
from qwen_job.text import json_text

if TYPE_CHECKING:
    from qwen_job.plan import Plan

_MODES = ("fit", "longest", "explain", "compare", "calibrate")


@click.command()
@click.argument("jobs", nargs=-1, metavar="[JOB]")
@layer_options
@click.option("--samples", type=click.IntRange(1), metavar="N", help="Conversations in data.train [default: counted].")
@click.option(
    "--tokens-per-sample", type=click.FloatRange(min=1), metavar="N", help="Average tokens of one [default: estimated]."
)
@click.option("--all", "everything", is_flag=True, help="Show all rejected combinations, not only the best three.")
@click.option("--fit", is_flag=True, help="Show the smallest cluster that fits the job, for its GPU and others.")
@click.option("--longest", is_flag=True, help="Show the longest row that fits, and what more nodes add.")
@click.option("--explain", metavar="FIELD", help="Explain one value.")
@click.option("--compare", metavar="JOB2", help="Show the differences to another job (-f and --set apply to both).")
@click.option("--calibrate", is_flag=True, help="Calibrate the estimates with finished runs: plan --calibrate RUN...")
@click.option(
    "-t", "--target", type=TargetChoice(TARGETS), help="Check the job for it [default: those it has sections for]."
)
@click.option("--no-hub", is_flag=True, help="Read no config.json from a hub for a model that is not known by name.")
@click.option("--svg", metavar="FILE", help="Draw the memory as an SVG image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(jobs: tuple[str, ...], files: tuple[str, ...], sets: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Show the values that the job will run with, and why.

    \b
    qwen-job plan job.yaml                                  memory, time, cost, alternatives
    qwen-job plan job.yaml --fit                            the smallest cluster that fits
    qwen-job plan job.yaml --longest                        the longest row that fits
    qwen-job plan job.yaml --explain deepspeed.zero_stage   why this value
    qwen-job plan job.yaml --compare other.yaml             the differences of two jobs
    qwen-job plan --calibrate runs/a runs/b >> site.yaml    calibrate for your cluster
    """
    mode = _mode(jobs, options)
    for name in ("samples", "tokens_per_sample"):
        if options[name] is not None:
            sets = (*sets, f"data.{name}={options[name]}")
    if mode == "calibrate":
        _calibrate(jobs, files, sets, as_json)
        return
    chosen = layers(jobs[0] if jobs else None, files)
    if mode == "fit":
        _fit(chosen, sets, as_json)
    elif mode == "longest":
        _longest(chosen, sets, as_json)
    elif mode == "explain":
        _explain(chosen, sets, options["explain"], as_json, no_hub=options["no_hub"])
    elif mode == "compare":
        _compare(chosen, [*files, options["compare"]], sets, as_json, no_hub=options["no_hub"])
    else:
        _show(chosen, sets, as_json=as_json, **options)


def _mode(jobs: tuple[str, ...], options: dict[str, Any]) -> str:
    """Return the requested view, or "" for the plan itself.

    Raises:
        UsageError: options that do not go together.
    """
    modes = [name for name in _MODES if options[name] not in (None, False)]
    words = " and ".join(f"--{name}" for name in modes)
    if len(modes) > 1:
        raise UsageError(f"{words} cannot be combined; run one after the other")
    for name, given in (("all", options["everything"]), ("svg", options["svg"]), ("target", options["target"])):
        if modes and given:
            raise UsageError(f"--{name} cannot be combined with {words}; remove one of them")
    if "calibrate" in modes:
        if not jobs:
            raise UsageError("--calibrate needs the run folder of at least one finished run")
        if options["samples"] is not None:
            raise UsageError("--samples has no effect with --calibrate; remove one of them")
    elif len(jobs) > 1:
        raise UsageError(f"expected one job, got {len(jobs)}; pass layers with -f, a second job with --compare")
    return modes[0] if modes else ""


def _show(
    files: list[str],
    sets: tuple[str, ...],
    *,
    everything: bool,
    svg: str | None,
    target: str | None,
    no_hub: bool,
    as_json: bool,
    **_: Any,
) -> None:
    from qwen_job.cli.plan_views import plan_as_dict, plan_lines, sweep_lines

    made = _plan(files, sets, no_hub=no_hub)
    elsewhere = _check_targets(made, target)
    if svg is not None:
        _draw(made, svg)
    if as_json:
        _print_json(plan_as_dict(made))
        return
    click.echo("\n".join(plan_lines(made, everything)))
    show_words((*made.warnings, *elsewhere))
    if made.sweep:
        show_words(sweep_lines(made), "cyan", "note")


def _check_targets(made: Plan, target: str | None) -> tuple[str, ...]:
    """Return a warning for each target that would refuse the job, where another accepts it.

    Raises:
        JobError: the wanted target refuses the job, or all that the job is written for.
    """
    from qwen_job.api.jobs import on_this_machine
    from qwen_job.render.refusals import refusals, targets_of

    asked = [target] if target else targets_of(made.job)
    refused = refusals(on_this_machine(made, target) if target else made, asked)
    if len(refused) == len(asked):
        # Targets word a secret's safe way differently: one problem a field is enough.
        problems = {(one.field, one.line): one for found in reversed(refused.values()) for one in reversed(found)}
        raise JobError(list(reversed(problems.values())))
    return tuple(
        f"{problem.field}: {name} refuses the job: {problem.message}"
        for name, found in refused.items()
        for problem in found
    )


def _plan(files: list[str], sets: tuple[str, ...], *, no_hub: bool) -> Plan:
    """Return the plan, with the data counted if it is on this machine, and a model's shape from its hub if need be."""
    from qwen_job.api.jobs import load_job, plan_job

    job = load_job(*files, sets=sets)
    made = plan_job(job)
    if made.shape is not None or no_hub or job.model.resolved_source not in ("modelscope", "huggingface"):
        return made
    from qwen_job.cli.hub_config import shape_from_hub

    shape, note = shape_from_hub(job)
    show_words((note,) if note else (), "cyan", "note")
    if shape is None:
        return made
    made = plan_job(job, shapes={job.model.name: shape})
    show_words((_to_render(made),), "cyan", "note")
    return made


def _to_render(made: Plan) -> str:
    """Return the lines that make a render, which reads no hub, choose the same."""
    choice = made.choice
    deepspeed = f"{{zero_stage: {choice.zero_stage}, offload_optimizer: {str(choice.offload_optimizer).lower()}}}"
    train = (
        f"{{gradient_checkpointing: {str(choice.gradient_checkpointing).lower()}, per_device_train_batch_size: "
        f"{choice.micro_batch_size}, gradient_accumulation_steps: {choice.gradient_accumulation_steps}}}"
    )
    return (
        f"model.name: render and submit read no hub: write deepspeed: {deepspeed} and train: {train} to run what is "
        "planned here, or name a folder of the model"
    )


def _draw(made: Plan, file: str) -> None:
    from qwen_job.picture import svg, write_svg

    memory, path = made.run.memory if made.run else None, Path(file)
    if memory is None:
        raise EnvironmentFault("--svg: nothing to draw because memory is not estimated; see the warning")
    title = f"{made.job.name}: memory of one {'node' if made.gpu.is_cpu else made.gpu.name}"
    write_svg(path, svg(memory.stack, title=title))


def _fit(files: list[str], sets: tuple[str, ...], as_json: bool) -> None:
    from qwen_job.api.jobs import load_job, size_of_data
    from qwen_job.cli.plan_views import fit_as_dict, fit_lines
    from qwen_job.plan.schedule import data_of
    from qwen_job.plan.search.smallest import host_limit, smallest_clusters

    job = load_job(*files, sets=sets)
    found = smallest_clusters(job, size_of_data(job)[0] or data_of(job))
    if as_json:
        _print_json([fit_as_dict(one) for one in found])
    else:
        click.echo("\n".join(fit_lines(job, found, host_limit(job, found[0]))))
    if all(one.choice is None for one in found):
        raise OutOfMemory(f"{job.name} does not fit any cluster of a known GPU; the output above shows what would work")


def _longest(files: list[str], sets: tuple[str, ...], as_json: bool) -> None:
    from qwen_job.cli.plan_views import longest_as_dict, longest_lines
    from qwen_job.job import load_job
    from qwen_job.plan.search.longest import longest_rows

    job = load_job(files, sets=sets)
    found = longest_rows(job)
    if as_json:
        _print_json(longest_as_dict(found))
    else:
        click.echo("\n".join(longest_lines(job, found)))
    if not found.best.length:
        raise OutOfMemory(f"{job.name}: no row of any length fits this cluster; --fit shows the smallest that would do")


def _explain(files: list[str], sets: tuple[str, ...], field: str, as_json: bool, *, no_hub: bool) -> None:
    from qwen_job.cli.plan_views import show
    from qwen_job.plan.explain import explain

    made = _plan(files, sets, no_hub=no_hub)
    found = explain(made, field)
    if as_json:
        _print_json(vars(found))
        return
    click.echo(f"{found.field}: {click.style(show(found.value), bold=True)}")
    for reason in found.reasons:
        click.echo(f"  {reason}")


def _compare(first: list[str], second: list[str], sets: tuple[str, ...], as_json: bool, *, no_hub: bool) -> None:
    from qwen_job.cli.plan_views import compare_lines
    from qwen_job.plan.compare import compare

    plans = [_plan(files, sets, no_hub=no_hub) for files in (first, second)]
    found = compare(*plans)
    if as_json:
        _print_json([{**vars(one), "ratio": one.ratio} for one in found])
    else:
        click.echo("\n".join(compare_lines((first[-1], second[-1]), found)))


def _calibrate(runs: tuple[str, ...], files: tuple[str, ...], sets: tuple[str, ...], as_json: bool) -> None:
    from qwen_job.api.jobs import load_job
    from qwen_job.plan.estimate.calibrate import calibrate
    from qwen_job.plan.plan import gpu_of
    from qwen_job.run.folder import RunFolder

    job = load_job(*(files or [RunFolder(Path(runs[0])).job]), sets=sets)
    gpu = gpu_of(job)
    cluster = job.cluster
    fitted = calibrate(runs, gpu, gpus_per_node=cluster.gpus_per_node, network_gbs=cluster.network_gbs)
    if as_json:
        _print_json({"plan": fitted.as_mapping(), "runs": [vars(fit) for fit in fitted.fits]})
    else:
        click.echo(fitted.snippet(), nl=False)


def _print_json(value: Any) -> None:
    click.echo(json_text(value, indent=2))

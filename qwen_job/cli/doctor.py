"""``qwen-job doctor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_job.cli.options import show_words
from qwen_job.errors import EnvironmentFault

if TYPE_CHECKING:
    from qwen_job.launch.kubernetes.doctor import Survey


@click.command()
@click.option("-t", "--target", type=click.Choice(["slurm", "kubernetes"]), required=True, help="What to look at.")
@click.option("--partition", help="Slurm: the partition to use; default: the one with the most GPUs.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the profile to FILE."
)
def doctor(target: str, partition: str | None, output: Path | None) -> None:
    """Look at the cluster and propose a site profile.

    For Slurm on a login node, for Kubernetes wherever kubectl reaches the cluster. The profile goes to stdout, what may
    surprise to stderr; read it, then lay it under your jobs:

    \b
    qwen-job doctor --target slurm -o site.yaml
    qwen-job render -f site.yaml job.yaml --target slurm | sbatch
    """
    if output is not None and output.exists():
        raise EnvironmentFault(f"{output}: there already; name another file, or remove it first")
    if partition and target != "slurm":
        raise click.UsageError("--partition is Slurm's: add --target slurm")
    text = _slurm(partition) if target == "slurm" else _kubernetes()
    if output is None:
        sys.stdout.write(text)
    else:
        _write(output, text)
        click.echo(f"{output} written; next: qwen-job render -f {output} job.yaml --target {target}", err=True)


def _write(path: Path, text: str) -> None:
    try:
        # x: also a file that appeared meanwhile is kept.
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise EnvironmentFault(f"{path}: there already; name another file, or remove it first") from None
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from None


def _slurm(partition: str | None) -> str:
    from qwen_job import __version__
    from qwen_job.launch.slurm.doctor import propose
    from qwen_job.launch.slurm.survey import survey

    found = survey()
    proposal = propose(found, partition)
    show_words(tuple(proposal.warnings))
    show_words(tuple(proposal.notes), "cyan", "note")
    cluster, version = (found.config.get(name, "?") for name in ("ClusterName", "SLURM_VERSION"))
    return proposal.text(
        f"Proposed by qwen-job {__version__} doctor for cluster {cluster} (Slurm {version}): check it."
    )


def _kubernetes() -> str:
    from qwen_job import __version__
    from qwen_job.launch.kubernetes.doctor import profile, survey

    found = survey()
    text = profile(found)
    show_words(tuple(_warnings(found)))
    show_words(tuple(_notes(found)), "cyan", "note")
    return f"# Proposed by qwen-job {__version__} doctor from what the API server shows: check it.\n{text}"


def _warnings(found: Survey) -> list[str]:
    words = [f"{what}: you may not list them, so they are not in the profile" for what in found.unknown]
    if not found.gpu_products and "nodes" not in found.unknown:
        words.append("no node offers nvidia.com/gpu: is the device plugin installed?")
    if "unlabelled" in found.gpu_products:
        words.append("some GPU nodes have no label nvidia.com/gpu.product: gpu-feature-discovery writes it")
    return words


def _notes(found: Survey) -> list[str]:
    named = {
        "GPUs": [f"{count} x {name}" for name, count in found.gpu_products.items()],
        "RDMA resources (kubernetes.resources)": list(found.rdma),
        "storage classes": list(found.storage_classes),
        "claims that several nodes can mount": list(found.claims),
        "queues": list(found.queues),
        "schedulers": list(found.schedulers),
        "kinds of job": list(found.kinds),
    }
    return [f"{what}: {', '.join(names)}" for what, names in named.items() if names]

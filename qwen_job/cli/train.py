"""``qwen-job train``."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--nproc-per-node", type=click.IntRange(min=1), help="Number of workers [default: from train.yaml].")
def train(run: Path, nproc_per_node: int | None) -> None:
    """Train from a train.yaml (run by every target).

    RUN is a run folder or its train.yaml. All workers run on this machine; a stopped run resumes from its
    newest complete checkpoint. Multi-node targets call python -m qwen_job.node.launcher on each.
    """
    from qwen_job.facts.choices import IN_PLACE
    from qwen_job.node.launcher import main
    from qwen_job.run.config import load_config
    from qwen_job.run.folder import RunFolder

    path = RunFolder(run).train if run.is_dir() else run
    workers = nproc_per_node or load_config(path)[0].world_size
    sys.exit(main(["--nproc_per_node", str(workers), "--in_place", str(IN_PLACE), "--", "--config", str(path)]))

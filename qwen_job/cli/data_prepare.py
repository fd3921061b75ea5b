"""``qwen-job data prepare``."""

from __future__ import annotations

import sys
from itertools import repeat
from pathlib import Path
from typing import Any

import click

from qwen_job.cli.data_options import DATA, FILE, chat_options, choice_option, layout_options
from qwen_job.cli.job_options import FiniteRange, say
from qwen_job.errors import UsageError
from qwen_job.facts import choices
from qwen_job.limits import MAX_LENGTH, MAX_WEIGHT
from qwen_job.text import json_text, show_path, visible


@click.command(short_help="Tokenize and pack data once, for all ranks and later runs.")
@click.argument("files", nargs=-1, required=True, type=DATA)
@click.option("--tokenizer", type=FILE, required=True, help="Folder with the model's tokenizer.json.")
@click.option("--output", type=FILE, required=True, help="Cache folder (data.cache_dir).")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=FiniteRange(0, MAX_WEIGHT, min_open=True),
    help="Times each conversation of a file appears per epoch; give once per file, in the same order.  [default: 1]",
)
@click.option("--eval", "eval_files", multiple=True, type=DATA, help="Held-out file (repeatable).")
@click.option(
    "--eval-split", type=float, default=0.0, help="Hold out this fraction of the data instead of using a file."
)
@layout_options
@chat_options
@click.option("--max-length", type=int, default=MAX_LENGTH, show_default=True, help="Maximum tokens per row.")
@choice_option("--long-samples", choices.LongSamples, "truncate", "What to do with conversations over --max-length.")
@choice_option("--mask", choices.Mask, "assistant", "Which tokens are trained on.")
@click.option(
    "--packing/--no-packing", default=True, show_default=True, help="Pack several conversations into each row."
)
@click.option("--workers", type=click.IntRange(1), help="Number of processes (default: the cores of this machine).")
@click.option("--json", "as_json", is_flag=True, help="Print the folder and statistics as JSON.")
def prepare(
    files: tuple[str | Path, ...],
    tokenizer: Path,
    output: Path,
    weights: tuple[float, ...],
    eval_files: tuple[str | Path, ...],
    eval_split: float,
    layout: str,
    turn_order: str,
    ignore_keys: tuple[str, ...],
    template: str,
    system_prompt: str | None,
    learn: str,
    thinking: str,
    empty_think: str,
    several_thoughts: str,
    max_length: int,
    long_samples: str,
    mask: str,
    packing: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Tokenize and pack FILES into memory-mapped rows in a folder below OUTPUT, and print that folder.

    The folder's name is a hash of the files, the settings and the tokenizer, so the same input is found again at once.
    A job with data.cache_dir set to OUTPUT and the same settings starts training without preparing anything.
    """
    from qwen_job.data import open_prepared
    from qwen_job.data import prepare_data as run
    from qwen_job.data.prepared import describe, describe_template, read_index
    from qwen_job.data.sources import local_spec
    from qwen_job.run.sections import DataSpec

    if weights and len(weights) != len(files):
        raise UsageError(
            f"--weight: given {len(weights)} times for {len(files)} files; give it once per file, or not at all"
        )

    values: dict[str, Any] = {
        "train": tuple(
            {"path": _named(path), "weight": weight}
            for path, weight in zip(files, weights or repeat(1.0), strict=False)
        ),
        "eval": [_named(path) for path in eval_files],
        "eval_split": eval_split,
        "format": layout,
        "template": template if template in choices.NAMED_TEMPLATES else str(Path(template).absolute()),
        "system_prompt": system_prompt,
        "learn": learn,
        "thinking": thinking,
        "empty_think": empty_think,
        "several_thoughts": several_thoughts,
        "max_length": max_length,
        "long_samples": long_samples,
        "packing": packing,
        "mask": mask,
        "turn_order": turn_order,
        "ignore_keys": ignore_keys,
    }
    spec, _ = local_spec(DataSpec.read(values), output, say)
    folder = run(spec, tokenizer, output, workers=workers, progress=_progress())
    stats = open_prepared(folder).stats
    if sys.stderr.isatty():
        click.echo(err=True)
    if as_json:
        click.echo(json_text({"folder": str(folder), "stats": stats}, indent=2))
        return
    for split in ("train", "eval"):
        figures = stats[split]
        if figures["samples"]:
            click.echo(f"{split}: {figures['samples']} samples, {figures['tokens']} tokens in {figures['rows']} rows "
                       f"({figures['filled']:.1%} full), {figures['trained_tokens']} trained", err=True)  # fmt: skip
    index = read_index(folder)
    for line in [*(describe_template(index) if index else []), *describe(stats)]:
        click.echo(visible(line), err=True)
    show_path(folder)


def _named(data: str | Path) -> str | Path:
    return data.absolute() if isinstance(data, Path) else data


def _progress() -> Any:
    def show(samples: int) -> None:
        click.echo(f"\r{samples} samples", nl=False, err=True)

    return show if sys.stderr.isatty() else None

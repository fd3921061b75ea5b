"""The plan's memory estimate against reality, beside DeepSpeed's own estimator.

    python benchmarks/bench_memory.py            published peaks: each row, its error, the medians
    python benchmarks/bench_memory.py --cpu      tensors counted on this machine: ZeRO-0 to 3, two processes

Peaks on a GPU, for a dozen settings: `make gpu-day` (benchmarks/gpu_day/peaks.py).
The published rows are in published_memory.yaml; constants were fitted on its "fit" rows only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.model_shapes import ModelShape, load_model_shape, model_shape_from_config
from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.memory import Constants, MemoryEstimate, estimate_memory, zero_settings

ROWS = Path(__file__).with_name("published_memory.yaml")
WORKER = Path(__file__).with_name("memory_worker.py")
OPTIONS = (
    "world_size",
    "zero_stage",
    "sequence_length",
    "micro_batch_size",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "attention",
    "fused_loss",
    "fused_norms",
    "compiled",
)


def predict(row: dict[str, Any], constants: Constants | None = None, *, at_most: bool = False) -> float:
    """Return the bytes that the plan gives for a published row, counted as that row counts.

    ``at_most``: with all that the allocator may hold. The sources used it as it is by default: segments cannot grow.
    """
    options = {key: row[key] for key in OPTIONS if key in row}
    # Where the source does not say, several micro-batches a step, as its scripts have.
    options = {"fused_loss": "none", "gradient_accumulation_steps": 2, **options, "expandable_segments": not at_most}
    layout = Layout(shape_of(row), gpu=load_gpu("A100-80G"), gpus_per_node=row["world_size"], **options)
    estimate: MemoryEstimate = estimate_memory(
        layout,
        zero={**zero_settings(row["zero_stage"]), **row.get("zero", {})},
        constants=constants,
        **{key: row[key] for key in ("master_weights", "fused_optimizer") if key in row},
    )
    return estimate.gpu_bytes if row["counts"] == "device" else estimate.moments[estimate.peak]


def shape_of(row: dict[str, Any]) -> ModelShape:
    """Return the shape of a row's model, by name or from the config in the row."""
    return model_shape_from_config(row["config"], row["name"]) if "config" in row else load_model_shape(row["model"])


def deepspeed_estimate(row: dict[str, Any]) -> float | None:
    """Return what DeepSpeed's own estimator gives, or None where it has none (no ZeRO, no DeepSpeed here)."""
    shape, gpus = shape_of(row), row["world_size"]
    if row["zero_stage"] not in (2, 3):
        return None
    try:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2
    except ImportError:
        return None
    if row["zero_stage"] == 2:
        return float(zero2(shape.num_parameters, gpus, 1, cpu_offload=False)[1])
    largest = shape.vocab_size * shape.hidden_size
    return float(zero3(shape.num_parameters, largest, gpus, 1, cpu_offload=False, cpu_offload_params=False)[1])


def published() -> None:
    """Print every published row: measured, ours, DeepSpeed's, errors; then the medians."""
    rows = yaml.safe_load(ROWS.read_text(encoding="utf-8"))["rows"]
    errors: dict[str, list[float]] = {"fit": [], "echo": [], "test": []}
    theirs: list[float] = []
    same: list[float] = []
    head = f"{'row':82} {'use':4} {'measured':>9} {'planned':>9} {'error':>7} {'at most':>9}"
    print(f"{head} {'DeepSpeed':>10} {'error':>7}")
    beyond: list[float] = []
    for row in rows:
        measured, ours, other = row["bytes"], predict(row), deepspeed_estimate(row)
        error = ours / measured - 1
        errors[row["use"]].append(abs(error))
        tail = "         -       -"
        if other is not None:
            tail = f"{other / 1e9:8.1f}GB {other / measured - 1:+7.1%}"
            theirs.append(abs(other / measured - 1))
            same.append(abs(error))
        most = predict(row, at_most=True)
        beyond.append(1 - most / measured)
        figures = f"{measured / 1e9:7.1f}GB {ours / 1e9:7.1f}GB {error:+7.1%} {most / 1e9:7.1f}GB"
        print(f"{row['name']:82} {row['use']:4} {figures} {tail}")
    above = sum(share > 0 for share in beyond)
    print(f"measured above 'at most': {above} of {len(rows)} rows, by up to {max(beyond):.1%}")
    for use, values in errors.items():
        print(f"median error, {use} rows ({len(values)}): {statistics.median(values):.1%}, largest {max(values):.1%}")
    if theirs:
        print(
            f"rows with an estimate of DeepSpeed ({len(theirs)}): median error planned {statistics.median(same):.1%}, "
            f"DeepSpeed {statistics.median(theirs):.1%}"
        )


def fit() -> None:
    """Print the context and fragmentation that fit the "fit" rows best (least squares of relative errors)."""
    rows = [row for row in yaml.safe_load(ROWS.read_text(encoding="utf-8"))["rows"] if row["use"] == "fit"]
    candidates = (
        Constants(context_bytes=context * 100_000_000, fragmentation=share / 200)
        for context in range(4, 16)
        for share in range(0, 21)
    )

    def loss(constants: Constants) -> float:
        return sum((predict(row, constants) / row["bytes"] - 1) ** 2 for row in rows)

    best = min(candidates, key=loss)
    print(f"best on {len(rows)} fit rows: context {best.context_bytes / 1e9} GB, fragmentation {best.fragmentation}")


def count() -> int:
    """Run memory_worker.py on two processes and pass its output through."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    return subprocess.run([*command, str(WORKER)], env=environment, check=False).returncode


def main() -> int:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    for flag in ("cpu", "fit"):
        group.add_argument(f"--{flag}", action="store_true")
    arguments = parser.parse_args()
    if arguments.cpu:
        return count()
    action: Callable[[], None] = fit if arguments.fit else published
    action()
    return 0


if __name__ == "__main__":
    sys.exit(main())

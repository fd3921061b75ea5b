"""The plan itself: how long the enumeration takes, what it imports, and its speed estimate against published runs.

    python benchmarks/bench_plan.py

Each time is the least CPU time of several runs; importing is timed in fresh processes. The speeds that are
compared come from other engines (published_speed.yaml): they show whether the range is the right one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.model_shapes import load_model_shape, model_shape_from_config
from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.speed import estimate_speed
from qwen_job.plan.search.choice import choose, fit
from qwen_job.plan.search.question import Question

ROWS = Path(__file__).with_name("published_speed.yaml")
LIMIT_SECONDS = 0.5
HEAVY = ("torch", "numpy", "transformers", "deepspeed")
OPTIONS = (
    "world_size",
    "zero_stage",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "sequence_length",
    "gradient_checkpointing",
)


def least(action: Callable[[], Any], runs: int = 5) -> float:
    """Return the least CPU time of ``action`` in seconds, its child processes included."""
    times = []
    for _ in range(runs):
        children, start = os.times(), time.process_time()
        action()
        own, after = time.process_time() - start, os.times()
        times.append(
            own + after.children_user - children.children_user + after.children_system - children.children_system
        )
    return min(times)


def enumeration() -> bool:
    """Time the whole enumeration for Qwen2.5-72B on 1 to 64 nodes of eight GPUs; tell whether it is fast enough."""
    question = Question(
        load_model_shape("Qwen2.5-72B-Instruct"), load_gpu("A100-80G"), gpus_per_node=8, sequence_length=4096
    )
    considered = 0

    def everything() -> None:
        nonlocal considered
        considered = sum(choose(replace(question, nodes=nodes)).considered for nodes in range(1, 65))

    seconds = least(everything)
    smallest = least(lambda: fit(replace(question, offload_optimizer=False)))
    one = least(lambda: choose(replace(question, nodes=8)))
    print(f"Qwen2.5-72B, 1 to 64 nodes x 8: {considered} combinations in {seconds:.3f} s (limit {LIMIT_SECONDS} s)")
    print(f"one choice {one * 1000:.1f} ms, smallest cluster {smallest * 1000:.1f} ms")
    return seconds < LIMIT_SECONDS


def imports() -> bool:
    """Time a fresh process that plans, and tell whether it stays free of heavy packages."""
    program = (
        "import sys, qwen_job.plan.search.choice as s, qwen_job.facts.hardware as h, qwen_job.facts.model_shapes as m;"
        "s.choose(s.Question(m.load_model_shape('Qwen-1_8B-Chat'), h.load_gpu('A100-80G')));"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    loaded = ""

    def run() -> None:
        nonlocal loaded
        loaded = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.strip()

    bare = least(lambda: subprocess.run([sys.executable, "-c", "import yaml"], check=True))
    print(
        f"a process that plans: {least(run):.3f} s, one that only imports yaml: {bare:.3f} s; heavy: {loaded or 'none'}"
    )
    return not loaded


def speeds() -> None:
    """Print every published speed beside the estimate and its range."""
    print(f"{'row':72} {'published':>9} {'low':>7} {'planned':>8} {'high':>7}  tokens/s a GPU")
    inside, errors = 0, []
    rows = yaml.safe_load(ROWS.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        shape = (
            model_shape_from_config(row["config"], row["name"]) if "config" in row else load_model_shape(row["model"])
        )
        options = {key: row[key] for key in OPTIONS if key in row}
        speed = estimate_speed(Layout(shape, gpu=load_gpu(row["gpu"]), gpus_per_node=row["world_size"], **options))
        assert speed is not None
        planned = speed.tokens_per_second / row["world_size"]
        slow, fast = planned * speed.mid / speed.high, planned * speed.mid / speed.low
        published = row["tokens_per_second"]
        inside += slow <= published <= fast
        errors.append(abs(planned / published - 1))
        print(f"{row['name']:72} {published:9.0f} {slow:7.0f} {planned:8.0f} {fast:7.0f}  {speed.bound_by}")
    print(f"inside the range: {inside} of {len(rows)}; median error of the middle {statistics.median(errors):.0%}")


def main() -> int:
    """Run all three; fail when the enumeration is too slow or a heavy package was imported."""
    fine = [enumeration(), imports()]
    speeds()
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Training speed, in one run on one GPU: ours, the reference's way, and stock Trainer + Liger where installed.

    python benchmarks/bench_train_speed.py [--sides ours,ours-compiled,reference,liger]

Real tokens per second (pads not counted), MFU in our convention, and peak memory, Qwen-1.8B's shape in bf16. The
reference's way: batch 1 padded to the full length, accumulation 8, gradient checkpointing, no fused loss, the stock
Trainer with the same DeepSpeed configuration. The Liger side is the same loop with packed rows and Liger's kernels, in
its fastest setting without a flash-attn build: documents of a row see one another, which ours do not.
Without a GPU a tiny model shows only that the script runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import train_runs
from qwen_job.train.flops import Shape, StepTotals, step_flops, utilisation

OURS = {
    "ours": {},
    "ours-compiled": {"torch_compile": True},
    "ours-checkpointed": {"gradient_checkpointing": True},
}


def main() -> None:
    """Run every side and print a table, and JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="ours,ours-compiled,reference,liger")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help="a folder that keeps the model and the data for another run")
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(peer(options.peer, options.home)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for side in options.sides.split(","):
            rows.append({"side": side, **measure(side, options.home or Path(scratch))})
    print(json.dumps(rows) if options.json else table(rows))


def measure(side: str, home: Path) -> dict[str, Any]:
    """Return one side's figures, or why it has none."""
    if side in OURS:
        lines = train_runs.run(home / side, **OURS[side])
        if lines[0]["type"] == "failed":
            return lines[0]
        steps = train_runs.steady(lines)
        return {
            "tokens_per_second": train_runs.median([line["tokens_per_second"] for line in steps]),
            "mfu": steps[-1]["mfu"] and train_runs.median([line["mfu"] for line in steps]),
            "memory_bytes": max(line["memory_bytes"] for line in steps),
            "planned_bytes": train_runs.planned_bytes(home / side),
        }
    if not (home / "prepared").exists():
        train_runs.run(home / "data-only")
    done = subprocess.run(
        [sys.executable, __file__, "--peer", side, "--home", str(home)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"type": "failed", "reason": (done.stderr.strip().splitlines() or ["?"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def peer(side: str, home: Path) -> dict[str, Any]:
    """Train with the stock Trainer in this process and return its figures."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from qwen_job.data import open_prepared
    from qwen_job.train.modeling import shape_of
    from qwen_job.train.rendezvous import join, meet, place_from_environment

    gpu, liger = train_runs.on_gpu(), side == "liger"
    place = place_from_environment()
    join(place, meet(place), "cuda" if gpu else "cpu")
    model_folder = next(path.parent for path in (home / "cache").rglob("config.json"))
    rows = open_prepared(next(path.parent for path in (home / "prepared").rglob("index.json"))).train
    length, steps = (2048, 12) if gpu else (256, 4)
    micro, accumulation = ((8, 4) if liger else (1, 8)) if gpu else (1, 2)
    args = TrainingArguments(
        output_dir=str(home / side),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=1e-5,
        bf16=gpu,
        use_cpu=not gpu,
        activation_checkpointing=not liger,
        use_liger_kernel=liger,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        deepspeed={
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "bf16": {"enabled": gpu},
            "zero_optimization": {"stage": 2},
        },
    )
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.bfloat16 if gpu else torch.float32, attn_implementation="sdpa"
    )
    documents = packed_rows(rows) if liger else padded_documents(rows, length)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    trainer = Trainer(model=model, args=args, train_dataset=documents, callbacks=[Clock()])
    shape = shape_of(model)
    trainer.train()
    half = len(marks) // 2
    seconds = (marks[-1] - marks[half]) / (len(marks) - 1 - half)
    per_step = micro * accumulation
    return figures(documents, per_step, seconds, shape)


def figures(documents: list[dict[str, Any]], per_step: int, seconds: float, shape: Shape) -> dict[str, Any]:
    """Return speed and MFU of steps of ``per_step`` average rows."""
    import torch

    share = per_step / len(documents)
    totals = StepTotals(
        targets=int(share * sum(row["real"] for row in documents)),  # a stock head projects every token
        tokens=int(share * sum(row["real"] for row in documents)),
        pairs=int(share * sum(row["pairs"] for row in documents)),
        memory=0,
    )
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    mfu = utilisation(step_flops(shape, totals), seconds, train_runs.peak_tflops(), 1)
    return {"tokens_per_second": totals.tokens / seconds, "mfu": mfu, "memory_bytes": memory}


def padded_documents(rows: Any, length: int) -> list[dict[str, Any]]:
    """Return one document a row, padded to the full length, as the reference makes them."""
    documents = []
    for index in range(min(len(rows), 64)):
        row, start = rows[index], 0
        for size in row.document_lengths.tolist():
            ids, labels = (part[start : start + size].tolist() for part in (row.input_ids, row.labels))
            pads = length - size
            documents.append(
                {
                    "input_ids": ids + [0] * pads,
                    "labels": labels + [-100] * pads,
                    "attention_mask": [1] * size + [0] * pads,
                    "real": size,
                    "pairs": size * size,
                }
            )
            start += size
    return documents


def packed_rows(rows: Any) -> list[dict[str, Any]]:
    """Return the packed rows, cut to one length, without their boundaries: stock attention is fastest so."""
    size = min(len(rows[index].input_ids) for index in range(min(len(rows), 256)))
    return [
        {
            "input_ids": rows[index].input_ids[:size].tolist(),
            "labels": rows[index].labels[:size].tolist(),
            "real": size,
            "pairs": int(sum(int(n) ** 2 for n in rows[index].document_lengths)),
        }
        for index in range(min(len(rows), 256))
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    lines = [train_runs.device_name(), "", "| side | tokens/s | MFU | peak memory | planned |", "|---|---|---|---|---|"]
    for row in rows:
        if row.get("type") == "failed":
            lines.append(f"| {row['side']} | failed: {row['reason'][:100]} | | | |")
            continue
        mfu = "unknown" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = f"{row['memory_bytes'] / 2**30:.1f} GiB"
        planned = f"{row['planned_bytes'] / 2**30:.1f} GiB" if row.get("planned_bytes") else ""
        lines.append(f"| {row['side']} | {row['tokens_per_second']:,.0f} | {mfu} | {memory} | {planned} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()

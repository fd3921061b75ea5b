"""python -m benchmarks.gpu_day.stock SIDE --sizes JSON --home DIR --micro N --out FILE: the peers, on the same rows.

``liger``: stock Trainer with Liger's kernels on packed rows, in its fastest setting without a flash-attn build:
documents of a row see one another, which ours do not. ``reference``: as finetune.py does it, a conversation per row,
padded to the full length, batch 1, accumulation 8, gradient checkpointing, no fused loss. Both use DeepSpeed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_day.product import Sizes
from qwen_job.data import open_prepared
from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.lookup import UnknownName
from qwen_job.train.flops import Shape, StepTotals, step_flops, utilisation


def main(words: list[str]) -> int:
    """Train one side and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("liger", "reference"))
    parser.add_argument("--sizes", type=json.loads, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--micro", type=int, required=True, help="rows at once of the liger side")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    figures = train(options.side, Sizes(**options.sizes), options.home, options.micro)
    options.out.write_text(json.dumps(figures))
    return 0


def train(side: str, sizes: Sizes, home: Path, micro: int) -> dict[str, Any]:
    """Train with the stock Trainer in this process; returns the figures of the same steps as ours."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

    from qwen_job.train.modeling import shape_of
    from qwen_job.train.rendezvous import join, meet, place_from_environment

    gpu = not sizes.tiny
    place = place_from_environment()
    join(place, meet(place), "cuda" if gpu else "cpu")
    model_folder = next(path.parent for path in (home / "model").rglob("config.json"))
    rows = open_prepared(next(path.parent for path in (home / "prepared").rglob("index.json"))).train
    accumulation = sizes.rows // micro if side == "liger" else 8
    micro = micro if side == "liger" else 1
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.bfloat16 if gpu else torch.float32, attn_implementation="sdpa"
    )
    documents = packed_rows(rows) if side == "liger" else padded_documents(rows, sizes.length)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    settings = _arguments(side, sizes, home, micro, accumulation)
    trainer = Trainer(model=model, args=settings, train_dataset=documents, callbacks=[Clock()])
    shape = shape_of(model)
    trainer.train()
    times = [after - before for before, after in itertools.pairwise(marks)]
    seconds = statistics.median(times[sizes.warm - 1 :])
    return figures_of(documents, micro * accumulation, seconds, shape, sizes) | {
        "step_seconds": [round(value, 4) for value in times],
        "micro_batch": micro,
    }


def _arguments(side: str, sizes: Sizes, home: Path, micro: int, accumulation: int) -> Any:
    from transformers import TrainingArguments

    gpu = not sizes.tiny
    return TrainingArguments(
        output_dir=str(home / side),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=sizes.counted if side == "liger" else min(12, sizes.counted),
        learning_rate=1e-5,
        bf16=gpu,
        use_cpu=not gpu,
        activation_checkpointing=side == "reference",
        use_liger_kernel=side == "liger" and gpu,
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


def figures_of(
    documents: list[dict[str, Any]], per_step: int, seconds: float, shape: Shape, sizes: Sizes
) -> dict[str, Any]:
    """Return speed and MFU of steps of ``per_step`` average rows."""
    share = per_step / len(documents)
    tokens = int(share * sum(row["real"] for row in documents))
    # A stock head projects every token.
    totals = StepTotals(tokens, tokens, int(share * sum(row["pairs"] for row in documents)), 0)
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    mfu = utilisation(step_flops(shape, totals), seconds, peak_tflops(sizes), 1)
    return {"tokens_per_second": tokens / seconds, "mfu": mfu, "memory_bytes": memory}


def peak_tflops(sizes: Sizes) -> float | None:
    """Return the GPU's peak in bf16, None if no fact names it."""
    try:
        return None if sizes.tiny else load_gpu(str(sizes.gpu)).peak_tflops.get("bf16")
    except UnknownName:
        return None


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
    chosen = [rows[index] for index in range(min(len(rows), 256))]
    size = min(len(row.input_ids) for row in chosen)
    return [
        {
            "input_ids": row.input_ids[:size].tolist(),
            "labels": row.labels[:size].tolist(),
            "real": size,
            "pairs": int(sum(int(n) ** 2 for n in row.document_lengths)),
        }
        for row in chosen
    ]


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)

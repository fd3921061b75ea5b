"""python -m tests.train.family_worker FOLDER OUTPUT, on each rank: three steps of a tiny model in every way of WAYS.

The model is built, packed and stepped by the trainer's own parts. OUTPUT gets rank 0's losses by way, and with one rank
those of ``alone``: transformers' untouched model in plain torch, one document at a time, nothing packed.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qwen_job.models.loading import load_native
from qwen_job.run.config import parse_config
from qwen_job.train import deepspeed_engine as engines
from qwen_job.train.batches import collate
from qwen_job.train.loss import LossHead, Objective
from qwen_job.train.modeling import build_model, build_optimizer, parameter_is_matrix
from qwen_job.train.packed_state import keep_documents_apart, linear_layers
from qwen_job.train.rendezvous import quiet_deepspeed
from tests.train import tiny

STEPS, LENGTH = 3, 100
# ZeRO stage, and whether activations are computed again in backward.
WAYS: list[tuple[int, bool]] = [(0, False), (1, True), (2, False), (3, True)]
_CPU = torch.device("cpu")


class Row:
    """A prepared row of random tokens; half of them are trained."""

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 280, (sum(lengths),), generator=generator)
        learnt = torch.rand(len(tokens), generator=generator) < 0.5
        self.document_lengths = list(lengths)
        self.input_ids = tokens.tolist()
        self.labels = torch.where(learnt, tokens, -100).tolist()
        self.position_ids = [place for length in lengths for place in range(length)]


# The same in every step; one is shorter than a rank's row, and ends in pads.
ROWS = [Row([64, 3, 33], 1), Row([1, 40, 29], 2)]


def train(folder: Path, stage: int, recomputed: bool) -> list[float]:
    """Return the mean loss per token of each step, the same on every rank."""
    train_yaml, deepspeed = tiny.settings(folder.parent / "run", stage, training__learning_rate=1e-2)
    deepspeed |= {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0}
    config = parse_config(train_yaml, "train.yaml")
    model = build_model(config, deepspeed, folder)
    keep_documents_apart(model, _CPU, torch.float32)
    if recomputed:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(LossHead(model, "none"), "sdpa", torch.float32, None, linear=bool(linear_layers(model)))
    engine = engines.build_engine(model, build_optimizer(model, config, deepspeed), deepspeed)
    engine.train()
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    factor = ranks if engines.averages_gradients(engine) else 1
    losses = []
    count, mine = sum(len(collate([(0, row)], 0)["chosen"]) for row in ROWS), ROWS[rank::ranks]
    for _ in range(STEPS):
        total = torch.zeros((), dtype=torch.float64)
        for number, row in enumerate(mine, 1):
            loss = objective(engine, collate([(0, row)], 0, LENGTH))
            total += loss.detach()
            engine.set_gradient_accumulation_boundary(number == len(mine))
            engine.backward(loss * factor / count, scale_wrt_gas=False)
        engine.step()
        torch.distributed.all_reduce(total)
        losses.append(float(total) / count)
    return losses


def alone(folder: Path) -> list[float]:
    """Return the same of transformers' own model and torch's own AdamW: every document by itself, one process."""
    model = load_native(folder, torch.float32, "sdpa")[0].train()
    named = dict(model.named_parameters())
    decayed = [p for name, p in named.items() if parameter_is_matrix(name, p)]
    others = [p for name, p in named.items() if not parameter_is_matrix(name, p)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for _ in range(STEPS):
        total, count = torch.zeros(()), 0
        for row in ROWS:
            ids, labels = (torch.tensor(part).split(row.document_lengths) for part in (row.input_ids, row.labels))
            for tokens, targets in zip(ids, labels, strict=True):
                logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
                total = total + torch.nn.functional.cross_entropy(logits, targets[1:], reduction="sum")
                count += int((targets[1:] != -100).sum())
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total) / count)
    return losses


if __name__ == "__main__":
    quiet_deepspeed("cpu")
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", verbose=False)
    gc.disable()  # an engine that is collected within an import breaks it: CPython issue 106176
    folder = Path(sys.argv[1])
    results: dict[Any, list[float]] = {way: train(folder, *way) for way in WAYS}
    if torch.distributed.get_world_size() == 1:
        results["alone"] = alone(folder)
    if torch.distributed.get_rank() == 0:
        torch.save(results, sys.argv[2])

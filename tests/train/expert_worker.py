"""python -m tests.train.expert_worker OUTPUT, on each rank: train tiny mixtures of experts in every way of WAYS.

Rank 0 writes to OUTPUT, by way, the loss and the routing of each step and the weights after the last; ``reference`` is
what transformers computes by itself, alone, with all conversations as one padded batch. The tokens of a step are the
same in every way. About 30 s of a core for each rank.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qwen_job.run.config import TrainConfig
from qwen_job.train import deepspeed_engine as engines
from qwen_job.train.batches import collate
from qwen_job.train.experts import Routing, coefficient_of
from qwen_job.train.flops import StepTotals
from qwen_job.train.gradient_step import GradientStep
from qwen_job.train.loss import LossHead, Objective
from qwen_job.train.modeling import build_model, build_optimizer
from qwen_job.train.packed_state import keep_documents_apart, linear_layers
from qwen_job.train.ranks import Ranks
from qwen_job.train.rendezvous import quiet_deepspeed
from qwen_job.train.straggler import OwnTime
from tests.support.tiny_models import write_folder
from tests.train import tiny

STEPS, RATE, COEFFICIENT = 3, 5e-3, 0.1
LENGTHS = (5, 9, 3, 12, 7, 6, 11, 4)  # of the conversations of a step
KINDS = ("qwen3_moe", "qwen2_moe", "qwen3_5_moe_text")


class Way(NamedTuple):
    """How a step is computed; ``micro``: rows of a micro-batch; ``split``: ranks that share the experts of a layer."""

    shape: str
    stage: int
    packed: bool
    coefficient: float = 0.0
    micro: int = 1
    checkpointing: bool = False
    split: int = 1
    offload: bool = False


WAYS = [
    *(Way("qwen3_moe", stage, packed) for stage, packed in ((0, True), (1, True), (2, True), (3, True), (3, False))),
    Way("qwen2_moe", 3, packed=True),
    *(Way("qwen3_5_moe_text", stage, packed=True) for stage in (2, 3)),
    *(Way("qwen3_moe", stage, packed=True, coefficient=COEFFICIENT) for stage in (2, 3)),
    Way("qwen3_moe", 2, packed=False, coefficient=COEFFICIENT, micro=4),
    Way("qwen3_moe", 3, packed=False, coefficient=COEFFICIENT, micro=2, checkpointing=True),
    Way("qwen3_5_moe_text", 3, packed=True, coefficient=COEFFICIENT, checkpointing=True),
]
SPLIT_WAYS = [
    *(Way("qwen3_moe", stage, packed=True, split=2) for stage in (1, 2, 3)),
    *(Way(shape, stage, packed=True, split=2) for shape in ("qwen2_moe", "qwen3_5_moe_text") for stage in (2, 3)),
    Way("qwen3_moe", 2, packed=False, coefficient=COEFFICIENT, micro=4, split=2),
    Way("qwen3_moe", 3, packed=False, coefficient=COEFFICIENT, micro=2, checkpointing=True, split=2),
    Way("qwen2_moe", 1, packed=False, coefficient=COEFFICIENT, split=2),
    Way("qwen3_5_moe_text", 2, packed=True, coefficient=COEFFICIENT, checkpointing=True, split=2),
    *(Way("qwen3_moe", stage, packed=True, split=2, offload=True) for stage in (2, 3)),
]


def ways(ranks: int) -> list[Way]:
    """Return the ways that a number of ranks can compute in."""
    return WAYS if ranks == 1 else [*WAYS, *SPLIT_WAYS]


class Row(NamedTuple):
    """A prepared row."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    document_lengths: list[int]


def conversations() -> list[list[int]]:
    """Return the tokens of each conversation."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 300, (length,), generator=generator).tolist() for length in LENGTHS]


def rows(packed: bool) -> list[Row]:
    """Return the conversations as rows, two in each if ``packed``."""
    found, texts, size = [], conversations(), 2 if packed else 1
    for start in range(0, len(texts), size):
        mine = texts[start : start + size]
        tokens = [token for text in mine for token in text]
        positions = [place for text in mine for place in range(len(text))]
        found.append(Row(tokens, tokens, positions, [len(text) for text in mine]))
    return found


def build(way: Way, folder: Path) -> tuple[Any, TrainConfig, dict[str, Any]]:
    """Return the random model of ``way``, in DeepSpeed's parts for ZeRO-3, and its settings."""
    train, deepspeed = tiny.settings(
        folder, way.stage, router_aux_loss_coef=way.coefficient, training__learning_rate=RATE
    )
    config = TrainConfig.model_validate(train)
    deepspeed |= {"train_micro_batch_size_per_gpu": way.micro, "gradient_clipping": 1.0}
    deepspeed |= {"expert_parallel": {"enabled": way.split > 1, "autoep_size": way.split}}
    if way.offload:  # with torch's AdamW: DeepSpeed's kernel takes minutes to compile
        deepspeed["zero_force_ds_cpu_optimizer"] = False
        deepspeed["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    return build_model(config, deepspeed, folder / way.shape), config, deepspeed


def train(way: Way, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Train a few steps as a run does."""
    from deepspeed.utils import z3_leaf_module

    model, config, deepspeed = build(way, folder)
    keep_documents_apart(model, ranks.device, torch.float32)
    if way.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    engine: Any = engines.build_engine(model, build_optimizer(model, config, deepspeed), deepspeed)
    routing = Routing(model, coefficient_of(model, config), ranks)
    linear = bool(linear_layers(model))
    objective = Objective(LossHead(model, "none"), "sdpa", torch.float32, None, linear=linear)
    gradients = GradientStep(engine, objective, routing, ranks, 0, OwnTime(ranks.device, counts_forward=False))
    mine = rows(way.packed)[ranks.rank :: ranks.world_size]
    batches = [collate(list(enumerate(mine[start : start + way.micro])), 0) for start in range(0, len(mine), way.micro)]
    totals = StepTotals(sum(LENGTHS) - len(LENGTHS), sum(LENGTHS), 0, 0)
    losses, routed, norms = [], [], []
    for _ in range(STEPS):
        engine.train()
        seen: list[torch.Tensor] = []

        def judge(_batch: Any, loss: torch.Tensor, _stand_in: Any, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(loss.detach().double())
            return loss

        gradients.compute(batches, totals, judge, lambda _: None)
        losses.append(ranks.sum(torch.stack(seen).sum()).item() / totals.targets)
        routed.append(routing.statistics()._asdict())
        engine.step()
        norms.append(engines.gradient_norm_of(engine))
    return {
        "losses": losses,
        "norms": norms,
        "routed": routed,
        "weights": engines.whole_weights(engine, deepspeed),
        "leaves": sum(z3_leaf_module(module) for module in model.modules()),
    }


def reference(shape: str, coefficient: float, folder: Path) -> dict[str, Any]:
    """Train with transformers' own forward pass and auxiliary loss: one process, nothing packed, one batch."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    model, config, _ = build(Way(shape, 0, packed=False, coefficient=coefficient), folder)
    optimizer = build_optimizer(model, config, {})
    texts = conversations()
    size = max(map(len, texts))
    tokens = torch.tensor([text + [0] * (size - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (size - len(text)) for text in texts])
    targets = torch.tensor([[*text[1:], *[-100] * (size - len(text) + 1)] for text in texts])
    losses, balances, norms = [], [], []
    for _ in range(STEPS):
        out = model(input_ids=tokens, attention_mask=mask, output_router_logits=True)
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), targets.flatten())
        routers = out.router_logits, model.config.num_experts, model.config.num_experts_per_tok
        balance = load_balancing_loss_func(*routers, attention_mask=mask)
        (loss + coefficient * balance).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        balances.append(balance.item())
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    return {"losses": losses, "aux": balances, "norms": norms, "weights": weights}


def main(output: str) -> None:
    """Train in every way; rank 0 writes what came of it."""
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))
    results: dict[Any, Any] = {"ranks": ranks.world_size}
    with tempfile.TemporaryDirectory() as scratch:
        for name in KINDS:
            write_folder(Path(scratch) / name, name)
            for coefficient in (0.0, COEFFICIENT):
                results[name, coefficient] = reference(name, coefficient, Path(scratch))
        for way in ways(ranks.world_size):
            results[tuple(way)] = train(way, Path(scratch), ranks)
    if ranks.rank == 0:
        torch.save(results, output)


if __name__ == "__main__":
    quiet_deepspeed("cpu")
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    gc.disable()  # an engine that is collected within an import breaks it: CPython issue 106176
    main(sys.argv[1])

"""python -m tests.train.sequence_worker OUTPUT, on each rank: train tiny models with shared rows, in each of WAYS.

Plain SGD, because Adam hides a wrong factor. OUTPUT gets what each way came to, and what one process without DeepSpeed,
packing or shared rows came to.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.distributed import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from qwen_job.models.loading import load_native
from qwen_job.run.config import parse_config
from qwen_job.train import deepspeed_engine as engines
from qwen_job.train.activation_offloading import checkpoint_layers
from qwen_job.train.attention import implementation
from qwen_job.train.batches import collate
from qwen_job.train.compiling import Setting, compile_layers
from qwen_job.train.expert_parallel import set_experts_apart
from qwen_job.train.experts import Routing, routers_of
from qwen_job.train.flops import StepTotals
from qwen_job.train.gradient_step import GradientStep
from qwen_job.train.loss import LossHead, Objective
from qwen_job.train.modeling import _partitioned
from qwen_job.train.packed_state import keep_documents_apart
from qwen_job.train.ranks import Ranks
from qwen_job.train.rendezvous import Place, quiet_deepspeed
from qwen_job.train.sequence_parallel import share_rows, slice_of
from qwen_job.train.step_guard import StepGuard
from qwen_job.train.straggler import OwnTime
from qwen_job.train.tiled_mlp import tile_mlps
from tests.support.tiny_models import write_folder
from tests.train import tiny
from tests.train.memory_counter import Held, Row, count


def _nothing(*_: object, **__: object) -> None:
    pass


# Of a tile: rows, slices and micro-batches have several, and the last one is shorter.
STEPS, RATE, TILE = 3, 0.5, 23
HYBRID, MIXTURE, BOTH = "qwen3_5_text", "qwen3_moe", "qwen3_5_moe_text"
_SKIPPING: Any = SimpleNamespace(guards=SimpleNamespace(on_nan="skip", loss_spike_factor=None), precision="fp32")
_NO_LOG: Any = SimpleNamespace(active=False, write=_nothing, say=_nothing, heartbeat=_nothing)
# The documents of each row: packed, alone, and of odd lengths. A step has all rows.
DOCUMENTS = ((37, 90), (128,), (5, 3, 70, 49), (61,))
# Kind of model and key-value heads (of 4 query heads).
MODELS = (("qwen2", 4), ("qwen2", 2), ("qwen2", 1), ("qwen3", 2), (HYBRID, 2), (MIXTURE, 2), (BOTH, 2))
# What a kind has besides: heads of linear attention for 4 ranks.
_CHANGES: dict[str, dict[str, Any]] = {
    kind: {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
    }
    for kind in (HYBRID, BOTH)
}
BALANCE = 0.1  # the weight of the loss that balances experts


class Way(NamedTuple):
    """One way to train; ``size`` ranks share a row, ``split`` the experts, ``micro`` rows are in a micro-batch."""

    model: str = "qwen2"
    keys: int = 2
    stage: int = 2
    size: int = 2
    micro: int = 1
    reduce_scatter: bool = True
    checkpointing: bool = False
    loss: str = "none"
    offload: bool = False
    tiled: bool = False
    activation_offloading: bool = False
    broken: bool = False  # rank 1's slice of row 2 has no finite loss: the row is left out
    balance: float = 0.0
    split: int = 1
    compiled: str = ""  # by this backend


WAYS = {
    2: [
        *(Way(stage=stage, reduce_scatter=scatter) for stage in (1, 2, 3) for scatter in (True, False)),
        Way(stage=0),
        Way(stage=2, size=1),
        Way("qwen2", 4, stage=1, micro=4),
        Way("qwen2", 1, stage=2, micro=2, checkpointing=True, loss="chunked"),
        Way("qwen3", 2, stage=3, micro=2, checkpointing=True, loss="chunked"),
        Way("qwen3", 2, stage=2),
        *(Way(stage=stage, offload=True) for stage in (2, 3)),
        Way(stage=3, broken=True),
        *(Way(HYBRID, stage=stage) for stage in (0, 1, 2)),
        Way(HYBRID, stage=3, micro=2, checkpointing=True, loss="chunked"),
        *(Way(MIXTURE, stage=stage, balance=BALANCE) for stage in (1, 2)),
        Way(MIXTURE, stage=3, micro=4, checkpointing=True, balance=BALANCE),
        Way(BOTH, stage=3, micro=2, balance=BALANCE),
        *(Way(MIXTURE, stage=stage, balance=BALANCE, split=2) for stage in (1, 2, 3)),
        Way(BOTH, stage=2, micro=2, checkpointing=True, balance=BALANCE, split=2),
        Way(MIXTURE, stage=2, split=2, broken=True),
        Way(stage=0, size=1, tiled=True),
        Way(stage=1, size=1, tiled=True, checkpointing=True, activation_offloading=True, micro=2),
        Way(stage=2, size=1, tiled=True, checkpointing=True, loss="chunked"),
        Way(stage=2, tiled=True, checkpointing=True, offload=True),
        Way("qwen3", 2, stage=2, tiled=True),
        Way(stage=3, size=1, tiled=True),
        Way("qwen3", 2, stage=3, size=1, tiled=True, checkpointing=True, micro=2, activation_offloading=True),
        Way(stage=3, tiled=True, reduce_scatter=False),
        Way(stage=3, tiled=True, checkpointing=True, activation_offloading=True),
        # Last, because it changes torch's settings.
        Way("qwen3", 2, stage=1, checkpointing=True, compiled="aot_eager"),
    ],
    4: [
        *(Way(stage=stage, size=2) for stage in (1, 2)),
        Way(stage=3, size=2, reduce_scatter=False, micro=2, checkpointing=True),
        Way("qwen3", 2, stage=2, size=4, checkpointing=True),
        Way("qwen2", 1, stage=3, size=4, micro=4),
        Way(HYBRID, stage=2, size=4, micro=2),
        Way(HYBRID, stage=3, size=2, checkpointing=True),
        Way(MIXTURE, stage=3, size=4, balance=BALANCE),
        Way(MIXTURE, stage=2, size=2, balance=BALANCE, split=4),
    ],
}


class Alone(NamedTuple):
    """What one process computes to compare with."""

    model: str
    keys: int
    balance: float
    broken: bool

    @classmethod
    def of(cls, way: Way) -> Alone:
        """Return what ``way`` must be the same as."""
        return cls(way.model, way.keys, way.balance, way.broken)


HELD = {
    2: [
        *(Held(size, 8192, checkpointing) for size in (1, 2) for checkpointing in (False, True)),
        Held(1, 32768, True),
        Held(2, 32768, True, "qwen2"),
        Held(1, 32768, True, "qwen2", tiled=True),
        Held(2, 65536, True, tiled=True),
        Held(2, 16384, True, attention="sdpa"),
    ],
    4: [Held(4, 8192, False), Held(4, 65536, True)],
}


def rows() -> list[Row]:
    """Return the rows of a step. Row 0 has nothing to learn in its first half, row 3 in its second."""
    generator, found = torch.Generator().manual_seed(5), []
    for number, documents in enumerate(DOCUMENTS):
        size = sum(documents)
        tokens = torch.randint(1, 300, (size,), generator=generator).tolist()
        masked = {0: range(size // 2 + 2), 3: range(size // 2, size)}.get(number, range(0, size, 7))
        labels = [-100 if place in masked else token for place, token in enumerate(tokens)]
        found.append(Row(tokens, labels, [place for length in documents for place in range(length)], documents))
    return found


def train(way: Way, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Train a few steps as a run does."""
    groups = ranks.groups
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": way.micro,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": way.stage, "reduce_scatter": way.reduce_scatter},
        "zero_force_ds_cpu_optimizer": False,  # it is compiled, and Adam
    }
    if way.split > 1:
        settings["expert_parallel"] = {"enabled": True, "autoep_size": way.split}
    if way.offload:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    kind = "sdpa" if way.size == 1 else implementation("varlen")
    with _partitioned(settings):
        model, _ = load_native(folder / f"{way.model}-{way.keys}", torch.float32, kind)
    keep_documents_apart(model, ranks.device, torch.float32, share_rows(model, "sdpa", ranks))
    if way.checkpointing:
        checkpoint_layers(model, offload=way.activation_offloading)
    if way.tiled:
        tile_mlps(model, tokens=TILE, gathers=way.stage == 3)
    weights: Any = [{"params": list(model.parameters())}]
    if way.split > 1:
        weights = set_experts_apart(weights, model, way.split)
    engine: Any = engines.build_engine(model, torch.optim.SGD(weights, lr=RATE), settings)
    routing = Routing(engine.module, way.balance, ranks) if routers_of(model) else None
    objective = Objective(LossHead(model, way.loss), "sdpa" if way.size == 1 else "varlen", torch.float32, None)
    gradients = GradientStep(engine, objective, routing, ranks, 0, OwnTime(ranks.device, counts_forward=False))
    mine = list(enumerate(rows()))[ranks.group :: groups]
    batches = [collate(mine[at : at + way.micro], 0, multiple=way.size) for at in range(0, len(mine), way.micro)]
    if way.compiled:
        _compile(way, engine.module, lambda: objective(engine.module, slice_of(batches[0], ranks)), folder, ranks)
    every = [collate([one], 0) for one in enumerate(rows())]
    totals = StepTotals(sum(len(one["chosen"]) for one in every), sum(one["tokens"] for one in every), 0, 0)
    losses, norms, balances = [], [], []
    guard = StepGuard(_SKIPPING, ranks, _NO_LOG, source_of=str, settle=lambda: None)

    def judge(batch: Any, loss: torch.Tensor, stand_in: Any) -> torch.Tensor:
        is_broken = way.broken and batch["rows"] == [2] and ranks.rank == 1
        return guard.take(batch, loss * float("nan") if is_broken else loss, stand_in)

    for step in range(STEPS):
        engine.train()
        guard.begin(step + 1, totals.targets)
        gradients.compute(batches, totals, judge, lambda _: None)
        guard.judge_loss()
        balances.append(routing.statistics().router_aux_loss if routing else 0.0)
        engine.step()
        losses.append(guard.mean_loss)
        norms.append(engines.gradient_norm_of(engine))
    engine.eval()
    with torch.no_grad():
        held_out = ranks.sum(torch.stack([gradients.plain_loss(batch).double() for batch in batches]).sum())
    weights = engines.whole_weights(engine, settings)
    held_out_loss = held_out.item() / totals.targets
    return {
        "losses": losses,
        "norms": norms,
        "held_out": held_out_loss,
        "weights": weights,
        "skipped": guard.skipped,
        "balances": balances,
    }


def _compile(way: Way, model: Any, rehearsal: Callable[[], torch.Tensor], folder: Path, ranks: Ranks) -> None:
    """Compile the layers as a run does; fails where they are not compiled."""
    values, zero = tiny.settings(folder, way.stage, torch_compile=True, sequence_parallel_size=way.size)
    values["training"]["torch_compile_backend"] = way.compiled
    place = Place(ranks.rank, ranks.world_size, ranks.rank, "127.0.0.1", 0)
    store = PrefixStore(str(way), _get_default_store())
    setting = Setting(parse_config(values, "train.yaml"), zero, place, store, ranks, _NO_LOG)
    torch._dynamo.reset()
    assert compile_layers(setting, model, folder / f"{way.model}-{way.keys}", [rehearsal, rehearsal], 0)


def reference(folder: Path, alone: Alone) -> dict[str, Any]:
    """Train in one process, each document alone, with transformers' own forward pass and balance of experts."""
    model, _ = load_native(folder / f"{alone.model}-{alone.keys}", torch.float32, "sdpa")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    documents = [
        (torch.tensor([tokens]), torch.tensor(labels), alone.broken and number == 2)
        for number, row in enumerate(rows())
        for tokens, labels in zip(*(_cut(part, row) for part in (row.input_ids, row.labels)), strict=True)
    ]
    targets = sum(int((labels[1:] != -100).sum()) for _, labels, _ in documents)

    def total(*, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        taken = [(tokens, labels) for tokens, labels, out in documents if not (training and out)]
        found = [_loss(model, *document) for document in taken]
        return torch.stack([loss for loss, _ in found]).sum() / targets, _balance(model, [seen for _, seen in found])

    losses, norms, balances = [], [], []
    for _ in range(STEPS):
        loss, balance = total(training=True)
        (loss + alone.balance * balance).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        balances.append(balance.item())
    with torch.no_grad():
        held_out = total(training=False)[0].item()
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    return {"losses": losses, "norms": norms, "held_out": held_out, "weights": weights, "balances": balances}


def _cut(tokens: list[int], row: Row) -> list[list[int]]:
    found, start = [], 0
    for length in row.document_lengths:
        found.append(tokens[start : start + length])
        start += length
    return found


def _loss(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Any]:
    options = {"output_router_logits": True} if routers_of(model) else {}
    found = model(input_ids=tokens, use_cache=False, **options)
    loss = torch.nn.functional.cross_entropy(found.logits[0, :-1], labels[1:], reduction="sum")
    return loss, getattr(found, "router_logits", None)


def _balance(model: Any, seen: list[Any]) -> torch.Tensor:
    """Return the auxiliary loss over all documents' tokens; 0 for a dense model."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    if not routers_of(model):
        return torch.zeros(())
    config = model.config
    layers = tuple(torch.cat(layer) for layer in zip(*seen, strict=True))
    balance: torch.Tensor = load_balancing_loss_func(layers, config.num_experts, config.num_experts_per_tok)
    return balance


def main(output: str) -> None:
    """Train in every way; rank 0 writes what came of it."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, keys in MODELS:
            changes = {"num_key_value_heads": keys, **_CHANGES.get(kind, {})}
            write_folder(Path(scratch) / f"{kind}-{keys}", kind, **changes)
        for alone in {Alone.of(way) for way in WAYS[world]} if rank == 0 else ():
            results[tuple(alone)] = reference(Path(scratch), alone)
        for held in HELD[world]:
            ranks = Ranks(rank, world, torch.device("cpu"), held.size)
            if held.size > 1 or rank == 0:
                results[tuple(held)] = tuple(count(held, ranks, Path(scratch)))
        gc.freeze()  # DeepSpeed collects with every engine of ZeRO-3, and would look at all that was imported
        for way in WAYS[world]:
            ranks = Ranks(rank, world, torch.device("cpu"), way.size)
            results[tuple(way)] = train(way, Path(scratch), ranks)
    if rank == 0:
        torch.save(results, output)


if __name__ == "__main__":
    quiet_deepspeed("cpu")
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    gc.disable()  # an engine that is collected within an import breaks it: CPython issue 106176
    main(sys.argv[1])

"""python -m tests.train.zero_worker OUTPUT, on each rank: train a tiny model in DeepSpeed, in every way of WAYS.

``plain`` leaves DeepSpeed's optimizer as it is, ``lean`` is ours. OUTPUT gets, by kind and way, rank 0's weights,
optimizer state and norms, which steps were applied (the last one has gradients that are not finite), and how many hooks
autograd calls.
"""

from __future__ import annotations

import gc
import itertools
import sys
from typing import Any

import torch

from qwen_job.train import deepspeed_engine
from qwen_job.train.rendezvous import quiet_deepspeed

MICRO_BATCHES = (3, 1, 2, 2)  # of each step; the last step's gradients are not finite
CLIPPED = 0.01  # a norm far below the gradients' own
# ZeRO stage, precision, and a norm to clip to: none, that one, or one far above the gradients' own.
WAYS: list[tuple[Any, ...]] = [*itertools.product((1, 2), ("fp32", "bf16", "fp16"), (0.0, CLIPPED, 100.0))]
# With the optimizer in host memory, too: torch's own, which needs no compiler.
WAYS += [(2, "bf16", clip, "offload") for clip in (0.0, CLIPPED)]
# Its gradients are measured in one pass as well.
WAYS += [(3, precision, clip) for precision in ("bf16", "fp16") for clip in (0.0, CLIPPED)]


class Model(torch.nn.Module):
    """Two matrices, one of them used twice, a bias, and a weight that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.inner = torch.nn.Embedding(11, 7), torch.nn.Linear(7, 7)
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of [B] tokens."""
        logits: torch.Tensor = torch.tanh(self.inner(self.table(tokens))) @ self.table.weight.T
        return logits


def train(stage: int, precision: str, clip: float, offload: str = "") -> dict[str, Any]:
    """Train a few steps; returns what came of it."""
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    model = Model().to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.01)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        precision: {"enabled": True, **({"initial_scale_power": 4} if precision == "fp16" else {})},
    }
    if offload:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        settings["zero_force_ds_cpu_optimizer"] = False
    engine: Any = deepspeed_engine.build_engine(model, optimizer, settings)
    generator = torch.Generator().manual_seed(2 + rank)
    factor = ranks if deepspeed_engine.averages_gradients(engine) else 1
    norms, applied, hooks = [], [], len(engine.optimizer._grad_acc_hooks)
    for step, count in enumerate(MICRO_BATCHES, 1):
        for number in range(count):
            tokens, targets = torch.randint(0, 11, (2, 4), generator=generator)
            loss = torch.nn.functional.cross_entropy(engine(tokens).float(), targets)
            engine.set_gradient_accumulation_boundary(number == count - 1)
            broken = step == len(MICRO_BATCHES) and number == 0 and rank == ranks - 1
            engine.backward(loss * (float("nan") if broken else factor), scale_wrt_gas=False)
        engine.step()
        norms.append(deepspeed_engine.gradient_norm_of(engine))
        applied.append(bool(engine.was_step_applied()))
        assert all(p.grad is None for p in model.parameters())
    states = list(optimizer.state.values())
    weights = {name: getattr(p, "ds_tensor", p).detach().clone() for name, p in model.named_parameters()}
    return {"weights": weights, "states": states, "norms": norms, "applied": applied, "hooks": hooks}


if __name__ == "__main__":
    quiet_deepspeed("cpu")
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    # DeepSpeed refuses fp16 on a processor without instructions for it, where torch computes it all the same.
    deepspeed.get_accelerator().is_fp16_supported = lambda: True
    gc.disable()  # an engine that is collected within an import breaks it: CPython issue 106176
    results: dict[str, Any] = {"ranks": torch.distributed.get_world_size()}
    results["lean"] = {way: train(*way) for way in WAYS}
    deepspeed_engine.use_lean_zero = lambda _: None
    results["plain"] = {way: train(*way) for way in WAYS}
    if torch.distributed.get_rank() == 0:
        torch.save(results, sys.argv[1])

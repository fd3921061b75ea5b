"""Mixtures of experts in training: what ZeRO-3 must know, how tokens are routed, and the loss that balances them.

- ``gather_blocks_whole``: for ZeRO-3
- ``coefficient_of``: the weight of the auxiliary loss;  ``expert_notes``: what they cost
- ``Routing``: watches the routers of a model during a step; ``Seen`` is what it saw of one micro-batch

The auxiliary loss is that of the Switch Transformer (arXiv 2101.03961, equations 4 to 6) as transformers computes it,
over all L layers at once: E sum_e f_e P_e, where f_e is the share of the step's T tokens that chose expert e, and P_e
the mean probability that routers gave it. f and P are means over the real tokens of the whole step, on all ranks and in
all micro-batches; pads are not counted. f has no gradient, so a micro-batch's part of the gradient is that of
E sum_e f_e p_e / (L T), p_e being the sum over its own tokens: exact, once f is known. With several micro-batches in a
step, their tokens are routed once before, without gradients, to know it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_job.errors import JobError
from qwen_job.run.config import TrainConfig
from qwen_job.train.batches import Batch
from qwen_job.train.ranks import Ranks

GROUPED_FROM = (8, 0)  # compute capability of torch's grouped product


class Seen(NamedTuple):
    """What the routers did with one micro-batch; tensors are filled in during its forward pass."""

    real: Tensor  # [tokens], float32: 1 for a real token, 0 for a pad
    counts: Tensor  # [layers, experts], float32: tokens that chose an expert
    entropy: Tensor  # [layers], float32: summed over tokens, in nats
    probabilities: list[Tensor]  # [experts] of each layer, summed over tokens; with their gradient if there is a loss


class Statistics(NamedTuple):
    """The routing of one step, over all ranks.

    A load is the number of tokens that an expert got in its layer, over that of an even share: the greatest and the
    least of all layers. ``router_entropy`` is the mean over tokens and layers, in nats, at most ln(experts);
    ``router_aux_loss`` is not multiplied by its weight. No expert has a capacity, so no token is dropped.
    """

    expert_load_max: float
    expert_load_min: float
    router_entropy: float
    router_aux_loss: float


def routers_of(model: Any) -> list[torch.nn.Module]:
    """Return the routers of a model of transformers, by layer; empty for a dense model."""
    return [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]


def gather_blocks_whole(model: Any) -> None:
    """Let ZeRO-3 gather each block of experts with one collective: all ranks need all of it, whatever they route.

    DeepSpeed 0.19 knows the blocks of some families by itself, and not those of Qwen3.5.
    """
    from deepspeed.utils import set_z3_leaf_modules

    blocks = {type(module) for module in model.modules() if type(module).__name__.endswith("SparseMoeBlock")}
    if blocks:
        set_z3_leaf_modules(model, sorted(blocks, key=lambda block: block.__name__))


def coefficient_of(model: Any, config: TrainConfig) -> float:
    """Return the weight of the auxiliary loss: train.yaml's, else the model's own, which is 0 unless it asks for it.

    Raises:
        JobError: the model has no experts.
    """
    wanted, own = config.router_aux_loss_coef, model.config.get_text_config()
    if not routers_of(model):
        if wanted:
            raise JobError(
                f"train.router_aux_loss_coef: {wanted:g}: {own.model_type} has no experts; remove the field, or take a "
                "mixture of experts"
            )
        return 0.0
    if wanted is not None:
        return wanted
    return float(own.router_aux_loss_coef) if own.output_router_logits else 0.0


def expert_notes(model: Any, coefficient: float, accumulation: int, device: torch.device) -> list[str]:
    """Return what the log says about the experts of a model: what makes training slower than one would expect."""
    notes: list[str] = []
    if routers_of(model) and device.type == "cuda" and torch.cuda.get_device_capability(device) < GROUPED_FROM:
        need = ".".join(map(str, GROUPED_FROM))
        notes.append(f"experts: products of all experts at once need compute capability {need}: computed one by one")
    if coefficient and accumulation > 1:
        notes.append(
            f"router_aux_loss_coef: {coefficient:g}: the balance of a step's experts is exact, so its {accumulation} "
            "micro-batches each run forward once more before"
        )
    return notes


class Routing:
    """Watches the routers of ``model`` while it trains; ``coefficient`` is the weight of the auxiliary loss."""

    def __init__(self, model: Any, coefficient: float, ranks: Ranks) -> None:
        routers, config = routers_of(model), model.config.get_text_config()
        self.coefficient = coefficient
        self._ranks, self._layers = ranks, len(routers)
        self._experts, self._chosen = int(config.num_experts), int(config.num_experts_per_tok)
        self._now: Seen | None = None
        self._listening = False
        self._tokens = 0
        self._sums = self._no_sums()
        self._load: Tensor | None = None
        self._logits: Tensor | None = None
        self._hooks = [router.register_forward_hook(partial(self._note, n)) for n, router in enumerate(routers)]
        # AutoEP's router does not return its logits, which its own linear layer has just computed.
        gates = [router.get_submodule("gate") for router in routers if hasattr(router, "gate")]
        self._hooks += [gate.register_forward_hook(self._keep_logits) for gate in gates]

    def begin(self, tokens: int) -> None:
        """Begin a step of ``tokens`` real tokens on all ranks."""
        self._tokens, self._sums, self._load = tokens, self._no_sums(), None

    def count(self, batches: list[Batch], route: Callable[[Batch], Tensor]) -> None:
        """Learn where the step's tokens go if several micro-batches' losses depend on it. A collective of all ranks.

        ``route`` runs the model on a micro-batch. The random state is restored: the step itself draws the same numbers.
        """
        if not self.coefficient or len(batches) == 1:
            return
        device = self._ranks.device
        total = torch.zeros(self._experts, device=device)
        kept = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=kept):
            for batch in batches:
                unasked = batch.copy()
                unasked["chosen"] = batch["chosen"][:0]  # no position is projected
                total += self.watch(unasked, partial(route, unasked))[1].counts.sum(0)
        self._load = self._ranks.sum(total)

    def watch(self, batch: Batch, forward: Callable[[], Tensor]) -> tuple[Tensor, Seen]:
        """Return what ``forward`` of ``batch`` returns, and what its routers did."""
        device, size = self._ranks.device, batch["input_ids"].shape[1]
        lengths = batch["lengths"].to(device)
        real = self._ranks.own_slice((torch.arange(size, device=device) < lengths[:, None]).flatten()).float()
        counts = torch.zeros(self._layers, self._experts, device=device)
        self._now = Seen(real, counts, torch.zeros(self._layers, device=device), [])
        self._listening = True
        try:
            return forward(), self._now
        finally:
            self._listening = False

    def take(self, seen: Seen) -> Tensor | None:
        """Add a micro-batch to the step, right before its backward pass; returns its part of the auxiliary loss.

        None: there is no such loss. A collective of all ranks in a step of one micro-batch.
        """
        self._now = seen  # checkpointed layers run again in backward, and need its pads
        slopes = torch.stack(seen.probabilities).sum(0) if seen.probabilities else torch.zeros_like(seen.counts[0])
        routed, entropy = self._sums
        routed[:-1] += seen.counts.double()
        routed[-1] += slopes.detach().double()
        entropy += seen.entropy.double()
        if not self.coefficient:
            return None
        if self._load is None:
            self._load = self._ranks.sum(seen.counts.sum(0))
        pairs = max(1, self._layers * self._tokens)
        return self.coefficient * self._experts * (self._load / pairs * slopes / pairs).sum()

    def statistics(self) -> Statistics:
        """Return the routing of the step. A collective of all ranks."""
        routed, entropy = (self._ranks.sum(part) for part in self._sums)
        tokens = max(1, self._tokens)
        load, pairs = routed[:-1] * self._experts / (tokens * self._chosen), tokens * self._layers
        aux = self._experts * (routed[:-1].sum(0) / pairs * routed[-1] / pairs).sum()
        figures = torch.stack([load.max(), load.min(), entropy.sum() / pairs, aux]).tolist()
        return Statistics(*figures)

    def close(self) -> None:
        """Take the hooks off the routers."""
        for hook in self._hooks:
            hook.remove()

    def _no_sums(self) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"dtype": torch.float64, "device": self._ranks.device}
        return torch.zeros(self._layers + 1, self._experts, **options), torch.zeros(self._layers, **options)

    def _keep_logits(self, _gate: torch.nn.Module, _inputs: Any, logits: Tensor) -> None:
        self._logits = logits

    def _note(self, layer: int, router: torch.nn.Module, _inputs: Any, output: Any) -> None:
        """Note what a router returned: logits [tokens, experts], weights, choices [tokens, chosen] in transformers.

        AutoEP's returns weights, choices and counts. With an auxiliary loss the same is computed when a checkpointed
        layer runs again, and dropped.
        """
        logits, _, choices = (self._logits, *output[:2]) if hasattr(router, "gate") else output
        self._logits = None
        if self._now is None or len(logits) != len(self._now.real):
            return
        seen, wanted = self._now, bool(self.coefficient) and torch.is_grad_enabled()
        if not (self._listening or wanted):
            return
        with torch.set_grad_enabled(wanted):
            chances = torch.softmax(logits, dim=-1, dtype=torch.float32)
            sums = (chances * seen.real[:, None]).sum(0)
        if not self._listening:
            return
        seen.probabilities.append(sums)
        with torch.no_grad():
            weights = seen.real.repeat_interleave(choices.shape[-1])
            seen.counts[layer].scatter_add_(0, choices.flatten(), weights)
            seen.entropy[layer] = -(torch.special.xlogy(chances, chances).sum(-1) * seen.real).sum()

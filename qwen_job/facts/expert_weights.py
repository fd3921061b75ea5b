"""A mixture of experts, from its config.json alone: which layers have experts, and their weights in files.

Files hold each expert's three matrices (``experts.0.gate_proj.weight``, as on the hub for Qwen1.5-MoE to Qwen3), or all
experts of a layer in two tensors (``experts.gate_up_proj``, as transformers computes with them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from qwen_job.errors import ModelError

_Shapes = dict[str, tuple[int, ...]]
Size = Callable[..., int]
# Sizes that only a mixture of experts has, and their limits: over ten times any published.
SIZES = {
    "decoder_sparse_step": 1 << 12,
    "moe_intermediate_size": 1 << 24,
    "num_experts": 1 << 14,
    "num_experts_per_tok": 1 << 14,
    "shared_expert_intermediate_size": 1 << 24,
}
# Whose tokens also pass a shared expert.
_SHARING = ("qwen2_moe", "qwen3_5_moe_text")
# Whose files on the hub hold a layer's experts in two tensors.
_FUSED = ("qwen3_5_moe_text",)
_ONE = re.compile(r"\.mlp\.experts\.[0-9]+\.(gate|up|down)_proj\.weight$")
_ALL = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")


def named_as_on_hub(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config with ``num_experts``, which transformers 5 saves as ``num_local_experts``.

    Raises:
        ModelError: it has both names, and they differ.
    """
    named = dict(config)
    other = named.pop("num_local_experts", None)
    if other is not None and named.setdefault("num_experts", other) != other:
        raise ModelError(
            f"config.json: num_local_experts: {other!r:.40} contradicts num_experts ({named['num_experts']!r:.40}); "
            "correct one of them"
        )
    return named


def has_experts(config: Mapping[str, object], layer: int, size: Size) -> bool:
    """Tell whether a layer has experts: the others of a mixture have one dense feed-forward network.

    Raises:
        ModelError: mlp_only_layers is not a list of layers.
    """
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(number) is not int for number in dense):
        raise ModelError(f"config.json: mlp_only_layers: expected a list of layers' numbers, found {dense!r:.80}")
    return layer not in dense and (layer + 1) % size(config, "decoder_sparse_step", 1) == 0


def names_fused(config: Mapping[str, object], names: Collection[str]) -> bool:
    """Tell whether ``names``, those in a folder's files, hold a layer's experts in two tensors.

    Without any expert it is what the hub's files of the family do.
    """
    if any(_ALL.search(name) for name in names):
        return True
    return config.get("model_type") in _FUSED and not any(_ONE.search(name) for name in names)


def expert_shapes(config: Mapping[str, object], size: Size, *, fused: bool) -> _Shapes:
    """Return {name: shape} of the router, the experts and the shared expert of one layer, below ``mlp.``.

    Raises:
        ModelError: a size is impossible.
    """
    hidden, experts = size(config, "hidden_size"), size(named_as_on_hub(config), "num_experts")
    inner, chosen = size(config, "moe_intermediate_size"), size(config, "num_experts_per_tok")
    if chosen > experts:
        raise ModelError(f"config.json: num_experts_per_tok: {chosen} of {experts} experts (num_experts)")
    shapes: _Shapes = {"gate.weight": (experts, hidden)}
    if fused:
        shapes |= {"experts.gate_up_proj": (experts, 2 * inner, hidden), "experts.down_proj": (experts, hidden, inner)}
    else:
        for number in range(experts):
            shapes |= {f"experts.{number}.{name}": shape for name, shape in _network(hidden, inner).items()}
    if config["model_type"] in _SHARING:
        shared = size(config, "shared_expert_intermediate_size")
        shapes |= {f"shared_expert.{name}": shape for name, shape in _network(hidden, shared).items()}
        shapes["shared_expert_gate.weight"] = (1, hidden)
    return shapes


def _network(hidden: int, inner: int) -> _Shapes:
    return {
        "gate_proj.weight": (inner, hidden),
        "up_proj.weight": (inner, hidden),
        "down_proj.weight": (hidden, inner),
    }

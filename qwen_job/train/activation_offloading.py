"""What gradient checkpointing saves, the input of every layer, in host memory until backward needs it.

Pinned, and copied beside the computation by a separate stream; at most ``IN_FLIGHT`` inputs are on the GPU. On a CPU
tensors are in host memory anyway, and take the same way without a copy. Not measured on a GPU yet.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_job.plan.estimate.activations import IN_FLIGHT


class Stored(NamedTuple):
    """A tensor of a GPU in host memory, complete once ``copied`` has happened."""

    host: Tensor
    device: torch.device
    copied: Any


class HostMemory:
    """Takes tensors of a GPU to the host, and brings them back."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._copies: deque[Any] = deque()

    def store(self, tensor: Tensor) -> Tensor | Stored:
        """Begin to copy ``tensor``; waits until no more than ``IN_FLIGHT`` copies are under way."""
        if tensor.device.type == "cpu":
            return tensor
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        while len(self._copies) >= IN_FLIGHT:
            self._copies.popleft().synchronize()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
        self._copies.append(self._stream.record_event())
        return Stored(host, tensor.device, self._copies[-1])

    def load(self, kept: Tensor | Stored) -> Tensor:
        """Return the tensor on its own device."""
        if isinstance(kept, Tensor):
            return kept
        torch.cuda.current_stream(kept.device).wait_event(kept.copied)
        return kept.host.to(kept.device, non_blocking=True)


def checkpoint_layers(model: Any, *, offload: bool, memory: HostMemory | None = None) -> None:
    """Let every layer of ``model`` keep its input alone and be computed again in backward.

    ``offload``: inputs are kept in ``memory``, by default the host's.
    """
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if not offload:
        return
    memory = memory or HostMemory()
    for module in model.modules():
        if (checkpoint := getattr(module, "_gradient_checkpointing_func", None)) is not None:
            module._gradient_checkpointing_func = partial(_offloaded, memory, checkpoint)


def _offloaded(memory: HostMemory, checkpoint: Any, layer: Any, *inputs: Any) -> Any:
    # Inside the layer the checkpoint's own hooks come first: only its inputs are stored.
    with torch.autograd.graph.saved_tensors_hooks(memory.store, memory.load):
        return checkpoint(layer, *inputs)

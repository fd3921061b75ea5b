"""One way to lay a model over GPUs: what the estimates of memory and of speed both depend on."""

from __future__ import annotations

from typing import NamedTuple

from qwen_job.facts.hardware import Gpu
from qwen_job.facts.model_shapes import ModelShape

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


class Layout(NamedTuple):
    """A model, the GPUs, and how one step is computed on them.

    ``world_size`` counts processes, one a GPU; ``gpu`` None means that nothing is known about the device;
    ``fused_norms`` is how our trainer computes norms on a GPU (train/kernels.py), False how transformers does.
    """

    shape: ModelShape
    world_size: int
    gpus_per_node: int
    zero_stage: int
    gpu: Gpu | None = None
    offload_optimizer: bool = False
    precision: str = "bf16"
    micro_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    sequence_length: int = 512
    gradient_checkpointing: bool = True
    attention: str = "varlen"
    fused_loss: str = "torch"
    fused_norms: bool = False

    @property
    def on_cpu(self) -> bool:
        """Whether the job runs on processors, not GPUs."""
        return self.gpu is not None and self.gpu.is_cpu

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch, padding among them."""
        return self.micro_batch_size * self.sequence_length

    @property
    def element(self) -> int:
        """Bytes of one number in the precision."""
        return BYTES[self.precision]

    @property
    def ranks(self) -> int:
        """Processes of one node."""
        return min(self.gpus_per_node, self.world_size)

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.world_size // self.gpus_per_node)

    @property
    def shard(self) -> int:
        """Parameters of one rank, when sharded over all ranks."""
        return -(-self.shape.num_parameters // self.world_size)

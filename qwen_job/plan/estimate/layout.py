"""How a model is distributed over GPUs: the input of the memory and speed estimates."""

from __future__ import annotations

from typing import NamedTuple

from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.facts.hardware import Gpu
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.facts.sequence_parallel import Divided

# Triton's own floor; the image sets for older GPUs do not have the kernels.
DELTA_KERNELS_FROM = 8.0
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


class Layout(NamedTuple):
    """A model, the GPUs, and how one step is computed on them.

    ``world_size`` counts processes, one per GPU, of which ``sequence_parallel_size`` share each row; ``gpu`` is None
    for an unknown device; ``fused_norms``: norms as our trainer computes them on a GPU (train/kernels.py), otherwise as
    transformers does; ``lean_zero``: a lone rank's gradients as our trainer keeps them (train/lean_zero.py), otherwise
    as DeepSpeed does; ``compiled``: layers and loss under torch.compile; ``expandable_segments``: of torch's allocator,
    as environment.py sets them; ``expert_parallel_size``: GPUs that split the experts of a layer; ``tiled_mlp``:
    feed-forward networks work on a tile of tokens at a time (train/tiled_mlp.py); ``activation_offloading``:
    checkpoints are in host memory.
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
    lean_zero: bool = False
    compiled: bool = False
    expandable_segments: bool = True
    sequence_parallel_size: int = 1
    expert_parallel_size: int = 1
    tiled_mlp: bool = False
    activation_offloading: bool = False

    @property
    def on_cpu(self) -> bool:
        """Whether the job runs on CPUs, not GPUs."""
        return self.gpu is not None and self.gpu.is_cpu

    @property
    def tokens(self) -> int:
        """Tokens per micro-batch that a GPU has, including padding: its slice of rows that are shared."""
        return self.micro_batch_size * self.sequence_length // self.sequence_parallel_size

    @property
    def tiles(self) -> bool:
        """Whether feed-forward networks work on tiles: a row that is no longer than one is not cut."""
        return self.tiled_mlp and self.tokens > TILE_TOKENS

    @property
    def element(self) -> int:
        """Bytes per number in the precision."""
        return BYTES[self.precision]

    @property
    def ranks(self) -> int:
        """Processes per node."""
        return min(self.gpus_per_node, self.world_size)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.world_size // self.gpus_per_node)

    @property
    def delta_kernels(self) -> bool:
        """Whether linear attention runs in flash-linear-attention's Triton kernels, not as torch operations in fp32."""
        return self.gpu is None or (not self.gpu.is_cpu and self.gpu.compute_capability >= DELTA_KERNELS_FROM)

    @property
    def gradients_stay(self) -> bool:
        """Whether gradients stay where autograd leaves them: no buckets, no flat copy in 16 bits."""
        alone = self.world_size == 1 and self.zero_stage in (1, 2) and not self.offload_optimizer
        return self.lean_zero and alone

    @property
    def local_parameters(self) -> int:
        """Parameters of a rank before ZeRO shards them: without the experts that the other ranks of its group have."""
        experts = self.shape.all_expert_parameters
        return self.shape.num_parameters - experts + -(-experts // self.expert_parallel_size)

    @property
    def largest_tensor(self) -> int:
        """Elements of a rank's largest parameter; AutoEP has a tensor for each of the experts' three matrices."""
        experts, shape = self.shape.experts, self.shape
        if experts is None or self.expert_parallel_size == 1:
            return shape.largest_tensor
        mine = experts.count // self.expert_parallel_size * shape.hidden_size * experts.width
        return max(shape.vocab_size * shape.hidden_size, mine)

    @property
    def largest_gathered(self) -> int:
        """Elements of what ZeRO-3 gathers at once: the largest parameter, a tiled network, or a layer's experts."""
        experts = self.shape.experts.count * self.shape.expert_parameters if self.shape.experts else 0
        network = self.shape.network_parameters if self.tiles else 0
        return max(self.largest_tensor, experts // self.expert_parallel_size, network)

    @property
    def shard(self) -> int:
        """Parameters per rank if sharded over all ranks."""
        return -(-self.shape.num_parameters // self.world_size)


def divided_of(shape: ModelShape, row_length: int, gpus_per_node: int) -> Divided:
    """Return what GPUs that share rows of a model divide among them."""
    linear = (shape.linear.key_heads, shape.linear.value_heads) if shape.linear else ()
    return Divided(shape.num_attention_heads, shape.num_key_value_heads, row_length, gpus_per_node, linear)


def why_not_shared(shape: ModelShape, attention: str) -> str:
    """Return why GPUs cannot share rows of this model exactly and what to write instead, or ""."""
    if shape.attention_dropout:
        why = f"the model's attention_dropout is {shape.attention_dropout:g}, and would differ from GPU to GPU"
        return f"{why}; write 1"
    if attention == "eager":
        return "eager attention holds a matrix of rows x rows; write train.attention: auto"
    return ""

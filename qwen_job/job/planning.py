"""What the plan's estimates take from a cluster: the margin, and constants that no formula gives."""

from typing import Annotated

from pydantic import Field

from qwen_job.job.types import Strict

Number = Annotated[float, Field(gt=0)] | None
Bytes = Annotated[int, Field(ge=0)] | None
Share = Annotated[float, Field(ge=0, lt=0.9)] | None


class Planning(Strict):
    """The plan's own numbers, best in a site profile; ``qwen-job plan --calibrate RUN`` prints the first three.

    Every other field overrides a constant of qwen_job/plan/estimate/memory.py or speed.py, where its meaning stands.
    """

    activation_factor: Number = Field(None, description="On the memory of activations; default: 1")
    compute_factor: Number = Field(None, description="On the speed of matrix products; default: 1")
    layer_seconds: Number = Field(None, description="Host time to launch one layer forward and backward")
    margin: Share = Field(None, description="Share of a GPU's memory that the plan leaves free; default: 0.08")
    context_bytes: Bytes = Field(None, description="CUDA context, workspaces and kernels on a GPU")
    nccl_bytes: Bytes = Field(None, description="NCCL's buffers on a GPU")
    fragmentation: Share = Field(None, description="Share of allocated memory that the allocator wastes")
    process_bytes: Bytes = Field(None, description="Host memory of one process without its model")
    memory_efficiency: Number = Field(None, description="Share of the GPU memory's published bandwidth")
    nvlink_efficiency: Number = Field(None, description="Share of NVLink's published bandwidth")
    pcie_efficiency: Number = Field(None, description="Share of PCIe's published bandwidth")
    network_efficiency: Number = Field(None, description="Share of the network's published bandwidth")
    host_adam_per_second: Number = Field(None, description="Parameters a second that a node's offloaded Adam updates")

    def constants(self) -> dict[str, float]:
        """Return the constants that were written, by name."""
        return {name: value for name, value in self if name != "margin" and value is not None}

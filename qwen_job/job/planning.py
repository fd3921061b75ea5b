"""The ``plan:`` section: the memory margin, and constants that depend on the cluster."""

from typing import Annotated

from pydantic import Field

from qwen_job.job.types import Strict

Number = Annotated[float, Field(gt=0)] | None
Bytes = Annotated[int, Field(ge=0)] | None
Share = Annotated[float, Field(ge=0, lt=0.9)] | None


class Planning(Strict):
    """Constants of the estimates, usually in a site profile. ``qwen-job plan --calibrate RUN`` prints the first three.

    Every other field overrides a constant that is documented in qwen_job/plan/estimate/memory.py or speed.py.
    """

    activation_factor: Number = Field(None, description="Factor for the memory of activations; default: 1")
    compute_factor: Number = Field(None, description="Factor for the speed of matrix products; default: 1")
    layer_seconds: Number = Field(None, description="Host time in seconds to launch one layer, forward and backward")
    margin: Share = Field(None, description="Fraction of GPU memory that the plan keeps free; default: 0.08")
    context_bytes: Bytes = Field(None, description="Memory of the CUDA context, workspaces and kernels on a GPU")
    nccl_bytes: Bytes = Field(None, description="Memory of NCCL's buffers on a GPU")
    fragmentation: Share = Field(None, description="Fraction of the allocated memory that is lost to fragmentation")
    process_bytes: Bytes = Field(None, description="Host memory of one process without the model")
    memory_efficiency: Number = Field(None, description="Achieved fraction of the published memory bandwidth")
    nvlink_efficiency: Number = Field(None, description="Achieved fraction of the published NVLink bandwidth")
    pcie_efficiency: Number = Field(None, description="Achieved fraction of the published PCIe bandwidth")
    network_efficiency: Number = Field(None, description="Achieved fraction of the published network bandwidth")
    host_adam_per_second: Number = Field(
        None, description="Parameters per second that offloaded Adam updates on a node"
    )

    def constants(self) -> dict[str, float]:
        """Return the constants that the user set, by name."""
        return {name: value for name, value in self if name != "margin" and value is not None}

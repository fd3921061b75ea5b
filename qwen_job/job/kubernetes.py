"""The ``kubernetes:`` section, for PyTorchJob manifests and the Helm chart alike."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from qwen_job.job.types import Count, Positive, Seconds, Strict, Text

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")]


class Volume(Strict):
    """One volume and where it is mounted: exactly one of pvc, nfs and host_path."""

    name: DnsLabel
    mount_path: Text = Field(description="Where the pods see it; the job's paths lie below it")
    pvc: DnsLabel | None = Field(None, description="A PersistentVolumeClaim's name")
    nfs: Text | None = Field(None, description="SERVER:/PATH")
    host_path: Text | None = Field(None, description="A folder of the node; breaks the restricted pod security level")
    sub_path: Text | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Volume:
        if sum(kind is not None for kind in (self.pvc, self.nfs, self.host_path)) != 1:
            raise ValueError("needs exactly one of pvc, nfs and host_path")
        if self.nfs is not None and ":/" not in self.nfs:
            raise ValueError(f"nfs: {self.nfs!r} is not SERVER:/PATH")
        return self


class Kubernetes(Strict):
    """Kubernetes' settings; any other pod field goes into ``pod``, any container field into ``pod_container``."""

    namespace: DnsLabel | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    volumes: list[Volume] = Field([], description="Shared storage for model, data and output")
    shm_size: Quantity = Field("16Gi", description="Size of /dev/shm; counts as the pod's memory")
    cpu: Quantity | None = Field(None, description="CPU request and limit of a pod")
    memory: Quantity | None = Field(None, description="Memory request and limit of a pod")
    gpu_resource: Text = Field("nvidia.com/gpu", description="The resource that a GPU is requested by")
    resources: dict[str, Quantity] = Field({}, description="More resources of a pod, e.g. {rdma/hca: '1'}")
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = Field([], description="More tolerations; the GPU's own is always there")
    image_pull_secrets: list[DnsLabel] = []
    backoff_limit: Count = 10
    active_deadline: Seconds | None = None
    ttl_after_finished: Seconds | None = None
    suspend: bool = False
    max_restarts: Positive = Field(10, description="How often torchrun restarts the group")
    pod: dict[str, Any] = Field({}, description="Laid over the pod's spec")
    pod_container: dict[str, Any] = Field({}, description="Laid over the container")
    job: dict[str, Any] = Field({}, description="Laid over the PyTorchJob's spec")

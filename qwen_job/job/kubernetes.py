"""The ``kubernetes:`` section, for PyTorchJob, TrainJob and JobSet manifests and the Helm chart alike."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from qwen_job.job.types import Count, EnvName, FreeText, Positive, Seconds, Strict

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
DnsSubdomain = Annotated[str, Field(pattern=rf"^{_SUBDOMAIN}$", max_length=253)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")]
WholeQuantity = Annotated[str, Field(pattern=r"^[0-9]+$")]
QualifiedName = Annotated[str, Field(pattern=rf"^([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}$")]
LabelValue = Annotated[str, Field(pattern=rf"^({_NAME})?$")]
MountPath = Annotated[str, Field(pattern=r"^/[^:\x00-\x1f\x7f]*$", max_length=4096)]
SecretKey = Annotated[str, Field(pattern=rf"^{_SUBDOMAIN}/[-._a-zA-Z0-9]+$")]
Cidr = Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")]


def _no_null(value: Any) -> Any:
    """Refuse null inside an overlay: Helm drops such a key, kubectl's server ignores it, so it would mean nothing."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if item is None:
            raise ValueError(f"{key}: null means nothing to Kubernetes; write a value, or remove the line")
        _no_null(item)
    return value


Overlay = Annotated[dict[str, Any], AfterValidator(_no_null)]


class Volume(Strict):
    """One volume and where it is mounted: exactly one of pvc, nfs and host_path; or a size, for a claim of its own."""

    name: DnsLabel
    mount_path: MountPath = Field(description="Where the pods see it; the job's paths lie below it")
    pvc: DnsSubdomain | None = Field(None, description="A PersistentVolumeClaim's name; with size it is created")
    nfs: Annotated[str, Field(pattern=r"^[^\s:][^:]*:/[^\x00-\x1f\x7f]*$")] | None = Field(
        None, description="SERVER:/PATH"
    )
    host_path: MountPath | None = Field(
        None, description="A folder of the node; breaks the restricted pod security level"
    )
    size: Quantity | None = Field(None, description="Create the claim, with so much storage; it outlives the job")
    storage_class: DnsSubdomain | None = Field(None, description="Of the claim that is created")
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod"] = "ReadWriteMany"
    sub_path: Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")] | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> "Volume":
        kinds = [kind for kind in (self.pvc or self.size, self.nfs, self.host_path) if kind is not None]
        if len(kinds) != 1:
            raise ValueError("needs exactly one of pvc, nfs and host_path (or a size, to create a claim)")
        return self


class Kubernetes(Strict):
    """Kubernetes' settings; any other pod field goes into ``pod``, any container field into ``pod_container``."""

    kind: Literal["pytorchjob", "trainjob", "jobset"] = Field(
        "pytorchjob", description="Training-operator's PyTorchJob, Trainer v2's TrainJob, or JobSet"
    )
    master: bool = Field(False, description="PyTorchJob: a Master and Workers instead of elastic workers alone")
    namespace: DnsLabel | None = None
    labels: dict[QualifiedName, LabelValue] = {}
    annotations: dict[QualifiedName, FreeText] = {}
    volumes: list[Volume] = Field([], description="Shared storage for model, data and output")
    shm_size: Quantity = Field("16Gi", description="Size of /dev/shm; counts as the pod's memory")
    cpu: Quantity | None = Field(None, description="CPU request and limit of a pod")
    memory: Quantity | None = Field(None, description="Memory request and limit of a pod")
    gpu_resource: QualifiedName | None = Field("nvidia.com/gpu", description="The resource that a GPU is requested by")
    resources: dict[QualifiedName, Quantity] = Field({}, description="More resources of a pod, e.g. {rdma/hca: '1'}")
    gpu_products: list[LabelValue] = Field([], description="Node label nvidia.com/gpu.product: one of these")
    node_selector: dict[QualifiedName, LabelValue] = {}
    tolerations: list[Overlay] = Field([], description="More tolerations; the GPU's own is always there")
    topology: QualifiedName | None = Field(
        None, description="Node label of the part of the cluster to keep the job in, e.g. topology.kubernetes.io/zone"
    )
    spread: QualifiedName | None = Field(None, description="Node label to spread the pods over evenly")
    queue: Annotated[str, Field(pattern=rf"^((kueue|volcano):{_SUBDOMAIN}|volcano|coscheduling)$")] | None = Field(
        None, description="Gang scheduling: kueue:QUEUE, volcano, volcano:QUEUE or coscheduling"
    )
    priority_class: DnsSubdomain | None = None
    service_account: DnsSubdomain | None = None
    image_pull_secrets: list[DnsSubdomain] = []
    env_from_secrets: list[DnsSubdomain] = Field([], description="Secrets whose every key becomes a variable")
    secret_env: dict[EnvName, SecretKey] = Field({}, description="Variables from secrets: {HF_TOKEN: SECRET/KEY}")
    run_as_user: Positive | None = Field(10001, description="The pods' user; null leaves it to the namespace")
    fs_group: Positive | None = Field(10001, description="Group that volumes are made writable for")
    ipc_lock: bool = Field(False, description="The capability that RDMA needs; breaks the restricted level")
    host_network: bool = Field(False, description="The node's own network; breaks the restricted level")
    network_policy: bool = Field(False, description="Let the pods talk to each other, DNS and egress only")
    egress: list[Cidr] = Field([], description="With network_policy: what else the pods may reach")
    master_port: Annotated[int, Field(ge=1024, le=65535)] = Field(29400, description="Port of the rendezvous")
    rendezvous_timeout: Positive = Field(900, description="Seconds for all pods to start, image pulls included")
    backoff_limit: Count = 10
    active_deadline: Seconds | None = None
    ttl_after_finished: Seconds | None = None
    suspend: bool = False
    max_restarts: Positive = Field(10, description="How often the group of pods is restarted")
    pod: Overlay = Field({}, description="Laid over the pod's spec")
    pod_container: Overlay = Field({}, description="Laid over the container")
    job: Overlay = Field({}, description="Laid over the spec of the PyTorchJob, TrainJob or JobSet")

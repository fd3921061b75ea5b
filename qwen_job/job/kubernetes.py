"""The ``kubernetes:`` section, for PyTorchJob, TrainJob and JobSet manifests and the Helm chart alike."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qwen_job.job.kubernetes_types import (
    OWN_ANNOTATIONS,
    OWN_LABELS,
    SUBDOMAIN,
    Amounts,
    Cidr,
    Cores,
    Deadline,
    DnsLabel,
    DnsSubdomain,
    ExtendedResource,
    LabelValue,
    Lifetime,
    Memory,
    MountPath,
    Natural,
    Overlay,
    QualifiedName,
    SecretKey,
    Storage,
    Toleration,
    Whole,
    forward,
    not_ours,
)
from qwen_job.job.types import EnvName, FreeText, Strict


class Volume(Strict):
    """One volume and where it is mounted: exactly one of pvc, nfs and host_path; or a size, for a claim of its own."""

    name: DnsLabel
    mount_path: MountPath = Field(description="Where the pods see it; the job's paths lie below it")
    pvc: DnsSubdomain | None = Field(None, description="A PersistentVolumeClaim's name; with size it is created")
    nfs: Annotated[str, Field(pattern=r"^[^\s:][^:]*:/[^\x00-\x1f\x7f]*$")] | None = Field(
        None, description="SERVER:/PATH"
    )
    host_path: Annotated[MountPath, forward] | None = Field(
        None, description="A folder of the node; breaks the restricted pod security level"
    )
    size: Storage | None = Field(None, description="Create the claim, with so much storage; it outlives the job")
    storage_class: DnsSubdomain | None = Field(None, description="Of the claim that is created")
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod"] = "ReadWriteMany"
    sub_path: Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"), forward] | None = None
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
    labels: Annotated[dict[QualifiedName, LabelValue], not_ours(OWN_LABELS, "choose another label")] = {}
    annotations: Annotated[dict[QualifiedName, FreeText], not_ours(OWN_ANNOTATIONS, "choose another")] = {}
    volumes: list[Volume] = Field([], description="Shared storage for model, data and output")
    shm_size: Memory = Field("16Gi", description="Size of /dev/shm; counts as the pod's memory")
    cpu: Cores | None = Field(
        None, description="CPU request and limit of a pod; default: what the plan needs is requested, without a limit"
    )
    memory: Memory | None = Field(
        None, description="Memory request and limit of a pod; default: what the plan needs, without a limit"
    )
    gpu_resource: ExtendedResource | None = Field(
        "nvidia.com/gpu", description="The resource that a GPU is requested by, e.g. a MIG slice's"
    )
    resources: Amounts = Field({}, description="More resources of a pod, e.g. {rdma/hca: '1'}")
    gpu_products: list[LabelValue] = Field([], description="Node label nvidia.com/gpu.product: one of these")
    node_selector: dict[QualifiedName, LabelValue] = {}
    tolerations: list[Toleration] = Field([], description="More tolerations; the GPU's own is always there")
    topology: QualifiedName | None = Field(
        None, description="Node label of the part of the cluster to keep the job in, e.g. topology.kubernetes.io/zone"
    )
    spread: QualifiedName | None = Field(None, description="Node label to spread the pods over evenly")
    queue: (
        Annotated[str, Field(pattern=rf"^((kueue|volcano):{SUBDOMAIN}|volcano|coscheduling)$", max_length=71)] | None
    ) = Field(None, description="Gang scheduling: kueue:QUEUE, volcano, volcano:QUEUE or coscheduling")
    priority_class: DnsSubdomain | None = None
    service_account: DnsSubdomain | None = None
    image_pull_secrets: list[DnsSubdomain] = []
    env_from_secrets: list[DnsSubdomain] = Field([], description="Secrets whose every key becomes a variable")
    secret_env: dict[EnvName, SecretKey] = Field({}, description="Variables from secrets: {HF_TOKEN: SECRET/KEY}")
    run_as_user: Natural | None = Field(10001, description="The pods' user; null leaves it to the namespace")
    fs_group: Natural | None = Field(10001, description="Group that volumes are made writable for")
    ipc_lock: bool = Field(False, description="The capability that RDMA needs; breaks the restricted level")
    host_network: bool = Field(False, description="The node's own network; breaks the restricted level")
    network_policy: bool = Field(False, description="Let the pods talk to each other, DNS and egress only")
    egress: list[Cidr] = Field([], description="With network_policy: what else the pods may reach")
    master_port: Annotated[int, Field(ge=1024, le=65535)] = Field(29400, description="Port of the rendezvous")
    rendezvous_timeout: Natural = Field(900, description="Seconds for all pods to start, image pulls included")
    backoff_limit: Whole = Field(
        10, description="PyTorchJob: 0 makes the first failure final; the operator bounds nothing by larger numbers"
    )
    active_deadline: Deadline | None = Field(None, description="The job's time limit; it saves before")
    ttl_after_finished: Lifetime | None = Field(
        None, description="When the finished job is removed; a TrainJob has no such field and stays"
    )
    suspend: bool = Field(False, description="Make the job without pods; setting it to false starts it")
    max_restarts: Natural = Field(10, description="TrainJob, JobSet: how often the group of pods is restarted")
    prepare: bool = Field(
        False, description="A Job without GPUs fetches the model and prepares the data first; then the training starts"
    )
    prepare_cpu: Cores = Field("4", description="CPU request and limit of that Job")
    prepare_memory: Memory = Field("16Gi", description="Memory request and limit of that Job")
    prepare_account: DnsSubdomain | None = Field(
        None, description="A service account that may patch the training job; default: one is made, with a Role for it"
    )
    prepare_pod: Overlay = Field({}, description="Merged into the spec of that Job's pod, lists by their key")
    pod: Overlay = Field(
        {}, description="Merged into the pod's spec: lists by their key, as kubectl's strategic merge does"
    )
    pod_container: Overlay = Field({}, description="Merged into the container that trains, in the same way")
    job: Overlay = Field({}, description="Merged into the spec of the PyTorchJob, TrainJob or JobSet")

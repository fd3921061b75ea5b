"""The ``kubernetes:`` section, for PyTorchJob, TrainJob and JobSet manifests and for the Helm chart."""

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
    """A volume and its mount path. Set exactly one of pvc, nfs and host_path, or a size to create a claim."""

    name: DnsLabel = Field(description="Name of the volume in the pods")
    mount_path: MountPath = Field(description="Path in the pods; the job's paths must be below it")
    pvc: DnsSubdomain | None = Field(None, description="Name of a PersistentVolumeClaim; created if size is set")
    nfs: Annotated[str, Field(pattern=r"^[^\s:][^:]*:/[^\x00-\x1f\x7f]*$")] | None = Field(
        None, description="SERVER:/PATH"
    )
    host_path: Annotated[MountPath, forward] | None = Field(
        None, description="Folder on the node; not allowed at the restricted pod security level"
    )
    size: Storage | None = Field(None, description="Create the claim with this much storage; it is kept after the job")
    storage_class: DnsSubdomain | None = Field(None, description="Storage class of the created claim")
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod"] = Field(
        "ReadWriteMany", description="Access mode of the created claim"
    )
    sub_path: Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"), forward] | None = Field(
        None, description="Folder of the volume to mount in place of its root"
    )
    read_only: bool = Field(False, description="Mount it read-only")

    @model_validator(mode="after")
    def _one_kind(self) -> "Volume":
        kinds = [kind for kind in (self.pvc or self.size, self.nfs, self.host_path) if kind is not None]
        if len(kinds) != 1:
            raise ValueError("needs exactly one of pvc, nfs and host_path (or a size, to create a claim)")
        return self


class Kubernetes(Strict):
    """Kubernetes settings. Set any other pod field through ``pod``, any container field through ``pod_container``."""

    kind: Literal["pytorchjob", "trainjob", "jobset"] = Field(
        "pytorchjob", description="pytorchjob (training-operator), trainjob (Trainer v2) or jobset"
    )
    master: bool = Field(False, description="PyTorchJob: use a Master and Workers instead of only elastic workers")
    namespace: DnsLabel | None = Field(None, description="Namespace of the objects; default: kubectl's or Helm's")
    labels: Annotated[dict[QualifiedName, LabelValue], not_ours(OWN_LABELS, "choose another label")] = Field(
        {}, description="Additional labels of the objects and pods"
    )
    annotations: Annotated[dict[QualifiedName, FreeText], not_ours(OWN_ANNOTATIONS, "choose another")] = Field(
        {}, description="Additional annotations of the objects and pods"
    )
    volumes: list[Volume] = Field([], description="Shared storage for model, data and output")
    shm_size: Memory = Field("16Gi", description="Size of /dev/shm; counts toward the pod's memory")
    cpu: Cores | None = Field(
        None, description="CPU request and limit of a pod; default: the planned amount as request, no limit"
    )
    memory: Memory | None = Field(
        None, description="Memory request and limit of a pod; default: the planned amount as request, no limit"
    )
    gpu_resource: ExtendedResource | None = Field(
        "nvidia.com/gpu", description="Resource name for a GPU, e.g. a MIG slice"
    )
    resources: Amounts = Field({}, description="Additional resources of a pod, e.g. {rdma/hca: '1'}")
    gpu_products: list[LabelValue] = Field([], description="Accepted values of the node label nvidia.com/gpu.product")
    node_selector: dict[QualifiedName, LabelValue] = Field({}, description="Labels that a node must have")
    tolerations: list[Toleration] = Field([], description="Additional tolerations; the GPU taint is always tolerated")
    topology: QualifiedName | None = Field(
        None, description="Keep all pods in one domain of this node label, e.g. topology.kubernetes.io/zone"
    )
    spread: QualifiedName | None = Field(None, description="Spread the pods evenly over the domains of this node label")
    queue: (
        Annotated[str, Field(pattern=rf"^((kueue|volcano):{SUBDOMAIN}|volcano|coscheduling)$", max_length=71)] | None
    ) = Field(None, description="Gang scheduling: kueue:QUEUE, volcano, volcano:QUEUE or coscheduling")
    priority_class: DnsSubdomain | None = Field(None, description="PriorityClass of the pods")
    service_account: DnsSubdomain | None = Field(None, description="Service account of the pods; they get no token")
    image_pull_secrets: list[DnsSubdomain] = Field([], description="Secrets with the login of the image's registry")
    env_from_secrets: list[DnsSubdomain] = Field(
        [], description="Secrets to load as environment variables, one per key"
    )
    secret_env: dict[EnvName, SecretKey] = Field(
        {}, description="Environment variables from secrets: {HF_TOKEN: SECRET/KEY}"
    )
    run_as_user: Natural | None = Field(10001, description="User ID of the pods; null: the namespace decides")
    fs_group: Natural | None = Field(
        10001, description="Group ID that can write to the volumes; null: the namespace decides"
    )
    ipc_lock: bool = Field(False, description="Add the capability that RDMA needs; not allowed at the restricted level")
    host_network: bool = Field(False, description="Use the node's network; not allowed at the restricted level")
    network_policy: bool = Field(False, description="Allow the pods to reach only each other, DNS and egress")
    egress: list[Cidr] = Field([], description="With network_policy: other networks that the pods can reach")
    master_port: Annotated[int, Field(ge=1024, le=65535)] = Field(29400, description="Rendezvous port")
    rendezvous_timeout: Natural = Field(900, description="Seconds for all pods to start, including image pulls")
    backoff_limit: Whole = Field(
        10, description="PyTorchJob: 0 makes the first failure final; larger values have no effect in the operator"
    )
    active_deadline: Deadline | None = Field(None, description="Time limit of the job; training saves first")
    ttl_after_finished: Lifetime | None = Field(
        None, description="Time after which a finished job is deleted; a TrainJob has no such field and is kept"
    )
    suspend: bool = Field(False, description="Create the job without pods; set it to false to start")
    max_restarts: Natural = Field(10, description="TrainJob, JobSet: maximum number of restarts of the group of pods")
    prepare: bool = Field(False, description="First download the model and prepare the data in a Job without GPUs")
    prepare_cpu: Cores = Field("4", description="CPU request and limit of the preparation Job")
    prepare_memory: Memory = Field("16Gi", description="Memory request and limit of the preparation Job")
    prepare_account: DnsSubdomain | None = Field(
        None, description="Service account that starts what prepare and evaluate suspend; default: created, with a Role"
    )
    prepare_pod: Overlay = Field({}, description="Merged into the pod spec of the preparation Job, lists by key")
    pod: Overlay = Field({}, description="Merged into the pod spec, lists by key, like kubectl's strategic merge")
    pod_container: Overlay = Field({}, description="Merged into the training container in the same way")
    job: Overlay = Field({}, description="Merged into the spec of the PyTorchJob, TrainJob or JobSet")

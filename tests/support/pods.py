"""Rules for pods and training jobs that no schema holds: what a server refuses later, or accepts although wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(?=.{0,63}$)([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_QUALIFIED = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_QUANTITY = re.compile(r"[+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[mkMGTPE]|[eE][-+]?[0-9]+)?")
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "ClusterTrainingRuntime", "PriorityClass"}
_WORDS = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
}
REPLICA_RESTART_POLICIES = {"Always", "OnFailure", "Never", "ExitCode"}
CLEAN_POD_POLICIES = {"All", "Running", "None"}


def templates(thing: Object, place: str = "") -> Iterator[tuple[str, Object]]:
    """Yield every pod template inside an object with its place."""
    for key, value in thing.items():
        where = f"{place}.{key}" if place else key
        if key == "template" and isinstance(value, dict) and "containers" in (value.get("spec") or {}):
            yield where, value
        elif isinstance(value, dict):
            yield from templates(value, where)
        elif isinstance(value, list):
            for number, part in enumerate(value):
                if isinstance(part, dict):
                    yield from templates(part, f"{where}.{number}")


def check_metadata(thing: Object) -> Iterator[str]:
    """Check name, namespace, labels and annotations."""
    metadata = thing.get("metadata") or {}
    name = metadata.get("name")
    # Pods and Services are named after a training job, with a suffix; a Service's name is the strictest.
    strictest = thing["kind"] in ("PyTorchJob", "TrainJob", "Service")
    if not isinstance(name, str) or not (_LABEL_1035 if strictest else _SUBDOMAIN).fullmatch(name):
        yield f"metadata.name: {name!r} is not a valid name for a {thing['kind']}"
    if "namespace" in metadata and thing["kind"] in _CLUSTER_WIDE:
        yield f"metadata.namespace: a {thing['kind']} has none"
    if "namespace" in metadata and not _LABEL.fullmatch(str(metadata["namespace"])):
        yield f"metadata.namespace: {metadata['namespace']!r} is not a valid name"
    for key, value in (metadata.get("labels") or {}).items():
        if not _QUALIFIED.fullmatch(key) or not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            yield f"metadata.labels: {key}={value!r} is not a valid label"
    for key, value in (metadata.get("annotations") or {}).items():
        if not _QUALIFIED.fullmatch(key) or not isinstance(value, str):
            yield f"metadata.annotations: {key}={value!r} is not a valid annotation"


def check_pytorchjob(job: Object) -> Iterator[str]:
    """Check what the training-operator needs of a PyTorchJob and its CRD does not ask for."""
    spec = job.get("spec") or {}
    replicas = spec.get("pytorchReplicaSpecs") or {}
    if not replicas:
        yield "spec.pytorchReplicaSpecs: empty"
    clean = (spec.get("runPolicy") or {}).get("cleanPodPolicy", "None")
    if clean not in CLEAN_POD_POLICIES:
        yield f"spec.runPolicy.cleanPodPolicy: {clean!r} is none of {sorted(CLEAN_POD_POLICIES)}"
    for role, replica in replicas.items():
        place = f"spec.pytorchReplicaSpecs.{role}"
        if role not in ("Master", "Worker"):
            yield f"{place}: neither Master nor Worker"
        if role == "Master" and replica.get("replicas", 1) != 1:
            yield f"{place}.replicas: there is one Master"
        if not isinstance(replica.get("replicas", 1), int) or replica.get("replicas", 1) < 1:
            yield f"{place}.replicas: {replica.get('replicas')!r} is no number of pods"
        policy = replica.get("restartPolicy", "OnFailure")
        if policy not in REPLICA_RESTART_POLICIES:
            yield f"{place}.restartPolicy: {policy!r} is none of {sorted(REPLICA_RESTART_POLICIES)}"
        containers = ((replica.get("template") or {}).get("spec") or {}).get("containers") or []
        if "pytorch" not in [container.get("name") for container in containers]:
            yield f"{place}.template.spec.containers: none is named pytorch"
        longest = f"{job['metadata'].get('name')}-{role.lower()}-{replica.get('replicas', 1)}"
        if len(longest) > 63:
            yield f"metadata.name: the pods' names would be longer than 63 characters ({longest})"


def check_trainjob(job: Object) -> Iterator[str]:
    """Check what Trainer v2 refuses in a webhook, or should."""
    trainer = (job.get("spec") or {}).get("trainer") or {}
    if trainer.get("numNodes", 1) < 1:
        yield f"spec.trainer.numNodes: {trainer['numNodes']} nodes"
    for variable in trainer.get("env") or []:
        if str(variable.get("name")).startswith("PET_"):
            yield f"spec.trainer.env: {variable['name']} is the trainer's own"
    yield from _check_env(trainer.get("env") or [], "spec.trainer.env")
    yield from _check_quantities(trainer.get("resourcesPerNode") or {}, "spec.trainer.resourcesPerNode")


def check_core(thing: Object) -> Iterator[str]:
    """Check the objects of Kubernetes itself that jobs use: pods and volume claims."""
    spec = thing.get("spec") or {}
    if thing["kind"] == "Pod":
        yield from check_pod_spec(spec)
    if thing["kind"] == "PersistentVolumeClaim":
        yield from _check_quantities(spec.get("resources") or {}, "spec.resources")


def check_pod_spec(spec: Any) -> Iterator[str]:
    """Check a pod's words, names, quantities, ports and references."""
    if not isinstance(spec, dict):
        yield "spec: not a pod"
        return
    for field in ("restartPolicy", "dnsPolicy"):
        if field in spec and spec[field] not in _WORDS[field]:
            yield f"spec.{field}: {spec[field]!r} is none of {sorted(_WORDS[field])}"
    volumes = [volume.get("name") for volume in spec.get("volumes") or []]
    for name in volumes:
        if not _LABEL.fullmatch(str(name)):
            yield f"spec.volumes: {name!r} is not a valid name"
    for volume in spec.get("volumes") or []:
        yield from _check_quantities({"": volume.get("emptyDir") or {}}, f"spec.volumes.{volume.get('name')}")
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    names = [container.get("name") for container in containers]
    for kind, counted in (("volumes", volumes), ("containers", names)):
        yield from (f"spec.{kind}: {name} twice" for name, times in Counter(counted).items() if times > 1)
    for container in containers:
        place = f"spec.containers.{container.get('name')}"
        yield from (f"{place}.{problem}" for problem in _check_container(container, set(volumes)))


def _check_container(container: Object, volumes: set[str]) -> Iterator[str]:
    if not _LABEL.fullmatch(str(container.get("name"))):
        yield f"name: {container.get('name')!r} is not a valid name"
    image = container.get("image")
    if not isinstance(image, str) or not image or image != image.strip() or " " in image:
        yield f"image: {image!r} is no image"
    if container.get("imagePullPolicy", "Always") not in _WORDS["imagePullPolicy"]:
        yield f"imagePullPolicy: {container['imagePullPolicy']!r} is none of {sorted(_WORDS['imagePullPolicy'])}"
    yield from _check_env(container.get("env") or [], "env")
    yield from _check_quantities(container.get("resources") or {}, "resources")
    yield from _check_gpus(container.get("resources") or {})
    paths = Counter(mount.get("mountPath") for mount in container.get("volumeMounts") or [])
    yield from (f"volumeMounts: {path} twice" for path, times in paths.items() if times > 1)
    for mount in container.get("volumeMounts") or []:
        if mount.get("name") not in volumes:
            yield f"volumeMounts: there is no volume {mount.get('name')!r}"
        if not str(mount.get("mountPath")).startswith("/") or ":" in str(mount.get("mountPath")):
            yield f"volumeMounts: {mount.get('mountPath')!r} is no absolute path without a colon"
    for port in container.get("ports") or []:
        if port.get("containerPort") not in range(1, 65536):
            yield f"ports: {port.get('containerPort')!r} is no port"


def _check_env(variables: list[Object], place: str) -> Iterator[str]:
    for name, times in Counter(variable.get("name") for variable in variables).items():
        if not _ENV_NAME.fullmatch(str(name)):
            yield f"{place}: {name!r} is not a valid name"
        if times > 1:
            yield f"{place}: {name} twice"
    for variable in variables:
        if "value" in variable and not isinstance(variable["value"], str):
            yield f"{place}: the value of {variable.get('name')} is no text"


def _check_quantities(groups: Object, place: str) -> Iterator[str]:
    for group, amounts in groups.items():
        for name, amount in amounts.items() if isinstance(amounts, dict) else []:
            if name != "medium" and not _QUANTITY.fullmatch(str(amount)):
                yield f"{place}.{group}.{name}: {amount!r} is no quantity".replace("..", ".")


def _check_gpus(resources: Object) -> Iterator[str]:
    """Extended resources cannot be shared or overcommitted: whole numbers, and requests equal limits."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name in {*limits, *requests}:
        if "/" not in name:
            continue
        if name not in limits or requests.get(name, limits[name]) != limits[name]:
            yield f"resources: requests and limits of {name} differ"
        if not re.fullmatch(r"[0-9]+", str(limits.get(name, 0))):
            yield f"resources: {name}: {limits[name]!r} is not a whole number"

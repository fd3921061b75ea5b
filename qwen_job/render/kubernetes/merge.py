"""Merge a user's own fields into an object as kubectl's strategic merge does: lists by the key of their items.

Where Kubernetes defines no key for a list, the user's items are added to ours instead of replacing them. The chart's
``qwen-job.merge`` does the same.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from qwen_job.job.document import Path

Object = dict[str, Any]
# List -> the fields that identify its items (patchMergeKey and x-kubernetes-list-map-keys of Kubernetes' API).
KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "claims": ("name",),
    "schedulingGates": ("name",),
    "replicatedJobs": ("name",),
}
# Fields that are always mappings, and always lists; below the free ones any name is allowed.
_MAPPINGS = frozenset(
    (
        "affinity", "annotations", "capabilities", "configMap", "elasticPolicy", "emptyDir", "labels", "limits",
        "metadata", "network", "nodeAffinity", "nodeSelector", "podAffinity", "pytorchReplicaSpecs", "requests",
        "resources", "runPolicy", "runtimeRef", "schedulingPolicy", "seccompProfile", "secret", "securityContext",
        "selector", "spec", "template", "trainer", "valueFrom",
    )
)  # fmt: skip
_OF_MAPPINGS = ("envFrom", "matchExpressions", "matchFields", "nodeSelectorTerms", "tolerations")
_LISTS = frozenset((*KEYS, *_OF_MAPPINGS, "add", "args", "command", "drop"))
_FREE = frozenset(("annotations", "labels", "limits", "matchLabels", "nodeSelector", "requests"))
_DEFAULTS = {"protocol": "TCP", "whenUnsatisfiable": "DoNotSchedule"}
# A volume or variable has one source, which another one replaces.
_OF_ONE_SOURCE = ("volumes", "env")
_TERMS, _ROLES = "nodeSelectorTerms", "pytorchReplicaSpecs"


class Unmergeable(Exception):
    """The user's value at ``path`` cannot be merged: ``text`` says why, and how to fix it."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path, self.text = path, text


def merge(base: Object, layer: Object, path: Path = ()) -> Object:
    """Return ``base`` with ``layer``, the user's value at ``path``, merged into it.

    Raises:
        Unmergeable: an item of a list has no key, or another item's key; text replaces a mapping.
    """
    result = dict(base)
    for key, value in layer.items():
        where = (*path, key)
        if key.startswith("$"):
            raise Unmergeable(where, "patch directives of kubectl have no effect here; remove it")
        result[key] = _merged(key, result.get(key), value, where)
    return result


def _merged(key: str, old: Any, new: Any, path: Path) -> Any:
    known = len(path) < 2 or path[-2] not in _FREE
    for kind, what, names in ((dict, "a mapping", _MAPPINGS), (list, "a list", _LISTS)):
        wanted = isinstance(old, kind) or (known and key in names) or (kind is dict and path[-2:-1] == (_ROLES,))
        if wanted and not isinstance(new, kind):
            raise Unmergeable(path, f"must be {what}")
        if isinstance(new, kind) and old is not None and not isinstance(old, kind):
            raise Unmergeable(path, f"cannot be {what}")
    if isinstance(new, dict):
        return merge(old or {}, new, path)
    if not isinstance(new, list):
        return new
    if key in KEYS:
        return list(_by_key(key, old or [], new, path))
    for number, item in enumerate(new):
        if key in _OF_MAPPINGS and not isinstance(item, dict):
            raise Unmergeable((*path, number), "must be a mapping")
    items = [merge({}, item, (*path, n)) if isinstance(item, dict) else item for n, item in enumerate(new)]
    if key == _TERMS and old:
        # Terms are alternatives, so each of the user's must include ours.
        return [_both(mine, item) for mine in old for item in items]
    return [*(old or []), *(item for item in items if item not in (old or []))]


def _both(mine: Object, yours: Any) -> Any:
    if not isinstance(yours, dict):
        return yours
    together = {
        name: [*(mine.get(name) or []), *(yours.get(name) or [])] for name in ("matchExpressions", "matchFields")
    }
    return {**mine, **yours, **{name: items for name, items in together.items() if items}}


def _by_key(name: str, old: list[Any], new: list[Any], path: Path) -> Iterator[Any]:
    """Yield the items of ``old``, each merged with the item of ``new`` that has its key, and then the others."""
    layers: dict[tuple[str, ...], tuple[Object, Path]] = {}
    for number, item in enumerate(new):
        where = (*path, number)
        key = key_of(name, item)
        if key is None:
            raise Unmergeable(where, f"has no {KEYS[name][0]}, which identifies the items of {name}; add one")
        if key in layers:
            raise Unmergeable(where, f"appears twice ({KEYS[name][0]}: {' '.join(key)}); remove one")
        layers[key] = (item, where)
    for item in old:
        layer, where = layers.pop(key_of(name, item) or (), ({}, path))
        kept = _of_one_source(name, item, layer)
        yield merge(kept, layer, where) if layer else item
    for item, where in layers.values():
        yield merge({}, item, where)


def key_of(name: str, item: Any) -> tuple[str, ...] | None:
    """Return the key of an item of the list ``name``; None without one."""
    first, *others = KEYS[name]
    if not isinstance(item, dict) or not item.get(first) or isinstance(item[first], (dict, list)):
        return None
    value = str(item[first])
    if name == "volumeMounts":
        value = posixpath.normpath(value)
    return (value, *(str(item.get(other) or _DEFAULTS[other]) for other in others))


def _of_one_source(name: str, item: Object, layer: Object) -> Object:
    """Leave out the source of a volume or variable for which the layer has another one."""
    source = set(layer) - {"name"}
    return {"name": item["name"]} if name in _OF_ONE_SOURCE and source and not source & set(item) else item

"""Hostile text for every field of the kubernetes section that takes text, and where to find it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

TRICKS = [
    "$(touch /tmp/x)", "`id`", "'; id; '", '"', "'", "\\", "a b", " lead", "trail ", "#no", "a#b", "a: b",
    "- a", "---", "...", "{{ .Values }}", "{{ 7*7 }}", "{% raw %}", "${HOME}", "$(HOME)", "$$(X)", "yes",
    "null", "1e5", "0x1", "~", "*a", "&a", "!a", "|", ">", "%", "@", "\n", "a\n---\nb: c", "\t", "\r\n", "你好",
    "😀", "\x7f", "\x85", "\u2028", "\ufeff", "", " ", "-", ".", "..", "a/../b", "/", "a" * 64, "a" * 254, "A",
    "Aa", "a_b", "a.b", "a..b", "-a", "a-", "a/b", "a.b/c", "a/b/c", "1", "1.5", "0", "1Gi", "1GB", "08",
    "1_000", "10.0.0.0/8", "999.0.0.1/8", "::/0", "kueue:a", "volcano", "x:y", "/a", "/a b", "/a:b", "nas:/a",
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(TRICKS),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    st.from_regex(r"[a-z0-9]([-a-z0-9./]{0,12}[a-z0-9])?", fullmatch=True),
)


def _volume(**fields: str) -> dict[str, Any]:
    return {"volumes": [{"name": "shared", "mount_path": "/shared", **fields}]}


# Name -> a part of the kubernetes section that holds the text.
FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "namespace": lambda text: {"namespace": text},
    "labels (name)": lambda text: {"labels": {text: "x"}},
    "labels": lambda text: {"labels": {"team": text}},
    "annotations (name)": lambda text: {"annotations": {text: "x"}},
    "annotations": lambda text: {"annotations": {"note": text}},
    "node_selector (name)": lambda text: {"node_selector": {text: "x"}},
    "node_selector": lambda text: {"node_selector": {"pool": text}},
    "tolerations": lambda text: {"tolerations": [{"key": text, "operator": "Exists"}]},
    "tolerations (value)": lambda text: {"tolerations": [{"key": "spot", "value": text}]},
    "tolerations (effect)": lambda text: {"tolerations": [{"key": "spot", "operator": "Exists", "effect": text}]},
    "volumes (name)": lambda text: _volume(pvc="x", name=text),
    "volumes (pvc)": lambda text: _volume(pvc=text),
    "volumes (nfs)": lambda text: _volume(nfs=text),
    "volumes (host_path)": lambda text: _volume(host_path=text),
    "volumes (sub_path)": lambda text: _volume(pvc="x", sub_path=text),
    "volumes (size)": lambda text: _volume(size=text),
    "volumes (storage_class)": lambda text: _volume(size="1Ti", storage_class=text),
    "volumes (mount_path)": lambda text: {
        "volumes": [
            {"name": "shared", "mount_path": "/shared", "pvc": "x"},
            {"name": "b", "mount_path": text, "pvc": "y"},
        ]
    },
    "shm_size": lambda text: {"shm_size": text},
    "cpu": lambda text: {"cpu": text},
    "memory": lambda text: {"memory": text},
    "gpu_resource": lambda text: {"gpu_resource": text},
    "resources (name)": lambda text: {"resources": {text: "1"}},
    "resources": lambda text: {"resources": {"rdma/hca": text}},
    "gpu_products": lambda text: {"gpu_products": [text]},
    "topology": lambda text: {"topology": text},
    "spread": lambda text: {"spread": text},
    "queue": lambda text: {"queue": text},
    "priority_class": lambda text: {"priority_class": text},
    "service_account": lambda text: {"service_account": text},
    "image_pull_secrets": lambda text: {"image_pull_secrets": [text]},
    "env_from_secrets": lambda text: {"env_from_secrets": [text]},
    "secret_env": lambda text: {"secret_env": {"TOKEN": text}},
    "secret_env (name)": lambda text: {"secret_env": {text: "a/b"}},
    "egress": lambda text: {"network_policy": True, "egress": [text]},
    "prepare_account": lambda text: {"prepare": True, "prepare_account": text},
    "prepare_memory": lambda text: {"prepare": True, "prepare_memory": text},
    "pod": lambda text: {"pod": {"hostname": "h", "dnsConfig": {"searches": [text]}}},
    "pod_container": lambda text: {"pod_container": {"env": [{"name": "NOTE", "value": text}]}},
}


def leaves(value: Any) -> list[str]:
    """Return every text in a value, keys too."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *leaves(item))]
    if isinstance(value, list):
        return [text for item in value for text in leaves(item)]
    return [value] if isinstance(value, str) else []


def arrived(objects: list[dict[str, Any]], text: str) -> bool:
    """Tell whether the text is somewhere in the objects, as it is or as a part (``kueue:NAME``, ``SERVER:/PATH``)."""
    found = set(leaves([{**thing, "data": None} for thing in objects]))
    return any(
        set(parts) <= found for parts in ([text], text.split(":", 1), text.split(":", 1)[1:], text.split("/", 1))
    )

"""The Pod Security level that a pod meets: https://kubernetes.io/docs/concepts/security/pod-security-standards/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LEVELS = ("restricted", "baseline", "privileged")
_RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip


def pod_security_level(pod: dict[str, Any]) -> tuple[str, list[str]]:
    """Return ``restricted``, ``baseline`` or ``privileged`` and the reasons why it is not ``restricted``."""
    privileged, baseline = list(_beyond_baseline(pod)), list(_beyond_restricted(pod))
    level = "privileged" if privileged else "baseline" if baseline else "restricted"
    return level, list(dict.fromkeys([*privileged, *baseline]))


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]


def _beyond_baseline(pod: dict[str, Any]) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes") or []:
        if "hostPath" in volume:
            yield f"hostPath volume {volume.get('name')}"
    for container in _containers(pod):
        context = container.get("securityContext") or {}
        if context.get("privileged"):
            yield "privileged container"
        for name in (context.get("capabilities") or {}).get("add") or []:
            if name not in _BASELINE_CAPABILITIES:
                yield f"capability {name}"
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield "hostPort"
    for context in _contexts(pod):
        if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
            yield "seccomp Unconfined"


def _contexts(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [pod.get("securityContext") or {}, *(c.get("securityContext") or {} for c in _containers(pod))]


def _beyond_restricted(pod: dict[str, Any]) -> Iterator[str]:
    for volume in pod.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if not kinds <= _RESTRICTED_VOLUMES:
            yield f"{'/'.join(sorted(kinds))} volume {volume.get('name')}"
    whole = pod.get("securityContext") or {}
    for container in _containers(pod):
        context = {**whole, **(container.get("securityContext") or {})}
        capabilities = context.get("capabilities") or {}
        if context.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation"
        if "ALL" not in (capabilities.get("drop") or []):
            yield "capabilities that are not dropped"
        for name in capabilities.get("add") or []:
            if name != "NET_BIND_SERVICE":
                yield f"capability {name}"
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            yield "root user"
        if (context.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "no seccomp profile"

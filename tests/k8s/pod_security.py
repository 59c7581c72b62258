"""The Pod Security Standard `restricted` (kubernetes.io/docs/concepts/security/pod-security-standards), and two rules
of our own: a read-only root file system, and requests that are limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import containers

__all__ = ["pod_problems"]

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def pod_problems(spec: dict[str, Any]) -> list[str]:
    """What a restricted namespace would refuse in a pod, and what we would."""
    found = list(_pod_problems(spec))
    for container in containers(spec):
        found += [f"{container['name']}: {problem}" for problem in _container_problems(container, spec)]
    return found


def _pod_problems(spec: dict[str, Any]) -> Iterator[str]:
    yield from (f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= _VOLUMES:
            yield f"volume {volume['name']} is of a refused kind"
    if spec.get("securityContext", {}).get("sysctls"):
        yield "sysctls"


def _container_problems(container: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    merged = {**spec.get("securityContext", {}), **own}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "capabilities are not dropped"
    if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if merged.get("runAsNonRoot") is not True or merged.get("runAsUser", 0) == 0:
        yield "runs as root"
    if merged.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "the root file system is writable"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "hostPort"
    resources = container.get("resources", {})
    if not resources.get("limits") or resources.get("requests") != resources["limits"]:
        yield "requests are not limits"

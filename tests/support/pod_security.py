"""The Pod Security profile "restricted", evaluated on a pod's spec as Kubernetes' own admission does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
PROFILES = frozenset({"RuntimeDefault", "Localhost"})


def violations(spec: dict[str, Any]) -> list[str]:
    """Say what of a pod's spec the profile forbids; empty for a pod that may run anywhere."""
    return [*_of_pod(spec), *(one for container in _containers(spec) for one in _of_container(spec, container))]


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        container
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(kind) or ()
    ]


def _of_pod(spec: dict[str, Any]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is set"
    for volume in spec.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} is of kind {', '.join(kinds - VOLUMES)}"
    security = spec.get("securityContext") or {}
    if security.get("sysctls"):
        yield "sysctls are set"
    if security.get("runAsUser") == 0:
        yield "the pod runs as root"


def _of_container(spec: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    own, pod = container.get("securityContext") or {}, spec.get("securityContext") or {}
    capabilities = own.get("capabilities") or {}
    probes = [container.get(probe) or {} for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    asked = [probe.get(way) or {} for probe in probes for way in ("httpGet", "tcpSocket")]
    forbidden = {
        "is privileged": own.get("privileged"),
        "may escalate its privileges": own.get("allowPrivilegeEscalation") is not False,
        "may run as root": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True,
        "runs as root": own.get("runAsUser") == 0,
        "has an unusual procMount": own.get("procMount", "Default") != "Default",
        "has no seccomp profile": own.get("seccompProfile", pod.get("seccompProfile") or {}).get("type")
        not in PROFILES,
        "keeps capabilities": "ALL" not in (capabilities.get("drop") or ()),
        "adds capabilities": set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"},
        "takes a port of its node": any(port.get("hostPort") for port in container.get("ports") or ()),
        "has a probe that asks another host": any(one.get("host") for one in asked),
    }
    return (f"{container['name']} {what}" for what, broken in forbidden.items() if broken)

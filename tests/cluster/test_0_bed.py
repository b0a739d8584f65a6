"""The cluster under the other tests is what they take it for."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from support.cluster_bed import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

PORT, PATH = 8090, "/api/v3/time"


def server(image: str, **spec: Any) -> str:
    """Write the manifest of a pod that answers over HTTP: an exchange."""
    container = {
        "name": "server",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["exchange", "--loop", "--http-host", "0.0.0.0", "--http-port", str(PORT)],
        "readinessProbe": {"httpGet": {"path": PATH, "port": PORT}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    whole = {"terminationGracePeriodSeconds": 0, "securityContext": security, "containers": [container], **spec}
    metadata = {"name": "server", "labels": {"app": "server"}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": whole})


def answers(address: str) -> bool:
    """Say whether the server answers at a pod's address."""
    with urllib.request.urlopen(f"http://{address}:{PORT}{PATH}", timeout=3) as answer:
        return bool(answer.status == 200)


def test_three_zones_of_one_node(cluster: Cluster) -> None:
    """Zones a, b and c have a worker each, and the control plane belongs to none."""
    cluster.needs_own_machines("its zones are named otherwise")
    zones = cluster.zones

    assert ["a", "b", "c"] == list(zones)
    assert 3 == len(set(zones.values()))


def test_pods_are_reached(cluster: Cluster, namespace: Callable[[str], str], image: str) -> None:
    """A pod that keeps to "restricted" runs, finds others by name, and answers on its address; exec and logs work."""
    cluster.needs_own_machines("its pods' addresses need not be reached from here")
    place = namespace("bed")
    cluster.kubectl("-n", place, "apply", "-f", "-", input=server(image))
    cluster.kubectl("-n", place, "expose", "pod", "server", "--port=8090")

    cluster.kubectl("-n", place, "wait", "pod/server", "--for=condition=Ready", "--timeout=90s")

    address = cluster.json("-n", place, "pod/server")["status"]["podIP"]
    assert answers(address)
    found = cluster.kubectl("-n", place, "exec", "server", "--", "getent", "hosts", f"server.{place}.svc")
    assert f"server.{place}.svc.cluster.local" in found
    assert "exchange listening" in cluster.kubectl("-n", place, "logs", "server")


def test_an_unrestricted_pod_is_refused(cluster: Cluster, namespace: Callable[[str], str]) -> None:
    """The namespaces of the tests enforce Pod Security "restricted"."""
    said = cluster.kubectl("-n", namespace("strict"), "run", "root", "--image=localhost/x:1", check=False)

    assert 'violates PodSecurity "restricted' in said


def test_a_zone_comes_back(cluster: Cluster, namespace: Callable[[str], str], image: str) -> None:
    """A node that lost its power is ready again after it is switched on, and its pods are reached again."""
    cluster.needs_own_machines("a node is a container here")
    place, node = namespace("power"), cluster.zones["c"]
    cluster.kubectl("-n", place, "apply", "-f", "-", input=server(image, nodeName=node))
    cluster.kubectl("-n", place, "wait", "pod/server", "--for=condition=Ready", "--timeout=90s")
    before = cluster.json("-n", place, "pod/server")["status"]["containerStatuses"][0]["restartCount"]

    cluster.power_off("c")
    cluster.power_on("c")

    def again() -> bool:
        status = cluster.json("-n", place, "pod/server")["status"]
        if not status["containerStatuses"][0]["ready"] or status["containerStatuses"][0]["restartCount"] == before:
            return False
        return answers(status["podIP"])

    cluster.wait(again, 90, "the pod answers again")

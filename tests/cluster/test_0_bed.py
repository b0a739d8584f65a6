"""The cluster under the other tests is what they take it for."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest

from cluster_bed import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

SERVER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "server", "labels": {"app": "server"}},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "server",
                "imagePullPolicy": "Never",
                "args": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data"],
                "ports": [{"containerPort": 9090}],
                "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
    },
}


def test_three_zones_of_one_node(cluster: Cluster) -> None:
    """Zones a, b and c have a worker each, and the control plane belongs to none."""
    zones = cluster.zones

    assert ["a", "b", "c"] == list(zones)
    assert 3 == len(set(zones.values()))


def test_pods_are_reached(cluster: Cluster, namespace: Callable[[str], str], prometheus_image: str) -> None:
    """A pod that keeps to "restricted" runs, finds others by name, and answers on its address; exec and logs work."""
    place = namespace("bed")
    pod = json.loads(json.dumps(SERVER))
    pod["spec"]["containers"][0]["image"] = prometheus_image
    cluster.kubectl("-n", place, "apply", "-f", "-", input=json.dumps(pod))
    cluster.kubectl("-n", place, "expose", "pod", "server", "--port=9090")

    cluster.kubectl("-n", place, "wait", "pod/server", "--for=condition=Ready", "--timeout=90s")

    address = cluster.json("-n", place, "pod/server")["status"]["podIP"]
    with urllib.request.urlopen(f"http://{address}:9090/-/healthy", timeout=5) as answer:
        assert 200 == answer.status
    found = cluster.kubectl("-n", place, "exec", "server", "--", "getent", "hosts", f"server.{place}.svc")
    assert f"server.{place}.svc.cluster.local" in found
    assert "ready to receive web requests" in cluster.kubectl("-n", place, "logs", "server")


def test_an_unrestricted_pod_is_refused(cluster: Cluster, namespace: Callable[[str], str]) -> None:
    """The namespaces of the tests enforce Pod Security "restricted"."""
    said = cluster.kubectl("-n", namespace("strict"), "run", "root", "--image=localhost/x:1", check=False)

    assert 'violates PodSecurity "restricted' in said


def test_a_zone_comes_back(cluster: Cluster, namespace: Callable[[str], str], prometheus_image: str) -> None:
    """A node that lost its power is ready again after it is switched on, and its pods are reached again."""
    place, node = namespace("power"), cluster.zones["c"]
    pod = json.loads(json.dumps(SERVER))
    pod["spec"]["containers"][0]["image"] = prometheus_image
    pod["spec"]["nodeName"] = node
    cluster.kubectl("-n", place, "apply", "-f", "-", input=json.dumps(pod))
    cluster.kubectl("-n", place, "wait", "pod/server", "--for=condition=Ready", "--timeout=90s")
    before = cluster.json("-n", place, "pod/server")["status"]["containerStatuses"][0]["restartCount"]

    cluster.power_off("c")
    cluster.power_on("c")

    def again() -> bool:
        status = cluster.json("-n", place, "pod/server")["status"]
        if not status["containerStatuses"][0]["ready"] or status["containerStatuses"][0]["restartCount"] == before:
            return False
        with urllib.request.urlopen(f"http://{status['podIP']}:9090/-/healthy", timeout=3) as answer:
            return bool(answer.status == 200)

    cluster.wait(again, 90, "the pod answers again")

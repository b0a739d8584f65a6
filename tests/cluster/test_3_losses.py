"""What a cluster can lose without a missed slot: each pod in turn, each child, the leading operator."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from support.cluster_parts import Running, reading, ready
from support.cluster_reader import reading_service

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

OPERATORS = "sheetanchor-system"


def redis_master(btc: Running) -> str:
    """Name of the pod that Redis is written on."""
    return str(btc.status["redis"]["master"]).split(".")[0]


VICTIMS = {
    "ingest": lambda btc: btc.pods("ingest")[0]["metadata"]["name"],
    "the active processor": lambda btc: btc.active(),
    "the warm processor": lambda btc: next(
        pod["metadata"]["name"] for pod in btc.pods("process") if pod["metadata"]["name"] != btc.active()
    ),
    "infer": lambda btc: btc.pods("infer")[0]["metadata"]["name"],
    "a redis replica": lambda btc: next(
        pod["metadata"]["name"] for pod in btc.pods("redis") if pod["metadata"]["name"] != redis_master(btc)
    ),
    "the redis master": redis_master,
}


def crash(btc: Running, name: str) -> None:
    """Kill a pod's first container on its node, with a signal that it cannot handle; its kubelet restarts it."""
    container = json.loads(btc.kubectl("get", "pod", name, "-o", "json"))["spec"]["containers"][0]["name"]

    def starts() -> int:
        statuses = json.loads(btc.kubectl("get", "pod", name, "-o", "json"))["status"]["containerStatuses"]
        return int(next(one["restartCount"] for one in statuses if one["name"] == container))

    before = starts()
    btc.cluster.kill(btc.namespace, name, container)
    # An earlier test may have killed it too: its kubelet waits 10 s before the second start, then 20, then 40.
    btc.wait(lambda: starts() > before, 90, f"{container} of {name} is started anew")


def delete(btc: Running, name: str) -> None:
    """Delete a pod without grace: another one takes its place, perhaps elsewhere."""
    btc.kubectl("delete", "pod", name, "--grace-period=0", "--force")


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("kill", [delete, crash])
def test_losing_a_pod_costs_no_slot(
    btc: Running, image: str, victim: str, kill: Callable[[Running, str], None]
) -> None:
    """However a pod ends, no slot is missed, a client of the Service misses one at most, and all is sound again."""
    btc.until_sound()
    name = VICTIMS[victim](btc)

    with reading_service(btc, image), reading(btc.api, btc.namespace, btc.name) as reader:
        kill(btc, name)
        time.sleep(5)
        took_s = btc.until_sound(120)

    unsound = sorted(slot for slot, record in reader.seen.items() if record["degraded"] and slot >= reader.first)
    print(f"{victim}, {kill.__name__}: sound again after {took_s + 5:.0f} s, {len(unsound)} degraded slots")


CHILDREN = [
    "deployment",
    "statefulset",
    "service",
    "poddisruptionbudget",
    "networkpolicy",
    "serviceaccount",
    "role",
    "rolebinding",
    "configmap",
    "secret",
]


@pytest.mark.parametrize("kind", CHILDREN)
def test_deleted_children_are_back(btc: Running, kind: str) -> None:
    """Deleted objects are created again, all of a kind at once, owned by the pipeline; prints after how long."""
    selector = f"sheetanchor.dev/pipeline={btc.name},app.kubernetes.io/component!=reanchor"

    def there() -> dict[str, dict[str, Any]]:
        items = json.loads(btc.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
        return {item["metadata"]["name"]: item["metadata"] for item in items}

    before = there()
    assert before, f"no {kind} belongs to the pipeline"
    # Pods stay: the question is who makes the object again, not what becomes of its pods.
    orphaned = ["--cascade=orphan"] if kind in ("deployment", "statefulset") else []

    btc.kubectl("delete", kind, *before, "--wait=false", *orphaned)

    def are_back() -> bool:
        now = there()
        return before.keys() == now.keys() and all(
            meta["uid"] != before[name]["uid"] and meta["ownerReferences"][0]["name"] == btc.name
            for name, meta in now.items()
        )

    took_s = btc.wait(are_back, 5, f"{', '.join(before)} are back")
    print(f"{kind}: {len(before)} back after {took_s:.1f} s")


def leader(btc: Running) -> str:
    """Who holds the Lease: the operator's pod, and a part that is another one after each start."""
    leases = json.loads(btc.cluster.kubectl("-n", OPERATORS, "get", "lease", "-o", "json"))["items"]
    holder = next(
        lease["spec"].get("holderIdentity", "") for lease in leases if "sheetanchor" in lease["metadata"]["name"]
    )
    return str(holder)


@pytest.mark.parametrize("kill", [delete, crash])
def test_losing_the_leading_operator(btc: Running, kill: Callable[[Running, str], None]) -> None:
    """However the leader ends, another one acts; the test prints after how long."""
    first = leader(btc)
    assert first
    kill(Running(btc.cluster, OPERATORS), first.partition("_")[0])
    killed_s = time.monotonic()
    btc.kubectl("delete", "service", f"{btc.name}-infer")

    btc.wait(
        lambda: bool(btc.kubectl("get", "service", f"{btc.name}-infer", "--ignore-not-found").strip()),
        20,
        "another operator acts",
    )

    print(f"another operator acted after {time.monotonic() - killed_s:.1f} s")
    assert leader(btc) != first
    btc.wait(
        lambda: sum(map(ready, btc.api.pods(OPERATORS, "app.kubernetes.io/name=sheetanchor"))) >= 2,
        60,
        "both operators are ready",
    )

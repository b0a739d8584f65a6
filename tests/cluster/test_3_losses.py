"""What a cluster can lose without a missed slot: each pod in turn, each child, the leading operator."""

from __future__ import annotations

import json
import time

import pytest

from cluster_parts import Running, reading, ready

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


@pytest.mark.parametrize("victim", VICTIMS)
def test_losing_a_pod_costs_no_slot(btc: Running, victim: str) -> None:
    """A pod is killed without grace: no slot is missed, and the pipeline is sound again."""
    btc.until_sound()
    name = VICTIMS[victim](btc)

    with reading(btc.api, btc.namespace, btc.name) as reader:
        btc.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        time.sleep(5)
        took_s = btc.until_sound(120)

    unsound = sorted(slot for slot, record in reader.seen.items() if record["degraded"] and slot >= reader.first)
    print(f"{victim}: sound again after {took_s + 5:.0f} s, {len(unsound)} degraded slots")


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
]


@pytest.mark.parametrize("kind", CHILDREN)
def test_a_deleted_child_is_back(btc: Running, kind: str) -> None:
    """Whatever somebody deletes is there again within five seconds, owned by the pipeline."""
    found = json.loads(btc.kubectl("get", kind, "-l", f"sheetanchor.dev/pipeline={btc.name}", "-o", "json"))["items"]
    assert found, f"no {kind} belongs to the pipeline"
    child = found[-1]["metadata"]

    btc.kubectl(
        "delete",
        kind,
        child["name"],
        "--wait=false",
        *(["--cascade=orphan"] if kind in ("deployment", "statefulset") else []),
    )

    def is_back() -> bool:
        now = json.loads(btc.kubectl("get", kind, child["name"], "-o", "json", "--ignore-not-found") or "{}")
        meta = now.get("metadata", {})
        return bool(meta) and meta["uid"] != child["uid"] and meta["ownerReferences"][0]["name"] == btc.name

    took_s = btc.wait(is_back, 5, f"{kind} {child['name']} is back")
    print(f"{kind}: back after {took_s:.1f} s")


def leader(btc: Running) -> str:
    """Name of the operator pod that holds the Lease."""
    leases = json.loads(btc.cluster.kubectl("-n", OPERATORS, "get", "lease", "-o", "json"))["items"]
    holder = next(
        lease["spec"].get("holderIdentity", "") for lease in leases if "sheetanchor" in lease["metadata"]["name"]
    )
    return str(holder).split("_")[0]


def test_losing_the_leading_operator(btc: Running) -> None:
    """The leader is killed without grace: another one acts within twenty seconds."""
    first = leader(btc)
    assert first
    btc.cluster.kubectl("-n", OPERATORS, "delete", "pod", first, "--grace-period=0", "--force")
    killed_s = time.monotonic()
    btc.kubectl("delete", "service", f"{btc.name}-infer")

    btc.wait(
        lambda: bool(btc.kubectl("get", "service", f"{btc.name}-infer", "--ignore-not-found").strip()),
        20,
        "another operator acts",
    )

    print(f"another operator acted after {time.monotonic() - killed_s:.1f} s")
    assert leader(btc) != first
    pods = btc.api.pods(OPERATORS, "app.kubernetes.io/name=sheetanchor")
    btc.wait(
        lambda: sum(map(ready, btc.api.pods(OPERATORS, "app.kubernetes.io/name=sheetanchor"))) >= 2,
        60,
        f"both operators ({len(pods)})",
    )

"""Pods that share a zone are evicted on a real API server: one at a time, as budgets allow, less and less often."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.controller.respread import AGAIN_S, SHARED_FOR_US, Respread
from sheetanchor_operator.kube.api_client import POD, ApiUnavailable, Cluster
from sheetanchor_operator.names import Component, labels_of
from support.apiserver import ApiServer
from support.operator_looks import create
from support.pipeline_parts import NOW_US, ZONES, judged, pipeline, sound
from support.topology_parts import WELL, seen
from support.zone_pods import MERGE

SELECTOR = {"matchLabels": {"app.kubernetes.io/instance": "btc"}}


def make_pod(server: ApiServer, where: str, name: str) -> str:
    """Create a pod on a node; gives its uid."""
    metadata = {"name": name, "namespace": where, "labels": labels_of("btc", Component.INFER)}
    spec = {"containers": [{"name": "one", "image": "none"}], "automountServiceAccountToken": False, "nodeName": "n"}
    made = create(server, where, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return str(made["metadata"]["uid"])


def goes(server: ApiServer, where: str, name: str) -> bool:
    return "deletionTimestamp" in server.ask(POD.path(where, name))["metadata"]


async def test_a_budget_holds(server: ApiServer, where: str, cluster: Cluster) -> None:
    """What it does not allow is not done; another pod of the name is not evicted; one that is gone is no error."""
    uid = make_pod(server, where, "p")
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b", "namespace": where}}
    create(server, where, {**budget, "spec": {"maxUnavailable": 1, "selector": SELECTOR}})
    server.ask(
        f"{POD.path(where, 'p')}/status", method="PATCH", body={"status": {"phase": "Running"}}, content_type=MERGE
    )
    with pytest.raises(ApiUnavailable):
        await cluster.evict(where, "p", uid)
    assert not goes(server, where, "p")

    server.ask(f"/apis/policy/v1/namespaces/{where}/poddisruptionbudgets/b", method="DELETE")
    assert not await cluster.evict(where, "p", "another")
    assert not await cluster.evict(where, "nobody", uid)
    assert await cluster.evict(where, "p", uid)
    assert goes(server, where, "p")


def shared(observed: Any, since_us: int, **changes: Any) -> dict[str, Any]:
    """Give the status of a pipeline whose pods have shared a zone since a moment."""
    status = judged(observed)
    for condition in status["conditions"]:
        condition["lastTransitionTime"] = text_of(NOW_US - since_us)
    return {**status, **changes}


async def test_one_pod_is_moved_and_then_none_for_ten_minutes(server: ApiServer, where: str, cluster: Cluster) -> None:
    """After two minutes of sharing, with everything else as it should be."""
    for number in range(3):
        make_pod(server, where, f"btc-infer-{number}")
    crowded = seen(infer=(ZONES[0], ZONES[0], ZONES[0]))
    for one in crowded.pods:
        one["metadata"].pop("uid", None)
    respread, of = Respread(cluster), pipeline(namespace=where)

    async def evicted(status: dict[str, Any], now_s: float) -> str:
        event = await respread.move(of, crowded, status, now_s)
        return "" if event is None else event.message.split(",")[0]

    long = shared(crowded, SHARED_FOR_US)
    assert "" == await evicted(shared(crowded, SHARED_FOR_US - 1_000_000), 0)
    assert "" == await evicted({**long, "phase": "Degraded"}, 0)
    assert "evicts btc-infer-2" == await evicted(long, 0)
    assert [False, False, True] == [goes(server, where, f"btc-infer-{number}") for number in range(3)]
    assert "" == await evicted(long, AGAIN_S - 1)
    assert "evicts btc-infer-2" == await evicted(long, AGAIN_S)
    assert "" == await evicted(long, 2 * AGAIN_S), "twice as long after the second time"

    spread = sound(usable_zones=ZONES, zone_verdicts=WELL)
    await respread.move(of, spread, shared(seen(), SHARED_FOR_US), 2 * AGAIN_S)
    assert "evicts btc-infer-2" == await evicted(long, 2 * AGAIN_S), "it was spread meanwhile"

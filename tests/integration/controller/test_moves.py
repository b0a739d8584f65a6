"""People move a pipeline: a real operator's reconciles on a real API server, a real Redis set and real processors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import free_port_number
from sheetanchor_operator.kube.api_client import Cluster
from sheetanchor_operator.names import EVACUATE_ANNOTATION, SWITCHOVER_ANNOTATION, Component
from support.apiserver import ApiServer
from support.moved_pipeline import MovedPipeline
from support.operator_looks import there
from support.pipeline import request
from support.replicated_path import SYMBOL, HotPath, hot_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WITHIN_S = 120.0


@pytest.fixture
def path(tmp_path: Path) -> Iterator[HotPath]:
    """A running hot path on a replicated Redis."""
    with hot_path(tmp_path) as running:
        yield running


@pytest.fixture
async def moved(server: ApiServer, cluster: Cluster, where: str, path: HotPath) -> AsyncIterator[MovedPipeline]:
    """Its pods in three zones, and the operator."""
    pipeline = MovedPipeline(server, cluster, where, path)
    try:
        await pipeline.make()
        yield pipeline
    finally:
        await pipeline.aclose()


async def until(moved: MovedPipeline, condition: Callable[[Mapping[str, Any]], bool], what: str) -> Mapping[str, Any]:
    """Reconcile until a condition of the status holds; gives the status."""
    deadline_s = asyncio.get_running_loop().time() + WITHIN_S
    while not condition(status := await moved.look()):
        assert asyncio.get_running_loop().time() < deadline_s, f"not within {WITHIN_S:g} s: {what}; {status}"
        await asyncio.sleep(0.2)
    return status


def ended(request: str, phase: str = "Done") -> Callable[[Mapping[str, Any]], bool]:
    """Say whether a request has ended so; one that has ended otherwise is a failure at once."""

    def has(status: Mapping[str, Any]) -> bool:
        found = status.get("failover") or {}
        over = found.get("request") == request and found.get("phase") != "Running"
        assert not over or found["phase"] == phase, found
        return over

    return has


def is_warm(port: int) -> bool:
    """Say whether a processor has read the stored state."""
    try:
        found = request(f"http://127.0.0.1:{port}/state")["symbols"][SYMBOL]
    except OSError:
        return False
    return bool(found["connected"] and found["state"] == "anchored")


def kept_out(moved: MovedPipeline, name: str) -> list[str]:
    """Name the zones that a Deployment's pods are kept out of."""
    affinity = there(moved.server, moved.where, "Deployment", name)["spec"]["template"]["spec"]["affinity"]
    terms = affinity.get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    return [
        zone
        for term in terms.get("nodeSelectorTerms", ())
        for one in term["matchExpressions"]
        if (one["key"], one["operator"]) == ("topology.kubernetes.io/zone", "NotIn")
        for zone in one["values"]
    ]


async def test_a_pipeline_goes_to_a_zone_leaves_it_and_may_come_back(moved: MovedPipeline, path: HotPath) -> None:
    """A switchover, a refusal, and an evacuation that another replica of the operator ends; no slot is missed.

    Each has a term above all before, and the steps with their times; pods are kept out until the annotation is gone.
    """
    second = free_port_number()
    path.role("process-2", "process", second, "--self-reanchor-after-s", "0")
    await asyncio.to_thread(path.members.wait, lambda: is_warm(second), 60, "the standby has read the state")
    first = await asyncio.to_thread(path.port_of, "process")
    [master] = path.members.masters()
    letters = [letter for letter in "abc" if letter != "b"]
    for number, run in enumerate(path.members.servers):
        letter = "b" if number == master else letters.pop()
        await moved.make_pod(f"btc-redis-{number}", letter, Component.REDIS, run.http_port)
    await moved.make_pod("btc-process-1", "b", Component.PROCESS, first)
    await moved.make_pod("btc-process-2", "c", Component.PROCESS, second)
    for number, letter in enumerate("bc"):
        await moved.make_pod(f"btc-infer-{number}", letter, Component.INFER, path.replicas[number])
    b, c = moved.zones["b"], moved.zones["c"]
    before = await until(moved, lambda status: status.get("activeZone") == b, "the operator knows who writes")
    slot = path.last_slot

    await moved.annotate(SWITCHOVER_ANNOTATION, f"{c}/1")
    status = await until(moved, ended(f"{c}/1"), "the switchover")
    failover = status["failover"]
    assert (c, b, "Switchover") == (status["activeZone"], failover["fromZone"], failover["kind"])
    assert before["term"] < failover["term"] <= status["term"]
    assert {"Intent", "Fence", "Redis", "Verify"} == {one["name"] for one in failover["steps"]}
    assert all(one["startedAt"] <= one["finishedAt"] for one in failover["steps"])
    assert [master] != path.members.masters()
    print([(one["name"], one["startedAt"], one["finishedAt"], one["message"]) for one in failover["steps"]])

    await moved.annotate(SWITCHOVER_ANNOTATION, "nowhere/1")
    refused = (await until(moved, ended("nowhere/1", "Refused"), "the refusal"))["failover"]
    assert "zone 'nowhere' is none in which pods of this pipeline can run" in refused["message"]

    await moved.annotate(EVACUATE_ANNOTATION, c)
    begun = await until(moved, lambda status: status.get("evacuatedZone") == c, "pods are kept out of the zone")
    assert ("Running", "Readers") == (begun["failover"]["phase"], begun["failover"]["step"])
    await moved.another_leads()
    await until(moved, lambda _: {c} == {*kept_out(moved, "btc-process"), *kept_out(moved, "btc-infer")}, "templates")
    for name, component, port in (
        ("btc-process-3", Component.PROCESS, second),
        ("btc-infer-3", Component.INFER, path.replicas[1]),
    ):
        await moved.make_pod(name, "a", component, port)
    for name in ("btc-process-2", "btc-infer-1"):
        await moved.remove_pod(name)
    status = await until(moved, ended(c), "the evacuation")
    # Either of the two may write: while writes were paused they were equally free to take over.
    assert c == status["evacuatedZone"]
    assert c != status["activeZone"]
    assert status["failover"]["term"] > failover["term"]
    # Sentinels may promote the one there once more: that is moved again, once a minute.
    async with asyncio.timeout(240):
        while any([await zone_of(moved, f"btc-redis-{one}") == c for one in path.members.masters()]):
            await asyncio.sleep(0.2)

    await moved.annotate(EVACUATE_ANNOTATION, None)
    await until(moved, lambda status: "evacuatedZone" not in status, "the zone is readmitted")
    await until(moved, lambda _: not kept_out(moved, "btc-process") and not kept_out(moved, "btc-infer"), "templates")

    slots = range(slot, path.last_slot + 1)
    print("degraded:", [path.records[slot]["reason"] for slot in slots if not path.is_sound(slot)])
    assert [] == [one for one in slots if one not in path.records]
    events = (await moved.ask(f"/apis/events.k8s.io/v1/namespaces/{moved.where}/events"))["items"]
    reasons = {one["reason"] for one in events}
    assert {"FailoverStarted", "FailoverStep", "FailoverDone", "FailoverRefused"} <= reasons
    assert {"ZoneEvacuated", "ZoneReadmitted"} <= reasons


async def zone_of(moved: MovedPipeline, name: str) -> str:
    """Give the zone that a pod is in."""
    return str((await moved.ask(f"/api/v1/namespaces/{moved.where}/pods/{name}"))["spec"]["nodeName"])

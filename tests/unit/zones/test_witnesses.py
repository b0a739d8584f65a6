"""Which pods are polled to find out whether a zone answers, and how their answers are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.names import Component, labels_of
from sheetanchor_operator.zones.judge import Voice, ZoneAnswers
from sheetanchor_operator.zones.witnesses import (
    SAMPLE_MAX,
    SUSPECTS_MAX,
    PodFacts,
    answers_of,
    by_zone,
    pod_facts,
    sample,
    speakers,
    suspects,
    voices_of,
)

NODES = {"n-a": "a", "n-a2": "a", "n-b": "b", "n-c": "c"}


def body(component: Component = Component.INFER, **status: Any) -> dict[str, Any]:
    metadata = {
        "name": "btc-x",
        "namespace": "market",
        "uid": "u",
        "resourceVersion": "7",
        "labels": labels_of("btc", component),
    }
    ready = {"type": "Ready", "status": "True"}
    told = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [ready], **status}
    return {"metadata": metadata, "spec": {"nodeName": "n-a"}, "status": told}


def facts(name: str, node: str = "n-a", component: Component = Component.INFER, pipeline: str = "btc") -> PodFacts:
    return PodFacts("market", name, name, "1", pipeline, component, node, "10.0.0.1", True, False, True, False, True)


def test_a_sentinel_speaks_while_its_server_is_without_a_master() -> None:
    """This happens when a zone is lost. A Sentinel that starts has reached no peer, and would report all as down."""
    unready = {"conditions": condition("False", "ContainersNotReady")}
    containers = [{"name": "redis", "ready": False}, {"name": "sentinel", "ready": False, "started": True}]
    speaks, starts = (
        pod_facts(body(Component.REDIS, **unready, containerStatuses=statuses))
        for statuses in (containers, [{"name": "sentinel", "ready": False, "started": False}])
    )

    assert speaks is not None
    assert starts is not None
    assert speaks.may_speak
    assert not speaks.is_witness
    assert not starts.may_speak


def condition(status: str, reason: str = "") -> list[dict[str, str]]:
    return [{"type": "Ready", "status": status, "reason": reason}]


@pytest.mark.parametrize(
    ("witness", "change"),
    [
        (True, {}),
        (False, {"conditions": condition("False", "ContainersNotReady")}),
        (False, {"conditions": []}),
        (False, {"podIP": ""}),
        (False, {"phase": "Pending"}),
        (True, {"conditions": condition("False", "ZoneUnreachable")}),
    ],
)
def test_starting_and_unready_pods_are_no_witnesses(witness: bool, change: dict[str, Any]) -> None:
    """But one that an operator has withdrawn is: its kubelet has last said that it is ready."""
    found = pod_facts(body(**change))

    assert found is not None
    assert witness is found.is_witness


def test_an_ending_pod_is_no_witness() -> None:
    """It may stop answering at any moment, and is meant to."""
    ending = body()
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    found = pod_facts(ending)

    assert found is not None
    assert not found.is_witness


def test_runs_of_re_anchors_do_not_count() -> None:
    """They serve no clients; and a pod that has ended does not count."""
    assert pod_facts(body(Component.REANCHOR)) is None
    assert pod_facts(body(phase="Failed")) is None


PODS = st.lists(
    st.builds(
        facts,
        st.uuids().map(str),
        st.sampled_from(["n-a", "n-a2", "n-b"]),
        st.sampled_from([Component.INFER, Component.INGEST, Component.REDIS]),
        st.sampled_from(["btc", "eth", "sol"]),
    ),
    max_size=60,
    unique_by=lambda pod: pod.uid,
)


@given(PODS)
def test_a_sample_is_small_and_spread(pods: list[PodFacts]) -> None:
    """At most eight pods, on as many nodes as there are; the same ones each time."""
    chosen = sample(pods)

    assert min(SAMPLE_MAX, len(pods)) == len(chosen)
    assert min(len(chosen), len({pod.node for pod in pods})) == len({pod.node for pod in chosen})
    assert chosen == sample(reversed(pods))


def test_a_thousand_pipelines_cost_what_one_does() -> None:
    """Eight questions a zone and second; in suspicion one on each node first, and a bound."""
    pods = [facts(f"p{n}", f"node{n % 300}", pipeline=f"btc{n}") for n in range(3_000)]

    assert SAMPLE_MAX == len(sample(pods))
    assert SUSPECTS_MAX == len(suspects(pods))
    assert SUSPECTS_MAX == len({pod.node for pod in suspects(pods)})
    assert not answers_of(pods, suspects(pods), set()).complete


def test_a_zone_is_all_nodes_that_hold_pods_of_ours() -> None:
    """A node whose pods are starting was not polled, so the round does not cover the whole zone."""
    first, second = facts("p0"), facts("p1", "n-a2")
    starting = replace(second, ready=False)

    assert ZoneAnswers(2, 2, 1, True) == answers_of([first, second], [first, second], {"p1"})
    assert ZoneAnswers(2, 1, 0, False) == answers_of([first, starting], [first], set())
    assert answers_of([first, replace(starting, ending=True)], [first], set()).complete


def test_zones_without_pods_are_named() -> None:
    """So that a zone that was lost with its pods is still known."""
    assert {"a": [], "b": [facts("p", "n-b")], "c": []} == by_zone([facts("p", "n-b"), facts("q", "gone")], NODES)


REDIS = {
    ("market", f"btc-redis-{n}"): facts(f"btc-redis-{n}", f"n-{zone}", Component.REDIS) for n, zone in enumerate("abc")
}


def said(**words: Any) -> dict[str, Any]:
    def address(n: int, port: int) -> str:
        return f"btc-redis-{n}.btc-redis.market.svc.cluster.local:{port}"

    calm = {
        "tilt": False,
        "age_ms": 100,
        "servers": {address(0, 6379): True, address(1, 6379): True, address(2, 6379): False},
        "sentinels": {address(0, 26379): True, address(2, 26379): False},
    }
    return {**calm, **words}


@pytest.mark.parametrize(
    ("voices", "words"),
    [
        ([Voice("b", "a", False), Voice("b", "c", True)], said()),
        ([], said(tilt=True)),
        ([], said(age_ms=2_001)),
        ([], said(age_ms=None)),
        ([Voice("b", "c", True)], said(servers={"btc-redis-2.x:6379": None}, sentinels={"btc-redis-2.x:1": False})),
        ([Voice("b", "c", False)], said(servers={"btc-redis-2.x:6379": True}, sentinels={"btc-redis-2.x:1": False})),
        ([], said(servers={"btc-redis-2.x:6379": None}, sentinels={})),
        ([], said(servers={"somebody.x:6379": False}, sentinels={})),
        ([], said(servers=["nonsense"], sentinels=7)),
        ([], {}),
    ],
)
def test_what_a_sentinel_says(voices: list[Voice], words: dict[str, Any]) -> None:
    """It reports on zones by the pods that it knows there; a single one that it reaches shows the zone to be alive."""
    assert voices == voices_of(REDIS["market", "btc-redis-1"], "b", words, REDIS, NODES)


def test_a_sentinel_does_not_speak_of_pods_that_end() -> None:
    """They stop answering, and are meant to."""
    pods = {**REDIS, ("market", "btc-redis-2"): replace(REDIS["market", "btc-redis-2"], ending=True)}

    assert [Voice("b", "a", False)] == voices_of(REDIS["market", "btc-redis-1"], "b", said(), pods, NODES)


def test_sentinels_of_third_zones_are_asked() -> None:
    """Of pipelines with a node in the silent zone; not the operator's own zone, which is no independent place."""
    other = facts("eth-redis-0", "n-b", Component.REDIS, "eth")
    zones = by_zone([*REDIS.values(), other, facts("btc-infer", "n-b")], NODES)

    assert ["btc-redis-1"] == [pod.name for pod in speakers(zones, {"c"}, "a")]
    assert [] == speakers(zones, {"b", "c"}, "a")

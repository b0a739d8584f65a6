"""Zones are those in which a pipeline's pods can run, and do not come and go with a node's pulse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.kube.cache import Cache
from sheetanchor_operator.names import Component
from sheetanchor_operator.observation import Observed, Refusal
from sheetanchor_operator.zones.lines import lines, names_of_lines
from sheetanchor_operator.zones.schedulable_zones import node_of, usable_zones
from support.pipeline_parts import NOW_US, pipeline, pod

CONTROL = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
GPU = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
NOT_READY = [
    {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"},
    {"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"},
]
CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
TRADING = {"nodeSelector": {"pool": "trading"}}


def node(name: str, zone: str, *taints: dict[str, str], cordoned: bool = False, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "uid": name, "labels": {"topology.kubernetes.io/zone": zone, **labels}}
    spec = {"taints": list(taints), "unschedulable": cordoned}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}


def seen(*nodes: dict[str, Any], scheduling: dict[str, Any] | None = None, **more: Any) -> Observed:
    cache = Cache()
    for one in nodes:
        cache.put(one)
    spec = pipeline({"scheduling": scheduling or {}}).spec.scheduling
    zones = tuple(sorted(set(cache.node_zones().values())))
    return Observed(NOW_US, zones=zones, usable_zones=usable_zones(cache.nodes().values(), spec), **more)


CLUSTER = (
    *(node(f"control-{zone}", zone, CONTROL) for zone in "abc"),
    *(node(f"trading-{zone}", zone, pool="trading") for zone in "bce"),
    node("gpu-d", "d", GPU),
)


def test_only_what_pods_can_use_counts() -> None:
    """Control planes, a tainted pool and nodes that the selector leaves out make no line."""
    found = lines(pipeline({"scheduling": TRADING}), seen(*CLUSTER, scheduling=TRADING))

    assert [("b", True), ("c", True), ("e", True)] == [(one.name, one.bound) for one in found]


@pytest.mark.parametrize(
    ("given_node", "scheduling", "usable"),
    [
        (node("n", "a"), {}, True),
        (node("n", "a", CONTROL), {}, False),
        (node("n", "a", CONTROL), {"tolerations": [{"key": CONTROL["key"], "operator": "Exists"}]}, True),
        (node("n", "a", CONTROL), {"tolerations": [{"operator": "Exists"}]}, True),
        (node("n", "a", GPU), {"tolerations": [{"key": "gpu", "value": "yes"}]}, True),
        (node("n", "a", GPU), {"tolerations": [{"key": "gpu", "value": "no"}]}, False),
        (node("n", "a", GPU), {"tolerations": [{"key": "gpu", "value": "yes", "effect": "NoExecute"}]}, False),
        (node("n", "a", {**GPU, "effect": "PreferNoSchedule"}), {}, True),
        (node("n", "a", {**GPU, "effect": "NoExecute"}), {}, False),
        (node("n", "a", *NOT_READY), {}, True),
        (node("n", "a", CORDON, cordoned=True), {}, False),
        (node("n", "a", cordoned=True), {"tolerations": [{"operator": "Exists"}]}, False),
        (node("n", "a", pool="trading"), TRADING, True),
        (node("n", "a", pool="other"), TRADING, False),
        (node("n", "a"), TRADING, False),
        (node("n", "a", **{"kubernetes.io/os": "windows"}), {}, False),
        (node("n", "", pool="trading"), TRADING, False),
    ],
)
def test_which_nodes_count(given_node: dict[str, Any], scheduling: dict[str, Any], *, usable: bool) -> None:
    """A node counts if the scheduler would take it once it is ready."""
    spec = pipeline({"scheduling": scheduling}).spec.scheduling

    assert usable is bool(usable_zones([node_of(given_node)], spec))


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["down", "up", "cordon", "gone"])), max_size=40))
def test_lines_do_not_come_and_go(changes: list[tuple[str, str]]) -> None:
    """Whatever happens to nodes within minutes, a pipeline's lines stay; only further zones may join."""
    nodes = {zone: node(f"n-{zone}", zone) for zone in "abc"}
    known: tuple[str, ...] = names_of_lines(pipeline(), seen(*nodes.values()))
    for zone, what in changes:
        nodes.pop(zone, None)
        if what != "gone":
            taints = NOT_READY if what == "down" else ()
            nodes[zone] = node(f"n-{zone}", zone, *taints, cordoned=what == "cordon")
        status = {"zones": [{"name": name} for name in known]}
        now = names_of_lines(pipeline(status=status), seen(*nodes.values()))
        assert known == now[: len(known)]
        known = now


def waiting_pod(zone: str, age_s: int) -> dict[str, Any]:
    one = pod(Component.INGEST, zone=zone, ready=False, phase="Pending")
    one["metadata"]["creationTimestamp"] = text_of(NOW_US - age_s * 1_000_000)
    one["spec"] = {}
    return one


@pytest.mark.parametrize(("age_s", "expected"), [(30, ("a", "b", "c")), (601, ("e", "b", "c"))])
def test_a_line_that_never_runs_goes_where_it_can(age_s: int, expected: tuple[str, ...]) -> None:
    """A line in a zone with nodes of which none fits gives way to a zone that is usable, but not at once."""
    status = {"zones": [{"name": name} for name in "abc"]}
    observed = seen(*CLUSTER, scheduling=TRADING, pods=(waiting_pod("a", age_s),))

    assert expected == names_of_lines(pipeline({"scheduling": TRADING}, status=status), observed)


def test_a_zone_that_is_lost_keeps_its_line() -> None:
    """Without any node left its pods wait for it to return, however long, though another zone is free."""
    status = {"zones": [{"name": name} for name in "abc"]}
    observed = seen(node("n-b", "b"), node("n-c", "c"), node("n-e", "e"), pods=(waiting_pod("a", 9_000),))

    assert ("a", "b", "c") == names_of_lines(pipeline(status=status), observed)


def test_without_sight_of_nodes_no_line_is_made_up() -> None:
    """Nodes that may not be listed are not the same as nodes without zones."""
    unwatchable = {"Node": Refusal("Node", "", 403, "nodes is forbidden")}

    assert () == names_of_lines(pipeline(), Observed(NOW_US, unwatchable=unwatchable))
    assert ("a", "b") == names_of_lines(pipeline(), Observed(NOW_US))

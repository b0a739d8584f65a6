"""What every replica knows of pods, nodes and pipelines, from what watches show."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor_operator.kube.api_client import POD
from sheetanchor_operator.kube.watch import Place
from sheetanchor_operator.kube.zone_register import ZoneRegister, pipeline_facts
from sheetanchor_operator.names import Component, labels_of
from sheetanchor_operator.zones.judge import Bounds

WITHDRAWN = {"type": "Ready", "status": "False", "reason": "ZoneUnreachable"}
READY = {"type": "Ready", "status": "True"}


def pod(version: int, *conditions: dict[str, str], uid: str = "u", name: str = "btc-infer") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "m", "uid": uid, "labels": labels_of("btc", Component.INFER)}
    status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": list(conditions or (READY,))}
    metadata["resourceVersion"] = str(version)
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n"}, "status": status}


def node(version: int, zone: str) -> dict[str, Any]:
    labels = {"topology.kubernetes.io/zone": zone} if zone else {}
    return {"kind": "Node", "metadata": {"name": "n", "labels": labels, "resourceVersion": str(version)}}


def test_what_is_older_changes_nothing() -> None:
    """The answer to a write may come after the watch has shown a later version."""
    register = ZoneRegister()
    register.seen("ADDED", pod(5))
    register.seen("MODIFIED", pod(4, WITHDRAWN))

    assert register.pods["m", "btc-infer"].ready
    register.seen("MODIFIED", pod(6, WITHDRAWN))
    assert register.pods["m", "btc-infer"].withdrawn


def test_a_pulse_of_a_node_changes_nothing() -> None:
    """The pods to poll are chosen again only if a zone, or a field of a pod that is used, has changed."""
    register = ZoneRegister()
    register.seen("ADDED", node(1, "a"))
    before = register.revision
    register.seen("MODIFIED", node(2, "a"))
    assert before == register.revision

    register.seen("MODIFIED", node(3, "b"))
    assert {"n": "b"} == register.node_zones
    register.seen("MODIFIED", node(4, ""))
    assert {} == register.node_zones
    assert before + 2 == register.revision


def test_what_a_list_does_not_show_is_gone() -> None:
    """Unless it was written after the list."""
    register = ZoneRegister()
    register.seen("ADDED", pod(5))
    register.seen("ADDED", pod(9, name="late"))
    register.swept(Place(POD, "m"), set(), 7)

    assert [("m", "late")] == list(register.pods)
    register.seen("DELETED", pod(10, name="late"))
    assert {} == register.pods


def test_a_kubelet_that_overrules_is_noticed_once() -> None:
    """It has to be the same pod; another one of its name does not count."""
    register = ZoneRegister()
    for version, condition in enumerate((READY, WITHDRAWN, READY, READY), 1):
        register.seen("MODIFIED", pod(version, condition))
    assert ["btc-infer"] == [one.name for one in register.take_overruled()]
    assert [] == register.take_overruled()

    register.seen("MODIFIED", pod(5, WITHDRAWN))
    register.seen("ADDED", pod(6, READY, uid="another"))
    assert [] == register.take_overruled()


@pytest.mark.parametrize(
    ("bounds", "spec"),
    [
        (Bounds(4, 8), {}),
        (Bounds(91, 95), {"failover": {"intervalSeconds": 30}}),
        (Bounds(6, 10), {"failover": {"failureThreshold": 5}}),
        (Bounds(4, 8), {"failover": {"unheard": "of"}}),
        (Bounds(4, 8), {"failover": None}),
    ],
)
def test_the_bounds_of_a_pipeline(bounds: Bounds, spec: dict[str, Any]) -> None:
    """Defaults replace what cannot be read; the reconcile reports what is wrong with it."""
    body = {"metadata": {"name": "btc", "namespace": "m"}, "spec": spec}

    assert bounds == pipeline_facts(body).bounds

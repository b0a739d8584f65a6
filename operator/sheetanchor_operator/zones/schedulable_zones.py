"""Which zones a pipeline's pods can run in: those with a node that the scheduler would take for them. Pure.

A node that is not ready for a while keeps its zone, since zones must not come and go with a kubelet's pulse; one that
is cordoned, tainted or of another kind than the pipeline's selector asks for does not make one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.api.pipeline_spec import Scheduling
from sheetanchor_operator.names import TOPOLOGY_ZONE

OS_LABEL: Final = "kubernetes.io/os"
CORDON: Final = "node.kubernetes.io/unschedulable"
PASSING: Final = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""Taints that Kubernetes sets and takes away itself: not ready, unreachable, short of memory, not initialized yet."""

KEEPS_OUT: Final = frozenset({"NoSchedule", "NoExecute"})


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class ZoneNode:
    """What of a node decides whether pods may run there.

    Attributes:
        zone: Its zone, "" for none.
        cordoned: Whether it was taken out of scheduling.
    """

    zone: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False


def node_of(body: Mapping[str, Any]) -> ZoneNode:
    """Read a node as the API server gives it."""
    labels, spec = body["metadata"].get("labels") or {}, body.get("spec") or {}
    taints = tuple(
        Taint(str(one.get("key", "")), str(one.get("value") or ""), str(one.get("effect", "")))
        for one in spec.get("taints") or ()
    )
    return ZoneNode(str(labels.get(TOPOLOGY_ZONE, "")), dict(labels), taints, bool(spec.get("unschedulable")))


def fits(node: ZoneNode, scheduling: Scheduling) -> bool:
    """Say whether the scheduler would put a pipeline's pods onto a node, once it is ready."""
    if node.cordoned or node.labels.get(OS_LABEL, "linux") != "linux":
        return False
    if any(node.labels.get(name) != value for name, value in scheduling.node_selector.items()):
        return False
    return all(_bears(taint, scheduling) for taint in node.taints)


def _bears(taint: Taint, scheduling: Scheduling) -> bool:
    if taint.effect not in KEEPS_OUT or (taint.key.startswith(PASSING) and taint.key != CORDON):
        return True
    return any(
        one.effect in ("", taint.effect)
        and one.key in ("", taint.key)
        and (one.operator == "Exists" or (one.key == taint.key and one.value == taint.value))
        for one in scheduling.tolerations
    )


def usable_zones(nodes: Iterable[ZoneNode], scheduling: Scheduling) -> tuple[str, ...]:
    """Name the zones in which a pipeline's pods can run, sorted."""
    return tuple(sorted({node.zone for node in nodes if node.zone and fits(node, scheduling)}))

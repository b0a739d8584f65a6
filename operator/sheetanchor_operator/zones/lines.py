"""Which lines a pipeline has. A line is kept while its zone is lost, and starts again when the zone returns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.pipeline_spec import ZONE_PATTERN, ZONES_MAX
from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.names import TOPOLOGY_ZONE, Component, child_name, selector_of
from sheetanchor_operator.observation import Observed

UNBOUND_LINES: Final = ("a", "b")
"""Lines of a cluster in which the pods can run in fewer than two zones."""

GIVEN_UP_US: Final = 10 * 60 * 1_000_000
"""A node that is replaced or repaired is back within this time; a line that has waited for longer goes elsewhere."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of ingestors.

    Attributes:
        name: Name of the line, which is that of its zone if it is bound to one.
        bound: Whether its pods run in that zone only.
    """

    name: str
    bound: bool


def names_of_lines(pipeline: Pipeline, observed: Observed) -> tuple[str, ...]:
    """Name a pipeline's lines: as specified, else as they were, else by the zones that its pods can run in.

    A zone whose name cannot name a Deployment is passed over, as if its nodes showed none. While nodes cannot be seen a
    pipeline that has no lines yet gets none: those of a cluster without zones would stay.
    """
    if pipeline.spec.zones:
        return pipeline.spec.zones
    shown = _nameable(observed.zones)
    usable = shown if observed.usable_zones is None else _nameable(observed.usable_zones)
    known = _nameable(zone["name"] for zone in pipeline.status.get("zones", ()))
    if len(known) >= len(UNBOUND_LINES):
        spare = [zone for zone in usable if zone not in known] if set(known) & set(shown) else []
        kept = [spare.pop(0) if spare and _never_runs(pipeline, observed, usable, name) else name for name in known]
        return (*kept, *spare)[:ZONES_MAX]
    if "Node" in observed.unwatchable:
        return ()
    return usable[:ZONES_MAX] if len(usable) >= len(UNBOUND_LINES) else UNBOUND_LINES


def _never_runs(pipeline: Pipeline, observed: Observed, usable: Collection[str], name: str) -> bool:
    """Say whether a line's zone has nodes, but none that its pods may run on, and they have waited for long.

    A zone that is lost, or whose nodes come and go, keeps its line: it would be missed most.
    """
    if name in usable or name not in observed.zones:
        return False
    pods = observed.pods_of(selector_of(pipeline.name, Component.INGEST, name))
    return bool(pods) and all(
        not (pod.get("spec") or {}).get("nodeName")
        and observed.now_us - micros_of(pod["metadata"].get("creationTimestamp")) >= GIVEN_UP_US
        for pod in pods
    )


def _nameable(zones: Iterable[str]) -> tuple[str, ...]:
    return tuple(zone for zone in zones if re.fullmatch(ZONE_PATTERN, zone))


def lines(pipeline: Pipeline, observed: Observed) -> tuple[Line, ...]:
    """Give a pipeline's lines.

    A line that is bound to a zone stays bound when the zone's last node goes: its pods wait for the zone to return.
    """
    return tuple(
        Line(name, name in observed.zones or _is_bound(pipeline, observed, name))
        for name in names_of_lines(pipeline, observed)
    )


def _is_bound(pipeline: Pipeline, observed: Observed, name: str) -> bool:
    live = observed.child("Deployment", child_name(pipeline.name, Component.INGEST, name))
    if live is None:
        return False
    affinity = live["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return any(one.get("key") == TOPOLOGY_ZONE for term in terms for one in term.get("matchExpressions", []))

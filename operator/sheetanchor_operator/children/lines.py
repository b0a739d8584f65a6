"""Which lines a pipeline has. Lines are remembered: one that vanished because its zone did would be missed most."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sheetanchor_operator.names import TOPOLOGY_ZONE, Component, child_name
from sheetanchor_operator.observed import Observed
from sheetanchor_operator.pipeline_spec import ZONE_PATTERN, ZONES_MAX
from sheetanchor_operator.spec import Pipeline

UNBOUND_LINES: Final = ("a", "b")
"""Lines of a cluster that shows fewer than two zones."""


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
    """Name a pipeline's lines: as specified, else as they were, else by the zones that nodes show.

    A zone whose name cannot name a Deployment is passed over, as if its nodes showed none.
    """
    if pipeline.spec.zones:
        return pipeline.spec.zones
    shown = _nameable(observed.zones)
    known = _nameable(zone["name"] for zone in pipeline.status.get("zones", ()))
    if len(known) >= len(UNBOUND_LINES):
        further = [zone for zone in shown if zone not in known] if set(known) & set(shown) else []
        return (*known, *further)[:ZONES_MAX]
    return shown[:ZONES_MAX] if len(shown) >= len(UNBOUND_LINES) else UNBOUND_LINES


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

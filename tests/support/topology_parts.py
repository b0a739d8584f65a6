"""A pipeline whose pods are in given zones."""

from __future__ import annotations

from typing import Any

from sheetanchor_operator.names import Component, ZoneHealth, ZoneReason
from sheetanchor_operator.observation import Observed
from support.pipeline_parts import ZONES, pod, sound

HEALTHY = (ZoneHealth.HEALTHY, ZoneReason.ANSWERS)
WELL = dict.fromkeys(ZONES, HEALTHY)
A, B, C = ZONES


def seen(infer: tuple[str, ...] = (A, B, C), process: tuple[str, ...] = (A, B), **changes: Any) -> Observed:
    """Observe pods of a sound pipeline in these zones; the first processor writes."""
    placed = {Component.INFER: infer, Component.PROCESS: process}
    pods, nodes = [], {f"node-{zone}": zone for zone in ZONES} | {f"node-{n}": zone for n, zone in enumerate(ZONES)}
    for one in sound().pods:
        component = Component(one["metadata"]["labels"]["app.kubernetes.io/component"])
        if component not in placed:
            pods.append(one)
    for component, zones in placed.items():
        for number, zone in enumerate(zones):
            made = pod(component, number)
            made["spec"]["nodeName"] = f"node-{zone}"
            made["metadata"]["creationTimestamp"] = f"2026-01-0{number + 1}T00:00:00Z"
            pods.append(made)
    fields = {"pods": tuple(pods), "node_zones": nodes, "usable_zones": ZONES, "zone_verdicts": WELL, **changes}
    return sound(**fields)

"""Whether a pipeline's pods are spread so that the loss of a zone takes no component away. Pure."""

from __future__ import annotations

from typing import Final, Literal

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.names import COMPONENT_LABEL, PIPELINE_LABEL, Component, Reason
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.status.workload_health import WorkloadHealth, ready_pods

SPREAD: Final = (Component.PROCESS, Component.INFER, Component.REDIS)
"""Ingestors are bound to their zones."""


def topology(
    pipeline: Pipeline, observed: Observed, health: WorkloadHealth, lost_zones: tuple[str, ...]
) -> tuple[Literal["True", "False", "Unknown"], Reason, str]:
    """Judge how pods are spread: status, reason and message of the condition.

    Args:
        pipeline: What is wanted.
        observed: What is there.
        health: How its workloads stand.
        lost_zones: Zones that count as silent or failed.
    """
    if lost_zones:
        text = (
            f"zone {', '.join(lost_zones)} cannot be reached, its pods are not counted; what is lost next may cost "
            "slots; check the zone's nodes"
        )
        return "False", Reason.ZONE_LOST, text
    usable = observed.usable_zones or ()
    if len(usable) < 2:
        return "Unknown", Reason.SINGLE_ZONE, "pods can run in fewer than two zones: there is nothing to spread over"
    crowded = []
    for component in SPREAD:
        count = health.counts[component]
        wanted = min(count.wanted, len(usable))
        nodes = {(pod.get("spec") or {}).get("nodeName", "") for pod in ready_pods(pipeline, observed, component)}
        zones = sorted({observed.node_zones[node] for node in nodes if node in observed.node_zones})
        # While pods are missing it is not decided where they will be.
        if count.ready == count.wanted and 0 < len(zones) < wanted:
            crowded.append((component, zones))
    if not crowded:
        return "True", Reason.AS_EXPECTED, "every component is spread over the zones"
    words = "; ".join(f"{component}: only in {', '.join(zones)}" for component, zones in crowded)
    where = f"-n {pipeline.namespace} -l {PIPELINE_LABEL}={pipeline.name},{COMPONENT_LABEL}={crowded[0][0]}"
    return (
        "False",
        Reason.NOT_SPREAD,
        f"{words}; the loss of a zone may take all of it: kubectl get pods -o wide {where}, and delete one of those "
        "that share a zone",
    )

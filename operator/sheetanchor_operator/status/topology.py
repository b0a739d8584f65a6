"""Whether a pipeline's pods are spread so that the loss of a zone takes no component away. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.names import COMPONENT_LABEL, PIPELINE_LABEL, Component, Reason, ZoneHealth
from sheetanchor_operator.observation import Live, Observed
from sheetanchor_operator.status.workload_health import WorkloadHealth, ready_pods

SPREAD: Final = (Component.PROCESS, Component.INFER, Component.REDIS)
"""Ingestors are bound to their zones."""

MOVABLE: Final = (Component.INFER, Component.PROCESS)
"""Replacing a Redis node costs a copy of the data, and a hand-over if it is the master: a person decides about that."""


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
    usable = _usable(pipeline, observed)
    if len(usable) < 2:
        return "Unknown", Reason.SINGLE_ZONE, "pods can run in fewer than two zones: there is nothing to spread over"
    crowded = [(component, zones) for component in SPREAD if (zones := _shared(pipeline, observed, health, component))]
    if not crowded:
        return "True", Reason.AS_EXPECTED, "every component is spread over the zones"
    words = "; ".join(f"{component}: only in {', '.join(sorted(zones))}" for component, zones in crowded)
    where = f"-n {pipeline.namespace} -l {PIPELINE_LABEL}={pipeline.name},{COMPONENT_LABEL}={crowded[0][0]}"
    return (
        "False",
        Reason.NOT_SPREAD,
        f"{words}; the loss of a zone may take all of it: kubectl get pods -o wide {where}, and delete one of those "
        "that share a zone",
    )


def pod_to_move(pipeline: Pipeline, observed: Observed, health: WorkloadHealth) -> tuple[Live, str] | None:
    """Choose a pod that is replaced so that its component is spread again, with its zone; None for none.

    After a zone's return the pods that were made elsewhere meanwhile stay there: no scheduler moves them back.
    Something has to answer in every zone first, so that there is a place to go; a processor that writes is left alone.
    """
    usable = _usable(pipeline, observed)
    verdicts = observed.zone_verdicts or {}
    if len(usable) < 2 or any(verdicts.get(zone, ("",))[0] != ZoneHealth.HEALTHY for zone in usable):
        return None
    writers = {symbol.active for symbol in health.symbols}
    for component in MOVABLE:
        zones = _shared(pipeline, observed, health, component)
        fullest = max(sorted(zones), key=lambda zone: zones[zone], default="")
        fit = [
            pod
            for pod in ready_pods(pipeline, observed, component)
            if observed.node_zones.get(pod["spec"].get("nodeName", "")) == fullest
            and pod["metadata"]["name"] not in writers
        ]
        if zones and fit:
            newest = max(fit, key=lambda pod: (str(pod["metadata"].get("creationTimestamp")), pod["metadata"]["name"]))
            return newest, fullest
    return None


def _usable(pipeline: Pipeline, observed: Observed) -> tuple[str, ...]:
    """Name the zones over which pods are to be spread."""
    return tuple(zone for zone in observed.usable_zones or () if zone != pipeline.evacuated_zone)


def _shared(pipeline: Pipeline, observed: Observed, health: WorkloadHealth, component: Component) -> Counter[str]:
    """Count a component's pods by zone, if they are in fewer zones than they could be; else nothing."""
    count = health.counts[component]
    zones = Counter(
        observed.node_zones[node]
        for pod in ready_pods(pipeline, observed, component)
        if (node := (pod.get("spec") or {}).get("nodeName", "")) in observed.node_zones
    )
    # While pods are missing it is not decided where they will be.
    complete = count.ready == count.wanted
    return zones if complete and 0 < len(zones) < min(count.wanted, len(_usable(pipeline, observed))) else Counter()

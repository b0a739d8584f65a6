"""In which order changed workloads are written: one after another, never a whole pipeline at once. Pure.

Redis comes first, then line by line the ingestors, then processors, then inference. A workload waits while one before
it is being rolled out; one that serves nothing cannot interrupt anything and does not wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.apply.drift import needs_apply
from sheetanchor_operator.names import COMPONENT_LABEL, Component

WORKLOADS: Final = frozenset({"Deployment", "StatefulSet"})
_ORDER: Final = (Component.REDIS, Component.INGEST, Component.PROCESS, Component.INFER)

Live = Mapping[str, Any]
Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """Which changes may be written, and what the others wait for.

    Attributes:
        deferred: Workloads whose change waits for another roll-out, by kind and name.
        awaited: What they wait for; None if nothing is being rolled out.
    """

    deferred: frozenset[Place] = frozenset()
    awaited: Place | None = None


def rollout_step(
    desired: Sequence[Live],
    live: Mapping[Place, Live],
    settled: Collection[Place] = (),
    passed_over: Collection[Place] = (),
) -> RolloutStep:
    """Say which workloads may be written.

    Args:
        desired: Manifests of a pipeline.
        live: Its objects as they are.
        settled: Workloads that were written and still differ from their manifest, since the server or a policy of the
            cluster changed it: there is no change left to write.
        passed_over: Workloads that are not waited for any more, since their roll-out does not end.
    """
    deferred: set[Place] = set()
    awaited: Place | None = None
    for manifest in sorted(filter(_is_workload, desired), key=_rank):
        place = place_of(manifest)
        body = live.get(place)
        if body is None:
            continue
        changes = place not in settled and needs_apply(manifest, body)
        if changes and awaited is not None and serves(body) and manifest["spec"].get("replicas", 1):
            deferred.add(place)
        elif (changes or is_rolling(body)) and place not in passed_over:
            awaited = awaited or place
    return RolloutStep(frozenset(deferred), awaited)


def deferred_changes(desired: Sequence[Live], live: Mapping[Place, Live]) -> frozenset[Place]:
    """Name the workloads whose change waits for another roll-out, by kind and name."""
    return rollout_step(desired, live).deferred


def can_delete(body: Live, desired: Sequence[Live], live: Mapping[Place, Live]) -> bool:
    """Say whether an object that no manifest names may be deleted: a serving workload only once its replacements serve.

    Args:
        body: The object.
        desired: Manifests of the pipeline.
        live: Its objects as they are.
    """
    if not _is_workload(body) or not serves(body):
        return True
    heirs = [one for one in desired if _is_workload(one) and component_of(one) == component_of(body)]
    return all(serves(live.get(place_of(heir), {})) for heir in heirs if heir["spec"].get("replicas", 1))


def place_of(body: Live) -> Place:
    """Give kind and name of an object."""
    return body["kind"], body["metadata"]["name"]


def component_of(body: Live) -> str:
    """Give the component that an object belongs to."""
    return str((body["metadata"].get("labels") or {}).get(COMPONENT_LABEL, ""))


def serves(body: Live) -> bool:
    """Say whether a workload has a pod that is ready."""
    return bool((body.get("status") or {}).get("readyReplicas", 0))


def is_rolling(body: Live) -> bool:
    """Say whether a workload has pods that are not yet replaced, or not yet ready."""
    status, wanted = body.get("status") or {}, int(body["spec"].get("replicas", 1))
    if status.get("observedGeneration", 0) < body["metadata"].get("generation", 0):
        return True
    if body["kind"] == "StatefulSet" and status.get("updateRevision") != status.get("currentRevision"):
        return True
    renewed = int(status.get("updatedReplicas", 0)) if body["kind"] == "Deployment" else wanted
    return min(renewed, int(status.get("availableReplicas", 0))) < wanted


def _is_workload(body: Live) -> bool:
    return body["kind"] in WORKLOADS


def _rank(manifest: Live) -> tuple[int, str]:
    component = component_of(manifest)
    known = [str(one) for one in _ORDER]
    return (known.index(component) if component in known else len(known), manifest["metadata"]["name"])

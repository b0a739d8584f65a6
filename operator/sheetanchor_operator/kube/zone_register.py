"""What every operator replica knows for judging zones: pods, nodes and pipelines, a few fields of each.

The leader's cache is filled by the leader alone. A replica that stands by has to judge as well, so it watches for
itself, and keeps some hundred bytes of each object.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sheetanchor_operator.api.recovery_spec import Failover
from sheetanchor_operator.kube.api_client import NODE, PIPELINE, POD
from sheetanchor_operator.kube.watch import Place as WatchedPlace
from sheetanchor_operator.names import PAUSED_ANNOTATION
from sheetanchor_operator.zones.judge import Bounds, bounds_of
from sheetanchor_operator.zones.schedulable_zones import node_of
from sheetanchor_operator.zones.witnesses import Place, PodFacts, pod_facts


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """What of a pipeline matters for judging zones.

    Attributes:
        version: Its resource version.
        installation: Which installation of the operator manages it, "" for none yet.
        bounds: When it takes a silent zone for what.
        paused: Whether its objects are to be left alone.
        status: `phase` and `zones` of its status.
    """

    namespace: str
    name: str
    uid: str
    version: str
    installation: str
    bounds: Bounds
    paused: bool
    status: Mapping[str, Any]

    @property
    def place(self) -> Place:
        """Namespace and name."""
        return self.namespace, self.name


def _bounds(spec: Mapping[str, Any]) -> Bounds:
    try:
        return bounds_of(Failover.model_validate(dict(spec.get("failover") or {})))
    except ValueError:  # pydantic's own is one; the reconcile reports it, and the default holds meanwhile
        return bounds_of(Failover())


def pipeline_facts(body: Mapping[str, Any]) -> PipelineFacts:
    """Read a pipeline as the API server gives it."""
    metadata, status = body["metadata"], body.get("status") or {}
    return PipelineFacts(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        version=str(metadata.get("resourceVersion", "")),
        installation=str((status.get("operator") or {}).get("name", "")),
        bounds=_bounds(body.get("spec") or {}),
        paused=(metadata.get("annotations") or {}).get(PAUSED_ANNOTATION) == "true",
        status={name: status[name] for name in ("phase", "zones") if name in status},
    )


class ZoneRegister:
    """Pods, zones of nodes, and pipelines, as watches show them."""

    def __init__(self) -> None:
        self.pods: dict[Place, PodFacts] = {}
        self.node_zones: dict[str, str] = {}
        self.pipelines: dict[Place, PipelineFacts] = {}
        self.revision = 0
        """Another number after each change of a pod or a node."""

        self._overruled: list[PodFacts] = []
        self._versions: dict[tuple[str, Place], int] = {}

    def seen(self, event: str, body: Mapping[str, Any]) -> None:
        """Take in what a watch has seen."""
        metadata, kind = body["metadata"], body["kind"]
        place = (metadata.get("namespace", ""), metadata["name"])
        if event == "DELETED":
            self._drop(kind, place)
            return
        version = _number(metadata.get("resourceVersion"))
        if version < self._versions.get((kind, place), 0):
            return
        self._versions[kind, place] = version
        if kind == PIPELINE.name:
            self.pipelines[place] = pipeline_facts(body)
        elif kind == NODE.name:
            if zone := node_of(body).zone:
                self._set(self.node_zones, place[1], zone)
            else:
                self._unset(self.node_zones, place[1])
        elif (facts := pod_facts(body)) is not None:
            before = self.pods.get(place)
            if before is not None and before.uid == facts.uid and before.withdrawn and facts.ready:
                self._overruled.append(facts)
            self._set(self.pods, place, facts)
        else:
            self._unset(self.pods, place)

    def take_overruled(self) -> list[PodFacts]:
        """Give the pods that were withdrawn, and of which their kubelets have said since that they are ready, once."""
        taken, self._overruled = self._overruled, []
        return taken

    def swept(self, place: WatchedPlace, listed: Collection[tuple[str, str]], version: int) -> None:
        """Drop what a whole list does not show, unless it was written after that."""
        kind = place.kind.name
        for known, at in list(self._versions.items()):
            if known[0] == kind and known[1] not in listed and place.namespace in ("", known[1][0]) and at <= version:
                self._drop(*known)

    def reachability_changed(self, place: WatchedPlace) -> None:
        """Whether a place can be heard is read from its watch."""

    def _drop(self, kind: str, place: Place) -> None:
        self._versions.pop((kind, place), None)
        if kind == PIPELINE.name:
            self.pipelines.pop(place, None)
        elif kind == NODE.name:
            self._unset(self.node_zones, place[1])
        elif kind == POD.name:
            self._unset(self.pods, place)

    def _set(self, known: dict[Any, Any], key: Any, value: Any) -> None:
        # Kubelets write their nodes all the time; what is chosen from pods and nodes stays while these fields do.
        if known.get(key) != value:
            known[key] = value
            self.revision += 1

    def _unset(self, known: dict[Any, Any], key: Any) -> None:
        if known.pop(key, None) is not None:
            self.revision += 1


def _number(version: Any) -> int:
    text = str(version or "0")
    return int(text) if text.isdigit() else 0

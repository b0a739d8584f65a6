"""Which pods are polled to find out whether a zone answers, and what follows from their answers. Pure.

In all at most eight pods of a zone are asked each second, whatever the number of pipelines. Only while a zone is silent
more of them are, at least one on each of its nodes, and Sentinels of other zones besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.names import COMPONENT_LABEL, PIPELINE_LABEL, SENTINEL_CONTAINER, ZONE_UNREACHABLE, Component
from sheetanchor_operator.zones.judge import Voice, ZoneAnswers

SAMPLE_MAX: Final = 8
SUSPECTS_MAX: Final = 256
"""Pods of a silent zone that are asked at once. A zone with more nodes than this is not judged: not all were asked."""

SAID_WITHIN_MS: Final = 2_000
"""What a Sentinel found longer ago than this is not its word any more."""

_SERVING: Final = frozenset({Component.INGEST, Component.PROCESS, Component.INFER, Component.REDIS})

Place = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What of a pod matters here.

    Attributes:
        pipeline: Name of the pipeline that it belongs to.
        component: Which part of it.
        version: Its resource version.
        address: Its IP address, "" for none yet.
        ready: Whether its kubelet has last said that it is ready.
        withdrawn: Whether an operator has said since that it cannot be reached.
        running: Whether its containers run.
        ending: Whether it is on its way out.
        sentinel_started: Of a Redis node, whether its Sentinel has started. It need not be ready: that its server has
            no master, or that a probe took too long, says nothing against what it knows.
    """

    namespace: str
    name: str
    uid: str
    version: str
    pipeline: str
    component: str
    node: str
    address: str
    ready: bool
    withdrawn: bool
    running: bool
    ending: bool
    sentinel_started: bool = False

    @property
    def place(self) -> Place:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def owner(self) -> Place:
        """Namespace and name of its pipeline."""
        return self.namespace, self.pipeline

    @property
    def is_witness(self) -> bool:
        """Whether its silence would say something: starting and ending pods are silent for reasons of their own."""
        return self.running and not self.ending and bool(self.address) and (self.ready or self.withdrawn)

    @property
    def may_speak(self) -> bool:
        """Whether what its Sentinel says of its peers counts: one that starts has reached none yet."""
        return self.running and not self.ending and bool(self.address) and self.sentinel_started


def pod_facts(body: Mapping[str, Any]) -> PodFacts | None:
    """Read a pod as the API server gives it; None for one that serves no requests, such as a run of a re-anchor."""
    metadata, status = body["metadata"], body.get("status") or {}
    labels = metadata.get("labels") or {}
    if labels.get(COMPONENT_LABEL) not in _SERVING or status.get("phase") in ("Succeeded", "Failed"):
        return None
    ready: Mapping[str, Any] = next((one for one in status.get("conditions") or () if one.get("type") == "Ready"), {})
    return PodFacts(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        version=str(metadata.get("resourceVersion", "")),
        pipeline=str(labels.get(PIPELINE_LABEL, "")),
        component=str(labels[COMPONENT_LABEL]),
        node=str((body.get("spec") or {}).get("nodeName") or ""),
        address=str(status.get("podIP") or ""),
        ready=ready.get("status") == "True",
        withdrawn=ready.get("status") == "False" and ready.get("reason") == ZONE_UNREACHABLE,
        running=status.get("phase") == "Running",
        ending="deletionTimestamp" in metadata,
        sentinel_started=any(
            one.get("name") == SENTINEL_CONTAINER and one.get("started") is True
            for one in status.get("containerStatuses") or ()
        ),
    )


def by_zone(pods: Iterable[PodFacts], node_zones: Mapping[str, str]) -> dict[str, list[PodFacts]]:
    """Sort pods by the zone of their node; every zone with nodes is named, and pods without zone are left out."""
    zones: dict[str, list[PodFacts]] = {zone: [] for zone in sorted(set(node_zones.values()))}
    for pod in pods:
        zone = node_zones.get(pod.node, "")
        if zone:
            zones[zone].append(pod)
    return zones


def sample(pods: Iterable[PodFacts]) -> list[PodFacts]:
    """Choose the pods of a zone that are asked each second: on different nodes, of different pipelines if possible."""
    return _spread((pod for pod in pods if pod.is_witness), SAMPLE_MAX)


def suspects(pods: Iterable[PodFacts]) -> list[PodFacts]:
    """Choose the pods that are asked besides while a zone is silent: one on each node first, then inference."""
    return _spread((pod for pod in pods if pod.is_witness), SUSPECTS_MAX)


def _spread(pods: Iterable[PodFacts], at_most: int) -> list[PodFacts]:
    on_node: Counter[str] = Counter()
    of_pipeline: Counter[Place] = Counter()
    ranked: list[tuple[tuple[int, int, int], PodFacts]] = []
    for pod in sorted(pods, key=lambda one: (one.component != Component.INFER, one.uid, one.place)):
        ranked.append(((on_node[pod.node], of_pipeline[pod.owner], len(ranked)), pod))
        on_node[pod.node] += 1
        of_pipeline[pod.owner] += 1
    return [pod for _, pod in sorted(ranked, key=lambda one: one[0])[:at_most]]


def answers_of(pods: Collection[PodFacts], asked: Collection[PodFacts], answered: Collection[str]) -> ZoneAnswers:
    """Put together what a round has brought from a zone.

    Args:
        pods: All of ours in it.
        asked: Those that were asked.
        answered: Uids of those that answered.
    """
    nodes = {pod.node for pod in pods if not pod.ending}
    return ZoneAnswers(
        pods=len(pods),
        asked=len(asked),
        answered=sum(pod.uid in answered for pod in asked),
        complete=nodes <= {pod.node for pod in asked},
    )


def speakers(zones: Mapping[str, Collection[PodFacts]], silent: Collection[str], own_zone: str) -> list[PodFacts]:
    """Choose the Redis pods whose Sentinels are asked about silent zones: of pipelines that have a node there."""
    concerned = {pod.owner for zone in silent for pod in zones[zone] if pod.component == Component.REDIS}
    chosen = []
    for zone, pods in zones.items():
        if zone not in silent and zone != own_zone:
            fit = (pod for pod in pods if pod.component == Component.REDIS and pod.owner in concerned)
            chosen += _spread((pod for pod in fit if pod.may_speak), SAMPLE_MAX)
    return chosen


def voices_of(
    speaker: PodFacts,
    speaker_zone: str,
    answer: Mapping[str, Any],
    pods: Mapping[Place, PodFacts],
    node_zones: Mapping[str, str],
) -> list[Voice]:
    """Read what a Sentinel says of its peers, one voice about each zone that it has a clear word on.

    Args:
        speaker: The pod that it runs in.
        speaker_zone: Its zone.
        answer: Of `GET /peers`.
        pods: All pods of ours.
        node_zones: Zone of each node.
    """
    age_ms = answer.get("age_ms")
    if answer.get("tilt") is not False or not isinstance(age_ms, int) or age_ms > SAID_WITHIN_MS:
        return []
    reached: dict[str, list[bool]] = {}
    for part in ("servers", "sentinels"):
        peers = answer.get(part)
        for address, word in peers.items() if isinstance(peers, Mapping) else ():
            pod = pods.get((speaker.namespace, str(address).partition(".")[0]))
            zone = node_zones.get(pod.node, "") if pod is not None and pod.is_witness else ""
            if zone and zone != speaker_zone and isinstance(word, bool):
                reached.setdefault(zone, []).append(word)
    return [Voice(speaker_zone, zone, not any(words)) for zone, words in sorted(reached.items())]

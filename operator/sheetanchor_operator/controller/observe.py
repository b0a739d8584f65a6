"""Observes what one reconcile decides on: the pipeline's objects, its pods' answers, and objects that users create."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.prerequisites import claims_needed, config_maps_needed, secrets_needed
from sheetanchor_operator.kube.api_client import CHILDREN, JOB, KINDS, POD, REANCHOR, ApiRefused, Body, Cluster
from sheetanchor_operator.kube.cache import Cache, Key, content_hash, secret_hash
from sheetanchor_operator.kube.workload_probe import PodResponses, Workloads
from sheetanchor_operator.names import ZoneHealth, ZoneReason
from sheetanchor_operator.observation import Observed, Refusal
from sheetanchor_operator.status.zone_report import LOST
from sheetanchor_operator.zones.schedulable_zones import usable_zones

SILENT_FOR_S: Final = 2.0
"""A pod that has not answered for this long is not counted, whatever its kubelet has said; one time-out is no loss."""

_CHILD_KINDS: Final = frozenset(kind.name for kind in CHILDREN)


@dataclass(frozen=True, slots=True)
class Observer:
    """Observes pipelines.

    Attributes:
        cluster: The API server.
        cache: What the watches have shown.
        workloads: Polls pods over HTTP.
        silent_since_s: When each pod of a pipeline first gave no answer, by its uid, in monotonic seconds.
    """

    cluster: Cluster
    cache: Cache
    workloads: Workloads
    silent_since_s: dict[Key, dict[str, float]] = field(default_factory=dict)

    async def observe(
        self,
        pipeline: Pipeline,
        mine: Mapping[tuple[str, str], Mapping[str, Any]],
        *,
        unwatchable: Mapping[str, Refusal],
        overwritten: tuple[str, ...],
        zone_verdicts: Mapping[str, tuple[ZoneHealth, ZoneReason]] | None = None,
    ) -> Observed:
        """Observe a pipeline.

        Args:
            pipeline: The pipeline with its specification.
            mine: Its objects by kind and name.
            unwatchable: Why a kind cannot be watched, by its name.
            overwritten: Values of the annotation that were replaced before a reconcile acted on them.
            zone_verdicts: What each zone counts as, and why; None where zones are not judged.

        Raises:
            ApiUnavailable: The API server does not answer, or cannot do it at the moment.
        """
        # A flood of requests makes them many: they are sorted by kind and name once.
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for kind, name in sorted(mine):
            kinds.setdefault(kind, []).append(mine[kind, name])
        pods = tuple(kinds.get(POD.name, ()))
        answers, prerequisites, events = await asyncio.gather(
            self.workloads.ask(pods, pipeline.spec.symbols),
            self._prerequisites(pipeline),
            self._warnings(pipeline, mine),
        )
        zones, nodes = self.cache.node_zones(), self.cache.nodes().values()
        lost = {zone for zone, (health, _) in (zone_verdicts or {}).items() if health in LOST}
        key = (pipeline.namespace, pipeline.name)
        return Observed(
            unanswered=self._unanswered(key, pods, answers, {node for node, zone in zones.items() if zone in lost}),
            zone_verdicts=zone_verdicts,
            now_us=_now_us(),
            children=_children(mine),
            pods=pods,
            zones=tuple(sorted(set(zones.values()))),
            usable_zones=usable_zones(nodes, pipeline.spec.scheduling),
            node_zones=zones,
            unwatchable=unwatchable,
            overwritten=overwritten,
            reanchors=tuple(kinds.get(REANCHOR.name, ())),
            jobs=tuple(kinds.get(JOB.name, ())),
            states=answers.states,
            predictions=answers.predictions,
            health=answers.health,
            events=events,
            **prerequisites,
        )

    def is_waiting(self, key: Key) -> bool:
        """Say whether a pod of a pipeline has given no answer, so that it is worth asking again soon."""
        return bool(self.silent_since_s.get(key))

    def _unanswered(
        self, key: Key, pods: tuple[Mapping[str, Any], ...], answers: PodResponses, lost_nodes: Collection[str]
    ) -> frozenset[str]:
        """Name the pods that do not answer: for some seconds, or in a zone that is lost.

        Where no pod of a pipeline answers it is more likely that none can be reached from here.
        """
        silent, heard = answers.silent_pods()
        before, now_s = self.silent_since_s.get(key, {}), time.monotonic()
        uids = {pod["metadata"]["name"]: pod["metadata"].get("uid", "") for pod in pods}
        nodes = {pod["metadata"]["name"]: (pod.get("spec") or {}).get("nodeName", "") for pod in pods}
        since_s = {uids[name]: before.get(uids[name], now_s) for name in silent} if heard else {}
        self.silent_since_s[key] = since_s
        return frozenset(
            name
            for name in silent
            if uids[name] in since_s and (now_s - since_s[uids[name]] >= SILENT_FOR_S or nodes[name] in lost_nodes)
        )

    def forget(self, key: Key) -> None:
        """A pipeline is gone."""
        self.silent_since_s.pop(key, None)

    async def _prerequisites(self, pipeline: Pipeline) -> dict[str, Any]:
        """Read the objects that users have to create. Of a Secret only the names of its entries are kept."""

        async def read(kind: str, name: str) -> Body | Refusal | None:
            try:
                return await self.cluster.get(KINDS[kind], pipeline.namespace, name)
            except ApiRefused as error:
                return Refusal(kind, name, error.code, str(error), error.reason)

        places = [("Secret", name) for name in secrets_needed(pipeline)]
        places += [("ConfigMap", name) for name in config_maps_needed(pipeline)]
        places += [("PersistentVolumeClaim", name) for name in claims_needed(pipeline)]
        # At once: a reconcile waits as long as the slowest answer takes, not as long as all of them together.
        answers = await asyncio.gather(*(read(*place) for place in places))
        secrets, versions, config_maps, claims = {}, {}, {}, {}
        for (kind, name), found in zip(places, answers, strict=True):
            if isinstance(found, Refusal):
                continue
            if kind == "Secret":
                secrets[name] = None if found is None else frozenset(found.get("data") or {})
                if found is not None:
                    versions[name] = secret_hash(found)
            elif kind == "ConfigMap":
                keys = {} if found is None else {**(found.get("data") or {}), **(found.get("binaryData") or {})}
                config_maps[name] = None if found is None else {**dict.fromkeys(keys, ""), "": content_hash(found)}
            else:
                claims[name] = found is not None
        return {
            "secrets": secrets,
            "secret_versions": versions,
            "config_maps": config_maps,
            "volume_claims": claims,
            "refusals": tuple(one for one in answers if isinstance(one, Refusal)),
        }

    async def _warnings(self, pipeline: Pipeline, mine: Mapping[tuple[str, str], Any]) -> tuple[Body, ...]:
        """Read why a StatefulSet creates no pods: unlike a Deployment it has no condition that says so."""

        async def read(kind: str, name: str, uid: str) -> list[Body]:
            with suppress(ApiRefused):  # without the right to read Events only their text is missing
                return await self.cluster.warnings(pipeline.namespace, kind, name, uid)
            return []

        without_pods = [
            (kind, name, body["metadata"]["uid"])
            for (kind, name), body in sorted(mine.items())
            if kind == "StatefulSet"
            and int((body.get("status") or {}).get("replicas", 0)) < int((body.get("spec") or {}).get("replicas", 1))
        ]
        return tuple(chain.from_iterable(await asyncio.gather(*(read(*one) for one in without_pods))))


def _children(mine: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {place: body for place, body in mine.items() if place[0] in _CHILD_KINDS}


def _now_us() -> int:
    return time.time_ns() // 1_000

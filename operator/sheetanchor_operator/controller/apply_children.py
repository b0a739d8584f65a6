"""Applies a pipeline's children: created in their order, corrected when they drift, deleted when no longer needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.apply.drift import APPLIED, differences, stamped
from sheetanchor_operator.apply.ownership import MANAGED_BY, belongs_to, depends_on, may_take_over
from sheetanchor_operator.apply.rollout_order import WORKLOADS, Place, can_delete, place_of, rollout_step
from sheetanchor_operator.children.manifests import children
from sheetanchor_operator.children.object_meta import Defaults, Manifest
from sheetanchor_operator.children.redis import CREATE_ONLY
from sheetanchor_operator.controller.refusals import Refusals
from sheetanchor_operator.controller.secret_contents import SecretContents
from sheetanchor_operator.kube.api_client import KINDS, METADATA_ONLY, ApiRefused, ApiUnavailable, Body, Cluster
from sheetanchor_operator.kube.cache import Cache, Key, slim
from sheetanchor_operator.names import FIELD_MANAGER
from sheetanchor_operator.observation import Observed, Refusal
from sheetanchor_operator.status.refusal_causes import NAME_TAKEN_REASON

log = logging.getLogger(__name__)

HOLD_S: Final = 180.0
"""How long a change waits for the one before it: a roll-out of Redis takes a minute, any other ten seconds."""

CONFLICT: Final = 409
LATE: Final[Mapping[str, Any]] = {}
"""Stands for a child that is left to the next reconcile."""

_CONTENTS: Final = frozenset(kind.name for kind in METADATA_ONLY)


@dataclass(frozen=True, slots=True)
class _Agreed:
    """The last state in which a child agreed with its manifest.

    Attributes:
        digest: Digest of the manifest.
        version: Resource version of the object.
        spared: Fields to which the server, or a policy of the cluster, gave other values when it was written.
    """

    digest: str
    version: str
    spared: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    """What is remembered of one pipeline's children.

    Attributes:
        agreed: The last state in which each child agreed with its manifest.
        contents: What is in the Secrets that are created once.
        holding: Whether a change waits for another roll-out.
        late: Whether the last reconcile had no time for all writes.
        awaited: The roll-out that is waited for, and since when.
        passed_over: Roll-outs that did not end in time and are not waited for any more.
    """

    agreed: dict[Place, _Agreed] = field(default_factory=dict)
    contents: SecretContents = field(default_factory=SecretContents, repr=False)
    holding: bool = False
    late: bool = False
    awaited: tuple[Place, float] | None = None
    passed_over: set[Place] = field(default_factory=set)


@dataclass(slots=True)
class ChildApplier:
    """Applies the children of pipelines."""

    cluster: Cluster
    cache: Cache
    defaults: Defaults
    refusals: Refusals = field(default_factory=Refusals)
    _known: dict[Key, _Known] = field(default_factory=dict, repr=False)

    async def keep(self, pipeline: Pipeline, observed: Observed, has_time: Callable[[], bool]) -> Observed:
        """Create, correct and delete children until they agree with their manifests.

        Args:
            pipeline: The pipeline with its specification.
            observed: The live objects.
            has_time: Whether one more child may be written by this reconcile; the others are left to the next.

        Returns:
            The observation with the objects as written, and with what the API server refused.

        Raises:
            ApiUnavailable: The API server does not answer, or cannot do it at the moment.
        """
        desired = [stamped(manifest) for manifest in children(pipeline, observed, self.defaults)]
        live, refusals = dict(observed.children), []
        deferred = self._deferred_changes(pipeline, desired, live)
        known, unwritten = self._known_of(pipeline), set[Place]()
        known.late = False
        for manifest in desired:
            place = place_of(manifest)
            if place in deferred:
                continue
            if place[0] in observed.unwatchable or (unwritten & depends_on(manifest) and not _is_scaled_down(manifest)):
                # A pod that starts now would read an outdated Secret or ConfigMap; running pods keep what they have
                # read.
                unwritten.add(place)
                continue
            try:
                done = await self._apply(pipeline, manifest, observed, has_time)
            except ApiRefused as error:
                done = Refusal(*place, error.code, str(error), error.reason)
            if isinstance(done, Refusal):
                refusals.append(done)
                unwritten.add(place)
            elif done is LATE:
                known.late = True
                unwritten.add(place)
            elif done is not None:
                live[place] = done
        if not known.late:
            refusals += await self._delete_unwanted(pipeline, desired, observed, live)
        return replace(observed, refusals=(*observed.refusals, *refusals), children=live)

    async def _delete_unwanted(
        self,
        pipeline: Pipeline,
        desired: Sequence[Manifest],
        observed: Observed,
        live: Mapping[Place, Mapping[str, Any]],
    ) -> list[Refusal]:
        """Delete the objects that no manifest names; gives the refusals of the API server."""
        wanted = {place_of(manifest) for manifest in desired}
        refused = []
        for (kind, name), body in observed.children.items():
            if (kind, name) in wanted or kind in observed.unwatchable or not _may_delete(body, pipeline):
                continue
            if can_delete(body, desired, live):
                log.info("%s %s/%s is no longer needed and is deleted", kind, pipeline.namespace, name)
                try:
                    await self.cluster.delete(KINDS[kind], pipeline.namespace, name, body["metadata"]["uid"])
                except ApiRefused as error:
                    refused.append(Refusal(kind, name, error.code, str(error), error.reason))
        return refused

    def is_holding(self, key: Key) -> bool:
        """Say whether a change waits for another roll-out."""
        return key in self._known and self._known[key].holding

    def is_late(self, key: Key) -> bool:
        """Say whether the last reconcile had no time for all writes."""
        return key in self._known and self._known[key].late

    def forget(self, key: Key) -> None:
        """Drop what is remembered of a deleted pipeline."""
        self._known.pop(key, None)
        self.refusals.forget(key)

    def _known_of(self, pipeline: Pipeline) -> _Known:
        return self._known.setdefault((pipeline.namespace, pipeline.name), _Known())

    def _deferred_changes(
        self, pipeline: Pipeline, desired: Sequence[Manifest], live: Mapping[Place, Mapping[str, Any]]
    ) -> frozenset[Place]:
        """Name the changes that wait for another roll-out; the wait is bounded, since that one may never end."""
        known, now_s = self._known_of(pipeline), time.monotonic()
        settled = {
            place_of(manifest)
            for manifest in desired
            if manifest["kind"] in WORKLOADS and _agrees(known, manifest, live.get(place_of(manifest)))
        }
        # A roll-out that has ended since is waited for again the next time.
        busy = {place for place in known.passed_over if rollout_step(_only(desired, place), live, settled).awaited}
        known.passed_over &= busy
        now = rollout_step(desired, live, settled, known.passed_over)
        if not now.deferred or now.awaited is None:
            known.holding, known.awaited = False, None
            return frozenset()
        if known.awaited is None or known.awaited[0] != now.awaited:
            known.awaited = (now.awaited, now_s)
        elif now_s - known.awaited[1] >= HOLD_S:
            log.warning(
                "%s %s/%s is not rolled out within %g s: changes that waited for it are applied now",
                now.awaited[0],
                pipeline.namespace,
                now.awaited[1],
                HOLD_S,
            )
            known.passed_over.add(now.awaited)
            known.awaited = None
            now = rollout_step(desired, live, settled, known.passed_over)
        known.holding = bool(now.deferred)
        return now.deferred

    async def _apply(
        self, pipeline: Pipeline, manifest: Manifest, observed: Observed, has_time: Callable[[], bool]
    ) -> Refusal | Mapping[str, Any] | None:
        """Write a child if it differs; gives it as written, or the refusal, None if there was nothing to write."""
        place, live = place_of(manifest), observed.child(*place_of(manifest))
        once = CREATE_ONLY in manifest["metadata"]["annotations"]
        if live is not None and once and may_take_over(live, pipeline):
            adopted = await self._adopt(pipeline, manifest, {**live})
            await self._known_of(pipeline).contents.keep(self.cluster, self.cache, manifest, adopted)
            return None
        digest = place[0] if once else manifest["metadata"]["annotations"][APPLIED]
        key, known = (pipeline.namespace, pipeline.name), self._known_of(pipeline)
        refusal = self.refusals.of(key, place, digest, time.monotonic())
        if refusal is not None:
            return refusal
        if live is not None and place[0] not in _CONTENTS and _agrees(known, manifest, live):
            known.agreed[place] = replace(
                known.agreed.get(place, _Agreed(digest, "")), digest=digest, version=_version(live)
            )
            return None
        agreed = known.agreed.get(place, _Agreed("", ""))
        if live is not None and (agreed.digest, agreed.version) == (digest, _version(live)):
            return None
        if not has_time():
            return LATE
        try:
            written = await self._write(pipeline, manifest, known_there=live is not None)
        except ApiRefused as error:
            log.warning("%s %s/%s was refused: %s", place[0], pipeline.namespace, place[1], error)
            refusal = Refusal(*place, error.code, str(error), error.reason)
            return self.refusals.add(key, place, digest, refusal, time.monotonic())
        self.cache.put(written)
        return slim(written)

    async def _write(self, pipeline: Pipeline, manifest: Manifest, *, known_there: bool) -> Body:
        """Create a child; where one of its name exists already, correct that if it is the pipeline's."""
        kind, name = place_of(manifest)
        known, once = self._known_of(pipeline), CREATE_ONLY in manifest["metadata"]["annotations"]
        if not known_there:
            # New random passwords would lock out the running pods, which have read the earlier ones.
            created = await self.cluster.create(known.contents.restored(manifest) if once else manifest)
            if created is not None:
                log.info("%s %s/%s created", kind, pipeline.namespace, name)
                self._remember(pipeline, manifest, created)
                return created
        found = await self.cluster.get(KINDS[kind], pipeline.namespace, name)
        if found is None:
            self.cache.drop(kind, pipeline.namespace, name)
            raise ApiUnavailable(f"{kind} {pipeline.namespace}/{name} was deleted during the reconcile")
        found = {**found, "kind": kind, "apiVersion": KINDS[kind].api_version}
        if not may_take_over(found, pipeline):
            words = "an object of this name exists that does not belong to the operator"
            raise ApiRefused(CONFLICT, NAME_TAKEN_REASON, words)
        found = await self._adopt(pipeline, manifest, found)
        if once:
            await known.contents.keep(self.cluster, self.cache, manifest, found)
            return found
        if _agrees(known, manifest, found):
            self._remember(pipeline, manifest, found)
            return found
        await self.cluster.own_fields(found)
        written = await self.cluster.apply(manifest, found["metadata"]["uid"])
        self._remember(pipeline, manifest, written)
        log.info("%s %s/%s corrected", kind, pipeline.namespace, name)
        return written

    def _remember(self, pipeline: Pipeline, manifest: Manifest, written: Body) -> None:
        """Remember what the server made of a manifest: while that stays the same, the object has not drifted."""
        place, annotations = place_of(manifest), manifest["metadata"]["annotations"]
        known = self._known_of(pipeline)
        spared = {} if CREATE_ONLY in annotations else differences(written, manifest)
        if spared and spared != known.agreed.get(place, _Agreed("", "")).spared:
            fields = ", ".join(sorted(spared)[:5])
            log.warning(
                "%s %s/%s: the cluster changes the applied values of %s, probably a policy; they are left so",
                place[0],
                pipeline.namespace,
                place[1],
                fields,
            )
        known.agreed[place] = _Agreed(annotations.get(APPLIED, ""), _version(written), spared)

    async def _adopt(self, pipeline: Pipeline, manifest: Manifest, live: Body) -> Body:
        """Give an object that may be taken over our labels, and this pipeline as its owner."""
        metadata, found = manifest["metadata"], live["metadata"]
        change: Body = {}
        if not belongs_to(live, pipeline):
            change["ownerReferences"] = metadata["ownerReferences"]
        if not metadata["labels"].items() <= (found.get("labels") or {}).items():
            change["labels"] = metadata["labels"]
        if not change:
            return live
        kind = KINDS[manifest["kind"]]
        change = {"metadata": {**change, "uid": found["uid"]}}
        adopted = await self.cluster.merge(kind, metadata["namespace"], metadata["name"], change)
        if adopted is None:
            raise ApiUnavailable(
                f"{kind.name} {metadata['namespace']}/{metadata['name']} was deleted during the reconcile"
            )
        self.cache.put(adopted)
        log.info("%s %s/%s taken over", kind.name, metadata["namespace"], metadata["name"])
        return adopted


def _version(live: Mapping[str, Any]) -> str:
    return str(live["metadata"].get("resourceVersion"))


def _agrees(known: _Known, manifest: Manifest, live: Mapping[str, Any] | None) -> bool:
    """Say whether an object agrees with its manifest, or with what the cluster made of it when it was written."""
    if live is None:
        return False
    found = differences(live, manifest)
    if not found:
        return True
    agreed = known.agreed.get(place_of(manifest))
    digest = manifest["metadata"]["annotations"].get(APPLIED, "")
    return agreed is not None and agreed.digest == digest and found == agreed.spared


def _only(desired: Sequence[Manifest], place: Place) -> list[Manifest]:
    return [manifest for manifest in desired if place_of(manifest) == place]


def _is_scaled_down(manifest: Manifest) -> bool:
    """Say whether a workload is to have no pods: then no pod can start with outdated settings."""
    return manifest["kind"] in WORKLOADS and not manifest["spec"].get("replicas", 1)


def _may_delete(live: Mapping[str, Any], pipeline: Pipeline) -> bool:
    metadata = live["metadata"]
    if CREATE_ONLY in (metadata.get("annotations") or {}) or "deletionTimestamp" in metadata:
        return False
    return (metadata.get("labels") or {}).get(MANAGED_BY) == FIELD_MANAGER and belongs_to(live, pipeline)

"""Makes a pipeline's children be as they should: written in their order, put right, taken away when unwanted."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sheetanchor_operator.cache import Cache, Key, slim
from sheetanchor_operator.children import Defaults, Manifest, children
from sheetanchor_operator.children.redis import CREATE_ONLY
from sheetanchor_operator.cluster import KINDS, ApiRefused, Cluster
from sheetanchor_operator.drift import APPLIED, needs_apply, stamped
from sheetanchor_operator.names import FIELD_MANAGER
from sheetanchor_operator.observed import Observed, Refusal
from sheetanchor_operator.refusals import Refusals
from sheetanchor_operator.roll import Place, held_back, may_go, place_of
from sheetanchor_operator.spec import Pipeline

log = logging.getLogger(__name__)

HOLD_S: Final = 180.0
"""A change waits this long for those before it: a roll-out of Redis takes a minute, one of the others ten seconds."""

CONFLICT: Final = 409
MANAGED_BY: Final = "app.kubernetes.io/managed-by"


@dataclass(slots=True)
class _Known:
    """What is remembered of one pipeline's children.

    Attributes:
        agreed: Which manifest each child was last found to agree with, and in which version.
        content: Version and content of the Secrets that were made here; nowhere else is it kept, and it is never told.
        holding_since_s: Since when a change waits for its turn; None if none does.
    """

    agreed: dict[Place, tuple[str, str]] = field(default_factory=dict)
    content: dict[Place, tuple[str, dict[str, str]]] = field(default_factory=dict, repr=False)
    holding_since_s: float | None = None


@dataclass(slots=True)
class Keeper:
    """Keeps the children of pipelines."""

    cluster: Cluster
    cache: Cache
    defaults: Defaults
    refusals: Refusals = field(default_factory=Refusals)
    _known: dict[Key, _Known] = field(default_factory=dict, repr=False)

    async def keep(self, pipeline: Pipeline, observed: Observed) -> Observed:
        """Make the children be as they should.

        Returns:
            What is there then, and what the API server would not do.

        Raises:
            ApiUnavailable: The API server cannot do it just now.
            ApiRefused: It will not delete what is not wanted any more.
        """
        desired = [stamped(manifest) for manifest in children(pipeline, observed, self.defaults)]
        live, refusals = dict(observed.children), []
        held = self._held_back(pipeline, desired, live)
        for manifest in desired:
            if place_of(manifest) in held:
                continue
            done = await self._apply(pipeline, manifest, observed)
            if isinstance(done, Refusal):
                refusals.append(done)
            elif done is not None:
                live[place_of(manifest)] = done
        wanted = {place_of(manifest) for manifest in desired}
        for (kind, name), body in observed.children.items():
            if (kind, name) not in wanted and _is_ours(body, pipeline) and may_go(body, desired, live):
                log.info("%s %s/%s is not wanted any more", kind, pipeline.namespace, name)
                await self.cluster.delete(KINDS[kind], pipeline.namespace, name, body["metadata"]["uid"])
        return replace(observed, refusals=(*observed.refusals, *refusals), children=live)

    def is_holding(self, key: Key) -> bool:
        """Say whether a change waits for its turn."""
        return key in self._known and self._known[key].holding_since_s is not None

    def forget(self, key: Key) -> None:
        """Drop what is remembered of a pipeline that is no more."""
        self._known.pop(key, None)
        self.refusals.forget(key)

    def _known_of(self, pipeline: Pipeline) -> _Known:
        return self._known.setdefault((pipeline.namespace, pipeline.name), _Known())

    def _held_back(
        self, pipeline: Pipeline, desired: Sequence[Manifest], live: Mapping[Place, Mapping[str, Any]]
    ) -> frozenset[Place]:
        """Name what waits for its turn; not for ever, since what it waits for may never be done."""
        known, now_s = self._known_of(pipeline), time.monotonic()
        held = held_back(desired, live)
        if not held:
            known.holding_since_s = None
            return held
        if known.holding_since_s is None:
            known.holding_since_s = now_s
        return held if now_s - known.holding_since_s < HOLD_S else frozenset()

    async def _apply(
        self, pipeline: Pipeline, manifest: Manifest, observed: Observed
    ) -> Refusal | Mapping[str, Any] | None:
        """Write a child if it needs it; gives it as written, or why not, None if there was nothing to do."""
        place, live = place_of(manifest), observed.child(*place_of(manifest))
        once = CREATE_ONLY in manifest["metadata"]["annotations"]
        if live is not None and once:
            await self._adopt(manifest, live)
            await self._keep_content(pipeline, manifest, live)
            return None
        digest = place[0] if once else manifest["metadata"]["annotations"][APPLIED]
        key, agreed = (pipeline.namespace, pipeline.name), self._known_of(pipeline).agreed
        refusal = self.refusals.of(key, place, digest, time.monotonic())
        if refusal is not None:
            return refusal
        if live is not None:
            now = digest, str(live["metadata"].get("resourceVersion"))
            if agreed.get(place) == now or not needs_apply(manifest, live):
                agreed[place] = now
                return None
        written = await self._write(pipeline, manifest, once=once)
        if isinstance(written, Refusal):
            return self.refusals.add(key, place, digest, written, time.monotonic())
        self.cache.put(written)
        agreed[place] = digest, str(written["metadata"]["resourceVersion"])
        log.info("%s %s/%s %s", place[0], pipeline.namespace, place[1], "created" if live is None else "put right")
        return slim(written)

    async def _write(self, pipeline: Pipeline, manifest: Manifest, *, once: bool) -> Mapping[str, Any] | Refusal:
        kind, name = place = place_of(manifest)
        content = self._known_of(pipeline).content
        if once and place in content:
            # Whoever is at work knows the passwords that were, and whoever starts would be given others.
            manifest = {**manifest, "data": content[place][1]}
        try:
            written = await (self.cluster.create(manifest) if once else self.cluster.apply(manifest))
        except ApiRefused as error:
            log.warning("%s %s/%s was refused: %s", kind, pipeline.namespace, name, error)
            return Refusal(kind, name, error.code, str(error))
        if written is None:
            # What we had made would carry our label, and be known.
            words = "there is one of this name that is not the operator's; delete it, or name the pipeline otherwise"
            return Refusal(kind, name, CONFLICT, words)
        return written

    async def _adopt(self, manifest: Manifest, live: Mapping[str, Any]) -> None:
        """Keep what is made once from going with a pipeline of the same name that was there before."""
        metadata, wanted = manifest["metadata"], manifest["metadata"]["ownerReferences"]
        if [one.get("uid") for one in live["metadata"].get("ownerReferences") or ()] == [one["uid"] for one in wanted]:
            return
        kind = KINDS[manifest["kind"]]
        change = {"metadata": {"ownerReferences": wanted}}
        adopted = await self.cluster.merge(kind, metadata["namespace"], metadata["name"], change)
        if adopted is not None:
            self.cache.put(adopted)
            log.info("%s %s/%s taken over", kind.name, metadata["namespace"], metadata["name"])

    async def _keep_content(self, pipeline: Pipeline, manifest: Manifest, live: Mapping[str, Any]) -> None:
        """Keep in mind what is made once: if somebody deletes it, it comes back as it was, or as he had changed it."""
        kind, name = place = place_of(manifest)
        content, version = self._known_of(pipeline).content, str(live["metadata"].get("resourceVersion"))
        if place not in content or content[place][0] != version:
            found = await self.cluster.get(KINDS[kind], pipeline.namespace, name)
            if found is not None:
                content[place] = (str(found["metadata"]["resourceVersion"]), dict(found.get("data") or {}))


def _is_ours(live: Mapping[str, Any], pipeline: Pipeline) -> bool:
    metadata = live["metadata"]
    if CREATE_ONLY in (metadata.get("annotations") or {}) or "deletionTimestamp" in metadata:
        return False
    if (metadata.get("labels") or {}).get(MANAGED_BY) != FIELD_MANAGER:
        return False
    return any(owner.get("uid") == pipeline.uid for owner in metadata.get("ownerReferences") or ())

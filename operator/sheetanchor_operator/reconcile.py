"""One pipeline, one look: observe, decide, apply, tell. Decisions are pure; this is the order of things."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sheetanchor_operator.cache import Cache, Key, content_hash, secret_hash, slim
from sheetanchor_operator.children import Defaults, Manifest, children
from sheetanchor_operator.children.needs import claims_needed, config_maps_needed, secrets_needed
from sheetanchor_operator.children.redis import CREATE_ONLY
from sheetanchor_operator.cluster import (
    CHILDREN,
    JOB,
    KINDS,
    PIPELINE,
    POD,
    REANCHOR,
    ApiError,
    ApiRefused,
    Body,
    Cluster,
)
from sheetanchor_operator.drift import APPLIED, needs_apply, stamped
from sheetanchor_operator.events import Event
from sheetanchor_operator.measures import Measures
from sheetanchor_operator.names import FIELD_MANAGER
from sheetanchor_operator.observed import Observed, Refusal
from sheetanchor_operator.publish import Publisher
from sheetanchor_operator.reanchor_plan import Plan, without
from sheetanchor_operator.reanchor_spec import TERMINAL_PHASES
from sheetanchor_operator.reanchoring import plan
from sheetanchor_operator.roll import held_back, may_go, place_of
from sheetanchor_operator.spec import BadSpec, Pipeline, parse
from sheetanchor_operator.status import refused_status, status_of, transitions
from sheetanchor_operator.workloads import Workloads

log = logging.getLogger(__name__)

UNSOUND_S: Final = 3.0
"""How soon a pipeline that is not as it should be is looked at again."""

PER_PIPELINE_S: Final = 0.05
"""With many pipelines each is looked at less often: at most twenty a second are, whatever their number."""

HOLD_S: Final = 180.0
"""A change waits this long for those before it: a roll-out of Redis takes a minute, one of the others ten seconds."""

REFUSED_AGAIN_S: Final = 20.0
"""A manifest that was refused is tried again after this time, or when it has changed."""

CONFLICT: Final = 409
DEFECT_LENGTH_MAX: Final = 300

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
_CHILD_KINDS: Final = frozenset(kind.name for kind in CHILDREN)


@dataclass(slots=True)
class _Applied:
    """What became of a child: which manifest it was last found to agree with, and in which version."""

    digest: str
    version: str = ""
    refusal: Refusal | None = None
    again_s: float = 0.0


@dataclass(slots=True)
class Reconciler:
    """Looks at pipelines.

    Attributes:
        resync_s: Time between two looks at a pipeline to which nothing happens.
    """

    cluster: Cluster
    cache: Cache
    workloads: Workloads
    publisher: Publisher
    measures: Measures
    defaults: Defaults
    resync_s: float = 10.0
    _applied: dict[tuple[str, str, str], _Applied] = field(default_factory=dict)
    _content: dict[tuple[str, str, str], tuple[str, dict[str, str]]] = field(default_factory=dict, repr=False)
    """Version and content of the Secrets that were made here; nowhere else is it kept, and it is never told."""

    _unsound: set[Key] = field(default_factory=set)
    _holding: dict[Key, float] = field(default_factory=dict)
    _refused: dict[Key, dict[tuple[str, str], _Applied]] = field(default_factory=dict)
    """ReAnchors and Jobs that the API server refused, by pipeline."""

    async def reconcile(self, key: Key) -> float | None:
        """Look at a pipeline once.

        Returns:
            Seconds until the next look if nothing happens before; None if the pipeline is no more.

        Raises:
            ApiUnavailable: The API server cannot do it just now.
            ApiRefused: It will not do it.
            Exception: A defect of ours, which the pipeline's status tells.
        """
        body = self.cache.get(PIPELINE.name, *key)
        if body is None:
            self._forget(key)
            await self._tell_orphans(key)
            return None
        if "deletionTimestamp" in body["metadata"]:
            return self.resync_s
        try:
            pipeline = parse(body)
        except BadSpec as error:
            await self._refuse(key, body, str(error))
            return self.resync_s
        try:
            return await self._look(key, pipeline, body)
        except ApiError:
            raise
        except Exception as error:
            # What one pipeline holds must not stay untold, whatever it is; who called decides what becomes of it.
            said = " ".join(f"{type(error).__name__}: {error}".split())[:DEFECT_LENGTH_MAX]
            with suppress(ApiError):
                await self._refuse(key, body, f"the operator fails on this pipeline, its log says where: {said}")
            raise

    async def _look(self, key: Key, pipeline: Pipeline, body: Mapping[str, Any]) -> float:
        observed = await self._observe(pipeline, self.cache.of(key))
        if not pipeline.paused:
            observed = await self._keep(pipeline, observed)
        decided = plan(pipeline, observed, self.defaults)
        decided, refusals = await self._carry_out(key, pipeline, decided)
        observed = replace(observed, refusals=(*observed.refusals, *refusals))
        # What happened to the ReAnchors is written by now: another look would not find it new.
        await self._tell(pipeline.namespace, decided.events)
        status = status_of(pipeline, observed, decided)
        events = transitions(pipeline.status, status, pipeline.name, pipeline.uid)
        if await self._write_status(body, status):
            await self._tell(pipeline.namespace, events)
        self.measures.take(key, status, observed.reanchors, announced=pipeline.spec.maintenance.enabled)
        return self._next_look(key, decided, status)

    async def _refuse(self, key: Key, body: Mapping[str, Any], message: str) -> None:
        """Tell that a pipeline's spec cannot be used; its children stay as they are."""
        status = refused_status(body, message, _now_us())
        metadata = body["metadata"]
        events = transitions(body.get("status") or {}, status, metadata["name"], metadata["uid"])
        if await self._write_status(body, status):
            await self._tell(metadata["namespace"], events)
        # What cannot be read announces nothing, so it mutes nothing either.
        mine = self.cache.of(key)
        reanchors = [one for (kind, _), one in mine.items() if kind == REANCHOR.name]
        self.measures.take(key, status, reanchors, announced=False)

    async def _tell_orphans(self, key: Key) -> None:
        """Tell ReAnchors of a pipeline that does not exist that they wait for one; owned ones go with their owner."""
        namespace, name = key
        change = {
            "phase": "Pending",
            "message": f"waits: there is no PredictionPipeline {name} in namespace {namespace}",
        }
        for (kind, one), body in self.cache.of(key).items():
            status = body.get("status") or {}
            if (
                kind != REANCHOR.name
                or body["metadata"].get("ownerReferences")
                or status.get("phase") in TERMINAL_PHASES
            ):
                continue
            if any(status.get(field) != value for field, value in change.items()):
                written = await self.cluster.merge(REANCHOR, namespace, one, {"status": change}, "status")
                if written is not None:
                    self.cache.put(written)

    def _forget(self, key: Key) -> None:
        self.measures.forget(key)
        namespace, name = key
        for known in (self._applied, self._content):
            for place in [p for p in known if p[1] == namespace and p[2].startswith(f"{name}-")]:
                del known[place]
        self._refused.pop(key, None)
        self._unsound.discard(key)
        self._holding.pop(key, None)

    def _next_look(self, key: Key, decided: Plan, status: Mapping[str, Any]) -> float:
        sound = status.get("phase") in ("Running", "Suspended", "Maintenance", "Paused")
        (self._unsound.discard if sound else self._unsound.add)(key)
        least_s = PER_PIPELINE_S * len(self.cache.pipelines() if sound else self._unsound)
        wait_s = max(self.resync_s if sound else UNSOUND_S, least_s) * (0.9 + 0.2 * random.random())
        if key in self._holding:
            wait_s = min(wait_s, UNSOUND_S)
        if decided.wake_at_us is not None:
            wake_s = (decided.wake_at_us - _now_us()) / 1e6
            # A pipeline that is in doubt wants a look every second: many of them take turns.
            wait_s = min(wait_s, max(0.0 if sound else least_s, wake_s))
        if key in self._refused:
            # The plan would have it done at once, and is refused until somebody changes something.
            wait_s = max(wait_s, UNSOUND_S)
        return wait_s

    # Observing

    async def _observe(self, pipeline: Pipeline, mine: Mapping[tuple[str, str], Mapping[str, Any]]) -> Observed:
        pods = tuple(body for (kind, _), body in sorted(mine.items()) if kind == POD.name)
        answers, needs = await asyncio.gather(self.workloads.ask(pods, pipeline.spec.symbols), self._needs(pipeline))
        zones = self.cache.node_zones()
        return Observed(
            now_us=_now_us(),
            children=_children(mine),
            pods=pods,
            zones=tuple(sorted(set(zones.values()))),
            node_zones=zones,
            reanchors=tuple(body for (kind, _), body in sorted(mine.items()) if kind == REANCHOR.name),
            jobs=tuple(body for (kind, _), body in sorted(mine.items()) if kind == JOB.name),
            states=answers.states,
            predictions=answers.predictions,
            health=answers.health,
            events=await self._warnings(pipeline, mine),
            **needs,
        )

    async def _needs(self, pipeline: Pipeline) -> dict[str, Any]:
        """Look at what people have to provide. Of a Secret only the names of its entries are kept."""
        secrets, versions, config_maps, claims = {}, {}, {}, {}
        refusals: list[Refusal] = []

        async def looked_at(kind: str, names: Iterable[str]) -> AsyncIterator[tuple[str, Body | None]]:
            for name in names:
                try:
                    yield name, await self.cluster.get(KINDS[kind], pipeline.namespace, name)
                except ApiRefused as error:
                    refusals.append(Refusal(kind, name, error.code, str(error)))

        async for name, found in looked_at("Secret", secrets_needed(pipeline)):
            secrets[name] = None if found is None else frozenset(found.get("data") or {})
            if found is not None:
                versions[name] = secret_hash(found)
        async for name, found in looked_at("ConfigMap", config_maps_needed(pipeline)):
            keys = {} if found is None else {**(found.get("data") or {}), **(found.get("binaryData") or {})}
            config_maps[name] = None if found is None else {**dict.fromkeys(keys, ""), "": content_hash(found)}
        async for name, found in looked_at("PersistentVolumeClaim", claims_needed(pipeline)):
            claims[name] = found is not None
        return {
            "secrets": secrets,
            "secret_versions": versions,
            "config_maps": config_maps,
            "volume_claims": claims,
            "refusals": tuple(refusals),
        }

    async def _warnings(self, pipeline: Pipeline, mine: Mapping[tuple[str, str], Any]) -> tuple[Body, ...]:
        """Read why a StatefulSet makes no pods, while it does not: unlike a Deployment it does not say so itself."""
        found = []
        for (kind, name), body in sorted(mine.items()):
            wanted = int((body.get("spec") or {}).get("replicas", 1)) if kind == "StatefulSet" else 0
            if int((body.get("status") or {}).get("replicas", 0)) < wanted:
                with suppress(ApiRefused):  # without the right to read Events only their words are missing
                    found += await self.cluster.warnings(pipeline.namespace, kind, name)
        return tuple(sorted(found, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or "")))

    # Applying

    async def _keep(self, pipeline: Pipeline, observed: Observed) -> Observed:
        """Make the children be as they should; gives what is there then, and what the API server would not do."""
        desired = [stamped(manifest) for manifest in children(pipeline, observed, self.defaults)]
        live, refusals = dict(observed.children), []
        held = self._held_back(pipeline, desired, live)
        for manifest in desired:
            if place_of(manifest) in held:
                continue
            done = await self._apply(manifest, observed)
            if isinstance(done, Refusal):
                refusals.append(done)
            elif done is not None:
                live[manifest["kind"], manifest["metadata"]["name"]] = done
        wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in desired}
        for (kind, name), body in observed.children.items():
            if (kind, name) not in wanted and _is_ours(body, pipeline) and may_go(body, desired, live):
                log.info("%s %s/%s is not wanted any more", kind, pipeline.namespace, name)
                await self.cluster.delete(KINDS[kind], pipeline.namespace, name, body["metadata"]["uid"])
        return replace(observed, refusals=(*observed.refusals, *refusals), children=live)

    def _held_back(
        self, pipeline: Pipeline, desired: Sequence[Manifest], live: Mapping[tuple[str, str], Mapping[str, Any]]
    ) -> frozenset[tuple[str, str]]:
        """Name what waits for its turn; not for ever, since what it waits for may never be done."""
        key, now_s = (pipeline.namespace, pipeline.name), time.monotonic()
        held = held_back(desired, live)
        if not held:
            self._holding.pop(key, None)
            return held
        since_s = self._holding.setdefault(key, now_s)
        return held if now_s - since_s < HOLD_S else frozenset()

    async def _apply(self, manifest: Manifest, observed: Observed) -> Refusal | Mapping[str, Any] | None:
        """Write a child if it needs it; gives it as written, or why not, None if there was nothing to do."""
        metadata = manifest["metadata"]
        kind, namespace, name = manifest["kind"], metadata["namespace"], metadata["name"]
        live = observed.child(kind, name)
        once = CREATE_ONLY in metadata["annotations"]
        if live is not None and once:
            await self._adopt(manifest, live)
            await self._keep_content(manifest, live)
            return None
        place, now_s = (kind, namespace, name), time.monotonic()
        content = kind if once else metadata["annotations"][APPLIED]
        last = self._applied.get(place)
        if last is not None and last.digest == content:
            if last.refusal is not None and now_s < last.again_s:
                return last.refusal
            if live is not None and last.version == live["metadata"].get("resourceVersion"):
                return None
        if live is not None and not needs_apply(manifest, live):
            self._applied[place] = _Applied(content, str(live["metadata"].get("resourceVersion")))
            return None
        if once and place in self._content:
            # Whoever is at work knows the passwords that were, and whoever starts would be given others.
            manifest = {**manifest, "data": self._content[place][1]}
        try:
            written = await (self.cluster.create(manifest) if once else self.cluster.apply(manifest))
        except ApiRefused as error:
            refusal = Refusal(kind, name, error.code, str(error))
            log.warning("%s %s/%s was refused: %s", kind, namespace, name, error)
            self._applied[place] = _Applied(content, refusal=refusal, again_s=now_s + REFUSED_AGAIN_S)
            return refusal
        if written is None:
            # What we had made would carry our label, and be known.
            words = "there is one of this name that is not the operator's; delete it, or name the pipeline otherwise"
            refusal = Refusal(kind, name, CONFLICT, words)
            self._applied[place] = _Applied(content, refusal=refusal, again_s=now_s + REFUSED_AGAIN_S)
            return refusal
        self.cache.put(written)
        self._applied[place] = _Applied(content, str(written["metadata"]["resourceVersion"]))
        log.info("%s %s/%s %s", kind, namespace, name, "created" if live is None else "put right")
        return slim(written)

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

    async def _keep_content(self, manifest: Manifest, live: Mapping[str, Any]) -> None:
        """Keep in mind what is made once: if somebody deletes it, it comes back as it was, or as he had changed it."""
        metadata, version = manifest["metadata"], str(live["metadata"].get("resourceVersion"))
        place = (manifest["kind"], metadata["namespace"], metadata["name"])
        if place not in self._content or self._content[place][0] != version:
            found = await self.cluster.get(KINDS[manifest["kind"]], metadata["namespace"], metadata["name"])
            if found is not None:
                self._content[place] = (str(found["metadata"]["resourceVersion"]), dict(found.get("data") or {}))

    # Re-anchors

    async def _carry_out(self, key: Key, pipeline: Pipeline, decided: Plan) -> tuple[Plan, tuple[Refusal, ...]]:
        """Do what was planned; gives what is left of it, and the refusals of what could not be made."""
        refused: list[Refusal] = []
        held = self._refused.pop(key, {})
        for manifest in decided.create:
            refused += await self._create(key, pipeline, manifest, held)
        failed = {}
        for start in decided.start:
            for refusal in await self._create(key, pipeline, start.manifest, held):
                failed[start.reanchor] = replace(refusal, name=start.reanchor)
        decided = without(decided, {name: one.message for name, one in failed.items()})
        if refused:
            decided = replace(decided, last_request=str(pipeline.status.get("lastReanchorRequest") or ""))
        for patch in decided.patch:
            before = self.cache.get(REANCHOR.name, pipeline.namespace, patch.name)
            change = {"status": dict(patch.status)}
            written = await self.cluster.merge(REANCHOR, pipeline.namespace, patch.name, change, "status")
            if written is not None:
                self.cache.put(written)
                self.measures.changed(before or {}, written)
        for name in decided.adopt:
            owner = {"metadata": {"ownerReferences": [_owner(pipeline)]}}
            adopted = await self.cluster.merge(REANCHOR, pipeline.namespace, name, owner)
            if adopted is not None:
                self.cache.put(adopted)
        for name in decided.delete:
            await self.cluster.delete(REANCHOR, pipeline.namespace, name)
        return decided, (*refused, *failed.values())

    async def _create(
        self, key: Key, pipeline: Pipeline, manifest: Manifest, held: Mapping[tuple[str, str], _Applied]
    ) -> tuple[Refusal, ...]:
        """Create an object of a re-anchor, unless that was refused a moment ago; gives the refusal, if there is one."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        last = held.get((kind, name))
        if last is None or last.refusal is None or time.monotonic() >= last.again_s:
            try:
                created = await self.cluster.create(manifest)
            except ApiRefused as error:
                log.warning("%s %s/%s was refused: %s", kind, pipeline.namespace, name, error)
                refusal = Refusal(kind, name, error.code, str(error))
                last = _Applied(kind, refusal=refusal, again_s=time.monotonic() + REFUSED_AGAIN_S)
            else:
                if created is not None:
                    self.cache.put(created)
                    log.info("%s %s/%s created", kind, pipeline.namespace, name)
                return ()
        self._refused.setdefault(key, {})[kind, name] = last
        return () if last.refusal is None else (last.refusal,)

    # Telling

    async def _write_status(self, body: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
        """Write the status if it differs; false if the pipeline is gone."""
        before = body.get("status") or {}
        if before == status:
            return True
        gone = {name: None for name in before if name not in status}
        changed = {name: value for name, value in status.items() if before.get(name) != value}
        metadata = body["metadata"]
        change = {"status": {**gone, **_whole(changed, before)}}
        written = await self.cluster.merge(PIPELINE, metadata["namespace"], metadata["name"], change, "status")
        if written is None:
            return False
        self.cache.put(written)
        return True

    async def _tell(self, namespace: str, events: tuple[Event, ...]) -> None:
        for event in events:
            await self.publisher.publish(namespace, event)


def _whole(changed: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Have a merge replace maps as a whole: fields that are no more are named as null."""
    whole = {}
    for name, value in changed.items():
        known = before.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            whole[name] = {**dict.fromkeys(known, None), **value}
        else:
            whole[name] = value
    return whole


def _children(mine: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {place: body for place, body in mine.items() if place[0] in _CHILD_KINDS}


def _owner(pipeline: Pipeline) -> Body:
    return {
        "apiVersion": PIPELINE.api_version,
        "kind": PIPELINE.name,
        "name": pipeline.name,
        "uid": pipeline.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _is_ours(live: Mapping[str, Any], pipeline: Pipeline) -> bool:
    metadata = live["metadata"]
    if CREATE_ONLY in (metadata.get("annotations") or {}) or "deletionTimestamp" in metadata:
        return False
    if (metadata.get("labels") or {}).get(MANAGED_BY) != FIELD_MANAGER:
        return False
    return any(owner.get("uid") == pipeline.uid for owner in metadata.get("ownerReferences") or ())


def _now_us() -> int:
    return time.time_ns() // 1_000

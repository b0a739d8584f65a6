"""One pipeline, one look: observe, decide, apply, tell. Decisions are pure; this is the order of things."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sheetanchor.errors import shortened
from sheetanchor_operator import metrics
from sheetanchor_operator.api.pipeline import BadSpec, Pipeline, parse
from sheetanchor_operator.api.reanchor_spec import TERMINAL_PHASES
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.apply.installation_claim import TAKE_OVER_AFTER_S, Heard, decide, heard
from sheetanchor_operator.apply.ownership import is_run_of
from sheetanchor_operator.apply.rollout_order import place_of
from sheetanchor_operator.children.object_meta import Defaults, Manifest, owner_of
from sheetanchor_operator.children.prerequisites import claims_needed, config_maps_needed, secrets_needed
from sheetanchor_operator.controller.apply_children import CONFLICT, Keeper
from sheetanchor_operator.controller.pipeline_metrics import Measures
from sheetanchor_operator.controller.refusals import Refusals
from sheetanchor_operator.controller.seen_requests import SeenWishes
from sheetanchor_operator.events import Event
from sheetanchor_operator.kube.api_client import (
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
from sheetanchor_operator.kube.cache import Cache, Key, content_hash, secret_hash
from sheetanchor_operator.kube.event_recorder import Publisher
from sheetanchor_operator.kube.workload_probe import Workloads
from sheetanchor_operator.names import OPERATOR_ANNOTATION, EventReason
from sheetanchor_operator.observation import Observed, Refusal
from sheetanchor_operator.reanchors.decide import plan
from sheetanchor_operator.reanchors.plan import WRITES_MAX, Patch, Plan, without
from sheetanchor_operator.status.conditions import PLANNED_FROM
from sheetanchor_operator.status.refusal_causes import NAME_TAKEN_REASON
from sheetanchor_operator.status.summary import NO_PLAN, refused_status, status_of, transitions
from sheetanchor_operator.zones.schedulable_zones import usable_zones

log = logging.getLogger(__name__)

UNSOUND_S: Final = 3.0
"""How soon a pipeline that is not as it should be is looked at again."""

PER_PIPELINE_S: Final = 0.05
"""With many pipelines each is looked at less often: at most twenty a second are, whatever their number."""

WRITES_AT_ONCE: Final = 8
"""One after another, a look with many writes takes over a second; more at once would crowd out other pipelines."""

PLANNED_HERE_MAX: Final = 200
"""Re-anchors that are decided upon within some milliseconds."""

DEFECT_LENGTH_MAX: Final = 300

_CHILD_KINDS: Final = frozenset(kind.name for kind in CHILDREN)


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
    blind: Callable[[str], Mapping[str, Refusal]] = lambda _namespace: {}
    """Tells why a kind cannot be heard in a namespace, by its name."""

    wishes: SeenWishes = field(default_factory=SeenWishes)
    installation: str = ""
    """Namespace and name of our Lease, by which pipelines say who looks after them; "" asks and tells nobody."""

    _keeper: Keeper = field(init=False, repr=False)
    _heard: dict[Key, Heard] = field(default_factory=dict)
    _kept_off: dict[Key, str] = field(default_factory=dict)
    """Pipelines that another installation looks after, each with its name."""

    _unsound: set[Key] = field(default_factory=set)
    _refusals: Refusals = field(default_factory=Refusals)
    """Of ReAnchors and Jobs; the keeper has those of children."""

    def __post_init__(self) -> None:
        self._keeper = Keeper(self.cluster, self.cache, self.defaults)

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
            return None if await self._tell_orphans(key) else 0.0
        if "deletionTimestamp" in body["metadata"]:
            return self.resync_s
        body = await self._claimed(key, body)
        if body is None:
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
            said = shortened(" ".join(f"{type(error).__name__}: {error}".split()), DEFECT_LENGTH_MAX)
            with suppress(ApiError):
                await self._refuse(key, body, f"the operator fails on this pipeline, its log says where: {said}")
            raise

    async def _claimed(self, key: Key, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Have a pipeline say that we look after it; gives it as it is then, None if another installation does.

        Raises:
            ApiUnavailable: Somebody has written the pipeline at the same moment, perhaps another one that claims it.
        """
        if not self.installation:
            return body
        metadata, now_s = body["metadata"], time.monotonic()
        known = self._heard[key] = heard(self._heard.get(key), body.get("status") or {}, now_s)
        wanted = str((metadata.get("annotations") or {}).get(OPERATOR_ANNOTATION, ""))
        decision = decide(self.installation, wanted, known, _now_us(), now_s)
        if decision == "keep-off":
            await self._keep_off(key, metadata["uid"], wanted or known.name)
            return None
        if self._kept_off.pop(key, None) is not None:
            metrics.KEPT_OFF.remove(*key)
        if decision == "act":
            return body
        claim = {"name": self.installation, "seenAt": text_of(_now_us() // 1_000_000 * 1_000_000)}
        change = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": {"operator": claim}}
        try:
            written = await self.cluster.merge(PIPELINE, *key, change, "status")
        except ApiRefused as error:
            # Without this right nothing can be told; children can be kept all the same, unless they are another's.
            log.warning("pipeline %s/%s cannot say who looks after it: %s", *key, error)
            return body if known.name in ("", self.installation) else None
        if written is None:
            return None
        if known.name != self.installation:
            log.info("pipeline %s/%s is looked after by %s from now on", *key, self.installation)
        self.cache.put(written)
        return written

    async def _keep_off(self, key: Key, uid: str, other: str) -> None:
        """Leave a pipeline to another installation, and say so once."""
        metrics.KEPT_OFF.labels(*key).set(1)
        if self._kept_off.get(key) == other:
            return
        self._kept_off[key] = other
        self.measures.forget(key)
        told = (
            f"installation {other} looks after this pipeline, and {self.installation} keeps off; it takes over once it "
            f"has heard nothing of it for {TAKE_OVER_AFTER_S / 60:g} minutes, or at once with "
            f"kubectl -n {key[0]} annotate pp {key[1]} --overwrite {OPERATOR_ANNOTATION}={self.installation}"
        )
        log.warning("pipeline %s/%s: %s", *key, told)
        await self._tell(key[0], (Event(PIPELINE.name, key[1], uid, "Warning", EventReason.KEPT_OFF, told),))

    async def _look(self, key: Key, pipeline: Pipeline, body: Mapping[str, Any]) -> float:
        observed = await self._observe(pipeline, self.cache.of(key))
        # What may be deleted or changed by now must not be made again as it was.
        if not pipeline.paused and PIPELINE.name not in observed.blind:
            observed = await self._keeper.keep(pipeline, observed)
        decided = NO_PLAN
        refusals: tuple[Refusal, ...] = ()
        if not PLANNED_FROM & observed.blind.keys():
            decided = await self._plan(pipeline, observed)
            decided, refusals = await self._carry_out(key, pipeline, decided)
        observed = replace(observed, refusals=(*observed.refusals, *refusals))
        # What happened to the ReAnchors is written by now: another look would not find it new.
        await self._tell(pipeline.namespace, decided.events)
        status = status_of(pipeline, observed, decided)
        events = transitions(pipeline.status, status, pipeline.name, pipeline.uid)
        if await self._write_status(body, status):
            await self._tell(pipeline.namespace, events)
            if not refusals and decided is not NO_PLAN and not pipeline.paused:
                self.wishes.done(key, observed.overwritten)
        self.measures.take(key, status, observed.reanchors, announced=pipeline.spec.maintenance.enabled)
        return self._next_look(key, decided, status, refused=bool(refusals))

    async def _plan(self, pipeline: Pipeline, observed: Observed) -> Plan:
        """Decide about re-anchors; with many of them in a thread, since the Lease is renewed in this one's loop."""
        if len(observed.reanchors) <= PLANNED_HERE_MAX:
            return plan(pipeline, observed, self.defaults)
        return await asyncio.to_thread(plan, pipeline, observed, self.defaults)

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

    async def _tell_orphans(self, key: Key) -> bool:
        """Tell ReAnchors of a pipeline that does not exist that they wait for one; owned ones go with their owner.

        Returns:
            Whether all have been told; a look tells no more than some.
        """
        left = WRITES_MAX
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
                left -= 1
                if left < 0:
                    return False
                written = await self.cluster.merge(REANCHOR, namespace, one, {"status": change}, "status")
                if written is not None:
                    self.cache.put(written)
        return True

    def _forget(self, key: Key) -> None:
        self.wishes.forget(key)
        self._heard.pop(key, None)
        if self._kept_off.pop(key, None) is not None:
            metrics.KEPT_OFF.remove(*key)
        self.measures.forget(key)
        self._keeper.forget(key)
        self._refusals.forget(key)
        self._unsound.discard(key)

    def _next_look(self, key: Key, decided: Plan, status: Mapping[str, Any], *, refused: bool) -> float:
        sound = status.get("phase") in ("Running", "Suspended", "Maintenance", "Paused")
        (self._unsound.discard if sound else self._unsound.add)(key)
        least_s = PER_PIPELINE_S * len(self.cache.pipelines() if sound else self._unsound)
        wait_s = max(self.resync_s if sound else UNSOUND_S, least_s) * (0.9 + 0.2 * random.random())
        if self._keeper.is_holding(key):
            wait_s = min(wait_s, UNSOUND_S)
        if decided.wake_at_us is not None:
            wake_s = (decided.wake_at_us - _now_us()) / 1e6
            # A pipeline that is in doubt wants a look every second: many of them take turns.
            wait_s = min(wait_s, max(0.0 if sound else least_s, wake_s))
        if refused:
            # The plan would have it done at once, and is refused until somebody changes something.
            wait_s = max(wait_s, UNSOUND_S)
        return wait_s

    # Observing

    async def _observe(self, pipeline: Pipeline, mine: Mapping[tuple[str, str], Mapping[str, Any]]) -> Observed:
        pods = tuple(body for (kind, _), body in sorted(mine.items()) if kind == POD.name)
        answers, needs = await asyncio.gather(self.workloads.ask(pods, pipeline.spec.symbols), self._needs(pipeline))
        zones, nodes = self.cache.node_zones(), self.cache.nodes().values()
        return Observed(
            now_us=_now_us(),
            children=_children(mine),
            pods=pods,
            zones=tuple(sorted(set(zones.values()))),
            usable_zones=usable_zones(nodes, pipeline.spec.scheduling),
            node_zones=zones,
            blind=self.blind(pipeline.namespace),
            overwritten=self.wishes.of((pipeline.namespace, pipeline.name)),
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
                    refusals.append(Refusal(kind, name, error.code, str(error), error.reason))

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
                    found += await self.cluster.warnings(pipeline.namespace, kind, name, body["metadata"]["uid"])
        return tuple(found)

    # Re-anchors

    async def _carry_out(self, key: Key, pipeline: Pipeline, decided: Plan) -> tuple[Plan, tuple[Refusal, ...]]:
        """Do what was planned; gives what is left of it, and the refusals of what could not be made."""
        refused: list[Refusal] = []
        for manifest in decided.create:
            if (refusal := await self._create(key, manifest)) is not None:
                refused.append(refusal)
        failed = {}
        for start in decided.start:
            if (refusal := await self._create(key, start.manifest)) is not None:
                failed[start.reanchor] = replace(refusal, name=start.reanchor)
        decided = without(decided, {name: one.message for name, one in failed.items()})
        if refused:
            decided = replace(decided, last_request=str(pipeline.status.get("lastReanchorRequest") or ""))
        for write in (self._write_statuses, self._adopt, self._delete):
            try:
                await write(pipeline, decided)
            except ApiRefused as error:
                # One tells for all: the others of the same kind would be refused as well.
                refused.append(Refusal(REANCHOR.name, pipeline.name, error.code, str(error), error.reason))
        return decided, (*refused, *failed.values())

    async def _write_statuses(self, pipeline: Pipeline, decided: Plan) -> None:
        async def write(patch: Patch) -> None:
            before = self.cache.get(REANCHOR.name, pipeline.namespace, patch.name)
            change = {"status": dict(patch.status)}
            written = await self.cluster.merge(REANCHOR, pipeline.namespace, patch.name, change, "status")
            if written is not None:
                self.cache.put(written)
                self.measures.changed(before or {}, written)
                for receipt in decided.receipts.get(patch.name, ()):
                    self.measures.count(key_of_pipeline(pipeline), receipt)

        await _some_at_once(write, decided.patch)

    async def _adopt(self, pipeline: Pipeline, decided: Plan) -> None:
        async def adopt(name: str) -> None:
            owner = {"metadata": {"ownerReferences": [owner_of(pipeline)]}}
            adopted = await self.cluster.merge(REANCHOR, pipeline.namespace, name, owner)
            if adopted is not None:
                self.cache.put(adopted)

        await _some_at_once(adopt, decided.adopt)

    async def _delete(self, pipeline: Pipeline, decided: Plan) -> None:
        await _some_at_once(lambda name: self.cluster.delete(REANCHOR, pipeline.namespace, name), decided.delete)

    async def _create(self, key: Key, manifest: Manifest) -> Refusal | None:
        """Create an object of a re-anchor, unless that was refused a moment ago; gives the refusal, if there is one."""
        kind, name = place = place_of(manifest)
        # There is one manifest for each name: what was refused is refused whatever it held.
        refusal = self._refusals.of(key, place, kind, time.monotonic())
        if refusal is not None:
            return refusal
        try:
            created = await self.cluster.create(manifest)
        except ApiRefused as error:
            log.warning("%s %s/%s was refused: %s", kind, key[0], name, error)
            return self._refusals.add(
                key, place, kind, Refusal(kind, name, error.code, str(error), error.reason), time.monotonic()
            )
        if created is None:
            return await self._existing(key, manifest)
        self.cache.put(created)
        log.info("%s %s/%s created", kind, key[0], name)
        return None

    async def _existing(self, key: Key, manifest: Manifest) -> Refusal | None:
        """Look at what has the name of an object of a re-anchor: it may be the one, or somebody else's."""
        kind, name = place = place_of(manifest)
        found = await self.cluster.get(KINDS[kind], key[0], name)
        if found is None:
            return None  # gone meanwhile: the next look makes it
        found = {**found, "kind": kind, "apiVersion": KINDS[kind].api_version}
        if is_run_of(found, manifest):
            self.cache.put(found)
            return None
        words = "there is one of this name that is not the operator's"
        refusal = Refusal(kind, name, CONFLICT, words, NAME_TAKEN_REASON)
        return self._refusals.add(key, place, kind, refusal, time.monotonic())

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


async def _some_at_once(write: Callable[[Any], Awaitable[None]], items: Sequence[Any]) -> None:
    """Write several items, `WRITES_AT_ONCE` at a time.

    Raises:
        ApiError: The first failure; what was begun beside it has ended by then, what comes after it is not begun.
    """
    for start in range(0, len(items), WRITES_AT_ONCE):
        ended = await asyncio.gather(*map(write, items[start : start + WRITES_AT_ONCE]), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error


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


def key_of_pipeline(pipeline: Pipeline) -> Key:
    """Give what a pipeline is known by."""
    return pipeline.namespace, pipeline.name


def _now_us() -> int:
    return time.time_ns() // 1_000

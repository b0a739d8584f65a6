"""What the leader does: watch, work through the queue, and check that its watches miss nothing."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from sheetanchor_operator import metrics
from sheetanchor_operator.controller.reconcile import Reconciler
from sheetanchor_operator.controller.work_queue import Schedule
from sheetanchor_operator.kube.api_client import (
    CHILDREN,
    JOB,
    NODE,
    PIPELINE,
    POD,
    REANCHOR,
    ApiRefused,
    ApiUnavailable,
    Cluster,
)
from sheetanchor_operator.kube.cache import Cache, CacheEntry, Key, version_of
from sheetanchor_operator.kube.watch import LISTS_AT_ONCE, Place, Watch, places_of, selector_of
from sheetanchor_operator.observation import Refusal

log = logging.getLogger(__name__)

AUDIT_EVERY_S: Final = 30.0
AUDIT_GRACE_S: Final = 5.0
"""How much later the watch must have shown what a list shows."""

STALE_WATCH_AFTER_S: Final = 60.0
"""A watch that is behind for longer than this, although it was listed again: the process has to be restarted."""

UNCHECKED_S: Final = 300.0
"""A watch that could not be checked for this long counts as stale."""

IDLE_S: Final = 5.0
ESSENTIAL: Final = frozenset({PIPELINE.name, REANCHOR.name, JOB.name, POD.name, *(kind.name for kind in CHILDREN)})
"""Without these a namespace cannot be managed; without nodes only the zones are unknown."""


class Leader:
    """Acts on all pipelines.

    One class, since watches and workers share one cache and one queue, and all end together when the Lease is lost.

    Args:
        cluster: The API server.
        cache: What the watches have shown; filled here.
        reconciler: Reconciles one pipeline.
        namespaces: Namespaces whose pipelines are managed; empty for all.
        nodes: Whether nodes may be read.
        workers: How many pipelines are reconciled at the same time.
    """

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        reconciler: Reconciler,
        namespaces: Sequence[str],
        *,
        nodes: bool,
        workers: int,
    ) -> None:
        self.synced = False
        self.behind_s: dict[Place, float] = {}
        """Loop time since which the watch of a place has been behind."""
        self._cluster, self._cache, self._reconciler = cluster, cache, reconciler
        self._workers = workers
        self._lists = asyncio.Semaphore(LISTS_AT_ONCE)
        self._watches = {
            place: Watch(cluster, place, self, self._lists) for place in places_of(namespaces, nodes=nodes)
        }
        self._checked_s: dict[Place, float] = {}
        self._schedule: Schedule[Key] = Schedule()
        self._news = asyncio.Event()
        reconciler.unwatchable = self.unwatchable_in

    @property
    def stale_watch(self) -> str:
        """Name the place whose watch has been behind for too long, "" if none has."""
        now_s = self._now_s
        return next(
            (str(place) for place, since_s in self.behind_s.items() if now_s - since_s > STALE_WATCH_AFTER_S), ""
        )

    @property
    def problems(self) -> dict[Place, Refusal]:
        """Give the places that cannot be watched, and why."""
        return {place: watch.problem for place, watch in self._watches.items() if watch.problem is not None}

    @property
    def serves(self) -> bool:
        """Whether there is a namespace in which all kinds that are needed can be watched."""
        where = {place.namespace for place in self._watches if place.kind.namespaced}
        missing = {place.namespace for place in self.problems if place.kind.name in ESSENTIAL}
        return bool(where - missing)

    def unwatchable_in(self, namespace: str) -> dict[str, Refusal]:
        """Give the kinds that cannot be watched in a namespace, and why."""
        return {
            place.kind.name: problem for place, problem in self.problems.items() if place.namespace in ("", namespace)
        }

    async def run(self) -> None:
        """Watch and reconcile until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                # Pipelines come first: without them the objects of their children would be kept by name only.
                await self._begin(group, [one for place, one in self._watches.items() if place.kind == PIPELINE])
                await self._begin(group, [one for place, one in self._watches.items() if place.kind != PIPELINE])
                for key in self._cache.pipelines():
                    self._schedule.at(key, self._now_s)
                self.synced = True
                log.info("managing %d pipelines", len(self._cache.pipelines()))
                for _ in range(self._workers):
                    group.create_task(self._work())
                group.create_task(self._audit())
                group.create_task(self._reconciler.publisher.run())
        finally:
            self.synced = False

    async def _begin(self, group: asyncio.TaskGroup, watches: Sequence[Watch]) -> None:
        """Start watches and wait until each has listed or failed: a partial observation would give wrong decisions."""
        for watch in watches:
            metrics.WATCH_REFUSED.labels(watch.place.kind.name, watch.place.namespace).set(0)
            group.create_task(watch.run())
        for watch in watches:
            await watch.settled.wait()

    # What the watches report

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def seen(self, event: str, body: Mapping[str, Any]) -> None:
        """Update the cache with what a watch has seen, and wake the pipeline."""
        kind, metadata = body["kind"], body["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        known, nodes = self._cache.entry(kind, namespace, name), self._cache.nodes()
        if event == "DELETED":
            if known is None or known.uid != metadata.get("uid"):
                return
            key = self._cache.drop(kind, namespace, name)
        else:
            if kind == PIPELINE.name:
                self._reconciler.seen_requests.note(self._cache.get(kind, namespace, name), body)
            key = self._cache.take(body)
            if known is not None and known.uid == metadata.get("uid") and known.version >= version_of(body):
                return
            if kind == PIPELINE.name and key is not None and (known is None or known.uid != metadata.get("uid")):
                self._relist(namespace, self._cache.unowned_kinds(key))
        if kind == NODE.name:
            if nodes != self._cache.nodes():
                self._wake_all()
        elif key is not None:
            # A ReAnchor without a pipeline gets a status that says so; other objects without one are leftovers.
            self._wake(key, always=kind == REANCHOR.name and event != "DELETED")

    def _relist(self, namespace: str, kinds: Collection[str]) -> None:
        """List again what is known by name only: it may belong to a pipeline that was created later."""
        for place, watch in self._watches.items():
            if place.kind.name in kinds and place.namespace in ("", namespace):
                watch.again()

    def swept(self, place: Place, listed: Collection[tuple[str, str]], version: int) -> None:
        """Drop what a complete list does not show, unless it was written after that list."""
        for at, entry in self._cache.places(place.kind.name).items():
            if at not in listed and place.namespace in ("", at[0]) and entry.version <= version:
                key = self._cache.drop(place.kind.name, *at)
                if place.kind == NODE:
                    self._wake_all()
                elif key is not None:
                    self._wake(key)

    def reachability_changed(self, place: Place) -> None:
        """Reconcile the pipelines of a place that can be watched no longer, or again."""
        refused = place in self.problems
        metrics.WATCH_REFUSED.labels(place.kind.name, place.namespace).set(refused)
        for key in self._cache.pipelines():
            if place.namespace in ("", key[0]):
                self._wake(key)

    def _wake(self, key: Key, *, always: bool = False) -> None:
        if not always and self._cache.entry(PIPELINE.name, *key) is None and key not in self._known():
            return
        self._schedule.wake(key, self._now_s)
        self._news.set()

    def _known(self) -> frozenset[Key]:
        return frozenset(self._reconciler.pipeline_metrics.pipelines())

    def zones_changed(self) -> None:
        """What a zone counts as has changed: every pipeline's status says so."""
        self._wake_all()

    def _wake_all(self) -> None:
        for key in self._cache.pipelines():
            self._wake(key)

    # Reconciling

    async def _work(self) -> None:
        while True:
            key = self._schedule.take(self._now_s)
            metrics.QUEUE_DEPTH.set(self._schedule.waiting(self._now_s))
            if key is None:
                await self._wait()
                continue
            await self._reconcile(key)

    async def _wait(self) -> None:
        next_s = self._schedule.next_s()
        idle_s = IDLE_S if next_s is None else min(max(0.0, next_s - self._now_s), IDLE_S)
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(idle_s):
                await self._news.wait()

    async def _reconcile(self, key: Key) -> None:
        started_s, result, least_s = self._now_s, "ok", 0.0
        try:
            again_s = await self._reconciler.reconcile(key)
        except ApiUnavailable as error:
            result, least_s = "error", error.retry_after_s
            log.warning("pipeline %s/%s could not be reconciled, it is tried again: %s", *key, error)
        except ApiRefused as error:
            result = "error"
            log.warning("pipeline %s/%s could not be reconciled, the API server refused a request: %s", *key, error)
        except Exception:
            # A defect that one pipeline triggers must not stop the operator for all others; that pipeline's status
            # reports it.
            result = "error"
            log.exception(
                "pipeline %s/%s: the reconcile failed on a defect of the operator, please report it with this log",
                *key,
            )
        else:
            if again_s is None:
                self._schedule.forget(key)
            else:
                self._schedule.done(key, self._now_s + again_s)
        metrics.RECONCILES.labels(result).inc()
        metrics.RECONCILE_SECONDS.observe(self._now_s - started_s)
        if result == "error":
            metrics.QUEUE_RETRIES.inc()
            self._schedule.failed(key, self._now_s, random.random(), least_s)
        self._news.set()

    # Checking the watches

    async def _audit(self) -> None:
        """Compare what the watches have shown with lists, periodically; what was deleted unseen is dropped."""
        self._checked_s = dict.fromkeys(self._watches, self._now_s)
        while True:
            await asyncio.sleep(AUDIT_EVERY_S * (0.9 + 0.2 * random.random()))
            await asyncio.gather(*(self._try_audit(place, AUDIT_GRACE_S) for place in self._watches))
            self._record_watch_ages()

    async def _try_audit(self, place: Place, grace_s: float) -> None:
        """Check one place. A check that cannot be made has not passed: the place counts as unwatchable."""
        watch = self._watches[place]
        if watch.problem is not None:  # it is reported, and listed again until that succeeds
            self.behind_s.pop(place, None)
            self._checked_s[place] = self._now_s
            return
        try:
            await self._audit_place(place, grace_s)
        except ApiRefused as error:
            log.warning("whether the watch of %s is up to date cannot be checked: %s", place, error)
            watch.refuse(error)
        except ApiUnavailable as error:
            log.warning("whether the watch of %s is up to date cannot be checked: %s", place, error)
            if self._now_s - self._checked_s.get(place, self._now_s) > UNCHECKED_S:
                watch.refuse(ApiRefused(0, "Unavailable", str(error)))
        else:
            self._checked_s[place] = self._now_s

    async def _versions(self, place: Place) -> dict[Key, int]:
        """List the versions of all objects of a place by namespace and name."""
        kind, namespace = place
        async with self._lists:
            return {
                (body["metadata"].get("namespace", ""), body["metadata"]["name"]): version_of(body)
                async for _, items in self._cluster.pages(
                    kind, namespace, selector=selector_of(kind), metadata_only=True
                )
                for body in items
            }

    def _places(self, place: Place) -> dict[Key, CacheEntry]:
        known = self._cache.places(place.kind.name)
        return {at: entry for at, entry in known.items() if place.namespace in ("", at[0])}

    async def _unseen(self, place: Place, missing: Sequence[Key]) -> list[Key]:
        """Of the objects that the watch has not shown, name those that still exist: the others are deleted by now."""
        if not missing:
            return []
        listed, now = await self._versions(place), self._places(place)
        return [at for at in missing if at in listed and at not in now]

    async def _audit_place(self, place: Place, grace_s: float) -> None:
        before = self._places(place)
        listed = await self._versions(place)
        await asyncio.sleep(grace_s)
        now = self._places(place)
        missed = [at for at, version in listed.items() if at in now and now[at].version < version]
        missed += await self._unseen(place, [at for at in listed if at not in now and at not in before])
        for at, entry in before.items():
            if at not in listed and now.get(at) is entry:
                missed.append(at)
                key = self._cache.drop(place.kind.name, *at)
                if key is not None:
                    self._wake(key)
        if missed:
            self.behind_s.setdefault(place, self._now_s)
            log.warning("the watch of %s missed %d objects, for instance %s/%s", place, len(missed), *missed[0])
            self._watches[place].again()
        else:
            self.behind_s.pop(place, None)

    def _record_watch_ages(self) -> None:
        """Record how long the watch of each kind has been behind, or could not be checked, in its worst place."""
        ages: dict[str, float] = {}
        for place in self._watches:
            behind_s = self._now_s - self.behind_s.get(place, self._now_s)
            unchecked_s = self._now_s - self._checked_s[place] - AUDIT_EVERY_S
            ages[place.kind.name] = max(ages.get(place.kind.name, 0.0), behind_s, unchecked_s)
        for kind, age_s in ages.items():
            metrics.WATCH_AGE.labels(kind).set(age_s)

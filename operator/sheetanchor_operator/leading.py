"""What the leader does: list, watch, work through the queue, and check that its watches are not deaf."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from sheetanchor_operator import metrics
from sheetanchor_operator.cache import Cache, Key, version_of
from sheetanchor_operator.cluster import NODE, PIPELINE, REANCHOR, ApiError, ApiRefused, ApiUnavailable, Cluster, Kind
from sheetanchor_operator.reconcile import Reconciler
from sheetanchor_operator.watch import Watches, selector_of, watched
from sheetanchor_operator.work_queue import Schedule

log = logging.getLogger(__name__)

AUDIT_EVERY_S: Final = 30.0
AUDIT_GRACE_S: Final = 5.0
"""What was listed must have been seen by the watch this much later."""

FIRST_AUDIT_S: Final = 1.5
FIRST_GRACE_S: Final = 0.5
"""What is deleted between our own list and that of the watches is seen by neither; soon after is early enough."""

DEAF_AFTER_S: Final = 60.0
"""A watch that is behind for longer than this will not come back by itself: the process has to start anew."""

IDLE_S: Final = 5.0


class Leader:
    """Acts on all pipelines.

    Args:
        cluster: The API server.
        cache: What is known; filled here.
        reconciler: Looks at one pipeline.
        namespaces: Where pipelines are looked after; empty for everywhere.
        nodes: Whether nodes may be looked at.
        workers: How many pipelines are looked at at the same time.
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
        self.behind_s: dict[str, float] = {}
        """Loop time since which the watch of a kind has been behind."""
        self._cluster, self._cache, self._reconciler = cluster, cache, reconciler
        self._namespaces, self._nodes, self._workers = list(namespaces), nodes, workers
        self._schedule: Schedule[Key] = Schedule()
        self._news = asyncio.Event()

    @property
    def deaf(self) -> str:
        """Name the kind whose watch has been behind for too long, "" if none has."""
        now_s = asyncio.get_running_loop().time()
        return next((kind for kind, since_s in self.behind_s.items() if now_s - since_s > DEAF_AFTER_S), "")

    async def run(self) -> None:
        """Act until cancelled.

        Raises:
            RuntimeError: The watches have ended; nothing can be known without them.
        """
        await self._fill()
        watches = Watches(self._namespaces, nodes=self._nodes, deliver=self._take)
        watches.start()
        self.synced = True
        log.info("looking after %d pipelines", len(self._cache.pipelines()))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._work())
                group.create_task(self._audit())
                group.create_task(_fail_when_ended(watches))
        finally:
            self.synced = False
            await watches.stop()

    # What is there

    async def _fill(self) -> None:
        """List everything once, so that no decision is taken on half of a picture."""
        while True:
            try:
                for kind in watched(nodes=self._nodes):
                    async for body in self._list(kind):
                        self._cache.put(body)
                break
            except ApiUnavailable as error:
                log.warning("the cluster cannot be listed yet: %s", error)
                await asyncio.sleep(1 + random.random())
        for key in self._cache.pipelines():
            self._schedule.at(key, self._now_s)

    async def _list(self, kind: Kind, *, metadata_only: bool = False) -> Any:
        for namespace in (self._namespaces if kind.namespaced else None) or [""]:
            pages = self._cluster.pages(kind, namespace, selector=selector_of(kind), metadata_only=metadata_only)
            async for body in pages:
                yield body

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _take(self, event: str, body: Mapping[str, Any]) -> None:
        """Take in what a watch has seen."""
        kind, metadata = body["kind"], body["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        known = self._cache.entry(kind, namespace, name)
        if event == "DELETED":
            if known is None or known.uid != metadata.get("uid"):
                return
            key = self._cache.drop(kind, namespace, name)
        else:
            zones = self._cache.node_zones() if kind == NODE.name else None
            key = self._cache.put(body)
            if zones is not None and zones == self._cache.node_zones():
                return
            if known is not None and known.uid == metadata.get("uid") and known.version >= version_of(body):
                return
        if kind == NODE.name:
            self._wake_all()
        elif key is not None:
            # A ReAnchor of no pipeline has to be told so; other objects of none are left over from one.
            self._wake(key, always=kind == REANCHOR.name and event != "DELETED")

    def _wake(self, key: Key, *, always: bool = False) -> None:
        if not always and self._cache.entry(PIPELINE.name, *key) is None and key not in self._known():
            return
        self._schedule.wake(key, self._now_s)
        self._news.set()

    def _known(self) -> frozenset[Key]:
        return frozenset(self._reconciler.measures.pipelines())

    def _wake_all(self) -> None:
        for key in self._cache.pipelines():
            self._wake(key)

    # The work

    async def _work(self) -> None:
        while True:
            key = self._schedule.take(self._now_s)
            metrics.QUEUE_DEPTH.set(self._schedule.waiting(self._now_s))
            if key is None:
                await self._wait()
                continue
            await self._look(key)

    async def _wait(self) -> None:
        next_s = self._schedule.next_s()
        idle_s = IDLE_S if next_s is None else min(max(0.0, next_s - self._now_s), IDLE_S)
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(idle_s):
                await self._news.wait()

    async def _look(self, key: Key) -> None:
        started_s, result, least_s = self._now_s, "ok", 0.0
        try:
            again_s = await self._reconciler.reconcile(key)
        except ApiUnavailable as error:
            result, least_s = "error", error.retry_after_s
            log.warning("pipeline %s/%s: %s", *key, error)
        except ApiRefused as error:
            result = "error"
            log.warning("pipeline %s/%s: refused: %s", *key, error)
        except Exception:
            # A defect that one pipeline brings to light must not take the others' operator away; its status says so.
            result = "error"
            log.exception("pipeline %s/%s: the operator fails on it", *key)
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

    # Deafness

    async def _audit(self) -> None:
        """Compare what the watches have shown with lists, again and again; what has vanished unseen is dropped."""
        await self._audit_all(FIRST_AUDIT_S, FIRST_GRACE_S)
        while True:
            await self._audit_all(AUDIT_EVERY_S * (0.9 + 0.2 * random.random()), AUDIT_GRACE_S)

    async def _audit_all(self, after_s: float, grace_s: float) -> None:
        await asyncio.sleep(after_s)
        await asyncio.gather(*(self._try_audit(kind, grace_s) for kind in watched(nodes=self._nodes)))

    async def _try_audit(self, kind: Kind, grace_s: float) -> None:
        try:
            await self._audit_kind(kind, grace_s)
        except ApiError as error:
            log.warning("the watch of %s cannot be checked: %s", kind.plural, error)

    async def _versions(self, kind: Kind) -> dict[Key, int]:
        """List the versions of all objects of a kind by namespace and name."""
        return {
            (body["metadata"].get("namespace", ""), body["metadata"]["name"]): version_of(body)
            async for body in self._list(kind, metadata_only=True)
        }

    async def _unseen(self, kind: Kind, places: Sequence[Key]) -> list[Key]:
        """Of what the watch has not shown, name what is still there: the rest has come and gone meanwhile."""
        if not places:
            return []
        listed, now = await self._versions(kind), self._cache.places(kind.name)
        return [place for place in places if place in listed and place not in now]

    async def _audit_kind(self, kind: Kind, grace_s: float) -> None:
        before = self._cache.places(kind.name)
        listed = await self._versions(kind)
        await asyncio.sleep(grace_s)
        now = self._cache.places(kind.name)
        missed = [place for place, version in listed.items() if place in now and now[place].version < version]
        missed += await self._unseen(kind, [place for place in listed if place not in now and place not in before])
        for place, entry in before.items():
            if place not in listed and now.get(place) is entry:
                missed.append(place)
                key = self._cache.drop(kind.name, *place)
                if key is not None:
                    self._wake(key)
        if missed:
            self.behind_s.setdefault(kind.name, self._now_s)
            log.warning(
                "the watch of %s has missed %d objects, for instance %s/%s", kind.plural, len(missed), *missed[0]
            )
        else:
            self.behind_s.pop(kind.name, None)
        since_s = self.behind_s.get(kind.name, self._now_s)
        metrics.WATCH_AGE.labels(kind.name).set(self._now_s - since_s)


async def _fail_when_ended(watches: Watches) -> None:
    await watches.ended.wait()
    raise RuntimeError(f"the watches have ended: {watches.trouble or 'no reason was given'}")

"""Writes what was planned about re-anchors. Writes that can wait are sent only while the reconcile has time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.apply.ownership import is_run_of
from sheetanchor_operator.apply.rollout_order import place_of
from sheetanchor_operator.children.object_meta import Manifest, owner_of
from sheetanchor_operator.controller.apply_children import CONFLICT
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from sheetanchor_operator.controller.refusals import Refusals
from sheetanchor_operator.kube.api_client import KINDS, REANCHOR, ApiRefused, Cluster
from sheetanchor_operator.kube.cache import Cache, Key
from sheetanchor_operator.kube.reconcile_timer import AT_LEAST, ReconcileTimer
from sheetanchor_operator.observation import Refusal
from sheetanchor_operator.reanchors.plan import Patch, ReanchorPlan, defer, without
from sheetanchor_operator.status.refusal_causes import NAME_TAKEN_REASON

log = logging.getLogger(__name__)

AT_ONCE: Final = AT_LEAST
"""Sent one after another, many writes take over a second; more at once would delay other pipelines' requests."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Remaining(Generic[Item]):
    """The items that were not written.

    Attributes:
        items: Left out for lack of time, or since one like them was refused.
        refusal: The first refusal; None if there was none.
    """

    items: tuple[Item, ...] = ()
    refusal: ApiRefused | None = None


async def write_some(
    write: Callable[[Item], Awaitable[None]], items: Sequence[Item], may_begin: Callable[[Item], bool]
) -> Remaining[Item]:
    """Write several items, `AT_ONCE` at a time, in their order, until time runs out or one is refused.

    Requests that were sent have ended when this returns.

    Raises:
        ApiUnavailable: The first failure of that kind; nothing is sent after it.
    """
    waiting, failed = deque(items), deque[tuple[Item, BaseException]]()

    async def work() -> None:
        while waiting and not failed and may_begin(waiting[0]):
            item = waiting.popleft()
            try:
                await write(item)
            except BaseException as error:
                failed.append((item, error))
                raise

    await asyncio.gather(*(work() for _ in range(min(AT_ONCE, len(items)))), return_exceptions=True)
    for _, error in failed:
        if not isinstance(error, ApiRefused):
            raise error
    refusal = next((error for _, error in failed if isinstance(error, ApiRefused)), None)
    return Remaining((*(item for item, _ in failed), *waiting), refusal)


@dataclass(slots=True)
class PlanWriter:
    """Writes plans about re-anchors."""

    cluster: Cluster
    cache: Cache
    pipeline_metrics: PipelineMetrics
    clock: Callable[[], float] = time.monotonic
    refusals: Refusals = field(default_factory=Refusals)
    """Of ReAnchors and Jobs; those of children are counted by apply_children."""

    async def carry_out(
        self, key: Key, pipeline: Pipeline, decided: ReanchorPlan, timer: ReconcileTimer, now_us: int
    ) -> tuple[ReanchorPlan, tuple[Refusal, ...]]:
        """Carry out a plan, what concerns runs first; gives what is left of it, and the refusals.

        Raises:
            ApiUnavailable: The API server does not answer, or cannot do it at the moment.
        """
        refused = list((await self._create_all(key, decided.create)).values())
        jobs = {start.manifest["metadata"]["name"]: start for start in decided.start}
        failed = {
            jobs[name].reanchor: replace(refusal, name=jobs[name].reanchor)
            for name, refusal in (await self._create_all(key, [one.manifest for one in jobs.values()])).items()
        }
        decided = without(decided, {name: one.message for name, one in failed.items()})
        if refused:
            decided = replace(decided, last_request=str(pipeline.status.get("lastReanchorRequest") or ""))

        def has_time(_: str) -> bool:
            return timer.may_begin(self.clock())

        unwritten = await self._write_statuses(pipeline, decided, timer)
        decided = defer(decided, [patch.name for patch in unwritten.items], now_us)
        unadopted = await write_some(lambda name: self._adopt(pipeline, name), decided.adopt, has_time)
        undeleted = await write_some(
            lambda name: self.cluster.delete(REANCHOR, pipeline.namespace, name), decided.delete, has_time
        )
        for left in (unwritten, unadopted, undeleted):
            if left.items:
                decided = replace(decided, wake_at_us=now_us)
            if left.refusal is not None:
                # One refusal is enough: others of the same kind would be refused as well.
                error = left.refusal
                refused.append(Refusal(REANCHOR.name, pipeline.name, error.code, str(error), error.reason))
        return decided, (*refused, *failed.values())

    async def _write_statuses(
        self, pipeline: Pipeline, decided: ReanchorPlan, timer: ReconcileTimer
    ) -> Remaining[Patch]:
        async def write(patch: Patch) -> None:
            before = self.cache.get(REANCHOR.name, pipeline.namespace, patch.name)
            change = {"status": dict(patch.status)}
            written = await self.cluster.merge(REANCHOR, pipeline.namespace, patch.name, change, "status")
            if written is not None:
                self.cache.put(written)
                self.pipeline_metrics.changed(before or {}, written)
                for receipt in decided.receipts.get(patch.name, ()):
                    self.pipeline_metrics.count((pipeline.namespace, pipeline.name), receipt)

        return await write_some(
            write, decided.patch, lambda patch: timer.may_begin(self.clock(), can_wait=patch.can_wait)
        )

    async def _adopt(self, pipeline: Pipeline, name: str) -> None:
        owner = {"metadata": {"ownerReferences": [owner_of(pipeline)]}}
        adopted = await self.cluster.merge(REANCHOR, pipeline.namespace, name, owner)
        if adopted is not None:
            self.cache.put(adopted)

    async def report_orphans(self, key: Key, change: Manifest, names: Sequence[str], timer: ReconcileTimer) -> bool:
        """Write the same into the statuses of ReAnchors that no pipeline owns; false if there was no time for all.

        Raises:
            ApiRefused: The API server refuses it.
            ApiUnavailable: It does not answer, or cannot do it at the moment.
        """

        async def write(name: str) -> None:
            written = await self.cluster.merge(REANCHOR, key[0], name, {"status": change}, "status")
            if written is not None:
                self.cache.put(written)

        left = await write_some(write, names, lambda _: timer.may_begin(self.clock()))
        if left.refusal is not None:
            raise left.refusal
        return not left.items

    async def _create_all(self, key: Key, manifests: Sequence[Manifest]) -> dict[str, Refusal]:
        """Create objects of re-anchors; gives the refusals by name. All are sent: there are few for each symbol."""
        refused = {}

        async def create(manifest: Manifest) -> None:
            if (refusal := await self._create(key, manifest)) is not None:
                refused[manifest["metadata"]["name"]] = refusal

        await write_some(create, manifests, lambda _: True)
        return refused

    async def _create(self, key: Key, manifest: Manifest) -> Refusal | None:
        """Create an object of a re-anchor, unless that was refused recently; gives the refusal, if there is one."""
        kind, name = place = place_of(manifest)
        # There is one manifest for each name, so the refusal is kept without a digest.
        refusal = self.refusals.of(key, place, kind, time.monotonic())
        if refusal is not None:
            return refusal
        try:
            created = await self.cluster.create(manifest)
        except ApiRefused as error:
            log.warning("%s %s/%s was refused: %s", kind, key[0], name, error)
            return self.refusals.add(
                key, place, kind, Refusal(kind, name, error.code, str(error), error.reason), time.monotonic()
            )
        if created is None:
            return await self._existing(key, manifest)
        self.cache.put(created)
        log.info("%s %s/%s created", kind, key[0], name)
        return None

    async def _existing(self, key: Key, manifest: Manifest) -> Refusal | None:
        """Read the object that already has a name: it may be this re-anchor's, or another user's."""
        kind, name = place = place_of(manifest)
        found = await self.cluster.get(KINDS[kind], key[0], name)
        if found is None:
            return None  # deleted meanwhile: the next reconcile creates it
        found = {**found, "kind": kind, "apiVersion": KINDS[kind].api_version}
        if is_run_of(found, manifest):
            self.cache.put(found)
            return None
        words = "an object of this name exists that does not belong to the operator"
        refusal = Refusal(kind, name, CONFLICT, words, NAME_TAKEN_REASON)
        return self.refusals.add(key, place, kind, refusal, time.monotonic())

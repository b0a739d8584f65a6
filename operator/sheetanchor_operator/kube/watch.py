"""The watches: each kind in each namespace is listed and watched by a task of its own, as long as the operator leads.

A failure of one watch is reported and tried again, and does not affect the others. No watch ends by itself. Decisions
are taken elsewhere, from the whole state and not from single changes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple, Protocol

from sheetanchor_operator.kube.api_client import (
    CHILDREN,
    EXPIRED,
    JOB,
    METADATA_ONLY,
    NODE,
    PIPELINE,
    POD,
    REANCHOR,
    ApiRefused,
    ApiUnavailable,
    Body,
    Cluster,
    Kind,
)
from sheetanchor_operator.names import PIPELINE_LABEL
from sheetanchor_operator.observation import Refusal

log = logging.getLogger(__name__)

BACKOFF_S: Final = 1.0
BACKOFF_MAX_S: Final = 15.0
"""How often a refused list is tried again: a permission that is granted takes effect after this time."""

UNHEARD_S: Final = 20.0
"""A place that cannot be listed or watched for longer than this, while others can, is reported like a refused one."""

LISTS_AT_ONCE: Final = 8
"""Lists share the connections of all other requests, among them the renewal of the Lease."""


class Place(NamedTuple):
    """A kind and the namespace in which its objects are watched; "" means all namespaces."""

    kind: Kind
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind.plural} in {self.namespace}" if self.namespace else self.kind.plural


class Sink(Protocol):
    """Receives what the watches see."""

    def seen(self, event: str, body: Mapping[str, Any]) -> None:
        """Handle an object that exists or, with the event DELETED, that was deleted."""

    def swept(self, place: Place, listed: Collection[tuple[str, str]], version: int) -> None:
        """Handle a complete list of a place at a version; older objects that are not in it are deleted."""

    def reachability_changed(self, place: Place) -> None:
        """Handle that a place can be watched no longer, or again."""


def watched(*, nodes: bool) -> tuple[Kind, ...]:
    """Give the kinds that are watched."""
    return (PIPELINE, REANCHOR, *CHILDREN, JOB, POD, *((NODE,) if nodes else ()))


def places_of(namespaces: Sequence[str], *, nodes: bool) -> tuple[Place, ...]:
    """Give every place; kinds without namespaces are one place each."""
    where = tuple(dict.fromkeys(namespaces)) or ("",)
    kinds = watched(nodes=nodes)
    return tuple(Place(kind, one) for kind in kinds for one in (where if kind.namespaced else ("",)))


def selector_of(kind: Kind) -> str:
    """Give the label selector of objects of pipelines, "" for the operator's own kinds."""
    return "" if kind in (PIPELINE, REANCHOR, NODE) else PIPELINE_LABEL


class Watch:
    """One place, listed and watched until cancelled.

    Args:
        cluster: The API server.
        place: The kind and namespace.
        sink: Receives the objects.
        lists: Bounds how many lists are read at the same time.
    """

    def __init__(self, cluster: Cluster, place: Place, sink: Sink, lists: asyncio.Semaphore) -> None:
        self.place = place
        self.settled = asyncio.Event()
        """Set once the place was listed, or is known to be unwatchable."""
        self.problem: Refusal | None = None
        self._cluster, self._sink, self._lists = cluster, sink, lists
        self._following: asyncio.Task[None] | None = None
        self._failing_since_s: float | None = None
        self._failures = 0

    async def run(self) -> None:
        """List and watch the place until cancelled; no failure ends it."""
        while True:
            self._following = asyncio.create_task(self._follow(), name=f"watch of {self.place}")
            try:
                await asyncio.wait({self._following})
            finally:
                self._following.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({self._following})
            if not self._following.cancelled():
                await self._learn(self._following.exception())

    def again(self) -> None:
        """List again at once, since a change was missed."""
        if self._following is not None:
            self._following.cancel()

    def refuse(self, error: ApiRefused) -> None:
        """Note that an audit was refused to list the place; a stream that was granted before may go on."""
        self._set_problem(self._refusal(error.code, error.reason, str(error)))
        self.again()

    async def _learn(self, error: BaseException | None) -> None:
        """Note why list or watch has ended, and wait before the next try."""
        if error is None:
            return
        self._failures += 1
        if isinstance(error, ApiRefused):
            if error.code != EXPIRED:
                self._set_problem(self._refusal(error.code, error.reason, str(error)))
            elif self._failures == 1:
                return
            else:
                self._record_unreachable(str(error))
        elif isinstance(error, ApiUnavailable):
            log.warning("the watch of %s failed, it is tried again: %s", self.place, error)
            self._record_unreachable(str(error))
        else:
            log.error("the watch of %s fails because of a defect of the operator", self.place, exc_info=error)
            self._set_problem(self._refusal(0, "Defect", f"{type(error).__name__}: {error}"))
        least_s = error.retry_after_s if isinstance(error, ApiUnavailable) else 0.0
        wait_s = min(BACKOFF_S * 2.0 ** min(self._failures - 1, 10), BACKOFF_MAX_S)
        await asyncio.sleep(max(wait_s * (0.7 + 0.6 * random.random()), min(least_s, BACKOFF_MAX_S)))

    def _refusal(self, code: int, reason: str, message: str) -> Refusal:
        return Refusal(self.place.kind.name, self.place.namespace, code, message, reason)

    def _record_unreachable(self, message: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        elif now_s - self._failing_since_s >= UNHEARD_S:
            self._set_problem(self._refusal(0, "Unavailable", message))

    def _set_problem(self, problem: Refusal | None) -> None:
        before, self.problem = self.problem, problem
        self.settled.set()
        if (before is None) == (problem is None):
            return
        if problem is None:
            log.info("%s can be watched again", self.place)
        else:
            log.error("%s cannot be watched: %s", self.place, problem.message)
        self._sink.reachability_changed(self.place)

    async def _follow(self) -> None:
        version = await self._list()
        while True:
            version = await self._stream(version)

    async def _list(self) -> str:
        kind, namespace = self.place
        listed: set[tuple[str, str]] = set()
        version = ""
        async with self._lists:
            pages = self._cluster.pages(
                kind, namespace, selector=selector_of(kind), metadata_only=kind in METADATA_ONLY
            )
            async with aclosing(pages):
                async for whole, items in pages:
                    version = whole
                    for body in items:
                        self._sink.seen("LISTED", body)
                        listed.add((body["metadata"].get("namespace", ""), body["metadata"]["name"]))
        self._sink.swept(self.place, listed, int(version) if version.isdigit() else 0)
        if self.problem is None:
            self.settled.set()
        return version

    async def _stream(self, version: str) -> str:
        """Watch until the server ends it; gives the version to continue from."""
        kind, namespace = self.place
        started_s, heard = asyncio.get_running_loop().time(), False
        events = self._cluster.watch(
            kind, namespace, since=version, selector=selector_of(kind), metadata_only=kind in METADATA_ONLY
        )
        async with aclosing(events):
            async for event, body in events:
                if event == "OPENED":
                    self._set_problem(None)
                    self._failing_since_s = None
                    continue
                heard, self._failures = True, 0
                version = self._take(event, body) or version
        if not heard and asyncio.get_running_loop().time() - started_s < BACKOFF_S:
            raise ApiUnavailable(f"the watch of {self.place} was ended by the server immediately")
        return version

    def _take(self, event: str, body: Body) -> str:
        metadata = body["metadata"]
        if event in ("ADDED", "MODIFIED", "DELETED"):
            self._sink.seen(event, body)
        return str(metadata.get("resourceVersion", ""))

"""Kubernetes Events, as `events.k8s.io/v1`; a repeated message about the same object is left out for a while.

A reconcile does not wait for its Events: they go on a queue, from which the leader publishes them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final

from sheetanchor.errors import shortened
from sheetanchor_operator import metrics
from sheetanchor_operator.events import Event
from sheetanchor_operator.kube.api_client import ApiError, Cluster
from sheetanchor_operator.kube.event_queue import WAITING_MAX, EventQueue
from sheetanchor_operator.names import API_VERSION

log = logging.getLogger(__name__)

CONTROLLER: Final = "sheetanchor.dev/operator"
SAME_AFTER_S: Final = 300.0
KNOWN_MAX: Final = 5_000
NOTE_MAX: Final = 1_024
"""Longest note that the API server accepts, in bytes."""

AT_ONCE: Final = 2
"""Reconciles come first: Events use at most two requests at a time."""

_ACTIONS: Final = "Reconcile"


class Publisher:
    """Publishes Events.

    Args:
        cluster: The API server.
        instance: Name of this operator.
    """

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance[:128]
        self._known: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._queue = EventQueue()
        self._news = asyncio.Event()

    def publish(self, namespace: str, event: Event) -> None:
        """Have an Event published. One for which the queue has no room is logged: the status reports the same."""
        event_key, now_s = _event_key(event), time.monotonic()
        if now_s - self._known.get(event_key, float("-inf")) < SAME_AFTER_S:
            return
        log.info("%s %s/%s: %s: %s", event.kind, namespace, event.name, event.reason, event.message)
        if not self._queue.put(namespace, event):
            metrics.EVENTS_LEFT_OUT.inc()
            log.warning(
                "the Event about %s %s/%s is dropped, since %d Events of its namespace wait to be published",
                event.kind,
                namespace,
                event.name,
                WAITING_MAX,
            )
            return
        self._known[event_key] = now_s
        self._known.move_to_end(event_key)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        self._news.set()

    async def run(self) -> None:
        """Publish the waiting Events, `AT_ONCE` at a time, until cancelled."""
        while True:
            await self.publish_waiting()
            self._news.clear()
            await self._news.wait()

    async def publish_waiting(self) -> None:
        """Publish the Events that wait, and those that are added meanwhile."""

        async def work() -> None:
            while (waiting := self._queue.take()) is not None:
                await self._send(*waiting)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def _send(self, namespace: str, event: Event) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{event.name}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": stamp,
            "type": event.type,
            "reason": str(event.reason),
            "action": _ACTIONS,
            "note": _note(event.message),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": event.kind,
                "name": event.name,
                "namespace": namespace,
                "uid": event.uid,
            },
        }
        try:
            await self._cluster.ask("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body=body)
        except ApiError as error:
            self._known.pop(_event_key(event), None)
            log.warning("an Event about %s %s/%s could not be published: %s", event.kind, namespace, event.name, error)


def _event_key(event: Event) -> tuple[str, str, str]:
    """Give the fields in which two Events are compared."""
    return event.uid or event.name, str(event.reason), event.message


def _note(message: str) -> str:
    """Shorten a message to the length of an Event's note, which is counted in bytes."""
    length = NOTE_MAX
    while len(note := shortened(message, length).encode()) > NOTE_MAX:
        length -= max(1, (len(note) - NOTE_MAX) // 4)
    return note.decode()

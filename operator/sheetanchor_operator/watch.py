"""The watches: kopf lists and watches every kind, in a thread and event loop of its own, and hands on what it sees.

kopf only watches here. Its handlers of events write nothing to any object, need no finalizer, and keep no progress;
what is to be done is decided elsewhere from the whole state, not from what has just changed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import kopf

from sheetanchor_operator.cluster import CHILDREN, JOB, NODE, PIPELINE, POD, REANCHOR, Kind
from sheetanchor_operator.names import FIELD_MANAGER, KOPF_PREFIX, PIPELINE_LABEL

log = logging.getLogger(__name__)

SERVER_TIMEOUT_S: Final = 240
"""A whole number: the API server takes no other."""

CLIENT_TIMEOUT_S: Final = 250.0
CONNECT_TIMEOUT_S: Final = 5.0
INACTIVITY_S: Final = 70.0
"""The API server sends a bookmark every minute: a stream without any for longer is dead."""

BACKOFFS_S: Final = (1, 1, 2, 3, 5)
"""A watch that is refused for longer than the Lease may go without renewal ends the operator, which begins anew."""

IDLE_S: Final = 0.1
"""kopf keeps a task for each object for this long after its last event; its five seconds are memory for nothing."""

CHUNK: Final = 500
STOP_WITHIN_S: Final = 5.0

Deliver = Callable[[str, Mapping[str, Any]], None]
"""(type of the event, object); type is DELETED for one that is gone, anything else for one that is there."""


def watched(*, nodes: bool) -> tuple[Kind, ...]:
    """Give the kinds that are watched."""
    return (PIPELINE, REANCHOR, *CHILDREN, JOB, POD, *((NODE,) if nodes else ()))


def selector_of(kind: Kind) -> str:
    """Give the label selector that keeps everything out that is no pipeline's, "" for kinds that are ours anyway."""
    return "" if kind in (PIPELINE, REANCHOR, NODE) else PIPELINE_LABEL


class Watches:
    """A thread that watches until it is told to stop.

    Args:
        namespaces: Where; empty for everywhere.
        nodes: Whether nodes may be watched.
        deliver: Called in the event loop that is running when this is made.
    """

    def __init__(self, namespaces: Sequence[str], *, nodes: bool, deliver: Deliver) -> None:
        self._namespaces = list(namespaces)
        self._kinds = watched(nodes=nodes)
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self.ended = asyncio.Event()
        """Set when the thread has ended, whatever ended it."""
        self.trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    async def stop(self) -> None:
        """End the watches; gives up waiting after some seconds."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, STOP_WITHIN_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except Exception as error:  # noqa: BLE001  whatever ends the watches ends the process: it is raised there
            self.trouble = error
        finally:
            self._loop.call_soon_threadsafe(self.ended.set)

    async def _watch(self) -> None:
        where: dict[str, Any] = {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        # kopf would else ask for the name of the user that it runs as, and the image has none for its number.
        where["identity"] = FIELD_MANAGER
        try:
            await kopf.operator(
                registry=self._registry(), settings=self._settings(), standalone=True, stop_flag=self._stop, **where
            )
        finally:
            # kopf waits for the flag in a thread, and the event loop does not end before that thread does.
            self._stop.set()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        for kind in self._kinds:
            group, _, version = kind.api_version.rpartition("/")
            see = self._seer(kind)
            kopf.on.event(group, version, kind.plural, registry=registry, id=f"see-{kind.plural}")(see)
        return registry

    def _seer(self, kind: Kind) -> Callable[..., Any]:
        async def see(event: kopf.RawEvent, **_: Any) -> None:
            body = {"kind": kind.name, "apiVersion": kind.api_version, **event["object"]}
            self._loop.call_soon_threadsafe(self._deliver, str(event["type"]), body)

        return see

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.persistence.finalizer = f"{KOPF_PREFIX}/finalizer"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=KOPF_PREFIX, v1=False)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=KOPF_PREFIX, v1=False)
        settings.queueing.idle_timeout = IDLE_S
        settings.watching.server_timeout = SERVER_TIMEOUT_S
        settings.watching.client_timeout = CLIENT_TIMEOUT_S
        settings.watching.connect_timeout = CONNECT_TIMEOUT_S
        settings.watching.inactivity_timeout = INACTIVITY_S
        settings.watching.chunk_size = CHUNK
        settings.networking.request_timeout = 30.0
        settings.networking.error_backoffs = BACKOFFS_S
        settings.networking.connect_timeout = CONNECT_TIMEOUT_S
        for kind in self._kinds:
            selector = selector_of(kind)
            if selector:
                settings.watching.label_selectors[kind.api_version, kind.plural] = selector
        return settings


def plain_words(record: logging.LogRecord) -> bool:
    """Filter for log handlers: takes off what kopf hangs on its log lines, which is no JSON."""
    for name in ("settings", "k8s_ref", "k8s_skip"):
        record.__dict__.pop(name, None)
    return True


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in as the pod that we are, else with the kubeconfig."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

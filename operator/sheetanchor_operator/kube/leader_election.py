"""Leader election by a Lease: one operator acts, the others stand by.

The rule is that of the Kubernetes client libraries: a candidate that sees the Lease unchanged for its whole duration,
by its own clock, may take it; writes carry the resource version, so that of two such candidates one fails. Clocks of
different machines are never compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sheetanchor_operator.kube.api_client import KINDS, ApiError, ApiRefused, Cluster

log = logging.getLogger(__name__)

DURATION_S: Final = 13.0
"""A leader that has not renewed for this long may be replaced: with two tries of 2 s each, the next acts within 20
s."""

RENEW_WITHIN_S: Final = 9.0
"""A leader that could not renew for this long stops acting: well before another may start."""

RETRY_S: Final = 2.0
CALL_TIMEOUT_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class View:
    """The Lease as one candidate has last seen it.

    Attributes:
        holder: Identity of the holder, "" for none.
        version: Its resource version, "" if there is no Lease.
        changed_s: When, by our own clock, this version was first seen.
        duration_s: How long it is valid without renewal, as the holder wrote it.
        transitions: How often the holder has changed.
    """

    holder: str = ""
    version: str = ""
    changed_s: float = 0.0
    duration_s: float = DURATION_S
    transitions: int = 0


Action = Literal["renew", "take", "wait"]


def seen(view: View, lease: dict[str, Any] | None, now_s: float) -> View:
    """Update the view of the Lease from a read."""
    if lease is None:
        return View(changed_s=now_s)
    spec, version = lease.get("spec") or {}, str(lease["metadata"]["resourceVersion"])
    read = View(
        holder=spec.get("holderIdentity") or "",
        version=version,
        changed_s=now_s,
        duration_s=float(spec.get("leaseDurationSeconds") or DURATION_S),
        transitions=int(spec.get("leaseTransitions") or 0),
    )
    return replace(read, changed_s=view.changed_s) if version == view.version else read


def decide(view: View, identity: str, now_s: float) -> Action:
    """Decide what a candidate does with the Lease now."""
    if view.holder == identity:
        return "renew"
    if not view.version or not view.holder or now_s - view.changed_s > view.duration_s:
        return "take"
    return "wait"


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Election:
    """One candidate.

    Args:
        cluster: The API server.
        namespace: Namespace of the Lease.
        name: Its name.
        identity: Name of this candidate, unique to the process.
        clock: Monotonic seconds.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str, clock: Callable[[], float]) -> None:
        self.identity = identity
        self.leading = asyncio.Event()
        self.lost = asyncio.Event()
        self.checked_s = clock()
        """When the Lease was last read or written."""
        self._cluster, self._namespace, self._name, self._clock = cluster, namespace, name, clock
        self._view = View(changed_s=clock())
        self._renewed_s = float("-inf")

    def holds(self) -> bool:
        """Say whether no other candidate can hold the Lease at this moment."""
        return self.leading.is_set() and self._clock() - self._renewed_s <= RENEW_WITHIN_S

    def unrenewed_s(self) -> float:
        """Give how long the Lease has not been renewed, as far as this candidate has seen; 0 while it holds it."""
        return 0.0 if self.holds() else self._clock() - self._view.changed_s

    async def run(self) -> None:
        """Wait for the Lease, then renew it; ends when it is lost."""
        while True:
            started_s = self._clock()
            try:
                await self._step()
            except ApiError as error:
                log.warning(
                    "the Lease %s/%s cannot be read or written, it is tried again: %s",
                    self._namespace,
                    self._name,
                    error,
                )
            if self.leading.is_set() and self._clock() - self._renewed_s > RENEW_WITHIN_S:
                log.error(
                    "the Lease could not be renewed for %g s: this operator stops acting, and another one takes over",
                    RENEW_WITHIN_S,
                )
                self.lost.set()
                return
            await asyncio.sleep(max(0.0, RETRY_S - (self._clock() - started_s)))

    async def _step(self) -> None:
        kind = KINDS["Lease"]
        path = kind.path(self._namespace, self._name)
        try:
            lease: dict[str, Any] | None = await self._cluster.ask("GET", path, timeout_s=CALL_TIMEOUT_S)
        except ApiRefused as error:
            if error.code != 404:
                raise
            lease = None
        now_s = self.checked_s = self._clock()
        self._view = seen(self._view, lease, now_s)
        action = decide(self._view, self.identity, now_s)
        if action == "wait":
            if self.leading.is_set():
                log.error("the Lease was taken by %s: this operator stops acting", self._view.holder)
                self._renewed_s = float("-inf")
            return
        if await self._write(lease, taken=action == "take"):
            self._renewed_s = now_s
            if not self.leading.is_set():
                log.info("leading as %s", self.identity)
                self.leading.set()

    async def _write(self, lease: dict[str, Any] | None, *, taken: bool, duration_s: float = DURATION_S) -> bool:
        kind = KINDS["Lease"]
        before = (lease or {}).get("spec") or {}
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(duration_s),
            "renewTime": _stamp(),
            "acquireTime": _stamp() if taken else before.get("acquireTime") or _stamp(),
            "leaseTransitions": self._view.transitions + (taken and lease is not None),
        }
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if lease is not None:
            metadata = {**lease["metadata"], "managedFields": None}
        body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, "spec": spec}
        try:
            if lease is None:
                written = await self._cluster.ask(
                    "POST", kind.path(self._namespace), body=body, timeout_s=CALL_TIMEOUT_S
                )
            else:
                path = kind.path(self._namespace, self._name)
                written = await self._cluster.ask("PUT", path, body=body, timeout_s=CALL_TIMEOUT_S)
        except ApiRefused as error:
            if error.reason in ("Conflict", "AlreadyExists"):
                return False
            raise
        self._view = seen(self._view, written, self._clock())
        return True

    async def release(self) -> None:
        """Release the Lease if it is ours, so that another candidate can take it at once."""
        kind = KINDS["Lease"]
        lease = await self._cluster.get(kind, self._namespace, self._name)
        if lease is None or (lease.get("spec") or {}).get("holderIdentity") != self.identity:
            return
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _stamp()}
        body = {**lease, "spec": spec}
        await self._cluster.ask("PUT", kind.path(self._namespace, self._name), body=body, timeout_s=CALL_TIMEOUT_S)
        log.info("the Lease is released")

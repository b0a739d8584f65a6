"""Requests re-anchors on Kubernetes: gap records of the stream `gaps:{S}` become `ReAnchor` objects.

The active processor does this beside its work and never waits for it: it reads the gaps that it and the ingestors have
written. A processor that takes over asks again for what its predecessor may not have asked for any more; the objects'
names make that harmless. If no run begins, the processor runs the re-anchor itself, see `self_reanchor`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from redis.asyncio import Redis

from sheetanchor.contract import Gap, keys
from sheetanchor.errors import BadSettings, CircuitOpen, MaxRetriesExceeded, OperationFailed, RedisError
from sheetanchor.policy.reanchor_object import (
    GROUP,
    VERSION,
    Manifest,
    Owner,
    ReAnchorRequest,
    gap_suffix,
    reanchor_object,
)
from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import Backoff, CircuitBreaker, RetryPolicy, retry
from sheetanchor.runtime.settings import ReanchorRequests
from sheetanchor.store.redis_connection import translate_errors

log = logging.getLogger(__name__)

QUEUE_MAX: Final = 100
"""Requests that wait for the API server; the oldest are dropped first: a newer gap asks for the same rebuild."""

RECENT_US: Final = 30_000_000
"""What a predecessor may have left undone; older gaps have led to a run, of the cluster's or of its own."""

READ_COUNT: Final = 100
READ_BLOCK_MS: Final = 250
REDIS_RETRY_S: Final = 0.5
REQUEST_TIMEOUT_S: Final = 5.0
DELAY_MAX_S: Final = 8.0
"""Longest delay between two tries; soon after, the processor runs the re-anchor itself."""

DEFAULT_POLICY: Final = RetryPolicy(3, Backoff(max_s=DELAY_MAX_S))
LOG_AGAIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class CreateResult:
    """What the API server answered.

    Attributes:
        status: HTTP status; 0 if there was no answer.
        message: Its text.
        reason: Its machine-readable reason, for instance AlreadyExists.
    """

    status: int
    message: str = ""
    reason: str = ""


def request_of_gap(gap: Gap, requested_by: str) -> ReAnchorRequest:
    """Make the request that a gap record stands for."""
    return ReAnchorRequest(
        symbol=gap.symbol,
        suffix=gap_suffix(gap.rule, gap.at_us, gap.symbol),
        action=gap.action,
        reason=gap.reason,
        trigger=gap.rule,
        requested_by=requested_by,
        at_us=gap.at_us,
        epoch=gap.epoch,
    )


def verdict_of(answer: CreateResult) -> str:
    """Say what an answer means: created, exists, forbidden, refused, or unavailable if it is worth another try."""
    if answer.status in (200, 201):
        return "created"
    if answer.status == 409 and answer.reason == "AlreadyExists":
        return "exists"
    if answer.status in (401, 403) and "exceeded quota" not in answer.message:
        return "forbidden"
    if answer.status == 0 or answer.status in (403, 408, 409, 429) or answer.status >= 500:
        return "unavailable"
    return "refused"


def counts_as_failure(error: BaseException) -> bool:
    """Say whether a failure means that the API server is unavailable: it did not answer any of the tries."""
    return isinstance(error, MaxRetriesExceeded)


class KubernetesApi:
    """Creates objects as this pod's service account.

    Args:
        url: Origin of the API.
        folder: Where token, ca.crt and namespace are; the token is read again each time because it is rotated.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._session: aiohttp.ClientSession | None = None
        self._trusted: tuple[int, ssl.SSLContext] | None = None

    async def __aenter__(self) -> KubernetesApi:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def create(self, manifest: Manifest) -> CreateResult:
        """Create a ReAnchor; whatever happens is an answer."""
        namespace = manifest["metadata"]["namespace"]
        url = f"{self._url}/apis/{GROUP}/{VERSION}/namespaces/{namespace}/reanchors"
        if self._session is None:
            raise RuntimeError("used outside its context")
        try:
            headers = {"Authorization": f"Bearer {(self._folder / 'token').read_text().strip()}"}
            # The token is for this server and for no other that it might point to.
            async with self._session.post(
                url, json=manifest, headers=headers, ssl=self._trust(), allow_redirects=False
            ) as response:
                return await _answer_of(response)
        except TimeoutError:
            return CreateResult(0, f"{self._url} did not answer within {REQUEST_TIMEOUT_S:g} s")
        except (OSError, aiohttp.ClientError, ValueError) as error:
            return CreateResult(0, f"{self._url}: {error or type(error).__name__}")

    def _trust(self) -> ssl.SSLContext | bool:
        if not self._url.startswith("https"):
            return True
        authority = self._folder / "ca.crt"
        changed_ns = authority.stat().st_mtime_ns
        if self._trusted is None or self._trusted[0] != changed_ns:
            self._trusted = (changed_ns, ssl.create_default_context(cafile=str(authority)))
        return self._trusted[1]


async def _answer_of(response: aiohttp.ClientResponse) -> CreateResult:
    if response.status in (200, 201):
        return CreateResult(response.status)
    try:
        body = await response.json(content_type=None)
        return CreateResult(response.status, str(body.get("message", "")), str(body.get("reason", "")))
    except (ValueError, AttributeError):
        return CreateResult(response.status, "the answer is not one of a Kubernetes API")


@dataclass(slots=True)
class Requests:
    """The requests of one symbol: reads its gaps and has them created while this processor is the active one.

    Attributes:
        active: Says whether this processor is the writer.
        create: Creates an object.
        policy: How often to try again when the API server cannot answer.
        breaker: Stops requests to an API server that keeps failing.
    """

    redis: Redis
    symbol: str
    owner: Owner
    requested_by: str
    active: Callable[[], bool]
    create: Callable[[Manifest], Awaitable[CreateResult]]
    policy: RetryPolicy = DEFAULT_POLICY
    breaker: CircuitBreaker = field(default_factory=lambda: CircuitBreaker("kubernetes", counts=counts_as_failure))
    _last_id: str = ""
    _recent: deque[Gap] = field(default_factory=lambda: deque(maxlen=QUEUE_MAX))
    _queue: deque[Gap] = field(default_factory=lambda: deque(maxlen=QUEUE_MAX))
    _has_queued: asyncio.Event = field(default_factory=asyncio.Event)
    _logged_s: float = float("-inf")

    async def run(self) -> None:
        """Read gaps and send requests until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_gaps())
            group.create_task(self._send_requests())

    async def _read_gaps(self) -> None:
        while True:
            try:
                gaps = await self._next_gaps()
                now_us = await self._now_us() if gaps or self._recent else 0
            except RedisError as error:
                self._log_once_a_minute(f"{self.symbol}: gaps cannot be read: {error}")
                await asyncio.sleep(REDIS_RETRY_S * (0.5 + random.random()))
                continue
            self._recent.extend(gaps)
            if not self.active():
                continue
            # By Redis' clock, which the records are stamped with: this node's may be far from it.
            self._queue.extend(gap for gap in self._recent if gap.at_us >= now_us - RECENT_US)
            self._recent.clear()
            if self._queue:
                self._has_queued.set()

    async def _next_gaps(self) -> list[Gap]:
        stream = keys(self.symbol).gaps
        with translate_errors(f"XREAD {stream}"):
            if not self._last_id:
                self._last_id = f"{max(0, await self._now_us() - RECENT_US) // 1_000}-0"
            answer: Any = await self.redis.xread({stream: self._last_id}, count=READ_COUNT, block=READ_BLOCK_MS)
        gaps = []
        for _, entries in answer.items() if isinstance(answer, dict) else answer or ():
            for entry_id, raw in entries[0] if isinstance(answer, dict) and len(entries) == 1 else entries:
                self._last_id = entry_id.decode()
                try:
                    gaps.append(Gap.parse({name.decode(): value.decode() for name, value in raw.items()}))
                except (KeyError, ValueError) as error:
                    log.warning("entry %s of stream %s is not a gap record: %r", entry_id.decode(), stream, error)
        return gaps

    async def _now_us(self) -> int:
        """Read Redis' clock."""
        with translate_errors("TIME"):
            seconds, microseconds = await self.redis.time()
        return int(seconds) * 1_000_000 + int(microseconds)

    async def _send_requests(self) -> None:
        while True:
            await self._has_queued.wait()
            self._has_queued.clear()
            while self._queue:
                await self._send(self._queue.popleft())

    async def _send(self, gap: Gap) -> None:
        """Have one object created; gives up after some tries, since this processor then runs the re-anchor itself."""
        manifest = reanchor_object(self.owner, request_of_gap(gap, self.requested_by))
        answer, answer_kind = (
            CreateResult(0, "the API server has failed repeatedly: no request is made for a while"),
            "unavailable",
        )

        async def once() -> None:
            nonlocal answer, answer_kind
            answer = await self.create(manifest)
            answer_kind = verdict_of(answer)
            metrics.REANCHOR_REQUESTS.labels(self.symbol, answer_kind).inc()
            if answer_kind == "unavailable":
                raise ConnectionError(f"{answer.status} {answer.message}".strip())

        try:
            await self.breaker.call(lambda: retry(once, "kubernetes", self.policy))
        except (OperationFailed, MaxRetriesExceeded, CircuitOpen) as error:
            log.debug("%s: %s", self.symbol, error)
        self._report(manifest, answer_kind, answer)

    def _report(self, manifest: Manifest, answer_kind: str, answer: CreateResult) -> None:
        name = manifest["metadata"]["name"]
        if answer_kind == "created":
            log.info("%s: requested re-anchor %s: %s", self.symbol, name, manifest["spec"]["reason"])
        if answer_kind in ("created", "exists"):
            return
        advice = "; the Role of this pod's service account must allow to create reanchors" * (
            answer_kind == "forbidden"
        )
        detail = f"{answer.status} {answer.message}".strip()
        self._log_once_a_minute(f"{self.symbol}: ReAnchor {name} was not created: {answer_kind}: {detail}{advice}")

    def _log_once_a_minute(self, text: str) -> None:
        """Log an error; at level debug if there was one in the last minute: a long outage must not fill the log."""
        now_s = time.monotonic()
        if now_s - self._logged_s <= LOG_AGAIN_S:
            log.debug("%s", text)
            return
        self._logged_s = now_s
        log.error("%s", text)


def api_url(settings: ReanchorRequests, environ: dict[str, str]) -> str:
    """Find the Kubernetes API.

    Raises:
        BadSettings: This is no pod, and no setting names it.
    """
    if settings.kubernetes_url:
        return settings.kubernetes_url
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise BadSettings(
            "kubernetes_url = '': expected the URL of the Kubernetes API, since KUBERNETES_SERVICE_HOST is not set"
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def owner_of(settings: ReanchorRequests) -> Owner:
    """Say which pipeline requests are for.

    Raises:
        BadSettings: The namespace is neither set nor in the service account's folder.
    """
    namespace = settings.pipeline_namespace
    if not namespace:
        path = settings.service_account_dir / "namespace"
        try:
            namespace = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BadSettings(f"pipeline_namespace = '': expected it here or in {path}: {error.strerror}") from error
    return Owner(settings.pipeline, namespace, settings.pipeline_uid)

"""Keeps a symbol anchored: receives gap records, watches the anchor, and runs rebuilds as child processes.

When to start one is decided in `policy.reanchor_scheduler`. A run is a child process, so when it has ended without
releasing its lock (it was killed, for instance) the lock is released here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor.contract import EXIT_SUPERSEDED, LOCK_TTL_S, STALE_AFTER_US, Gap, Receipt
from sheetanchor.errors import RedisError
from sheetanchor.local.processes import Spec, describe_exit, run_once
from sheetanchor.local.relay import Relay
from sheetanchor.policy import reanchor_scheduler
from sheetanchor.policy.restatement import rebuild_due_us
from sheetanchor.store.hot_records import Anchor
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_connection import translate_errors

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
REDIS_RETRY_S: Final = 0.2
RUN_TIMEOUT_S: Final = 125.0
"""A run ends by itself after 120 s."""

LOCK_ABANDONED_AFTER_MS: Final = 140_000
"""No run lasts this long, so the owner of an older lock has ended or is suspended; its swap would be refused anyway."""

RECEIPTS_SEARCHED: Final = 10

MakeSpec = Callable[[str, reanchor_scheduler.Start, str], Spec]
"""(symbol, start, request id) to the process to run."""


@dataclass(frozen=True, slots=True)
class SymbolObservation:
    """The state of a symbol as read in one round trip.

    Attributes:
        lock_ttl_ms: Remaining TTL of the lock; negative if there is none.
    """

    anchor: Anchor
    lock_holder: str
    lock_ttl_ms: int
    now_us: int


def seen_of(observed: SymbolObservation) -> reanchor_scheduler.Seen:
    """Give an observation as the scheduler takes it."""
    anchor = observed.anchor
    return reanchor_scheduler.Seen(
        state=anchor.state,
        epoch=anchor.epoch,
        fresh=observed.now_us - anchor.stamp_us < STALE_AFTER_US,
        lock_held=bool(observed.lock_holder),
        suspect_since_us=rebuild_due_us(anchor.doubt, anchor.suspect_at) if anchor.state == "suspect" else 0,
    )


def lock_is_abandoned(observed: SymbolObservation) -> bool:
    """Say whether the lock is older than any run can be."""
    age_ms = LOCK_TTL_S * 1_000 - observed.lock_ttl_ms
    return bool(observed.lock_holder) and observed.lock_ttl_ms >= 0 and age_ms > LOCK_ABANDONED_AFTER_MS


def new_request_id() -> str:
    """Make the id of a run; it names this machine and process, so that the owner of a lock can be identified."""
    return f"local-{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


async def observe(redis: Redis, hot: HotState) -> SymbolObservation:
    """Read anchor, lock and clock.

    Raises:
        RedisError: If Redis does not answer.
    """
    with translate_errors("reading anchor and lock"):
        pipe: Any = redis.pipeline(transaction=False)
        pipe.hgetall(hot.keys.anchor).get(hot.keys.lock).pttl(hot.keys.lock).time()
        raw, holder, ttl_ms, (seconds, micros) = await pipe.execute()
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    return SymbolObservation(
        Anchor.parse(fields), (holder or b"").decode(), int(ttl_ms), int(seconds) * 1_000_000 + int(micros)
    )


class Coordinator:
    """Keeps one symbol anchored.

    Args:
        redis: Client of the pipeline's Redis.
        symbol: Trading pair.
        make_spec: Gives the process of a run.
        relay: Receives the runs' log lines.
        policy: Limits on how often to rebuild.
    """

    def __init__(
        self, redis: Redis, symbol: str, make_spec: MakeSpec, relay: Relay, policy: reanchor_scheduler.Policy
    ) -> None:
        self.symbol = symbol
        self.hot = HotState(redis, symbol)
        self.observed: SymbolObservation | None = None
        self.last_message = ""
        self.clock_offset_us: int | None = None
        self._redis = redis
        self._make_spec = make_spec
        self._relay = relay
        self._policy = policy
        self._state = reanchor_scheduler.State()

    @property
    def running(self) -> bool:
        """Whether a run is in progress."""
        return self._state.running is not None

    @property
    def anchored(self) -> bool:
        """Whether the state was anchored at the last poll."""
        return self.observed is not None and self.observed.anchor.state == "anchored"

    def take_gap(self, gap: Gap) -> None:
        """Add the request of a gap record."""
        try:
            self.ask(reanchor_scheduler.Request.of_gap(gap))
        except ValueError as error:
            log.warning("%s: a gap record is ignored, it cannot be read: %s", self.symbol, error)

    def ask(self, request: reanchor_scheduler.Request) -> None:
        """Add a request.

        Raises:
            ValueError: If its action is unknown.
        """
        self._state, skip = reanchor_scheduler.ask(self._state, request, self._policy)
        if skip is not None:
            self._report_skip(skip)

    def _report_skip(self, skip: reanchor_scheduler.Skip) -> None:
        log.info("%s: %s (%s) changes nothing: %s", self.symbol, skip.request.trigger, skip.request.reason, skip.reason)

    async def poll(self) -> SymbolObservation:
        """Read the anchor now.

        Raises:
            RedisError: If Redis does not answer.
        """
        self.observed = await observe(self._redis, self.hot)
        self.clock_offset_us = self.observed.now_us - time.time_ns() // 1_000
        return self.observed

    async def run(self) -> None:
        """Coordinate until cancelled; a run in progress is ended then and its lock released."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    observed = await self.poll()
                    start = await self._decide(observed)
                except RedisError as error:
                    self.last_message = str(error)
                    await asyncio.sleep(REDIS_RETRY_S * (0.5 + random.random()))
                    continue
                if start is not None:
                    self._state = reanchor_scheduler.started(self._state, start, observed.now_us)
                    group.create_task(self._run_once(start))
                await asyncio.sleep(POLL_S)

    async def _decide(self, observed: SymbolObservation) -> reanchor_scheduler.Start | None:
        if not self.running and lock_is_abandoned(observed):
            log.warning(
                "%s: the lock of %s is older than the longest run: it is released", self.symbol, observed.lock_holder
            )
            await self.hot.unlock(observed.lock_holder)
            return None
        while True:
            self._state, decision = reanchor_scheduler.decide(
                self._state, seen_of(observed), observed.now_us, self._policy
            )
            if not isinstance(decision, reanchor_scheduler.Skip):
                return decision if isinstance(decision, reanchor_scheduler.Start) else None
            self._report_skip(decision)

    async def _run_once(self, start: reanchor_scheduler.Start) -> None:
        request_id = new_request_id()
        log.info("%s: %s for %s: %s", self.symbol, start.kind, start.trigger, start.reason)
        spec = self._make_spec(self.symbol, start, request_id)
        code, message = await self._run_process(spec)
        receipt = await self._after(request_id)
        rebuilt = receipt is not None and receipt.result == "swapped"
        self.last_message = receipt.message if receipt is not None else message
        if code not in (0, EXIT_SUPERSEDED):
            text = f"{describe_exit(code)}: {self.last_message}"
            log.warning("%s: the re-anchor for %s failed: %s", self.symbol, start.trigger, text)
        now_us = self.observed.now_us if self.observed is not None else time.time_ns() // 1_000
        self._state = reanchor_scheduler.ended(
            self._state, code, rebuilt=rebuilt, now_us=now_us, jitter=random.random(), policy=self._policy
        )

    async def _run_process(self, spec: Spec) -> tuple[int, str]:
        try:
            return await run_once(spec, self._relay, RUN_TIMEOUT_S)
        except OSError as error:
            return 1, f"cannot start {spec.command[0]}: {error.strerror}"

    async def _after(self, request_id: str) -> Receipt | None:
        """Release the lock of a run that has ended, and find its receipt."""
        try:
            observed = await self.poll()
            if observed.lock_holder.endswith(request_id):
                log.warning(
                    "%s: run %s has ended without releasing its lock: it is released now", self.symbol, request_id
                )
                await self.hot.unlock(observed.lock_holder)
            with translate_errors("reading receipts"):
                entries: Any = await self._redis.xrevrange(self.hot.keys.receipts, count=RECEIPTS_SEARCHED)
        except RedisError as error:
            log.warning("%s: the receipt of run %s cannot be read: %s", self.symbol, request_id, error)
            return None
        for _, fields in entries:
            try:
                receipt = Receipt.from_json(fields[b"receipt"].decode())
            except (KeyError, ValueError):
                continue
            if receipt.request_id == request_id:
                return receipt
        return None

"""Appends queued frames to Redis: at once when idle, else every few milliseconds.

While Redis fails nothing is lost before the bounded queue is full: a batch is removed only when Redis has accepted it.
Readers recognise duplicates by their ids, so a batch whose reply was lost is simply sent again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from sheetanchor.contract import line_stream
from sheetanchor.errors import RedisError, RedisOutOfMemory, RedisUnavailable
from sheetanchor.ingest.frame_receiver import FrameReceiver
from sheetanchor.ingest.send_buffer import FrameBatch
from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import Backoff, TokenBucket
from sheetanchor.store.frame_streams import LineWriter
from sheetanchor.store.redis_client import server_identity
from sheetanchor.store.redis_connection import check_connections, replication_id_of

log = logging.getLogger(__name__)

FLUSH_MIN_S: Final = 1e-4
"""Less than an append takes, which means no limit."""

REDIS_BACKOFF: Final = Backoff(initial_s=0.05, max_s=1.0)
CHECK_INTERVAL_S: Final = 1.0
"""How often the data set is checked; well inside the 15 s of frames that are appended again."""

ROUNDS_SAVED_MAX: Final = 10
"""Rounds that are sent at once after a pause: messages of one moment of the market come in small bursts."""

FLUSH_AT_END_S: Final = 5.0
"""Frames that Redis has not accepted by then are dropped; a pod is killed after 30 s."""


class StreamPublisher:
    """Appends queued frames to Redis.

    Args:
        redis: Client to append with.
        line: Name of the line.
        receiver: Holds the queues.
        flush_s: Longest time that a frame waits for others, in seconds; also the mean time between rounds under load.
    """

    def __init__(self, redis: Redis, line: str, receiver: FrameReceiver, flush_s: float) -> None:
        self._redis = redis
        self._receiver = receiver
        self._flush_s = flush_s
        self._writers = {symbol: LineWriter(redis, symbol, line) for symbol in receiver.send_buffers}
        self._records = {
            symbol: metrics.RECORDS_SENT.labels(line_stream(symbol, line)) for symbol in receiver.send_buffers
        }
        self._in_hand: dict[str, FrameBatch] = {}
        self._replication_id = ""
        self._expected_id = ""
        self._marks: dict[str, str] = {}
        check_connections(redis, self._check_history)
        self._check_due = True
        self._waits = False
        self._emptied = asyncio.Event()
        self.given_up = 0
        self.connected = False

    @property
    def waiting(self) -> int:
        """Frames that Redis has not accepted yet."""
        queued = sum(len(buffer) for buffer in self._receiver.send_buffers.values())
        return queued + sum(batch.count for batch in self._in_hand.values())

    @property
    def bytes_waiting(self) -> int:
        """Bytes of the frames that wait in the queues."""
        return sum(buffer.bytes_waiting for buffer in self._receiver.send_buffers.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then the frames that are still queued, for a few seconds at most.

        Raises:
            RedisRefused: Wrong password, missing permission, or a key of another type.
        """
        self._receiver.arrived.set()  # a first round without frames, to notice a wrong password at once
        sending = asyncio.create_task(self._send_for_ever())
        stopping, looking = asyncio.create_task(stop.wait()), asyncio.create_task(self._request_checks())
        try:
            await asyncio.wait([sending, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                await self._drain(sending)
            if sending.done():
                await sending
        finally:
            for task in (sending, stopping, looking):
                task.cancel()
            await asyncio.gather(sending, stopping, looking, return_exceptions=True)

    async def _drain(self, sending: asyncio.Task[None]) -> None:
        self._emptied.clear()
        self._receiver.arrived.set()
        emptied = asyncio.create_task(self._emptied.wait())
        await asyncio.wait([sending, emptied], timeout=FLUSH_AT_END_S, return_when=asyncio.FIRST_COMPLETED)
        emptied.cancel()
        self.given_up = self.waiting
        if self.given_up:
            log.error("dropped %d frames: Redis has not accepted them within %g s", self.given_up, FLUSH_AT_END_S)

    async def _send_for_ever(self) -> None:
        delays = REDIS_BACKOFF.delays(random.random)
        rounds = TokenBucket(1 / max(self._flush_s, FLUSH_MIN_S), ROUNDS_SAVED_MAX, clock=time.monotonic)
        while True:
            await self._receiver.arrived.wait()
            if not rounds.take():
                await asyncio.sleep(rounds.wait_s())
                rounds.take(min(1.0, rounds.available))  # a timer may fire a little early
            self._receiver.arrived.clear()
            try:
                await self._send_all()
            except (RedisUnavailable, RedisOutOfMemory) as error:
                await self._failed(error)
                await asyncio.sleep(next(delays))
                continue
            if self._waits:
                log.info("Redis accepts frames again")
                delays = REDIS_BACKOFF.delays(random.random)
            self._waits, self.connected = False, True
            if not self.waiting:
                self._emptied.set()

    async def _failed(self, error: RedisError) -> None:
        if not self._waits:
            log.warning("frames are queued until Redis accepts them: %s", error)
        self._waits, self.connected = True, False
        self._check_due = True  # the next answer may come from another server
        self._receiver.numbers.failed += 1
        metrics.QUEUE_BYTES.set(self.bytes_waiting)
        self._receiver.arrived.set()
        if isinstance(error, RedisOutOfMemory):
            await self._make_room()

    async def _make_room(self) -> None:
        """Trim entries beyond their age: appending does that otherwise, but appending is what fails here."""
        for writer in self._writers.values():
            try:
                await writer.trim_age()
            except RedisError as error:
                log.debug("old entries could not be trimmed: %s", error)

    async def _send_all(self) -> None:
        if self._check_due:
            await self._check_redis()
        for symbol, buffer in self._receiver.send_buffers.items():
            while (batch := self._in_hand.get(symbol) or buffer.take()) is not None:
                self._in_hand[symbol] = batch
                await self._send(symbol, batch)
                # By a clock that is never set: one that is set ahead would empty the buffer.
                buffer.sent(batch, time.monotonic_ns() // 1_000)
                del self._in_hand[symbol]
        metrics.QUEUE_BYTES.set(self.bytes_waiting)

    async def _send(self, symbol: str, batch: FrameBatch) -> None:
        started = time.perf_counter()
        mark = self._marks.get(symbol, "")
        await self._writers[symbol].append_packed(batch.count, batch.first_received_us, batch.packed, mark)
        self._marks.pop(symbol, None)
        numbers = self._receiver.numbers
        numbers.sent += 1
        numbers.send_s += time.perf_counter() - started
        self._records[symbol].inc()
        metrics.INGEST_DELAY.observe(max(0.0, time.time() - batch.first_received_us / 1e6))

    async def _check_redis(self) -> None:
        """Append recently sent frames again when Redis has another data set.

        Done between two appends, never beside them, and before the first one there: a stream holds frames in their
        order, and the last one that comes again is marked, so that readers know when no older one follows.
        """
        self._expected_id = ""
        found = (await server_identity(self._redis)).replication_id
        self._expected_id = found
        if self._replication_id not in ("", found):
            log.warning("Redis' replication id has changed, it may lack frames: appending the last 15 s again")
            for symbol, buffer in self._receiver.send_buffers.items():
                await self._append_again(symbol, buffer.recent(), found)
            metrics.RECOVERY_ATTEMPTS.labels("append_again", "success").inc()
        elif self._replication_id != found:
            self._marks = dict.fromkeys(self._receiver.send_buffers, found)  # nothing was sent before the next append
        # Only now: an attempt that failed half-way has to be repeated.
        self._replication_id, self._check_due = found, False

    async def _append_again(self, symbol: str, batches: Sequence[FrameBatch], replication_id: str) -> None:
        for at, batch in enumerate(batches, 1):
            mark = replication_id if at == len(batches) else ""
            await self._writers[symbol].append_packed(batch.count, batch.first_received_us, batch.packed, mark)
        if not batches:
            self._marks[symbol] = replication_id

    async def _check_history(self, connection: Any) -> None:
        """Refuse a new connection to a server that may lack what was sent last: that goes first.

        Raises:
            ConnectionError: redis-py's: the append that was to go out on it fails, and is tried again after that.
        """
        expected = self._expected_id
        if expected and await replication_id_of(connection) != expected:
            self._check_due = True
            raise exceptions.ConnectionError("Redis is in another replication history")

    async def _request_checks(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self._check_due = True
            self._receiver.arrived.set()

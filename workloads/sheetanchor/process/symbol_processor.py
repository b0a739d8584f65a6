"""The processor of one symbol: from line entries to hot keys, as the writer or ready to become it.

Owns the market in memory and the decision when to write. It never waits for anything but Redis. When Redis is gone it
keeps what it holds and connects again by itself; whether its next write is still valid is decided by the fences in
Redis, never here. A start, a takeover and a finished rebuild are the same: load the stored book, replay the lines.

One module and one class, since role, term and epoch decide at every await whether the next write is still this
process' own. Loading a book (`book_loader`), publishing a gap (`gap_reporter`), judging (`market.market_follower`) and
exporting counters (`processor_metrics`) are modules of their own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor._decoder import Market
from sheetanchor.contract import (
    BEAT_INTERVAL_US,
    CHECK_OF_TRADES,
    TAKEOVER_AFTER_US,
    Receipt,
    stream_id_order,
)
from sheetanchor.errors import RedisOutOfMemory, RedisUnavailable
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, Finding, Thresholds
from sheetanchor.process.book_loader import load_book, rewind
from sheetanchor.process.gap_reporter import GapReporter, WriteOwnership
from sheetanchor.process.market.frame_delays import FrameDelays
from sheetanchor.process.market.gap_detector import GapDetector
from sheetanchor.process.market.market_follower import NOTHING, Follower
from sheetanchor.process.processor_metrics import ProcessorMetrics
from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import Backoff
from sheetanchor.store import id_continuity
from sheetanchor.store.frame_streams import Batch, LineReader
from sheetanchor.store.hot_records import Anchor, ApplyReply, ApplyStatus, TakeStatus, Vouch
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import ServerIdentity, server_identity
from sheetanchor.store.server_clock import RedisClock

log = logging.getLogger(__name__)

READ_COUNT: Final = 256
"""Entries per line and read: at one entry every 5 ms, more than a second's worth."""

REPLAY_US: Final = 10_000_000
"""Windows reach back five seconds; twice that covers what a line may lag."""

FAILOVER_REWIND_US: Final = 30_000_000
"""Twice what ingestors append again after a failover."""

IDENTITY_INTERVAL_US: Final = 1_000_000
STANDBY_POLL_US: Final = 200_000
"""A standby reads the writer's heartbeat five times within the second after which it takes over."""

STANDBY_READ_US: Final = 20_000
"""A standby reads the lines this often: it has nothing to write, but must not fall behind."""

MISSING_RANGE_POLL_US: Final = 10_000
"""While a missing range waits for another line, its time runs out without a message: the loop has to wake for it."""

BEHIND_MAX_US: Final = 3_000_000
"""A replay is done within this; an update id that is still below the stored one then has been reset by the exchange."""

BLIND_AFTER_S: Final = 2.0
"""The rules are applied ten times a second and more."""

REDIS_BACKOFF: Final = Backoff(initial_s=0.05, max_s=1.0)


class WriteRole(Enum):
    """Whether this process writes."""

    STANDBY = 0
    WRITER = 1


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often things are written, in µs."""

    flush_us: int
    book_us: int


def monotonic_us() -> int:
    """Give this process' monotonic clock in µs."""
    return time.monotonic_ns() // 1_000


class SymbolProcessor:
    """Keeps one symbol's hot state.

    One class, since role, term and epoch fence every write and change in every part of the loop.

    Args:
        redis: Client for writes.
        reading: Client whose connection may block in reads.
        symbol: Trading pair.
        name: Unique name of this process, the writer's name in Redis.
        thresholds: When the gap rules apply.
        cadence: How often to write.
        request_rebuild: Called with rule and reason of a rebuild that is needed, with ("", "") once it no longer is.
        heartbeat: Called at each turn of the loop.
    """

    def __init__(
        self,
        redis: Redis,
        reading: Redis,
        symbol: str,
        name: str,
        thresholds: Thresholds,
        cadence: Cadence,
        *,
        request_rebuild: Callable[[str, str], None] = lambda rule, reason: None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.symbol = symbol
        self.name = name
        self.role = WriteRole.STANDBY
        self.clock = RedisClock()
        self.follower = Follower(Market(symbol), GapDetector(thresholds, 0), self.clock)
        self.anchor = Anchor()
        self.connected = False
        self.last_write_us = 0
        self._redis = redis
        self._hot = HotState(redis, symbol)
        self._reader = LineReader(reading, symbol)
        self._gaps = GapReporter(self._hot, symbol, request_rebuild)
        self._judged_us = 0
        self._cadence = cadence
        self._request_rebuild = request_rebuild
        self._heartbeat = heartbeat
        self._metrics = ProcessorMetrics(symbol)
        self._term = 0
        self._epoch = 0
        self._identity: ServerIdentity | None = None
        self._loaded = False
        self._dirty = False
        self._delays = FrameDelays()
        self._applied_us = self._booked_us = self._writer_checked_us = self._identified_us = 0
        self._behind_since_us = 0

    # The loop

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the lines until stopped; then write the book once more.

        Raises:
            RedisRefused: A wrong password or a missing permission: trying again will not help.
        """
        delays = REDIS_BACKOFF.delays(random.random)
        while not stop.is_set():
            self._heartbeat()
            try:
                await self._run_once()
                if not self.connected:
                    self.connected = True
                    delays = REDIS_BACKOFF.delays(random.random)
            except (RedisUnavailable, RedisOutOfMemory) as error:
                if self.connected or not self._loaded:
                    log.warning("%s: waiting for Redis: %s", self.symbol, error)
                self.connected = False
                self._identified_us = 0  # the server that answers next may be another one
                await asyncio.sleep(next(delays))
        await self._write_book_at_end()

    async def _write_book_at_end(self) -> None:
        if self.role is not WriteRole.WRITER or not self.market.has_book:
            return
        try:
            self._booked_us = 0
            await self._write(monotonic_us())
        except (RedisUnavailable, RedisOutOfMemory) as error:
            log.warning("%s: the book was not written at shutdown, the next start replays more: %s", self.symbol, error)

    async def _run_once(self) -> None:
        await self._identify()
        if not self._loaded:
            await self.load()
        await self._wait_for_batch()
        asked_us, skipped = monotonic_us(), self._reader.skipped
        batches = await self._reader.read(self._block_ms(), READ_COUNT, now_us=asked_us)
        self._feed(batches, asked_us, self._reader.skipped - skipped)
        now_us = monotonic_us()
        if self.role is WriteRole.STANDBY and now_us - self._writer_checked_us >= STANDBY_POLL_US:
            await self._check_writer()
        await self._judge(asked_us)
        if self._due(now_us):
            await self._write(now_us)

    async def _wait_for_batch(self) -> None:
        """Leave entries where they are while nothing may be written: one read then does the work of many."""
        if not self._caught_up:
            return
        is_writer = self.role is WriteRole.WRITER
        wait_us = self._applied_us + self._cadence.flush_us - monotonic_us() if is_writer else STANDBY_READ_US
        if wait_us > 0:
            await asyncio.sleep(wait_us / 1e6)

    def _block_ms(self) -> int:
        if not self._caught_up:
            return 0
        if self._dirty:  # the timer has fired a little early: what was read must not wait for the next entry
            return 1
        longest_us = BEAT_INTERVAL_US
        if self.role is WriteRole.WRITER:
            longest_us -= monotonic_us() - self._applied_us
        if self.market.depth_hole or self.market.trade_hole:
            longest_us = min(longest_us, MISSING_RANGE_POLL_US)
        return max(1, longest_us // 1_000)

    def _due(self, now_us: int) -> bool:
        if self.role is not WriteRole.WRITER or not self._caught_up:
            return self.role is WriteRole.WRITER and now_us - self._applied_us >= BEAT_INTERVAL_US
        since_us = now_us - self._applied_us
        return since_us >= BEAT_INTERVAL_US * 9 // 10 or (self._dirty and since_us >= self._cadence.flush_us)

    # Reading

    def _feed(self, batches: list[Batch], asked_us: int, skipped: int) -> None:
        counts: dict[str, int] = {}
        got_us = monotonic_us()
        for batch in batches:
            counts[batch.line] = counts.get(batch.line, 0) + 1
            try:
                frames = self.follower.take(batch, got_us)
            except ValueError as error:
                metrics.DECODE_ERRORS.labels(self.symbol, "envelope").inc()
                log.error("%s: entry %s of line %s skipped: %s", self.symbol, batch.entry_id, batch.line, error)
                continue
            metrics.FRAMES_PROCESSED.labels(self.symbol, batch.line).inc(frames)
            self._delays.take(batch, writes=self.role is WriteRole.WRITER)
        self._dirty = self._dirty or bool(batches)
        # A line that gave as many entries as were asked for has more: one of them may fill a missing range.
        complete = all(count + skipped < READ_COUNT for count in counts.values())
        self.follower.read(asked_us, self._reader.ids.keys(), complete=complete)
        if complete:
            self._delays.keeps_up(self.now_us)

    @property
    def market(self) -> Market:
        """The market in memory."""
        return self.follower.market

    @property
    def detector(self) -> GapDetector:
        """The rules that the market is judged by."""
        return self.follower.detector

    @property
    def _caught_up(self) -> bool:
        return self.follower.caught_up

    async def load(self) -> None:
        """Load the stored book; read the lines again from where it ends or from ten seconds ago, whichever is earlier.

        Raises:
            RedisError: If Redis does not answer.
        """
        self._loaded = False
        loaded = await load_book(self._hot, self.symbol, self._read_anchor)
        self._epoch = loaded.epoch
        self._metrics.begin()
        self._gaps.clear()
        if loaded.finding is not None:
            self._gaps.add(loaded.finding)
        await self._rewind(loaded.positions, REPLAY_US)
        await id_continuity.leave_out(self._redis, self._reader, loaded.market, loaded.positions)
        self._loaded = True
        self._gaps.forget_reported()
        self.follower.begin(loaded.market, monotonic_us())
        log.info("%s: loaded epoch %d at update %d", self.symbol, loaded.epoch, self.market.update_id)

    async def _rewind(self, positions: Mapping[str, str], back_us: int) -> None:
        await rewind(self._reader, self.symbol, positions, self.now_us - back_us)
        self.follower.rewound()
        self._delays.replay()

    @property
    def now_us(self) -> int:
        """Redis' clock."""
        return self.clock.now_us(monotonic_us())

    @property
    def event_age_us(self) -> int | None:
        """Time since the last message that moved an id; None before the first."""
        return self.follower.event_age_us(monotonic_us())

    def record_run(self, entry_id: str, receipt: Receipt) -> None:
        """Record a re-anchor run that has ended.

        Args:
            entry_id: Id of its receipt's entry: when it ended, on Redis' clock.
            receipt: What it did.
        """
        if receipt.result != "validated" or CHECK_OF_TRADES not in receipt.checks or not self.clock.known:
            return
        took_us = max(0, receipt.finished_at_us - receipt.started_at_us)  # by one clock, whichever it is
        self.follower.validated(stream_id_order(entry_id)[0] * 1_000 - took_us, took_us)

    def detector_report(self) -> dict[str, Any]:
        """Describe the gap detector for health answers: blind while it does not run, or entries are unread."""
        judged_s = (monotonic_us() - self._judged_us) / 1e6
        if not self.connected or not self.clock.known:
            blind = "Redis does not answer"
        elif not self._judged_us or judged_s > BLIND_AFTER_S:
            blind = "the rules have not been applied for a while"
        elif not self._caught_up:
            blind = "entries of the lines are still unread"
        else:
            return self.detector.report(self.market, self.now_us)
        return {"status": "blind", "message": blind}

    def lines_behind(self) -> dict[str, list[str]]:
        """Name the lines that have long lacked a stream which another line brings, and the streams."""
        return self.follower.lines_behind(monotonic_us())

    async def _read_anchor(self) -> Anchor:
        sent_us = monotonic_us()
        read = await self._hot.read()
        self.clock.learn(sent_us, monotonic_us(), read.now_us)
        self.anchor = Anchor.parse(read.anchor)
        self._term = max(self._term, self.anchor.term)
        return self.anchor

    async def _identify(self) -> None:
        now_us = monotonic_us()
        if self._identified_us and now_us - self._identified_us < IDENTITY_INTERVAL_US:
            return
        identity = await server_identity(self._redis)
        self._identified_us = now_us
        self._export()
        before = self._identity
        if before is None or before.replication_id == identity.replication_id:
            self._identity = identity
            return
        log.warning("%s: Redis' replication id has changed: another server has become master", self.symbol)
        self._gaps.add(Finding("redis_failover", "Redis' replication id has changed: acknowledged writes may be gone"))
        positions = self._reader.ids
        await self._rewind({}, FAILOVER_REWIND_US)
        await id_continuity.leave_out(self._redis, self._reader, self.market, positions)
        await self._check_writer()
        self._identity = identity  # only now: all of this has to be done again if Redis went away during it

    # Becoming and being the writer

    async def _check_writer(self) -> None:
        """Become the writer if the present one is gone; otherwise load what it has been rebuilt to."""
        self._writer_checked_us = monotonic_us()
        highest = self._term
        anchor = await self._read_anchor()
        if anchor.epoch > self._epoch and self.role is WriteRole.STANDBY:
            await self.load()
            return
        held = self.role is WriteRole.WRITER and anchor.writer == self.name and anchor.term == highest
        alive = anchor.writer not in ("", self.name) and abs(self.now_us - anchor.heartbeat_us) <= TAKEOVER_AFTER_US
        if held or alive:
            return
        reply = await self._hot.take(self._term + 1, self.name, anchor.term, anchor.writer)
        if reply.status is not TakeStatus.OK:
            return
        self._term = reply.term
        self.role = WriteRole.WRITER
        self._gaps.forget_reported()
        log.info("%s: writing under term %d", self.symbol, reply.term)
        if not self.market.has_book and anchor.epoch == self._epoch > 0:
            await self.load()  # what could not be read at the start may have been written since
        if (await self._read_anchor()).epoch < self._epoch:
            # Redis has gone back in time: it holds less than it has acknowledged, and epochs never fall.
            self._gaps.add(Finding("redis_failover", "Redis holds an older state than it has acknowledged"))
        if self.anchor.state == "suspect":
            self._request_rebuild(
                "start" if self._epoch == 0 else "suspect", self.anchor.reason or "nothing anchored yet"
            )

    async def _judge(self, asked_us: int) -> None:
        """Apply the gap rules, and publish what they find.

        A standby publishes nothing: what makes it doubt its state it publishes when it takes over.

        Args:
            asked_us: Local monotonic time when the last read was asked for. What was appended until then has been read;
                what came later, during a pause of this process say, has not.
        """
        if not self.clock.known:
            return
        self._judged_us = monotonic_us()
        for finding in self.follower.apply_rules(asked_us):
            if self.role is WriteRole.WRITER or GAP_DETECTION_RULES[finding.rule].suspects:
                self._gaps.add(finding)
        while self.role is WriteRole.WRITER and (oldest := self._gaps.next) is not None:
            await self._publish(oldest)

    async def _publish(self, finding: Finding) -> None:
        """Make the state suspect if the rule says so, and publish the gap; Redis may be gone in between."""
        owner = WriteOwnership(self._term, self.name, self._epoch)
        reply = await self._gaps.suspect(finding, owner)
        if reply is not None and not reply.ok:
            self._step_back(reply.term)
            return
        if reply is not None:
            self._note_state(reply.state, finding.reason, reply.now_us)
        if await self._gaps.publish(finding, owner, self.now_us) is not None:
            self.detector.count_gap(self.now_us)

    def _note_state(self, state: str, reason: str, now_us: int) -> None:
        """Record the state that the last reply gives; a doubt keeps its first reason and time."""
        if state != "suspect":
            reason, now_us = "", 0
        elif self.anchor.state == "suspect" and self.anchor.suspect_at:
            reason, now_us = self.anchor.reason, self.anchor.suspect_at
        self.anchor = replace(self.anchor, state=state, reason=reason, suspect_at=now_us)

    def _step_back(self, term: int) -> None:
        if self.role is WriteRole.WRITER:
            log.warning("%s: no longer the writer: another processor holds term %d", self.symbol, term)
        self.role = WriteRole.STANDBY
        self._writer_checked_us = 0

    # Writing

    async def _write(self, now_us: int) -> None:
        """Write the hot keys, or only the heartbeat while there is nothing to write."""
        behind = self.market.update_id < self.anchor.update_id
        sound = self.market.has_book and not behind
        lists, unwritten = (
            self.follower.hot(now_us) if sound else (NOTHING, "the book has not caught up with what is stored")
        )
        vouch = self._vouch(now_us, unwritten)
        book = b""
        # While frames wait beyond a missing range, the lines have been read further than the book goes.
        whole = self.market.depth_hole is None and self.market.trade_hole is None
        if sound and whole and now_us - self._booked_us >= self._cadence.book_us:
            book = self.market.pack_book(self._epoch, self._reader.ids)
        update_id = self.anchor.update_id if behind else self.market.update_id
        stamp_us = 0 if unwritten else self.follower.event_redis_us()
        sent_us = monotonic_us()
        self._dirty = False
        reply = await self._hot.apply(
            self._term, self.name, self._epoch, update_id, stamp_us, *lists, book=book, vouch=vouch
        )
        self.clock.learn(sent_us, monotonic_us(), reply.now_us)
        metrics.HOT_WRITES.labels(self.symbol, reply.status).inc()
        self._applied_us = now_us
        if reply.status is ApplyStatus.OK:
            self._booked_us = now_us if book else self._booked_us
            self._on_written(reply, behind, hot=not unwritten)
        else:
            await self._on_refused(reply)

    def _vouch(self, now_us: int, unwritten: str) -> Vouch:
        """Give the time until which what is written is sound, or why it is not."""
        verdict = self.follower.verdict(now_us, unwritten)
        self._metrics.show_soundness(verdict)
        if not verdict.sound:
            return Vouch(0, 0, "; ".join(str(reason).replace(";", ",") for reason in verdict.reasons))
        until_us = max(self.clock.steady_us(now_us), verdict.until_us)
        return Vouch(self.clock.of_steady(until_us), until_us - self.clock.steady_us(now_us))

    def _on_written(self, reply: ApplyReply, behind: bool, hot: bool) -> None:
        self.last_write_us = reply.now_us
        for delay_s in self._delays.written(reply.now_us) if hot else ():
            metrics.FRAME_TO_HOT.labels(self.symbol).observe(delay_s)
        if reply.state != self.anchor.state:
            self._note_state(reply.state, "another process has marked the state suspect", reply.now_us)
            if reply.state == "suspect":
                self._request_rebuild("suspect", "another process has marked the state suspect")
        metrics.ANCHORED.labels(self.symbol).set(reply.state == "anchored")
        if reply.state == "anchored":
            self._gaps.forget_reported()
            self._request_rebuild("", "")
        now_us = monotonic_us()
        if not behind or self._behind_since_us == 0:
            self._behind_since_us = now_us if behind else 0
        elif now_us - self._behind_since_us > BEHIND_MAX_US and self._caught_up:
            self._behind_since_us = now_us
            reason = f"the lines end at update {self.market.update_id}, the stored state at {self.anchor.update_id}"
            self._gaps.add(Finding("sequence_reset", reason))

    async def _on_refused(self, reply: ApplyReply) -> None:
        if reply.status is ApplyStatus.FENCED:
            self._step_back(reply.term)
        elif reply.status is ApplyStatus.EPOCH and reply.epoch > self._epoch:
            log.info("%s: rebuilt: epoch %d", self.symbol, reply.epoch)
            await self.load()
        elif reply.status is ApplyStatus.EPOCH:
            reason = f"Redis is at epoch {reply.epoch}, it has acknowledged {self._epoch}"
            self._gaps.add(Finding("redis_failover", reason))
        else:
            await self._read_anchor()

    def _export(self) -> None:
        self._metrics.count(self.market.counters(), self.clock.jumps)
        self._metrics.show_ownership(self._epoch, self._term, writes=self.role is WriteRole.WRITER)
        self._metrics.show_lines(self.follower.lines, self.lines_behind())

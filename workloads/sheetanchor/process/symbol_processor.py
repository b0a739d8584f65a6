"""The processor of one symbol: from line entries to hot keys, as the writer or ready to become it.

Owns the market in memory and the decision when to write. It never waits for anything but Redis. When Redis is gone it
keeps what it holds and connects again by itself; whether its next write is still valid is decided by the fences in
Redis, never here. A start, a takeover and a finished rebuild are the same: load the stored book, replay the lines.

One module and one class, since role, term and epoch decide at every await whether the next write is still this
process' own. Modules of their own load a book (`book_loader`), read the lines (`market_reader`), publish a gap
(`gap_reporter`), judge (`market.market_follower`), know what Redis was last heard to hold (`replication_history`), deal
with what it has lost of that (`failover_recovery`) and export counters (`processor_metrics`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
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
from sheetanchor.policy.restatement import FAILOVER_DOUBT
from sheetanchor.process.book_loader import load_book
from sheetanchor.process.failover_recovery import RULE, FailoverRecovery, LinesRead, NextStep
from sheetanchor.process.gap_reporter import GapReporter, WriteOwnership
from sheetanchor.process.market.gap_detector import GapDetector
from sheetanchor.process.market.market_follower import NOTHING, Follower
from sheetanchor.process.market_reader import MarketReader, monotonic_us
from sheetanchor.process.processor_metrics import ProcessorMetrics
from sheetanchor.process.replication_history import ReplicationHistory
from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import Backoff
from sheetanchor.store.hot_records import Anchor, ApplyReply, ApplyStatus, TakeStatus, Vouch
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import ServerIdentity, server_identity
from sheetanchor.store.server_clock import RedisClock

log = logging.getLogger(__name__)

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
        dataset: Uid of the pipeline, "" if it has none: the memory is never written into another pipeline's Redis.
        request_rebuild: Called with rule and reason of a rebuild that is needed, with ("", "") once it no longer is.
        request_validation: Called with true when what is stored is to be compared with the exchange, with false once it
            no longer is.
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
        dataset: str = "",
        request_rebuild: Callable[[str, str], None] = lambda rule, reason: None,
        request_validation: Callable[[bool], None] = lambda wanted: None,
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
        self._gaps = GapReporter(self._hot, symbol, request_rebuild)
        self._judged_us = 0
        self._cadence = cadence
        self._request_rebuild = request_rebuild
        self._request_validation = request_validation
        self._heartbeat = heartbeat
        self._metrics = ProcessorMetrics(symbol)
        self._term = 0
        self._history = ReplicationHistory()
        self._reader = MarketReader(redis, reading, symbol, self.follower, self._history.mark)
        self._recovery = FailoverRecovery(self._hot, symbol, name, dataset, self._history, self.follower)
        self._replication_id = ""
        self._identity: ServerIdentity | None = None
        self._loaded = False
        self._dirty = False
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
        asked_us, found = await self._reader.read(self._block_ms(), writes=self.role is WriteRole.WRITER)
        self._dirty = self._dirty or found
        now_us = monotonic_us()
        if self.role is WriteRole.STANDBY and now_us - self._writer_checked_us >= STANDBY_POLL_US:
            await self._check_writer()
        await self._judge(asked_us)
        if self.role is WriteRole.WRITER and self._history.failover is not None:
            await self._recover(asked_us)
        if self._due(now_us):
            await self._write(now_us)
        await self._recovery.send_records()

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
        self._history.load(loaded.anchor)
        self._metrics.begin()
        self._gaps.clear()
        if loaded.finding is not None:
            self._gaps.add(loaded.finding)
        await self._reader.go_to(loaded.market, loaded.positions)
        self._loaded = True
        self._gaps.forget_reported()
        self._gaps.forget_doubts_before(self._history.held.root)
        self.follower.begin(loaded.market, monotonic_us())
        log.info("%s: loaded epoch %d at update %d", self.symbol, self._epoch, self.market.update_id)

    @property
    def _epoch(self) -> int:
        return self._history.held.epoch

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
        if receipt.result in {"validated", "swapped"} and receipt.started_at_us >= self.anchor.anchored_at:
            self._history.unvalidated = 0
            self._request_validation(False)
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
        self.anchor, self._replication_id = Anchor.parse(read.anchor), read.replication_id
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
        if before == identity:
            return
        if before is not None:
            log.warning("%s: Redis is not the same as before: %s", self.symbol, identity.change_from(before))
            if self._loaded:
                await self._reader.go_back()
        self._history.enter(identity.replication_id, now_us, changed=before is not None)
        self._identity = identity  # only now: all of this has to be done again if Redis went away during it

    # Becoming and being the writer

    async def _check_writer(self) -> None:
        """Become the writer if the present one is gone; otherwise load what it has been rebuilt to."""
        now_us = self._writer_checked_us = monotonic_us()
        known_term = self._term
        anchor = await self._read_anchor()
        alive = anchor.writer not in ("", self.name) and abs(self.now_us - anchor.heartbeat_us) <= TAKEOVER_AFTER_US
        is_kept = alive and anchor.state == "anchored" and anchor.term >= known_term
        other = (anchor.epoch, anchor.receipt) != (self._epoch, self._history.held.receipt)
        if other and (self._history.is_newer(anchor.epoch, anchor.receipt) or is_kept):
            await self.load()
            return
        # A term above the stored one was lost: the writer under the older one does not own it any more.
        waits = anchor.writer not in ("", self.name) and self._history.leaves_writer_time(now_us)
        if waits or (alive and anchor.term >= known_term):
            self._history.hear(anchor, self._replication_id, kept=is_kept)
            return
        reply = await self._hot.take(
            self._term + 1,
            self.name,
            anchor.term,
            anchor.writer,
            known_term=known_term,
            dataset=self._recovery.dataset,
        )
        if reply.status is TakeStatus.OK:
            self._term = reply.term
            await self._begin_writing(anchor)

    async def _begin_writing(self, before: Anchor) -> None:
        """Become the writer.

        Args:
            before: What was stored when this process took.
        """
        self.role = WriteRole.WRITER
        self._gaps.forget_reported()
        log.info("%s: writing under term %d", self.symbol, self._term)
        heard = self._history.heard
        lost = self._history.rightful or (heard is not None and heard.is_lost(before, self._replication_id))
        self._history.rightful = False
        if lost or before.doubt.startswith(FAILOVER_DOUBT):
            await self._begin_recovery()
            return
        if not self.market.has_book and before.epoch == self._epoch > 0:
            await self.load()  # what could not be read at the start may have been written since
        await self._read_anchor()
        if self.anchor.state == "suspect":
            self._request_suspect_rebuild()
        if self.anchor.unvalidated:
            self._request_validation(True)

    def _request_suspect_rebuild(self) -> None:
        self._request_rebuild("start" if self._epoch == 0 else "suspect", self.anchor.reason or "nothing anchored yet")

    async def _begin_recovery(self) -> None:
        """Redis does not hold what it has acknowledged: find out what it holds, and begin to deal with that."""
        self._identified_us = 0
        await self._identify()
        anchor = await self._read_anchor()
        if self._history.is_newer(anchor.epoch, anchor.receipt):
            await self._load_newer()
            return
        log.warning(
            "%s: Redis has lost writes that it had acknowledged: it is at epoch %d, this processor at %d",
            self.symbol,
            anchor.epoch,
            self._epoch,
        )
        self._history.begin(anchor, self._replication_id, monotonic_us())

    async def _load_newer(self) -> None:
        await self.load()
        self._history.acked_us = 0
        if self.anchor.state == "suspect":
            self._request_suspect_rebuild()

    async def _recover(self, asked_us: int) -> None:
        """Do what is next about a failover."""
        now_us = monotonic_us()
        _, unwritten = self.follower.hot(now_us)
        read = LinesRead(
            asked_us, self._reader.positions, self._reader.faults, self._gaps.doubt_about(self._history.held.root)
        )
        result = await self._recovery.step(self._term, read, now_us, self._vouch(now_us, unwritten))
        if result.next is NextStep.WRITE and result.reply is not None:
            self._applied_us = self._booked_us = now_us
            self._gaps.forget_reported()
            self._request_rebuild("", "")
            self._request_validation(True)
            await self._read_anchor()
        elif result.next is NextStep.STEP_BACK:
            self._step_back((await self._read_anchor()).term)
        elif result.next is NextStep.OBSERVE:
            await self._begin_recovery()
        elif result.next is NextStep.LOAD:
            await self._load_newer()
        elif result.next is NextStep.REBUILD:
            log.warning("%s: not restated from memory: %s", self.symbol, result.reason)
            self._gaps.add(Finding(RULE, f"Redis has lost acknowledged writes; not restated: {result.reason}"))
            await self._publish_all()

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
        awaits_lines = self._history.awaits_lines(self.follower.live_lines(asked_us), asked_us)
        for finding in self.follower.apply_rules(asked_us, awaits_lines=awaits_lines):
            if self.role is WriteRole.WRITER or GAP_DETECTION_RULES[finding.rule].suspects:
                self._gaps.add(finding)
        await self._publish_all()

    async def _publish_all(self) -> None:
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
            self._history.acknowledge(reply.now_us)
            # From here on only a rebuild helps: until then what is stored is written on, suspect.
            self._history.adopt(reply.epoch, reply.receipt)
            self._history.failover = None
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
        # An older term than its own stands there: Redis has lost that this process took.
        self._history.rightful = self.role is WriteRole.WRITER and term < self._term
        self._history.acked_us, self._history.failover = 0, None
        self.role = WriteRole.STANDBY
        self._writer_checked_us = 0
        # What it doubted is its successor's to judge: a rebuild that it still wanted would come again and again.
        self._request_rebuild("", "")
        self._request_validation(False)

    # Writing

    async def _write(self, now_us: int) -> None:
        """Write the hot keys, or only the heartbeat while there is nothing to write."""
        if self._history.failover is not None:
            await self._write_heartbeat(self._history.failover.stored, now_us)
            return
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
            book = self.market.pack_book(self._epoch, self._reader.positions)
        update_id = self.anchor.update_id if behind else self.market.update_id
        stamp_us = 0 if unwritten else self.follower.event_redis_us()
        sent_us = monotonic_us()
        self._dirty = False
        reply = await self._hot.apply(
            self._term,
            self.name,
            self._epoch,
            update_id,
            stamp_us,
            *lists,
            book=book,
            vouch=vouch,
            receipt=self._history.held.receipt,
            acked_us=self._history.acked_us,
            trade_id=max(0, self.market.trade_id),
        )
        self.clock.learn(sent_us, monotonic_us(), reply.now_us)
        metrics.HOT_WRITES.labels(self.symbol, reply.status).inc()
        self._applied_us = now_us
        if reply.status is ApplyStatus.OK:
            self._booked_us = now_us if book else self._booked_us
            self._on_written(reply, behind, hot=not unwritten)
        else:
            await self._on_refused(reply)

    async def _write_heartbeat(self, stored: Anchor, now_us: int) -> None:
        """Stay the writer of what is stored, and leave it as it is."""
        reply = await self._hot.apply(
            self._term,
            self.name,
            stored.epoch,
            stored.update_id,
            0,
            vouch=Vouch(0, 0, ""),
            receipt=stored.receipt,
            acked_us=self._history.acked_us,
        )
        self._applied_us = now_us
        if reply.status is ApplyStatus.OK:
            self._history.acknowledge(reply.now_us)
        elif reply.status is not ApplyStatus.BEHIND:
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
        self._history.hear_reply(reply.term, reply.state, reply.now_us)
        for delay_s in self._reader.delays.written(reply.now_us) if hot else ():
            metrics.FRAME_TO_HOT.labels(self.symbol).observe(delay_s)
        if reply.state != self.anchor.state:
            self._note_state(reply.state, "another process has marked the state suspect", reply.now_us)
            if reply.state == "suspect":
                self._request_rebuild("suspect", "another process has marked the state suspect")
        metrics.ANCHORED.labels(self.symbol).set(reply.state == "anchored")
        if reply.state == "anchored":
            self._gaps.forget_reported()
            self._gaps.repeat_doubts_about(reply.root or reply.receipt)
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
        elif reply.status is ApplyStatus.EPOCH and self._history.is_newer(reply.epoch, reply.receipt):
            log.info("%s: rebuilt: epoch %d", self.symbol, reply.epoch)
            await self.load()
        elif reply.status in {ApplyStatus.EPOCH, ApplyStatus.ROLLED_BACK}:
            await self._begin_recovery()
        else:
            await self._read_anchor()

    def _export(self) -> None:
        self._metrics.count(self.market.counters(), self.clock.jumps)
        self._metrics.show_ownership(self._epoch, self._term, writes=self.role is WriteRole.WRITER)
        self._metrics.show_lines(self.follower.lines, self.lines_behind())

"""The processor of one symbol: from line entries to hot keys, as the writer or ready to become it.

Owns the market in memory and the decision when to write. It never waits for anything but Redis. When Redis is gone it
keeps what it holds and connects again by itself; whether its next write is still valid is decided by the fences in
Redis, never here. A start, a takeover and a finished rebuild are the same: load the stored book, replay the lines.

One module and one class, since role, term and epoch decide at every await whether the next write is still this
process' own. Other modules load a book (`book_loader`), read the lines (`market_reader`), publish a gap
(`gap_reporter`) and export counters (`processor_metrics`). `market/` judges, composes a write and times it;
`ownership/` takes and gives up write ownership, and deals with acknowledged writes that Redis has lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor._decoder import Market
from sheetanchor.contract import CHECK_OF_TRADES, Receipt, stream_id_order
from sheetanchor.errors import RedisOutOfMemory, RedisUnavailable
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, Finding, Thresholds
from sheetanchor.process.book_loader import load_book
from sheetanchor.process.gap_reporter import GapReporter
from sheetanchor.process.market.gap_detector import GapDetector
from sheetanchor.process.market.hot_write import ResetDetector, compose
from sheetanchor.process.market.market_follower import Follower
from sheetanchor.process.market.write_timer import Cadence, WriteTimer
from sheetanchor.process.market_reader import MarketReader, monotonic_us
from sheetanchor.process.ownership.failover_recovery import RULE, FailoverRecovery, LinesRead, NextStep
from sheetanchor.process.ownership.replication_history import ReplicationHistory
from sheetanchor.process.ownership.requested_term import RequestedTerm
from sheetanchor.process.ownership.writer_election import ElectionResult, WriterElection, WriteRole
from sheetanchor.process.processor_metrics import ProcessorMetrics
from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import Backoff
from sheetanchor.store.hot_records import Anchor, ApplyReply, ApplyStatus, Vouch
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import ServerIdentity, server_identity
from sheetanchor.store.server_clock import RedisClock

log = logging.getLogger(__name__)

IDENTITY_INTERVAL_US: Final = 1_000_000
BLIND_AFTER_S: Final = 2.0
"""The rules are applied ten times a second and more."""

REDIS_BACKOFF: Final = Backoff(initial_s=0.05, max_s=1.0)


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
        self.clock = RedisClock()
        self.follower = Follower(Market(symbol), GapDetector(thresholds, 0), self.clock)
        self.connected = False
        self.requested = RequestedTerm()
        self.last_write_us = 0
        self._redis = redis
        self._hot = HotState(redis, symbol)
        self._gaps = GapReporter(self._hot, symbol, request_rebuild)
        self._judged_us = 0
        self._timer = WriteTimer(cadence)
        self._request_rebuild = request_rebuild
        self._request_validation = request_validation
        self._heartbeat = heartbeat
        self._metrics = ProcessorMetrics(symbol)
        self._history = ReplicationHistory()
        self._election = WriterElection(self._hot, symbol, name, self.clock, self._history)
        self._reader = MarketReader(redis, reading, symbol, self.follower, self._history.mark)
        self._recovery = FailoverRecovery(self._hot, symbol, name, dataset, self._history, self.follower)
        self._identity: ServerIdentity | None = None
        self._loaded = False
        self._resets = ResetDetector()
        self._identified_us = 0

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
        if not self._election.writes or not self.market.has_book:
            return
        try:
            self._timer.booked_us = 0
            await self._write(monotonic_us())
        except (RedisUnavailable, RedisOutOfMemory) as error:
            log.warning("%s: the book was not written at shutdown, the next start replays more: %s", self.symbol, error)

    async def _run_once(self) -> None:
        await self._identify()
        if not self._loaded:
            await self.load()
        writes = self._election.writes
        wait_us = self._timer.batch_wait_us(monotonic_us(), writes=writes) if self._caught_up else 0
        if wait_us > 0:
            await asyncio.sleep(wait_us / 1e6)
        asked_us, found = await self._reader.read(self._block_ms(), writes=writes)
        self._timer.dirty = self._timer.dirty or found
        now_us = monotonic_us()
        if self._election.check_due(now_us):
            await self._check_writer()
        if term := self.requested.term:
            caught_up = self._caught_up and self.market.has_book
            result, refusal = await self._election.take(term, self._recovery.dataset, caught_up=caught_up)
            await self._follow(result)
            self.requested.answer(term, refusal)
        await self._judge(asked_us)
        if self._election.writes and self._history.failover is not None:
            await self._recover(asked_us)
        if self._election.writes and self._timer.write_due(now_us, caught_up=self._caught_up):
            await self._write(now_us)
        await self._recovery.send_records()

    def _block_ms(self) -> int:
        if not self._caught_up:
            return 0
        incomplete = self.market.depth_gap is not None or self.market.trade_gap is not None
        return self._timer.block_ms(monotonic_us(), writes=self._election.writes, incomplete=incomplete)

    # Reading

    @property
    def role(self) -> WriteRole:
        """Whether this process writes."""
        return self._election.role

    @property
    def anchor(self) -> Anchor:
        """The stored anchor as it was last read, with the state of the last reply."""
        return self._election.anchor

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
        loaded = await load_book(self._hot, self.symbol, self._election.read_anchor)
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
        await self._follow(await self._election.check(self._recovery.dataset))

    async def _follow(self, result: ElectionResult) -> None:
        """Do what an election's result leads to."""
        if result is ElectionResult.LOAD:
            await self.load()
        elif result is not ElectionResult.FOLLOW:
            self._gaps.forget_reported()
            await (self._begin_recovery() if result is ElectionResult.TAKEN_AFTER_LOSS else self._begin_writing())

    async def _begin_writing(self) -> None:
        """Request what the stored state needs from its new writer."""
        if not self.market.has_book and self.anchor.epoch == self._epoch > 0:
            await self.load()  # what could not be read at the start may have been written since
        await self._election.read_anchor()
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
        anchor = await self._election.read_anchor()
        if self._history.is_newer(anchor.epoch, anchor.receipt):
            await self._load_newer()
        else:
            self._recovery.begin(anchor, self._election.replication_id, monotonic_us())

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
        result = await self._recovery.step(self._election.term, read, now_us, self._vouch(now_us, unwritten))
        if result.next is NextStep.WRITE and result.reply is not None:
            self._timer.applied_us = self._timer.booked_us = now_us
            self._gaps.forget_reported()
            self._request_rebuild("", "")
            self._request_validation(True)
            await self._election.read_anchor()
        elif result.next is NextStep.STEP_BACK:
            self._step_back((await self._election.read_anchor()).term)
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
            if self._election.writes or GAP_DETECTION_RULES[finding.rule].suspects:
                self._gaps.add(finding)
        await self._publish_all()

    async def _publish_all(self) -> None:
        while self._election.writes and (oldest := self._gaps.next) is not None:
            await self._publish(oldest)

    async def _publish(self, finding: Finding) -> None:
        """Make the state suspect if the rule says so, and publish the gap; Redis may be gone in between."""
        owner = self._election.ownership
        reply = await self._gaps.suspect(finding, owner)
        if reply is not None and not reply.ok:
            self._step_back(reply.term)
            return
        if reply is not None:
            self._election.note_state(reply.state, finding.reason, reply.now_us)
            self._history.acknowledge(reply.now_us)
            # From here on only a rebuild helps: until then what is stored is written on, suspect.
            self._history.adopt(reply.epoch, reply.receipt)
            self._history.failover = None
        if await self._gaps.publish(finding, owner, self.now_us) is not None:
            self.detector.count_gap(self.now_us)

    def _step_back(self, term: int) -> None:
        self._election.step_back(term)
        # What it doubted is its successor's to judge: a rebuild that it still wanted would come again and again.
        self._request_rebuild("", "")
        self._request_validation(False)

    # Writing

    async def _write(self, now_us: int) -> None:
        """Write the hot keys, or only the heartbeat while there is nothing to write."""
        if self._history.failover is not None:
            reply = await self._election.write_heartbeat(self._history.failover.stored)
            self._timer.applied_us = now_us
            if reply.status not in {ApplyStatus.OK, ApplyStatus.BEHIND}:
                await self._on_refused(reply)
            return
        write = compose(self.follower, self.anchor.update_id, now_us)
        vouch = self._vouch(now_us, write.unwritten)
        book = b""
        if write.has_book and self._timer.book_due(now_us):
            book = self.market.pack_book(self._epoch, self._reader.positions)
        sent_us = monotonic_us()
        self._timer.dirty = False
        reply = await self._hot.apply(
            self._election.term,
            self.name,
            self._epoch,
            write.update_id,
            write.stamp_us,
            *write.lists,
            book=book,
            vouch=vouch,
            receipt=self._history.held.receipt,
            acked_us=self._history.acked_us,
            trade_id=max(0, self.market.trade_id),
        )
        self.clock.learn(sent_us, monotonic_us(), reply.now_us)
        metrics.HOT_WRITES.labels(self.symbol, reply.status).inc()
        self._timer.applied_us = now_us
        if reply.status is ApplyStatus.OK:
            self._timer.booked_us = now_us if book else self._timer.booked_us
            self._on_written(reply, hot=not write.unwritten)
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

    def _on_written(self, reply: ApplyReply, *, hot: bool) -> None:
        self.last_write_us = reply.now_us
        self._history.hear_reply(reply.term, reply.state, reply.now_us)
        for delay_s in self._reader.delays.written(reply.now_us) if hot else ():
            metrics.FRAME_TO_HOT.labels(self.symbol).observe(delay_s)
        if reply.state != self.anchor.state:
            self._election.note_state(reply.state, "another process has marked the state suspect", reply.now_us)
            if reply.state == "suspect":
                self._request_rebuild("suspect", "another process has marked the state suspect")
        metrics.ANCHORED.labels(self.symbol).set(reply.state == "anchored")
        if reply.state == "anchored":
            self._gaps.forget_reported()
            self._gaps.repeat_doubts_about(reply.root or reply.receipt)
            self._request_rebuild("", "")
        reset = self._resets.observe(
            self.market.update_id, self.anchor.update_id, monotonic_us(), caught_up=self._caught_up
        )
        if reset is not None:
            self._gaps.add(reset)

    async def _on_refused(self, reply: ApplyReply) -> None:
        if reply.status is ApplyStatus.FENCED:
            self._step_back(reply.term)
        elif reply.status is ApplyStatus.EPOCH and self._history.is_newer(reply.epoch, reply.receipt):
            log.info("%s: rebuilt: epoch %d", self.symbol, reply.epoch)
            await self.load()
        elif reply.status in {ApplyStatus.EPOCH, ApplyStatus.ROLLED_BACK}:
            await self._begin_recovery()
        else:
            await self._election.read_anchor()

    def _export(self) -> None:
        self._metrics.count(self.market.counters(), self.clock.jumps)
        self._metrics.show_ownership(self._epoch, self._election.term, writes=self._election.writes)
        self._metrics.show_lines(self.follower.lines, self.lines_behind())

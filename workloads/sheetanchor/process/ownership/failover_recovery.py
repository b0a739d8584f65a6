"""What a writer does after Redis has lost writes: mark the state suspect, wait for the lines' resent frames, restate.

Whether it may is decided in `policy.restatement`, whether that still holds when it is written in `hot_state.lua`. Where
it may not, the exchange is asked, as after any other doubt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sheetanchor.contract import Gap, Receipt
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, VALIDATION
from sheetanchor.policy.restatement import GATHER_MAX_US, RestateFacts, RestateStep, may_restate
from sheetanchor.process.market.market_follower import Follower
from sheetanchor.process.ownership.replication_history import Failover, ReplicationHistory
from sheetanchor.runtime import metrics
from sheetanchor.store.hot_records import Anchor, Restatement, RestateReply, RestateStatus, Vouch
from sheetanchor.store.hot_state import HotState

log = logging.getLogger(__name__)

RULE: Final = "redis_failover"
SUSPECT_REASON: Final = "Redis has lost acknowledged writes: what it holds is older than what this processor holds"


class NextStep(Enum):
    """What the processor does next."""

    WAIT = "wait"
    WRITE = "write"  # the memory is the hot state now
    LOAD = "load"  # what is stored is newer
    REBUILD = "rebuild"  # the exchange has to be asked
    STEP_BACK = "step back"  # another processor writes
    OBSERVE = "observe"  # Redis has changed once more


@dataclass(frozen=True, slots=True)
class LinesRead:
    """How far the lines have been read, and what is known against the market that they made.

    Attributes:
        asked_us: Local monotonic time when the last read was asked for.
        positions: Per line the last stream id that was read.
        faults: Missing ranges passed, frames dropped and entries skipped since the market was loaded.
        doubt: A doubt about it that no rebuild has answered, "" if none.
    """

    asked_us: int
    positions: Mapping[str, str]
    faults: int
    doubt: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step.

    Attributes:
        next: What to do next.
        reason: Why, one line for people.
        reply: Redis' answer to a restatement that is stored.
    """

    next: NextStep
    reason: str = ""
    reply: RestateReply | None = None


ANSWERS: Final = {
    RestateStatus.FENCED: NextStep.STEP_BACK,
    RestateStatus.REPLID: NextStep.OBSERVE,
    RestateStatus.EPOCH: NextStep.LOAD,
    RestateStatus.DOUBT: NextStep.REBUILD,
    RestateStatus.FOREIGN: NextStep.REBUILD,
}
"""What a refusal leads to. LATE and BEHIND may pass: the lines are read on."""


class FailoverRecovery:
    """Deals with one symbol's failovers while this process is the writer.

    Args:
        hot: Where the state is stored.
        symbol: Trading pair.
        name: Name of this process as a writer.
        dataset: The pipeline that it is of, "" if it has no id.
        history: What is known of the replication history.
        follower: The market in memory.
    """

    def __init__(
        self, hot: HotState, symbol: str, name: str, dataset: str, history: ReplicationHistory, follower: Follower
    ) -> None:
        self._hot = hot
        self._symbol = symbol
        self._name = name
        self._dataset = dataset
        self._history = history
        self._follower = follower
        self._unsent: list[tuple[Gap, Receipt]] = []
        metrics.RESTATEMENTS.labels(
            symbol, str(RestateStatus.RESTATED)
        )  # from zero on, so that the first one is an increase

    @property
    def dataset(self) -> str:
        """The pipeline that the memory is of, "" if neither it nor this process says."""
        return self._history.held.dataset or self._dataset

    def begin(self, anchor: Anchor, replication_id: str, now_us: int) -> None:
        """Begin to deal with a failover.

        Args:
            anchor: What is stored.
            replication_id: History that it was read in.
            now_us: Local monotonic time.
        """
        log.warning(
            "%s: Redis has lost writes that it had acknowledged: it is at epoch %d, this processor at %d",
            self._symbol,
            anchor.epoch,
            self._history.held.epoch,
        )
        self._history.begin(anchor, replication_id, now_us)

    async def step(self, term: int, read: LinesRead, now_us: int, vouch: Vouch) -> StepResult:
        """Do what is next about the failover.

        Args:
            term: Term of this writer.
            read: How far the lines have been read.
            now_us: Local monotonic time.
            vouch: What the write declares about the soundness of the memory.

        Raises:
            RedisError: If Redis does not answer; the step is repeated then.
        """
        failover = self._history.failover
        if failover is None:
            return StepResult(NextStep.WRITE)
        if not failover.doubted:
            refused = await self._doubt(term, failover)
            if refused is not None:
                return refused
        waited_us = self._history.waited_us(now_us)
        decision = may_restate(self._facts(failover, read, now_us, waited_us, vouch))
        if decision.step is RestateStep.RESTATE:
            return await self._restate(term, failover, read, now_us, vouch, waited_us)
        steps = {RestateStep.WAIT: NextStep.WAIT, RestateStep.LOAD: NextStep.LOAD}
        return StepResult(steps.get(decision.step, NextStep.REBUILD), decision.reason)

    async def _doubt(self, term: int, failover: Failover) -> StepResult | None:
        """Make the state suspect for as long as this lasts; give what to do if that is not to be."""
        stored = failover.stored
        reply = await self._hot.suspect(
            term, self._name, stored.epoch, 0, SUSPECT_REASON, doubt=failover.doubt, replaces=failover.replaces
        )
        if not reply.ok:
            return StepResult(NextStep.STEP_BACK)
        failover.doubted = True
        self._history.acknowledge(reply.now_us)
        log.warning("%s: %s; waiting for what the lines append again", self._symbol, SUSPECT_REASON)
        if reply.doubt != failover.doubt:
            return StepResult(NextStep.REBUILD, "the state is in doubt for another reason as well")
        return None

    def _facts(self, failover: Failover, read: LinesRead, now_us: int, waited_us: int, vouch: Vouch) -> RestateFacts:
        history, heard, held = self._history, failover.heard, self._history.held
        return RestateFacts(
            heard_anchored=heard is not None and heard.anchored,
            heard_receipt=heard.receipt if heard else "",
            held_epoch=held.epoch,
            held_receipt=held.receipt,
            root=held.root,
            stored_epoch=failover.stored.epoch,
            stored_receipt=failover.stored.receipt,
            replication_id=failover.replication_id,
            loaded=history.loaded,
            faults=read.faults,
            doubt=read.doubt,
            missing=self._follower.missing,
            caught_up=self._follower.caught_up,
            lines_due=history.lines_due(self._follower.live_lines(now_us)),
            waited_us=waited_us,
            unsound=vouch.unsound,
            unvalidated=max(history.unvalidated, failover.stored.unvalidated),
            restated_here=history.restated_here(),
        )

    async def _restate(
        self, term: int, failover: Failover, read: LinesRead, now_us: int, vouch: Vouch, waited_us: int
    ) -> StepResult:
        history, market, clock = self._history, self._follower.market, self._follower.clock
        known_epoch = max(history.held.epoch, failover.heard.epoch if failover.heard else 0)
        lists, unwritten = self._follower.hot(now_us)
        if unwritten:
            return self._wait(waited_us, unwritten)
        read_us = clock.now_us(read.asked_us)
        order = Restatement(
            seen_epoch=failover.stored.epoch,
            seen_receipt=failover.stored.receipt,
            known_epoch=known_epoch,
            held_receipt=history.held.receipt,
            doubt=failover.doubt,
            replication_id=failover.replication_id,
            read_us=read_us,
            update_id=market.update_id,
            trade_id=max(0, market.trade_id),
            # It was read, so it is no later than the read, however well the clocks are known.
            stamp_us=min(self._follower.event_redis_us(), read_us),
            receipt=f"{self._symbol}:memory-{self._name}-{failover.replication_id[:16]}",
            root=history.held.root,
            dataset=self.dataset,
            unvalidated=max(history.unvalidated, failover.stored.unvalidated),
        )
        book = market.pack_book(known_epoch + 1, dict(read.positions))
        reply = await self._hot.restate(term, self._name, order, lists, book, vouch)
        metrics.RESTATEMENTS.labels(self._symbol, str(reply.status)).inc()
        if not reply.ok:
            if reply.status in ANSWERS:
                return StepResult(ANSWERS[reply.status], f"the restatement was refused: {reply.status}")
            return self._wait(waited_us, f"the restatement was refused: {reply.status}")
        log.warning("%s: restated from memory: epoch %d at update %d", self._symbol, reply.epoch, market.update_id)
        self._unsent.append(self._records(failover, reply, waited_us, market.update_id))
        history.restate(reply.epoch, reply.receipt, self.dataset, term, reply.now_us)
        return StepResult(NextStep.WRITE, reply=reply)

    def _wait(self, waited_us: int, reason: str) -> StepResult:
        return StepResult(NextStep.WAIT if waited_us < GATHER_MAX_US else NextStep.REBUILD, reason)

    def _records(self, failover: Failover, reply: RestateReply, waited_us: int, update_id: int) -> tuple[Gap, Receipt]:
        """Make what is published of a restatement: a gap that asks for a validation, and a receipt."""
        reason = f"Redis has lost acknowledged writes: restated from memory as epoch {reply.epoch}"
        severity = GAP_DETECTION_RULES[RULE].severity
        gap = Gap(self._symbol, RULE, severity, VALIDATION, reason, "process", reply.now_us, reply.epoch)
        receipt = Receipt(
            id=reply.receipt,
            symbol=self._symbol,
            reason=SUSPECT_REASON,
            trigger=RULE,
            result="restated",
            started_at_us=reply.now_us - waited_us,
            finished_at_us=reply.now_us,
            epoch_before=failover.stored.epoch,
            epoch_after=reply.epoch,
            snapshot_id=0,
            update_id=update_id,
            exit_code=0,
            message=f"epoch {reply.epoch} at update {update_id}, from the memory of {self._name}",
            phases={"gather": round(waited_us / 1e6, 6)},
            source="memory",
        )
        return gap, receipt

    async def send_records(self) -> None:
        """Write what is published of restatements; what Redis does not take is kept for the next time.

        Raises:
            RedisError: If Redis does not answer.
        """
        while self._unsent:
            gap, receipt = self._unsent[0]
            await self._hot.add_gap(gap)
            await self._hot.add_receipt(receipt)
            del self._unsent[0]

"""Which processor of a symbol writes: one takes when no other writes, and steps back when another has taken.

Owns this process' role and term, and the anchor as it was last read. It knows nothing of the market: what a new role
leads to is decided by the processor. A role may be out of date at any moment; what protects the stored state is the
term, which Redis compares at every write.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from enum import Enum
from typing import Final

from sheetanchor.contract import TAKEOVER_AFTER_US
from sheetanchor.policy.restatement import FAILOVER_DOUBT
from sheetanchor.process.gap_reporter import WriteOwnership
from sheetanchor.process.market_reader import monotonic_us
from sheetanchor.process.ownership.replication_history import ReplicationHistory
from sheetanchor.process.ownership.requested_term import refusal_of
from sheetanchor.store.hot_records import Anchor, ApplyReply, ApplyStatus, TakeStatus, Vouch
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.server_clock import RedisClock

log = logging.getLogger(__name__)

STANDBY_POLL_US: Final = 200_000
"""A standby reads the writer's heartbeat five times within the second after which it takes over."""


class WriteRole(Enum):
    """Whether this process writes."""

    STANDBY = 0
    WRITER = 1


class ElectionResult(Enum):
    """What a standby has found out about the writer."""

    FOLLOW = "follow"  # another processor writes, or may only have lost its connection
    LOAD = "load"  # what is stored is not what this process holds
    TAKEN = "taken"  # this process is the writer now
    TAKEN_AFTER_LOSS = "taken after loss"  # it is, and Redis lacks writes that it had acknowledged


class WriterElection:
    """One process' part in the election of a symbol's writer.

    Args:
        hot: Where the state is stored.
        symbol: Trading pair.
        name: Unique name of this process, the writer's name in Redis.
        clock: What is known of Redis' clock; every read of the anchor adds to it.
        history: What is known of the replication history.

    Attributes:
        role: Whether this process writes.
        term: The highest term that it knows, its own while it writes.
        anchor: The anchor as it was last read, with the state of the last reply.
        replication_id: Replication history that the anchor was read in; "" where the server reports none.
    """

    def __init__(self, hot: HotState, symbol: str, name: str, clock: RedisClock, history: ReplicationHistory) -> None:
        self.role = WriteRole.STANDBY
        self.term = 0
        self.anchor = Anchor()
        self.replication_id = ""
        self._hot = hot
        self._symbol = symbol
        self._name = name
        self._clock = clock
        self._history = history
        self._checked_us = 0

    @property
    def writes(self) -> bool:
        """Whether this process is the writer."""
        return self.role is WriteRole.WRITER

    @property
    def ownership(self) -> WriteOwnership:
        """What a write is fenced with."""
        return WriteOwnership(self.term, self._name, self._history.held.epoch)

    async def read_anchor(self) -> Anchor:
        """Read the stored anchor.

        Raises:
            RedisError: If Redis does not answer.
        """
        sent_us = monotonic_us()
        read = await self._hot.read()
        self._clock.learn(sent_us, monotonic_us(), read.now_us)
        self.anchor, self.replication_id = Anchor.parse(read.anchor), read.replication_id
        self.term = max(self.term, self.anchor.term)
        return self.anchor

    def check_due(self, now_us: int) -> bool:
        """Say whether a standby has to check the writer at a moment of this machine's monotonic clock."""
        return not self.writes and now_us - self._checked_us >= STANDBY_POLL_US

    async def check(self, dataset: str) -> ElectionResult:
        """Become the writer if there is none.

        Args:
            dataset: Uid of the pipeline that the memory is of, "" if it has none.

        Raises:
            RedisError: If Redis does not answer.
        """
        now_us = self._checked_us = monotonic_us()
        known_term, held = self.term, self._history.held
        anchor = await self.read_anchor()
        alive = (
            anchor.writer not in ("", self._name)
            and abs(self._clock.now_us(monotonic_us()) - anchor.heartbeat_us) <= TAKEOVER_AFTER_US
        )
        is_kept = alive and anchor.state == "anchored" and anchor.term >= known_term
        other = (anchor.epoch, anchor.receipt) != (held.epoch, held.receipt)
        if other and (self._history.is_newer(anchor.epoch, anchor.receipt) or is_kept):
            return ElectionResult.LOAD
        # A term above the stored one was lost: the writer under the older one does not own it any more.
        waits = anchor.writer not in ("", self._name) and self._history.leaves_writer_time(now_us)
        if waits or (alive and anchor.term >= known_term):
            self._history.hear(anchor, self.replication_id, kept=is_kept)
            return ElectionResult.FOLLOW
        reply = await self._hot.take(
            self.term + 1, self._name, anchor.term, anchor.writer, known_term=known_term, dataset=dataset
        )
        if reply.status is not TakeStatus.OK:
            return ElectionResult.FOLLOW
        return self._begin_term(reply.term, anchor)

    async def take(self, term: int, dataset: str, *, caught_up: bool) -> tuple[ElectionResult, str]:
        """Become the writer in place of one that writes, under a term that the operator names.

        Args:
            term: The term; it has to be above the stored one, unless this process holds it already.
            dataset: As in `check`.
            caught_up: Whether this process has a book and has read the lines to their end.

        Returns:
            What follows for this process, and why it did not take, "" if it did.

        Raises:
            RedisError: If Redis does not answer.
        """
        anchor, held = await self.read_anchor(), self._history.held
        refusal = refusal_of(anchor, held.epoch, held.receipt, caught_up=caught_up)
        if refusal:
            return ElectionResult.FOLLOW, refusal
        seen = (anchor.term, anchor.writer)
        reply = await self._hot.take(term, self._name, *seen, force=True, dataset=dataset)
        if reply.status is not TakeStatus.OK:
            return ElectionResult.FOLLOW, f"term {term} is not above the stored {reply.term}"
        if self.writes:
            self.term = reply.term
            await self.read_anchor()
            return ElectionResult.FOLLOW, ""
        return self._begin_term(reply.term, anchor), ""

    def _begin_term(self, term: int, before: Anchor) -> ElectionResult:
        """Become the writer of what was stored before."""
        self.term, self.role = term, WriteRole.WRITER
        log.info("%s: writing under term %d", self._symbol, term)
        heard = self._history.heard
        lost = self._history.rightful or (heard is not None and heard.is_lost(before, self.replication_id))
        self._history.rightful = False
        if lost or before.doubt.startswith(FAILOVER_DOUBT):
            return ElectionResult.TAKEN_AFTER_LOSS
        return ElectionResult.TAKEN

    async def write_heartbeat(self, stored: Anchor) -> ApplyReply:
        """Stay the writer of what is stored, and leave it as it is.

        Raises:
            RedisError: If Redis does not answer.
        """
        reply = await self._hot.apply(
            self.term,
            self._name,
            stored.epoch,
            stored.update_id,
            0,
            vouch=Vouch(0, 0, ""),
            receipt=stored.receipt,
            acked_us=self._history.acked_us,
        )
        if reply.status is ApplyStatus.OK:
            self._history.acknowledge(reply.now_us)
        return reply

    def note_state(self, state: str, reason: str, now_us: int) -> None:
        """Record the state that the last reply gives; a doubt keeps its first reason and time.

        Args:
            state: "anchored" or "suspect".
            reason: Why it is suspect.
            now_us: Redis' time of the reply.
        """
        if state != "suspect":
            reason, now_us = "", 0
        elif self.anchor.state == "suspect" and self.anchor.suspect_at:
            reason, now_us = self.anchor.reason, self.anchor.suspect_at
        self.anchor = replace(self.anchor, state=state, reason=reason, suspect_at=now_us)

    def step_back(self, term: int) -> None:
        """Become a standby that checks the writer at once.

        Args:
            term: The term that is stored.
        """
        if self.writes:
            log.warning("%s: no longer the writer: another processor holds term %d", self._symbol, term)
        # An older term than its own is stored: Redis has lost that this process took.
        self._history.rightful = self.writes and term < self.term
        self._history.acked_us, self._history.failover = 0, None
        self.role = WriteRole.STANDBY
        self._checked_us = 0

"""What a processor knows of the state that it continues, and whether Redis still holds what it has acknowledged. Pure.

A failover may lose what was acknowledged last. Replication is one ordered stream, so a process that still finds the
last thing that it was acknowledged, or has heard of, has lost nothing: a changed replication id alone is no doubt.
Times are of this machine's monotonic clock in µs, heartbeats are stamped by Redis.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final

from sheetanchor.policy.restatement import FAILOVER_DOUBT, MARKS_WAIT_US, is_newer
from sheetanchor.store.hot_records import Anchor

STANDBY_WAIT_US: Final = 1_000_000
"""After a failover the stored heartbeat is old although its writer lives: a standby leaves it this long to write."""


QUEUE_US: Final = 300_000
"""A line appends what has waited for Redis right after its mark, and all of it within this."""


@dataclass(frozen=True, slots=True)
class HeldState:
    """The stored state that the market in memory was built on.

    Attributes:
        epoch: Its epoch.
        receipt: Receipt of the rebuild or restatement that made it.
        root: Receipt of the last rebuild from the exchange in it; "" once what is in memory is not that state any more.
        dataset: The pipeline that it is of, "" if it does not say.
    """

    epoch: int = 0
    receipt: str = ""
    root: str = ""
    dataset: str = ""

    @classmethod
    def of(cls, anchor: Anchor) -> HeldState:
        """Give the state that an anchor is of; one of an earlier version was made by a rebuild."""
        return cls(anchor.epoch, anchor.receipt, anchor.root or anchor.receipt, anchor.dataset)


@dataclass(frozen=True, slots=True)
class LastHeard:
    """The state as last heard of within one replication history.

    Attributes:
        replication_id: The history; "" where the server does not say.
        epoch: Epoch that was stored.
        receipt: Receipt that was stored.
        term: Term that was stored.
        anchored: Whether it was anchored.
        heartbeat_us: Its writer's last heartbeat.
    """

    replication_id: str
    epoch: int
    receipt: str
    term: int
    anchored: bool
    heartbeat_us: int

    @classmethod
    def of(cls, anchor: Anchor, replication_id: str) -> LastHeard:
        """Give what an anchor says."""
        anchored = anchor.state == "anchored"
        return cls(replication_id, anchor.epoch, anchor.receipt, anchor.term, anchored, anchor.heartbeat_us)

    def is_lost(self, anchor: Anchor, replication_id: str) -> bool:
        """Say whether what is stored now lacks something that was heard of."""
        if replication_id and replication_id == self.replication_id:
            return False  # one history does not go back; a clock that was set does
        older = anchor.heartbeat_us < self.heartbeat_us or anchor.term < self.term or anchor.epoch < self.epoch
        return older or (anchor.state == "anchored" and not self.anchored and anchor.receipt == self.receipt)


@dataclass(slots=True)
class Failover:
    """Redis has gone back in time, and this processor, its writer, deals with it.

    Attributes:
        replication_id: History that it has gone into, "" where the server does not say.
        began_us: When this processor found out.
        stored: Anchor that it has found there.
        heard: What was last heard before; None if nothing was.
        replaces: Token of the doubt about a failover before, which this processor has written.
        doubted: Whether the doubt is written.
    """

    replication_id: str
    began_us: int
    stored: Anchor
    heard: LastHeard | None
    replaces: str = ""
    doubted: bool = False

    @property
    def doubt(self) -> str:
        """Token of the doubt that this failover is; another process that deals with the same one writes the same."""
        return FAILOVER_DOUBT + self.replication_id


@dataclass(slots=True)
class ReplicationHistory:
    """What one processor knows of the replication history and of what was acknowledged in it.

    Attributes:
        held: What the market in memory was built on.
        heard: What was last heard of before Redis went back in time; None if nothing was.
        acked_us: The last heartbeat that this writer was acknowledged; 0 while it is not the writer.
        failover: The failover that is dealt with, None if there is none.
        unvalidated: Restatements since the exchange was last asked.
        rightful: Whether another's older term stands where this process was the writer: it need not wait to take again.
        loaded: Whether a stored state was loaded after the state was last heard of.
    """

    held: HeldState = field(default_factory=HeldState)
    heard: LastHeard | None = None
    acked_us: int = 0
    failover: Failover | None = None
    unvalidated: int = 0
    rightful: bool = False
    loaded: bool = False
    _replication_id: str = ""
    _seen_us: int = 0
    _changed_us: int | None = None
    _marked: set[str] = field(default_factory=set)
    _marked_us: int = 0
    _restated: set[str] = field(default_factory=set)

    def enter(self, replication_id: str, now_us: int, *, changed: bool) -> None:
        """Take note of the history that the server is in.

        Args:
            replication_id: Its id, "" where the server does not say.
            now_us: The moment.
            changed: Whether it is another one than before, not the first one that this process sees.
        """
        self._replication_id, self._seen_us = replication_id, now_us
        self._changed_us = now_us if changed else None
        self._marked.clear()
        self._marked_us = 0

    def mark(self, line: str, replication_id: str, now_us: int) -> None:
        """Take note that a line has appended again all that it will in a history."""
        if replication_id == self._replication_id and line not in self._marked:
            self._marked.add(line)
            self._marked_us = now_us

    def lines_due(self, live_lines: Collection[str]) -> tuple[str, ...]:
        """Name the live lines that have not marked the end of what they append again."""
        return tuple(sorted(set(live_lines) - self._marked)) if self._changed_us is not None else ()

    def awaits_lines(self, live_lines: Collection[str], now_us: int) -> bool:
        """Say whether lines still append again what was sent before the failover, or bring what has waited since."""
        if self._changed_us is None or now_us - self._changed_us >= MARKS_WAIT_US:
            return False
        return bool(self.lines_due(live_lines)) or now_us - self._marked_us < QUEUE_US

    def waited_us(self, now_us: int) -> int:
        """Give the time since the history of the failover that is dealt with was first seen.

        Where Redis goes back without another history, it counts from when that was found.
        """
        began_us = self.failover.began_us if self.failover else now_us
        return now_us - (self._seen_us if began_us - self._seen_us <= MARKS_WAIT_US else began_us)

    def leaves_writer_time(self, now_us: int) -> bool:
        """Say whether a standby has to wait because the writer may live and just have lost its connection."""
        return not self.rightful and now_us - self._seen_us < STANDBY_WAIT_US

    def load(self, anchor: Anchor) -> None:
        """Take note that the stored state was loaded."""
        self.held, self.unvalidated, self.failover = HeldState.of(anchor), anchor.unvalidated, None
        self.loaded = True

    def adopt(self, epoch: int, receipt: str) -> None:
        """Go on writing, suspect, under the stored state although the market is not of it: it is not restated."""
        if (epoch, receipt) != (self.held.epoch, self.held.receipt):
            self.held = replace(self.held, epoch=epoch, receipt=receipt, root="")

    def is_newer(self, epoch: int, receipt: str) -> bool:
        """Say whether a stored state was made after the one that is held, or in its place."""
        return is_newer(epoch, receipt, self.held.epoch, self.held.receipt)

    def acknowledge(self, now_us: int) -> None:
        """Take note of the last heartbeat that this writer was acknowledged, by Redis' clock."""
        self.acked_us = now_us

    def hear(self, anchor: Anchor, replication_id: str, *, kept: bool) -> None:
        """Take note of what is stored.

        Args:
            anchor: What is stored.
            replication_id: History that it was read in.
            kept: Whether its writer lives: then what is stored counts, whatever was heard before.
        """
        lost = self.heard is not None and self.heard.is_lost(anchor, replication_id)
        if self.failover is None and (not lost or (kept and anchor.state == "anchored")):
            self.heard, self.loaded = LastHeard.of(anchor, replication_id), False

    def hear_reply(self, term: int, state: str, now_us: int) -> None:
        """Take note of an acknowledged write: the chain is whole, so nothing before it is lost."""
        self.acked_us = now_us
        if self.failover is None:
            held = self.held
            anchored = state == "anchored"
            self.heard = LastHeard(self._replication_id, held.epoch, held.receipt, term, anchored, now_us)
            self.loaded = False

    def begin(self, anchor: Anchor, replication_id: str, now_us: int) -> None:
        """Begin to deal with a failover.

        Args:
            anchor: What is stored.
            replication_id: History that it was read in.
            now_us: The moment.
        """
        before = self.failover
        heard = before.heard if before else self.heard
        mine = before.doubt if before and before.doubted else (before.replaces if before else "")
        self.acked_us = 0
        self.failover = Failover(replication_id, now_us, anchor, heard, mine)

    def restated_here(self) -> bool:
        """Say whether this process has restated in the history that the failover is about."""
        return self.failover is not None and self.failover.replication_id in self._restated

    def restate(self, epoch: int, receipt: str, dataset: str, term: int, now_us: int) -> None:
        """Take note that the memory is the hot state now."""
        if self.failover is not None:
            self._restated.add(self.failover.replication_id)
        self.held, self.failover = HeldState(epoch, receipt, self.held.root, dataset), None
        self.unvalidated += 1
        self.hear_reply(term, "anchored", now_us)

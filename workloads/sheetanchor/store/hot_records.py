"""What the function library answers, and what is stored of a symbol: the records of `hot_state`.

Nothing here talks to Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Generic, TypeVar


class ApplyStatus(StrEnum):
    """What became of a processor's write."""

    OK = "OK"
    FENCED = "FENCED"  # another writer has the term
    ROLLED_BACK = "ROLLED_BACK"  # writes that were acknowledged to this writer are gone
    EPOCH = "EPOCH"  # what is stored is of another epoch or receipt
    BEHIND = "BEHIND"  # the update id would go back


class TakeStatus(StrEnum):
    """What became of an attempt to become the writer."""

    OK = "OK"
    SEEN = "SEEN"  # another processor took meanwhile
    ALIVE = "ALIVE"  # the writer has written within the last second
    TERM = "TERM"  # the term is not above the stored one


class SuspectStatus(StrEnum):
    """What became of a doubt."""

    OK = "OK"
    FENCED = "FENCED"
    EPOCH = "EPOCH"  # an observer's doubt is about an older rebuild


class SwapStatus(StrEnum):
    """What became of a swap; anything but SWAPPED changed nothing."""

    SWAPPED = "SWAPPED"
    LOCK_LOST = "LOCK_LOST"
    EPOCH = "EPOCH"
    MISSING = "MISSING"  # a staging key is missing or not what was staged; `detail` names it
    BEHIND = "BEHIND"  # the live state is sound and newer: catch up and try again


class RestateStatus(StrEnum):
    """What became of a restatement; anything but RESTATED and DONE changed nothing. In the order of the checks."""

    RESTATED = "RESTATED"
    DONE = "DONE"  # this very restatement is stored already: its reply was lost
    FOREIGN = "FOREIGN"  # the data set is another pipeline's
    FENCED = "FENCED"
    REPLID = "REPLID"  # the server is in another replication history than the caller has seen, or does not say
    EPOCH = "EPOCH"  # what is stored is not what the caller has seen, or is newer than what it holds
    DOUBT = "DOUBT"  # the state is suspect for another reason than this failover
    LATE = "LATE"  # the lines were read over 1 s ago, or the last market event is ahead of now or over 5 s old
    BEHIND = "BEHIND"  # what is stored is of the same receipt and has a higher update or trade id


class ValidatedStatus(StrEnum):
    """What became of the word that the exchange says what is stored."""

    OK = "OK"
    EPOCH = "EPOCH"  # another state is stored by now


class CommitStatus(StrEnum):
    """What became of a prediction."""

    COMMITTED = "COMMITTED"
    EXISTS = "EXISTS"  # the slot has its prediction already
    REFUSED = "REFUSED"  # the slot is neither Redis' current one nor the one before
    EARLY = "EARLY"  # degraded for its own reasons, and a sound replica still has time


ANY_RECEIPT: Final = "*"
"""Stands for a receipt where a caller builds on whatever is stored."""

HotLists = tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str]]
"""Flat lists of fields and values of `ob`, both windows and `feat`."""

StatusT = TypeVar("StatusT", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Reply(Generic[StatusT]):
    """How a call ended and where the symbol stands after it.

    Attributes:
        epoch: Which rebuild the state belongs to.
        term: Who may write: the number that only rises.
        writer: Who may write: the name.
        state: anchored or suspect.
        now_us: Redis' clock.
        detail: Why it was refused, where the status alone does not say.
        receipt: Receipt of the rebuild or restatement that made the state; epoch numbers can repeat, receipts cannot.
        root: Receipt of the last rebuild from the exchange.
        doubt: Token of the doubt that the state stands under.
    """

    status: StatusT
    epoch: int
    term: int
    writer: str
    state: str
    now_us: int
    detail: str = ""
    receipt: str = ""
    root: str = ""
    doubt: str = ""

    @property
    def ok(self) -> bool:
        """Say whether the call did what it was asked."""
        return self.status in {"OK", "SWAPPED", "RESTATED", "DONE"}


ApplyReply = Reply[ApplyStatus]
RestateReply = Reply[RestateStatus]
ValidatedReply = Reply[ValidatedStatus]
TakeReply = Reply[TakeStatus]
SuspectReply = Reply[SuspectStatus]
SwapReply = Reply[SwapStatus]


@dataclass(frozen=True, slots=True)
class CommitReply:
    """How a commit ended.

    Attributes:
        now_us: Redis' clock.
        latency_ms: Milliseconds from the slot's time to this call; stored with the prediction if it was committed.
    """

    status: CommitStatus
    now_us: int
    latency_ms: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Vouch:
    """What a writer says of the soundness of what it writes.

    Attributes:
        until_us: Until when it is sound if nothing more is heard, on Redis' clock; 0 if it is not.
        for_us: The same as a time from when Redis runs the call: whichever is shorter holds.
        unsound: Why it is not sound, reasons joined by `; `; "" if it is.
    """

    until_us: int
    for_us: int
    unsound: str = ""


@dataclass(frozen=True, slots=True)
class Restatement:
    """What a writer's memory is restated with, and what has to hold for it; see the fences of `RestateStatus`.

    Attributes:
        seen_epoch: Stored epoch as read since the failover.
        seen_receipt: Stored receipt as read since the failover.
        known_epoch: Highest epoch that the caller knows of; the new one is above it.
        held_receipt: Receipt of the state that the memory was built on.
        doubt: Token of the doubt that was written for this failover.
        replication_id: Replication history that the caller has seen.
        read_us: Redis-clock µs of the last read of the lines.
        update_id: Update id of the book.
        trade_id: Newest trade with no missing range before it.
        stamp_us: Redis-clock µs of the last market event.
        receipt: Id of this restatement; a second call with it answers DONE.
        root: Receipt of the last rebuild from the exchange.
        dataset: The pipeline that the memory is of; "" if it has no id.
        unvalidated: Restatements since the exchange was last asked, as far as the caller knows.
    """

    seen_epoch: int
    seen_receipt: str
    known_epoch: int
    held_receipt: str
    doubt: str
    replication_id: str
    read_us: int
    update_id: int
    trade_id: int
    stamp_us: int
    receipt: str
    root: str
    dataset: str = ""
    unvalidated: int = 0


@dataclass(frozen=True, slots=True)
class Anchor:
    """The hash `anchor:{S}`; what is absent is zero, empty and suspect."""

    epoch: int = 0
    term: int = 0
    writer: str = ""
    heartbeat_us: int = 0
    update_id: int = 0
    anchored_at: int = 0
    stamp_us: int = 0
    receipt: str = ""
    state: str = "suspect"
    reason: str = ""
    suspect_id: int = 0
    suspect_at: int = 0
    root: str = ""
    doubt: str = ""
    dataset: str = ""
    unvalidated: int = 0

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Anchor:
        """Read the hash's fields; a number that is none counts as absent."""
        return cls(
            epoch=count_of(fields, "epoch"),
            term=count_of(fields, "term"),
            writer=fields.get("writer", ""),
            heartbeat_us=count_of(fields, "beat_us"),
            update_id=count_of(fields, "update_id"),
            anchored_at=count_of(fields, "anchored_at"),
            stamp_us=count_of(fields, "stamp_us"),
            receipt=fields.get("receipt", ""),
            state=fields.get("state", "suspect"),
            reason=fields.get("reason", ""),
            suspect_id=count_of(fields, "suspect_id"),
            suspect_at=count_of(fields, "suspect_at"),
            root=fields.get("root", ""),
            doubt=fields.get("doubt", ""),
            dataset=fields.get("dataset", ""),
            unvalidated=count_of(fields, "unvalidated"),
        )


@dataclass(frozen=True, slots=True)
class HotRead:
    """One consistent look at a symbol.

    Attributes:
        incomplete: Which keys are missing or of another epoch (those are empty here), "" when all belong together.
        rebuilding: A re-anchor is in progress; that alone is no reason for doubt.
        now_us: Redis' clock.
        replication_id: Replication history that the server is in; "" where it does not say.
    """

    now_us: int
    incomplete: str
    rebuilding: bool
    epoch: int = 0
    anchor: dict[str, str] = field(default_factory=dict)
    ob: dict[str, str] = field(default_factory=dict)
    tr_1s: dict[str, str] = field(default_factory=dict)
    tr_5s: dict[str, str] = field(default_factory=dict)
    feat: dict[str, str] = field(default_factory=dict)
    replication_id: str = ""


def count_of(fields: Mapping[str, str], name: str) -> int:
    """Read a number; what is none counts as 0, as it does for the library."""
    text = fields.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0

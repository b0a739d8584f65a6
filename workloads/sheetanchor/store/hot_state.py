"""The hot state of one symbol: typed calls of the Redis function library `hot_state.lua`.

Each method is one function call, so each is atomic. The rules (fences, epochs, time) live in the library; this module
loads it when a server lacks it and gives its replies names. It never retries a refusal: that is the caller's decision.

One module, since the library's calls, the names of their replies and the fields that they read are one interface.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from redis import exceptions
from redis.asyncio import Redis

from sheetanchor.contract import (
    GAPS_LENGTH_MAX,
    LOCK_TTL_S,
    PREDICTIONS_LENGTH_MAX,
    RECEIPTS_LENGTH_MAX,
    Gap,
    Receipt,
    keys,
)
from sheetanchor.store.function_library import ensure_library, execute, function_missing
from sheetanchor.store.redis_connection import translate_errors, translated_error

log = logging.getLogger(__name__)

PREDICTIONS_AGE_MAX_MS: Final = 25 * 60 * 60 * 1000
"""A day, the longest window that accuracy is reported over, and an hour."""


class ApplyStatus(StrEnum):
    """What became of a processor's write."""

    OK = "OK"
    FENCED = "FENCED"  # another writer has the term
    EPOCH = "EPOCH"  # the state has been rebuilt: load it again
    BEHIND = "BEHIND"  # the update id would go back


class TakeStatus(StrEnum):
    """What became of an attempt to become the writer."""

    OK = "OK"
    SEEN = "SEEN"  # somebody took meanwhile
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


class CommitStatus(StrEnum):
    """What became of a prediction."""

    COMMITTED = "COMMITTED"
    EXISTS = "EXISTS"  # the slot has its prediction already
    REFUSED = "REFUSED"  # the slot is neither Redis' current one nor the one before
    EARLY = "EARLY"  # degraded for its own reasons, and a sound replica still has time


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
    """

    status: StatusT
    epoch: int
    term: int
    writer: str
    state: str
    now_us: int
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Say whether the call did what it was asked."""
        return self.status in {"OK", "SWAPPED"}


ApplyReply = Reply[ApplyStatus]
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

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Anchor:
        """Read the hash's fields; a number that is none counts as absent."""
        return cls(
            epoch=_count(fields, "epoch"),
            term=_count(fields, "term"),
            writer=fields.get("writer", ""),
            heartbeat_us=_count(fields, "beat_us"),
            update_id=_count(fields, "update_id"),
            anchored_at=_count(fields, "anchored_at"),
            stamp_us=_count(fields, "stamp_us"),
            receipt=fields.get("receipt", ""),
            state=fields.get("state", "suspect"),
            reason=fields.get("reason", ""),
            suspect_id=_count(fields, "suspect_id"),
            suspect_at=_count(fields, "suspect_at"),
        )


@dataclass(frozen=True, slots=True)
class HotRead:
    """One consistent look at a symbol.

    Attributes:
        incomplete: Which keys are missing or of another epoch (those are empty here), "" when all belong together.
        rebuilding: A re-anchor is in progress; that alone is no reason for doubt.
        now_us: Redis' clock.
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


class HotState:
    """The hot state of one symbol.

    Every method raises `RedisUnavailable`, `RedisOutOfMemory` or `RedisRefused` if Redis did not run the call.

    Args:
        redis: Client to call with; replies must not be decoded.
        symbol: Trading pair.
    """

    def __init__(self, redis: Redis, symbol: str) -> None:
        self._redis = redis
        self.keys = keys(symbol)
        self._library_checked = False
        key = self.keys
        self._hot = (key.ob, key.tr_1s, key.tr_5s, key.feat)
        self._locked = (key.lock, key.ob_new, key.book_new, key.tr_1s_new, key.tr_5s_new, key.feat_new)

    async def apply(
        self,
        term: int,
        writer: str,
        epoch: int,
        update_id: int,
        stamp_us: int,
        ob: Sequence[str] = (),
        tr_1s: Sequence[str] = (),
        tr_5s: Sequence[str] = (),
        feat: Sequence[str] = (),
        book: bytes = b"",
        vouch: Vouch | None = None,
    ) -> ApplyReply:
        """Write what the processor holds; without lists it is a sign of life.

        Args:
            term: Term under which this writer took.
            writer: Its name.
            epoch: Epoch that its state belongs to.
            update_id: Update id of its book; must not be below the stored one.
            stamp_us: Redis-clock µs of the last market event.
            ob: Flat list of fields and values without `epoch`; each non-empty list replaces its hash as a whole.
            tr_1s: As `ob`.
            tr_5s: As `ob`.
            feat: As `ob`.
            book: Packed book; ignored while the state is suspect.
            vouch: What is said of its soundness; readers take a state of which nothing is said for unsound.
        """
        lists = (ob, tr_1s, tr_5s, feat)
        said = () if vouch is None else ("vouch", vouch.until_us, vouch.for_us, vouch.unsound)
        arguments = (term, writer, epoch, update_id, stamp_us, *said, *map(len, lists), book, *_flat(lists))
        raw = await self._call("sheetanchor_apply", (self.keys.anchor, *self._hot, self.keys.book), arguments)
        return _reply(ApplyStatus, raw)

    async def take(self, term: int, writer: str, seen_term: int, seen_writer: str, *, force: bool = False) -> TakeReply:
        """Become the writer.

        Args:
            term: New term, above the stored one.
            writer: Name of the new writer.
            seen_term: Stored term as last read.
            seen_writer: Stored writer as last read.
            force: Take even from a writer that is alive or was not seen; the term must still rise.
        """
        arguments = (term, writer, seen_term, seen_writer, int(force))
        return _reply(TakeStatus, await self._call("sheetanchor_take", (self.keys.anchor,), arguments))

    async def suspect(self, term: int, writer: str, epoch: int, update_id: int, reason: str) -> SuspectReply:
        """Say that the state may be wrong.

        Args:
            term: The writer's term, or 0 from somebody who only observes.
            writer: The writer's name, or "" from somebody who only observes.
            epoch: Highest epoch known; the stored one rises to it and never falls.
            update_id: A rebuild below this id does not cure unless it answers the doubt; 0 if any does.
            reason: One line for people.
        """
        arguments = (term, writer, epoch, update_id, reason)
        return _reply(SuspectStatus, await self._call("sheetanchor_suspect", (self.keys.anchor,), arguments))

    async def lock(self, owner: str, ttl_s: int = LOCK_TTL_S) -> bool:
        """Take the lock for a rebuild; true also when this owner holds it already.

        Args:
            owner: Random id of this run and attempt.
            ttl_s: Life of the lock in seconds.
        """
        return _text((await self._call("sheetanchor_lock", self._locked, (owner, ttl_s)))[0]) == "LOCKED"

    async def unlock(self, owner: str) -> bool:
        """Give the lock back and remove the owner's staging; false if the lock was not this owner's any more."""
        return _text((await self._call("sheetanchor_unlock", self._locked, (owner,)))[0]) == "UNLOCKED"

    async def lock_holder(self) -> str:
        """Name the lock's owner, "" if nobody holds it."""
        with translate_errors(f"GET {self.keys.lock}"):
            return _text(await self._redis.get(self.keys.lock) or b"")

    async def stage(
        self,
        owner: str,
        ob: Sequence[str],
        tr_1s: Sequence[str],
        tr_5s: Sequence[str],
        feat: Sequence[str],
        book: bytes,
    ) -> bool:
        """Write all staging keys at once; false if the lock is not the owner's any more.

        Args:
            owner: Owner of the lock.
            ob: Flat list of fields and values; the epoch is written by the swap.
            tr_1s: As `ob`.
            tr_5s: As `ob`.
            feat: As `ob`.
            book: Packed book.
        """
        lists = (ob, tr_1s, tr_5s, feat)
        arguments = (owner, *map(len, lists), book, *_flat(lists))
        return _text((await self._call("sheetanchor_stage", self._locked, arguments))[0]) == "STAGED"

    async def swap(
        self, owner: str, expected_epoch: int, update_id: int, stamp_us: int, receipt_id: str, *, answered: int = 0
    ) -> SwapReply:
        """Make the staging the hot state, all of it or nothing, and give the lock back.

        Args:
            owner: Owner of the lock.
            expected_epoch: Epoch that the rebuild began at.
            update_id: Update id of the staged book.
            stamp_us: Redis-clock µs of the last market event in the staging.
            receipt_id: Id of the run; a second call with it answers SWAPPED again.
            answered: Update id of a doubt that this rebuild answers although it has not reached it; 0 for none.
        """
        key = self.keys
        staging = self._locked[1:]
        live = (key.ob, key.book, key.tr_1s, key.tr_5s, key.feat)
        arguments = (owner, expected_epoch, update_id, stamp_us, receipt_id, answered)
        return _reply(
            SwapStatus, await self._call("sheetanchor_swap", (key.anchor, key.lock, *live, *staging), arguments)
        )

    async def read(self) -> HotRead:
        """Read ob, both windows, feat and anchor as they belong together."""
        raw = await self._call(
            "sheetanchor_read", (self.keys.anchor, *self._hot, self.keys.lock), (), command="FCALL_RO"
        )
        anchor, ob, tr_1s, tr_5s, feat = (_fields(values) for values in raw[3:8])
        return HotRead(
            now_us=int(raw[0]),
            incomplete=_text(raw[1]),
            rebuilding=bool(raw[2]),
            epoch=_count(anchor, "epoch"),
            anchor=anchor,
            ob=ob,
            tr_1s=tr_1s,
            tr_5s=tr_5s,
            feat=feat,
        )

    async def commit_prediction(
        self, slot: int, fields: Mapping[str, object], *, own_degraded: bool = False
    ) -> CommitReply:
        """Commit the prediction of a slot; the first one wins.

        Args:
            slot: Slot it belongs to; `slot` and `latency_ms` are written by the library.
            fields: Everything else of the record.
            own_degraded: The replica is degraded for reasons of its own; such a commit is refused as EARLY in the
                slot's first half second.
        """
        values = [text for name, value in fields.items() for text in (name, str(value)) if name not in _SET_BY_LIBRARY]
        arguments = (slot, int(own_degraded), PREDICTIONS_LENGTH_MAX, PREDICTIONS_AGE_MAX_MS, *values)
        raw = await self._call("sheetanchor_commit_prediction", (self.keys.pred, self.keys.preds), arguments)
        return CommitReply(CommitStatus(_text(raw[0])), int(raw[1]), int(raw[2]) / 1000, _text(raw[3]))

    async def anchor(self) -> Anchor:
        """Read the anchor alone."""
        with translate_errors(f"HGETALL {self.keys.anchor}"):
            raw = await self._redis.hgetall(self.keys.anchor)
        return Anchor.parse({_text(name): _text(value) for name, value in raw.items()})

    async def book(self) -> bytes | None:
        """Read the packed book, None if there is none."""
        with translate_errors(f"GET {self.keys.book}"):
            packed: Any = await self._redis.get(self.keys.book)
        return None if packed is None else bytes(packed)

    async def add_gap(self, gap: Gap) -> None:
        """Append to the history of gaps."""
        with translate_errors(f"XADD {self.keys.gaps}"):
            entry: dict[Any, Any] = {**gap.fields()}
            try:
                await self._redis.xadd(self.keys.gaps, entry, maxlen=GAPS_LENGTH_MAX, approximate=True)
            except exceptions.ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                # Ingestors write here too: what one of them has made of it must not keep a gap from being told.
                log.error("%s: expected a stream, removed what stood there", self.keys.gaps)
                await self._redis.delete(self.keys.gaps)
                await self._redis.xadd(self.keys.gaps, entry, maxlen=GAPS_LENGTH_MAX, approximate=True)

    async def add_receipt(self, receipt: Receipt) -> None:
        """Append to the history of receipts."""
        with translate_errors(f"XADD {self.keys.receipts}"):
            entry: dict[Any, Any] = {"receipt": receipt.to_json()}
            await self._redis.xadd(self.keys.receipts, entry, maxlen=RECEIPTS_LENGTH_MAX, approximate=True)

    async def _call(
        self, function: str, key_names: Iterable[str], arguments: Iterable[object], command: str = "FCALL"
    ) -> Any:
        names = tuple(key_names)
        words = (command, function, len(names), *names, *arguments)
        if not self._library_checked:
            await ensure_library(self._redis)
            self._library_checked = True
        try:
            return await execute(self._redis, *words)
        except exceptions.ResponseError as error:
            if not function_missing(error):
                raise translated_error(error, function) from error
        except (exceptions.RedisError, OSError) as error:
            raise translated_error(error, function) from error
        # The server was emptied or replaced since the library was checked.
        await ensure_library(self._redis)
        with translate_errors(function):
            return await execute(self._redis, *words)


_SET_BY_LIBRARY: Final = frozenset({"slot", "latency_ms"})


def _count(fields: Mapping[str, str], name: str) -> int:
    """Read a number; what is none counts as 0, as it does for the library."""
    text = fields.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _flat(lists: Iterable[Sequence[str]]) -> Iterable[str]:
    return (value for values in lists for value in values)


def _reply(status: type[StatusT], raw: Sequence[Any]) -> Reply[StatusT]:
    return Reply(
        status(_text(raw[0])), int(raw[1]), int(raw[2]), _text(raw[3]), _text(raw[4]), int(raw[5]), _text(raw[6])
    )


def _fields(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [value.decode() for value in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

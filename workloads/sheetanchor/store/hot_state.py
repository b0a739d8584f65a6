"""The hot state of one symbol: typed calls of the Redis function library `hot_state.lua`.

Each method is one function call, so each is atomic. The rules (fences, epochs, time) live in the library; this module
loads it when a server lacks it and gives its replies names. It never retries a refusal: that is the caller's decision.

One module, since the library's calls are one interface; what they answer is in `hot_records`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

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
from sheetanchor.store.hot_records import (
    ANY_RECEIPT,
    Anchor,
    ApplyReply,
    ApplyStatus,
    CommitReply,
    CommitStatus,
    HotLists,
    HotRead,
    Reply,
    Restatement,
    RestateReply,
    RestateStatus,
    StatusT,
    SuspectReply,
    SuspectStatus,
    SwapReply,
    SwapStatus,
    TakeReply,
    TakeStatus,
    ValidatedReply,
    ValidatedStatus,
    Vouch,
    count_of,
)
from sheetanchor.store.redis_connection import translate_errors, translated_error

log = logging.getLogger(__name__)

PREDICTIONS_AGE_MAX_MS: Final = 25 * 60 * 60 * 1000
"""A day, the longest window that accuracy is reported over, and an hour."""


class HotState:
    """The hot state of one symbol.

    One class, since every call loads the library where it is missing and names the same keys. Every method raises
    `RedisUnavailable`, `RedisOutOfMemory` or `RedisRefused` if Redis did not run the call.

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
        *,
        receipt: str = ANY_RECEIPT,
        acked_us: int = 0,
        trade_id: int = 0,
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
            vouch: What is declared about its soundness; readers take a state without a declaration for unsound.
            receipt: Receipt of the state that this one was built on.
            acked_us: The last heartbeat (`now_us` of a reply) that this writer was acknowledged; 0 for none.
            trade_id: Newest trade with no missing range before it.
        """
        lists = (ob, tr_1s, tr_5s, feat)
        ids = (epoch, receipt, acked_us, update_id, trade_id, stamp_us)
        arguments = (term, writer, *ids, *_said(vouch), *map(len, lists), book, *_flat(lists))
        raw = await self._call("sheetanchor_apply2", (self.keys.anchor, *self._hot, self.keys.book), arguments)
        return _reply(ApplyStatus, raw)

    async def restate(
        self, term: int, writer: str, restatement: Restatement, lists: HotLists, book: bytes, vouch: Vouch | None
    ) -> RestateReply:
        """Make a writer's memory the hot state after the server has gone back in time, all of it or nothing.

        Args:
            term: Term under which this writer took.
            writer: Its name.
            restatement: What has to hold.
            lists: Flat lists of fields and values of `ob`, both windows and `feat`, none empty.
            book: Book packed for the epoch after `known_epoch`.
            vouch: What is said of its soundness.
        """
        given = restatement
        seen = (given.seen_epoch, given.seen_receipt, given.known_epoch, given.held_receipt, given.doubt)
        ids = (given.replication_id, given.read_us, given.update_id, given.trade_id, given.stamp_us)
        new = (given.receipt, given.root, given.dataset, given.unvalidated)
        arguments = (term, writer, *seen, *ids, *new, *_said(vouch), *map(len, lists), book, *_flat(lists))
        raw = await self._call("sheetanchor_restate", (self.keys.anchor, *self._hot, self.keys.book), arguments)
        return _reply(RestateStatus, raw)

    async def validated(self, epoch: int, receipt: str) -> ValidatedReply:
        """Say that the exchange was asked and says what is stored, of this epoch and receipt."""
        raw = await self._call("sheetanchor_validated", (self.keys.anchor,), (epoch, receipt))
        return _reply(ValidatedStatus, raw)

    async def take(
        self,
        term: int,
        writer: str,
        seen_term: int,
        seen_writer: str,
        *,
        force: bool = False,
        known_term: int = 0,
        dataset: str = "",
    ) -> TakeReply:
        """Become the writer.

        Args:
            term: New term, above the stored one.
            writer: Name of the new writer.
            seen_term: Stored term as last read.
            seen_writer: Stored writer as last read.
            force: Take even from a writer that is alive or was not seen; the term must still rise.
            known_term: Highest term that the caller knows of. One above the stored one shows that Redis has gone back
                in time: then a writer that is alive is no obstacle.
            dataset: The pipeline that this is of; remembered where nothing is yet.
        """
        arguments = (term, writer, seen_term, seen_writer, int(force), known_term, dataset)
        return _reply(TakeStatus, await self._call("sheetanchor_take2", (self.keys.anchor,), arguments))

    async def suspect(
        self,
        term: int,
        writer: str,
        epoch: int,
        update_id: int,
        reason: str,
        *,
        doubt: str = "",
        replaces: str = "",
    ) -> SuspectReply:
        """Say that the state may be wrong.

        Args:
            term: The writer's term, or 0 from a process that only observes.
            writer: The writer's name, or "" from a process that only observes.
            epoch: Highest epoch known; the stored one rises to it and never falls.
            update_id: A rebuild below this id does not cure unless it answers the doubt; 0 if any does.
            reason: One line for people.
            doubt: Its token. One that begins with `failover:` says only that Redis has gone back in time; it leaves
                every other doubt in its place.
            replaces: Token of an earlier failover that this one takes the place of.
        """
        arguments = (term, writer, epoch, update_id, reason, doubt, replaces)
        return _reply(SuspectStatus, await self._call("sheetanchor_suspect2", (self.keys.anchor,), arguments))

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
        """Name the lock's owner, "" if it is free."""
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
        self,
        owner: str,
        expected_epoch: int,
        update_id: int,
        stamp_us: int,
        receipt_id: str,
        *,
        answered: int = 0,
        expected_receipt: str = ANY_RECEIPT,
        trade_id: int = 0,
    ) -> SwapReply:
        """Make the staging the hot state, all of it or nothing, and give the lock back.

        Args:
            owner: Owner of the lock.
            expected_epoch: Epoch that the rebuild began at.
            update_id: Update id of the staged book.
            stamp_us: Redis-clock µs of the last market event in the staging.
            receipt_id: Id of the run; a second call with it answers SWAPPED again.
            answered: Update id of a doubt that this rebuild answers although it has not reached it; 0 for none.
            expected_receipt: Receipt of the state that the rebuild began at.
            trade_id: Newest trade of the staging.
        """
        key = self.keys
        staging = self._locked[1:]
        live = (key.ob, key.book, key.tr_1s, key.tr_5s, key.feat)
        arguments = (owner, expected_epoch, expected_receipt, update_id, trade_id, stamp_us, receipt_id, answered)
        return _reply(
            SwapStatus, await self._call("sheetanchor_swap2", (key.anchor, key.lock, *live, *staging), arguments)
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
            epoch=count_of(anchor, "epoch"),
            anchor=anchor,
            ob=ob,
            tr_1s=tr_1s,
            tr_5s=tr_5s,
            feat=feat,
            replication_id=_text(raw[8]),
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
                # Ingestors write here too: what one of them has made of it must not keep a gap from being published.
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


def _said(vouch: Vouch | None) -> tuple[object, ...]:
    return () if vouch is None else ("vouch", vouch.until_us, vouch.for_us, vouch.unsound)


def _flat(lists: Iterable[Sequence[str]]) -> Iterable[str]:
    return (value for values in lists for value in values)


def _reply(status: type[StatusT], raw: Sequence[Any]) -> Reply[StatusT]:
    epoch, term, now_us = int(raw[1]), int(raw[2]), int(raw[5])
    writer, state, *rest = (_text(raw[at]) for at in (3, 4, 6, 7, 8, 9))
    return Reply(status(_text(raw[0])), epoch, term, writer, state, now_us, *rest)


def _fields(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [value.decode() for value in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

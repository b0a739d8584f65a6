"""The streams of raw frames, `sbe:{S}:<line>`: appended, trimmed and read.

It never looks inside a frame. When Redis is gone every call raises `RedisUnavailable` within seconds; nothing is queued
here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from redis import exceptions
from redis.asyncio import Redis

from sheetanchor.contract import (
    STREAM_AGE_MAX_MS,
    STREAM_BYTES_MAX,
    keys,
    line_stream,
    pack_frames,
    parse_entry,
    stream_id_order,
)
from sheetanchor.runtime import metrics
from sheetanchor.store.line_register import LineRegister
from sheetanchor.store.redis_connection import translate_errors

ENTRY_OVERHEAD_BYTES: Final = 96
"""What Redis keeps per stream entry beside the batch itself: id, field names, packing."""

TRIM_EVERY_MS: Final = 1_000
TRIM_EVERY_SHARE: Final = 64
"""A stream may exceed its size by one part in so many before it is trimmed."""

LINES_REFRESH_US: Final = 2_000_000
"""A new line may go unread this long; its older entries are not lost by it."""

BLOCK_MAX_MS: Final = 1_000
"""Half the socket's time-out: a read that waits for entries must not look like a dead connection."""

START: Final = "0-0"
SEQUENCE_MAX: Final = 2**64 - 1
"""Largest second half of a stream id; only `seek_time` makes such ids."""


class LineWriter:
    """Appends batches of frames to one line's stream and keeps it within its age and size.

    The size is known without asking: what was appended is summed up here, with a mark (stream id, bytes so far) at each
    trimming, and the stream is cut at the last mark that has to go.

    Args:
        redis: Client to append with.
        symbol: Trading pair.
        line: Name of the line, for instance `a`.
        bytes_max: Largest size of the stream in bytes.
        age_max_ms: Oldest entry to keep, in milliseconds.
    """

    def __init__(
        self,
        redis: Redis,
        symbol: str,
        line: str,
        *,
        bytes_max: int = STREAM_BYTES_MAX,
        age_max_ms: int = STREAM_AGE_MAX_MS,
    ) -> None:
        self._redis = redis
        self._line = line
        self._lines_key = keys(symbol).lines
        self._stream = line_stream(symbol, line)
        self._bytes_max = bytes_max
        self._age_max_ms = age_max_ms
        self._marks: deque[tuple[str, int]] = deque()
        self._bytes = -1  # not known before the first append
        self._bytes_cut = 0
        self._bytes_at_trim = 0
        self._trimmed_ms = 0

    async def append(self, frames: Iterable[tuple[int, bytes]]) -> str:
        """Append one batch.

        Args:
            frames: `(receive time in µs, frame)` pairs in order of arrival; at least one.

        Returns:
            Id of the stream entry.

        Raises:
            RedisError: If it could not be appended. When only the reply was lost it has been; readers ignore
                duplicates.
        """
        batch = list(frames)
        return await self.append_packed(len(batch), batch[0][0], pack_frames(batch))

    async def append_packed(self, count: int, first_received_us: int, packed: bytes, again: str = "") -> str:
        """Append a batch that is packed already.

        Args:
            count: Frames in it.
            first_received_us: When the first of them arrived, in µs.
            packed: The frames.
            again: Replication id of Redis: nothing older is appended again in that history after this entry.

        Raises:
            RedisError: As `append`.
        """
        fields: dict[Any, Any] = {"n": count, "t": first_received_us, "f": packed}
        if again:
            fields["again"] = again
        with translate_errors(f"XADD {self._stream}"):
            if self._bytes < 0:
                await self._measure()
            entry_id = _text(await self._redis.xadd(self._stream, fields))
            self._bytes += len(packed) + ENTRY_OVERHEAD_BYTES
            now_ms = stream_id_order(entry_id)[0]
            much = self._bytes - self._bytes_at_trim >= self._bytes_max // TRIM_EVERY_SHARE
            if much or abs(now_ms - self._trimmed_ms) >= TRIM_EVERY_MS:
                await self._trim(entry_id, now_ms)
        return entry_id

    async def trim_age(self) -> None:
        """Cut what is too old without appending anything, for a server that has no memory left to append with.

        Raises:
            RedisError: If it could not be cut.
        """
        with translate_errors(f"XTRIM {self._stream}"):
            seconds, _ = await self._redis.time()
            oldest = f"{max(0, seconds * 1000 - self._age_max_ms)}-0"
            await self._redis.xtrim(self._stream, minid=oldest, approximate=True)

    async def _measure(self) -> None:
        """Count what an earlier run left, as if it had been written evenly over its time."""
        size = int(await self._redis.memory_usage(self._stream) or 0)
        if size:
            info: dict[str, Any] = await self._redis.xinfo_stream(self._stream)
            first_ms = stream_id_order(_text(info["first-entry"][0]))[0] if info["first-entry"] else 0
            span_ms = stream_id_order(_text(info["last-generated-id"]))[0] - first_ms
            self._marks.extend((f"{first_ms + span_ms * i // 16}-0", size * i // 16) for i in range(1, 17))
        self._bytes = size

    async def _trim(self, entry_id: str, now_ms: int) -> None:
        """Cut what is too old or too much, and register the line: the set may have gone with a server's data."""
        self._marks.append((entry_id, self._bytes))
        cut = f"{max(0, now_ms - self._age_max_ms)}-0"
        while self._marks and (
            self._bytes - self._bytes_cut > self._bytes_max or stream_id_order(self._marks[0][0]) < stream_id_order(cut)
        ):
            mark, self._bytes_cut = self._marks.popleft()
            cut = max(cut, mark, key=stream_id_order)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.sadd(self._lines_key, self._line)
        pipeline.xtrim(self._stream, minid=cut, approximate=True)
        # A line that is gone for good does not trim its stream any more.
        pipeline.pexpire(self._stream, 2 * self._age_max_ms)
        await pipeline.execute()
        self._bytes_at_trim = self._bytes
        self._trimmed_ms = now_ms


class Batch(NamedTuple):
    """One stream entry.

    Attributes:
        line: Line it came by.
        entry_id: Its id in the line's stream.
        frame_count: Frames in it, as its writer says.
        first_received_us: When the first of them arrived, by the ingestor's clock, in µs.
        frames: Packed frames, see `contract.unpack_frames`.
        again: Replication history in which the line has appended again what it had sent last, up to this entry; "" if
            the entry is not the last one of these.
    """

    line: str
    entry_id: str
    frame_count: int
    first_received_us: int
    frames: bytes
    again: str = ""

    @property
    def stamp_us(self) -> int:
        """When it was appended, by Redis' clock, in µs."""
        return stream_id_order(self.entry_id)[0] * 1000


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A line no longer holds the entry that should be read next: what lay between is lost.

    Attributes:
        asked_id: Id after which entries were asked for.
        first_id: Oldest id that is still there, "" if none.
    """

    line: str
    asked_id: str
    first_id: str


class LineReader:
    """Reads the streams of all lines of a symbol, each from its own place.

    Lines that appear later are found within two seconds and read from their beginning, or from the time last sought.
    What ingestors write is not trusted: an entry whose envelope is malformed is skipped and counted, and so is a
    registered line whose name is malformed, whose key is no stream, or that is one too many. A reader that failed
    because of one would fail again at every start.

    Args:
        redis: Client to read with.
        symbol: Trading pair.
        lines: Lines to read; None reads whatever lines are registered.
    """

    def __init__(self, redis: Redis, symbol: str, lines: Iterable[str] | None = None) -> None:
        self._redis = redis
        self._symbol = symbol
        self._lines_key = keys(symbol).lines
        self._fixed = lines is not None
        self._start = START
        self._ids: dict[str, str] = dict.fromkeys(lines or (), START)
        self._refreshed_us: int | None = None
        self._register = LineRegister(redis, symbol)
        self.skipped = 0

    @property
    def ids(self) -> dict[str, str]:
        """Each line's last id read."""
        return dict(self._ids)

    def seek(self, ids: Mapping[str, str]) -> None:
        """Read on after these ids; the other lines go on from where they are.

        Args:
            ids: Line name to the last stream id that was consumed.
        """
        self._ids.update(ids)

    def seek_time(self, redis_ms: int) -> None:
        """Read everything appended at or after a moment, on lines known now and later.

        Args:
            redis_ms: Milliseconds since the epoch, by Redis' clock.
        """
        moment = max(0, redis_ms)
        # Entries after the last possible one of the millisecond before.
        self._start = f"{moment - 1}-{SEQUENCE_MAX}" if moment > 0 else START
        self._ids = dict.fromkeys(self._ids, self._start)

    async def discover(self) -> tuple[str, ...]:
        """Look up the registered lines at once and name all that are read.

        Raises:
            RedisError: If Redis does not answer.
        """
        if not self._fixed:
            with translate_errors(f"SMEMBERS {self._lines_key}"):
                lines = await self._register.lines(tuple(self._ids))
            self._ids = {line: self._ids.get(line, self._start) for line in lines}
        return tuple(self._ids)

    def _skip(self, line: str, entry_id: bytes, error: ValueError) -> None:
        self.skipped += 1
        metrics.DECODE_ERRORS.labels(self._symbol, "envelope").inc()
        stream = line_stream(self._symbol, line)
        shown = entry_id.decode("ascii", "replace")[:40]
        self._register.warn_once(stream, f"entry {shown} skipped (further ones are counted): {error}")

    async def check_trimmed(self) -> list[Trimmed]:
        """Name the lines that have lost entries after the place they are to be read from.

        Call it before the first read after a `seek`; a reader that keeps up need not call it again.

        Raises:
            RedisError: If Redis does not answer.
        """
        lost: list[Trimmed] = []
        for line, asked_id in self._ids.items():
            first_id = None if asked_id == START else await self._first_id_if_lost(line, asked_id)
            if first_id is not None:
                lost.append(Trimmed(line, asked_id, first_id))
        return lost

    async def _first_id_if_lost(self, line: str, asked_id: str) -> str | None:
        stream = line_stream(self._symbol, line)
        place = stream_id_order(asked_id)
        by_time = place[1] == SEQUENCE_MAX
        with translate_errors(f"XINFO STREAM {stream}"):
            try:
                info: dict[str, Any] = await self._redis.xinfo_stream(stream)
            except exceptions.ResponseError as error:
                if "no such key" in str(error):
                    return None if by_time else ""
                raise
        first = info["first-entry"]
        first_id = _text(first[0]) if first else ""
        if not by_time and place > stream_id_order(_text(info["last-generated-id"])):
            return first_id  # a younger data set: what was read does not exist in it
        if int(info["entries-added"]) == int(info["length"]):
            return None
        return first_id if not first_id or place < stream_id_order(first_id) else None

    async def read(self, block_ms: int, count: int = 64, *, now_us: int = 0) -> list[Batch]:
        """Read what is next on every line.

        Args:
            block_ms: Milliseconds to wait when there is nothing, at most a second; 0 does not wait.
            count: Most entries per line.
            now_us: Any clock in µs that only goes forward; lines are looked up again when it has moved two seconds.

        Returns:
            Entries, per line in order; empty when there were none in time.

        Raises:
            RedisError: If Redis does not answer.
        """
        if self._refreshed_us is None or now_us - self._refreshed_us >= LINES_REFRESH_US or not self._ids:
            await self.discover()
            self._refreshed_us = now_us
        if not self._ids:
            return []
        streams: dict[Any, Any] = {line_stream(self._symbol, line): last for line, last in self._ids.items()}
        names = {line_stream(self._symbol, line): line for line in self._ids}
        with translate_errors(f"XREAD {' '.join(names)}"):
            try:
                answer = await self._redis.xread(streams, count=count, block=min(block_ms, BLOCK_MAX_MS) or None)
            except exceptions.ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                self._ids = {line: self._ids[line] for line in await self._register.streams(tuple(self._ids))}
                return []
        batches: list[Batch] = []
        for stream, entries in _stream_items(answer):
            line = names[_text(stream)]
            for entry_id, fields in entries:
                try:
                    batches.append(Batch(line, *parse_entry(entry_id, fields)))
                except ValueError as error:
                    self._skip(line, entry_id, error)
            self._ids[line] = _text(entries[-1][0])
        return batches


def _stream_items(answer: Any) -> Iterable[tuple[Any, Any]]:
    """Give `(stream, entries)` pairs of an XREAD answer under either protocol version."""
    if isinstance(answer, dict):
        return [(stream, entries[0] if len(entries) == 1 else entries) for stream, entries in answer.items()]
    return [(stream, entries) for stream, entries in answer or ()]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

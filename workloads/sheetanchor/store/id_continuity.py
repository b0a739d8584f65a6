"""Whether the ids of the lines belong together: where they begin again, and where they join a snapshot.

An exchange may delete its data and count from the beginning (the testnet does, every month). The frames from before
then stay in the lines for minutes. They belong to a history that has ended: read again, they would be missing ranges
that nothing fills, and best prices and trades that count as newer than every real one.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from redis.asyncio import Redis

from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import stream_id_order, unpack_frames
from sheetanchor.store.frame_streams import Batch, LineReader

log = logging.getLogger(__name__)

AFTER_US: Final = 2_000_000
"""What comes this much later has a higher id within one history: lines differ by milliseconds, and kinds of frames by
the period of a diff."""

LEADS_MS: Final = (5_000, 30_000, 120_000, 900_000)
"""How far the lines are read back from when a snapshot was asked for: a snapshot can be a little old, and one from a
cache old by more. The last is as long as frames are kept."""

PROBE_COUNT: Final = 64
SCAN_COUNT: Final = 512

_HEAD: Final = struct.Struct("<HH")
_DIFF: Final = struct.Struct("<8xqqq")
_BEST: Final = struct.Struct("<8xqq")
_TIMES: Final = struct.Struct("<8xqq")
_GROUP: Final = struct.Struct("<HI")
_ID: Final = struct.Struct("<q")


class Mark(NamedTuple):
    """The first id of each kind in a stream entry, -1 where it has none.

    Attributes:
        first_id: First update id of the first diff.
        update_id: Its last one.
        best_id: Update id of the first best prices.
        trade_us: The exchange's time of the first trade.
    """

    entry_id: str
    stamp_us: int
    first_id: int = -1
    update_id: int = -1
    best_id: int = -1
    trade_id: int = -1
    trade_us: int = -1


def mark_of(batch: Batch) -> Mark:
    """Read the ids in an entry; a frame that cannot be read has none, and is reported where it is decoded."""
    found: dict[str, int] = {}
    try:
        for _, frame in unpack_frames(batch.frames):
            _collect_ids(frame, found)
            if len(found) == len(Mark._fields) - 2:
                break
    except ValueError:
        pass
    return Mark(batch.entry_id, batch.stamp_us, **found)


def _collect_ids(frame: bytes, found: dict[str, int]) -> None:
    try:
        block, template = _HEAD.unpack_from(frame)
        if template == sbe.DEPTH_DIFF_TEMPLATE and "update_id" not in found:
            _, found["first_id"], found["update_id"] = _DIFF.unpack_from(frame)
        elif template == sbe.BEST_BID_ASK_TEMPLATE and "best_id" not in found:
            _, found["best_id"] = _BEST.unpack_from(frame)
        elif template == sbe.TRADES_TEMPLATE and "trade_id" not in found:
            group = 8 + block
            if _GROUP.unpack_from(frame, group)[1] > 0:
                trade_id = _ID.unpack_from(frame, group + _GROUP.size)[0]
                found["trade_us"] = _TIMES.unpack_from(frame)[1]
                found["trade_id"] = trade_id
    except struct.error:
        return


def overtaken(lines: Mapping[str, Sequence[Mark]]) -> Callable[[str, Mark], bool]:
    """Give the test for a mark of a history that has ended: all that came two seconds later is below it.

    Args:
        lines: Marks of every line, in order.
    """
    newest_first = sorted(
        ((mark.stamp_us, line, mark) for line, marks in lines.items() for mark in marks), reverse=True
    )
    gone: set[tuple[str, str]] = set()
    update_id = trade_id = -1  # the highest that came at least so much later, and has not ended itself
    later = 0
    for stamp_us, line, mark in newest_first:
        while newest_first[later][0] >= stamp_us + AFTER_US:
            _, other, one = newest_first[later]
            if (other, one.entry_id) not in gone:
                update_id, trade_id = max(update_id, one.update_id, one.best_id), max(trade_id, one.trade_id)
            later += 1
        if 0 <= update_id < max(mark.update_id, mark.best_id) or 0 <= trade_id < mark.trade_id:
            gone.add((line, mark.entry_id))
    return lambda line, mark: (line, mark.entry_id) in gone


def beyond(positions: Mapping[str, str], update_id: int, best_id: int, trade_id: int) -> Callable[[str, Mark], bool]:
    """Give the same function for a stored book: a mark before the end of what it has read, and yet beyond it.

    Args:
        positions: Per line the stream id up to which the book has everything.
        update_id: Its update id.
        best_id: Its best-price id.
        trade_id: Its trade id.
    """

    def is_gone(line: str, mark: Mark) -> bool:
        if line not in positions or stream_id_order(mark.entry_id) > stream_id_order(positions[line]):
            return False
        ahead = mark.update_id > update_id or mark.best_id > max(update_id, best_id)
        return ahead or mark.trade_id > trade_id

    return is_gone


def begin_after(lines: Mapping[str, Sequence[Mark]], is_gone: Callable[[str, Mark], bool]) -> dict[str, str]:
    """Give, per line that has any, the last entry of a history that has ended: it is to be read from after that.

    Args:
        lines: Marks of every line, in order.
        is_gone: See `overtaken` and `beyond`.
    """
    found: dict[str, str] = {}
    for line, marks in lines.items():
        last = next((mark for mark in reversed(marks) if is_gone(line, mark)), None)
        if last is not None:
            found[line] = last.entry_id
    return found


async def scan(
    redis: Redis, symbol: str, after: Mapping[str, str], until: Mapping[str, str] | None = None
) -> dict[str, list[Mark]]:
    """Read the marks of what the lines hold.

    Args:
        redis: Where the lines are.
        symbol: Trading pair.
        after: Per line the stream id to read on from.
        until: Per line the last stream id that is of interest, other lines are not read; None for the present end.

    Raises:
        RedisError: If Redis does not answer.
    """
    wanted = {line: start for line, start in after.items() if until is None or line in until}
    lines: dict[str, list[Mark]] = {line: [] for line in wanted}
    reader = LineReader(redis, symbol, wanted)
    reader.seek(wanted)
    while wanted and (batches := await reader.read(0, SCAN_COUNT)):
        for batch in batches:
            if until is None or stream_id_order(batch.entry_id) <= stream_id_order(until[batch.line]):
                lines[batch.line].append(mark_of(batch))
        if until is not None and all(
            stream_id_order(reader.ids[line]) >= stream_id_order(until[line]) for line in wanted
        ):
            break
        await asyncio.sleep(0)
    return lines


async def lead_ms(redis: Redis, symbol: str, lines: Iterable[str], asked_us: int, snapshot_id: int) -> int:
    """Give how far back the lines have to be read so that they join a snapshot; the shortest lead if none does.

    Raises:
        RedisError: If Redis does not answer.
    """
    names = tuple(lines)
    for lead in LEADS_MS:
        reader = LineReader(redis, symbol, names)
        reader.seek_time(asked_us // 1_000 - lead)
        firsts: dict[str, int] = {}
        for batch in await reader.read(0, PROBE_COUNT) if names else ():
            first_id = mark_of(batch).first_id
            if first_id >= 0:
                firsts.setdefault(batch.line, first_id)
        if not firsts or min(firsts.values()) <= snapshot_id + 1:
            return lead
    return LEADS_MS[0]


async def leave_out(redis: Redis, reader: LineReader, market: Market, positions: Mapping[str, str]) -> None:
    """Have a reader skip what is in the lines before their ids began again.

    Args:
        redis: Where the lines are.
        reader: Goes back on the lines.
        market: Has everything up to the positions.
        positions: Per line a stream id.

    Raises:
        RedisError: If Redis does not answer.
    """
    marks = await scan(redis, market.symbol, reader.ids, positions)
    is_gone = beyond(positions, market.update_id, market.bba_id, market.trade_id)
    gone = begin_after(marks, is_gone)
    for line, entry_id in gone.items():
        log.warning("%s: the ids of line %s have restarted: it is read after %s", market.symbol, line, entry_id)
    reader.seek(gone)

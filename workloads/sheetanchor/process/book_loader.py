"""Loads the stored book, and decides from where the lines are read on.

A start, a takeover and a finished rebuild all begin here. A book that cannot be read is no error of the loader: it
gives an empty market and the finding that says why.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sheetanchor._decoder import Market
from sheetanchor.contract import stream_id_order
from sheetanchor.policy.gap_rules import Finding
from sheetanchor.store.frame_streams import LineReader
from sheetanchor.store.hot_records import Anchor
from sheetanchor.store.hot_state import HotState

log = logging.getLogger(__name__)

LOAD_TRIES: Final = 3
"""A rebuild may be swapped in between two reads; twice in a row it is not."""


@dataclass(frozen=True, slots=True)
class LoadedBook:
    """What was stored.

    Attributes:
        anchor: The anchor that it belongs to.
        market: The book, or an empty one.
        positions: Per line the id of the last entry that is in it.
        finding: Why the book could not be used, or not for certain; None if it could.
    """

    anchor: Anchor
    market: Market
    positions: dict[str, str] = field(default_factory=dict)
    finding: Finding | None = None


async def load_book(hot: HotState, symbol: str, read_anchor: Callable[[], Awaitable[Anchor]]) -> LoadedBook:
    """Load the stored book.

    Args:
        hot: Where it is stored.
        symbol: Trading pair.
        read_anchor: Reads the anchor; called before and after the book, until both are of one epoch and receipt.

    Raises:
        RedisError: If Redis does not answer.
    """
    anchor, packed = await _read_book(hot, read_anchor)
    market = Market(symbol)
    if packed is None:
        missing = Finding("book_unreadable", "the stored book is missing") if anchor.epoch > 0 else None
        return LoadedBook(anchor, market, finding=missing)
    try:
        epoch, positions = market.load_book(packed)
    except ValueError as error:
        damaged = Finding("book_unreadable", f"the stored book is damaged: {error}")
        return LoadedBook(anchor, market, finding=damaged)
    # The book keeps the epoch it was packed in; a swap renames a book that was packed for the epoch it makes.
    other = None
    if epoch != anchor.epoch:
        other = Finding("book_unreadable", f"the stored book is of epoch {epoch}, expected {anchor.epoch}")
    return LoadedBook(anchor, market, positions, other)


async def _read_book(hot: HotState, read_anchor: Callable[[], Awaitable[Anchor]]) -> tuple[Anchor, bytes | None]:
    """Read anchor and book as they belong together."""
    anchor = await read_anchor()
    for _ in range(LOAD_TRIES):
        packed = await hot.book() if anchor.epoch > 0 else None
        before, anchor = anchor, await read_anchor()
        if (anchor.epoch, anchor.receipt) == (before.epoch, before.receipt):
            break
    return anchor, packed


async def rewind(reader: LineReader, symbol: str, positions: Mapping[str, str], since_us: int) -> None:
    """Have the lines read again from the positions, or from a time on Redis' clock, whichever is earlier.

    Raises:
        RedisError: If Redis does not answer.
    """
    reader.seek_time(since_us // 1_000)
    await reader.discover()
    by_time = reader.ids
    earlier = {
        line: entry_id
        for line, entry_id in positions.items()
        if line in by_time and stream_id_order(entry_id) < stream_id_order(by_time[line])
    }
    reader.seek(earlier)
    for trimmed in await reader.check_trimmed():
        log.warning(
            "%s: line %s no longer holds what followed entry %s: it is read from %s",
            symbol,
            trimmed.line,
            trimmed.asked_id,
            trimmed.first_id or "its next entry",
        )

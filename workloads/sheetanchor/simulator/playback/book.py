"""The exchange's order book: absolute quantities by price, and the update they belong to. Pure."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable

Levels = list[tuple[int, int]]

_LEVEL = struct.Struct("<qq")
_GROUP = struct.Struct("<HH")
_DIFF_GROUPS_AT = 34
"""Where the two groups of levels begin in a depth frame of schema version 0."""


class Book:
    """Bids and asks as mantissas; changes only by `apply`."""

    __slots__ = ("asks", "bids", "update_id")

    def __init__(self, bids: Iterable[tuple[int, int]], asks: Iterable[tuple[int, int]], update_id: int) -> None:
        self.bids = dict(bids)
        self.asks = dict(asks)
        self.update_id = update_id

    def apply(self, frame: bytes | bytearray, last_update_id: int) -> None:
        """Set the levels of a depth frame; a quantity of 0 removes one.

        Args:
            frame: A DepthDiff of schema version 0.
            last_update_id: The update that the book belongs to afterwards.
        """
        offset = _DIFF_GROUPS_AT
        view = memoryview(frame)
        for side in (self.bids, self.asks):
            _, count = _GROUP.unpack_from(frame, offset)
            start = offset + _GROUP.size
            offset = start + count * _LEVEL.size
            for price, qty in _LEVEL.iter_unpack(view[start:offset]):
                if qty:
                    side[price] = qty
                else:
                    side.pop(price, None)
        self.update_id = last_update_id

    def copy(self) -> Book:
        """Give a book that later changes do not touch."""
        return Book(self.bids.items(), self.asks.items(), self.update_id)

    def top(self, depth: int) -> tuple[Levels, Levels]:
        """Give the best `depth` levels of bids and asks, best first."""
        return _best(self.bids, depth, largest=True), _best(self.asks, depth, largest=False)


def _best(side: dict[int, int], depth: int, *, largest: bool) -> Levels:
    if depth * 4 >= len(side):  # sorting everything is cheaper than a heap of a large part
        return sorted(side.items(), reverse=largest)[:depth]
    prices = heapq.nlargest(depth, side) if largest else heapq.nsmallest(depth, side)
    return [(price, side[price]) for price in prices]


def changes(before: dict[int, int], after: dict[int, int]) -> Levels:
    """List the levels that turn one side of a book into another, removals (quantity 0) first."""
    gone = [(price, 0) for price in before if price not in after]
    return gone + [(price, qty) for price, qty in after.items() if before.get(price) != qty]

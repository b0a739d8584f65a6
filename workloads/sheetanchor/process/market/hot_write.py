"""What the next write of a symbol contains, and whether its lines end before what is stored. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sheetanchor.policy.gap_rules import Finding
from sheetanchor.process.market.market_follower import NOTHING, Follower, Lists

BEHIND_MAX_US: Final = 3_000_000
"""A replay is done within this; an update id that is still below the stored one then has been reset by the exchange."""


@dataclass(frozen=True, slots=True)
class HotWrite:
    """What is written, the book aside.

    Attributes:
        lists: Fields of the hot keys.
        unwritten: Why there are none, "" if there are.
        behind: Whether the market is still before what is stored.
        update_id: Update id that is stored with it.
        stamp_us: When the last message that moved an id came, by Redis' clock; 0 with a heartbeat only.
        has_book: Whether the book may be written along with it.
    """

    lists: Lists
    unwritten: str
    behind: bool
    update_id: int
    stamp_us: int
    has_book: bool


def compose(follower: Follower, stored_id: int, now_us: int) -> HotWrite:
    """Compose the next write: the hot keys, or only a heartbeat while there is nothing to write.

    Args:
        follower: The market.
        stored_id: Update id that is stored.
        now_us: Local monotonic time.
    """
    market = follower.market
    behind = market.update_id < stored_id
    sound = market.has_book and not behind
    lists, unwritten = follower.hot(now_us) if sound else (NOTHING, "the book has not caught up with what is stored")
    return HotWrite(
        lists,
        unwritten,
        behind,
        update_id=stored_id if behind else market.update_id,
        stamp_us=0 if unwritten else follower.event_redis_us(),
        # While frames wait beyond a missing range, the lines have been read further than the book goes.
        has_book=sound and market.depth_gap is None and market.trade_gap is None,
    )


@dataclass(slots=True)
class ResetDetector:
    """Finds an update id that the exchange has reset: the lines are read to their end, and end before what is stored.

    Attributes:
        since_us: Since when the market is behind, by this machine's monotonic clock; 0 while it is not.
    """

    since_us: int = 0

    def observe(self, update_id: int, stored_id: int, now_us: int, *, caught_up: bool) -> Finding | None:
        """Record a write, and give what it shows.

        Args:
            update_id: Of the market.
            stored_id: Of what is stored.
            now_us: Local monotonic time.
            caught_up: Whether the lines have been read to their end.
        """
        behind = update_id < stored_id
        if not behind or self.since_us == 0:
            self.since_us = now_us if behind else 0
            return None
        if now_us - self.since_us <= BEHIND_MAX_US or not caught_up:
            return None
        self.since_us = now_us
        return Finding("sequence_reset", f"the lines end at update {update_id}, the stored state at {stored_id}")

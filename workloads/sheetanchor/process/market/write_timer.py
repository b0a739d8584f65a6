"""When a symbol's processor reads and writes next. Pure; times are of this machine's monotonic clock in µs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sheetanchor.contract import BEAT_INTERVAL_US

STANDBY_READ_US: Final = 20_000
"""A standby reads the lines this often: it has nothing to write, but must not fall behind."""

MISSING_RANGE_POLL_US: Final = 10_000
"""While a missing range waits for another line, its time runs out without a message: the loop has to wake for it."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often things are written, in µs."""

    flush_us: int
    book_us: int


@dataclass(slots=True)
class WriteTimer:
    """Times of one symbol's writes.

    Attributes:
        cadence: How often things are written.
        applied_us: When hot keys or heartbeat were last written; 0 before.
        booked_us: When the book was last written; 0 has it written next.
        dirty: Whether something was read that is not written yet.
    """

    cadence: Cadence
    applied_us: int = 0
    booked_us: int = 0
    dirty: bool = False

    def batch_wait_us(self, now_us: int, *, writes: bool) -> int:
        """Give how long entries are left where they are: nothing may be written yet, and one read does for many."""
        return max(0, self.applied_us + self.cadence.flush_us - now_us) if writes else STANDBY_READ_US

    def block_ms(self, now_us: int, *, writes: bool, incomplete: bool) -> int:
        """Give how long a read may wait for an entry.

        Args:
            now_us: The moment.
            writes: Whether this process is the writer.
            incomplete: Whether the market waits for a missing range.
        """
        if self.dirty:  # the timer has fired a little early: what was read must not wait for the next entry
            return 1
        longest_us = BEAT_INTERVAL_US
        if writes:
            longest_us -= now_us - self.applied_us
        if incomplete:
            longest_us = min(longest_us, MISSING_RANGE_POLL_US)
        return max(1, longest_us // 1_000)

    def write_due(self, now_us: int, *, caught_up: bool) -> bool:
        """Say whether the writer has to write; until it has caught up, no more than its heartbeat is due."""
        since_us = now_us - self.applied_us
        if not caught_up:
            return since_us >= BEAT_INTERVAL_US
        return since_us >= BEAT_INTERVAL_US * 9 // 10 or (self.dirty and since_us >= self.cadence.flush_us)

    def book_due(self, now_us: int) -> bool:
        """Say whether the book has to be written with the hot keys."""
        return now_us - self.booked_us >= self.cadence.book_us

"""When entries of the lines were appended, as far as that can be known. Pure.

An entry's id is Redis' time when it was appended, or the id before it plus one where Redis' clock has been set back
since: then the ids stay ahead for as long as the clocks differ. But an entry that was not there at one complete read
and is at the next was appended in between, whatever its id says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sheetanchor.store.server_clock import RedisClock

TOLERANCE_US: Final = 250_000
"""How far an id may be outside of what is possible: an estimate of Redis' time is off by half a round trip at most."""


@dataclass(frozen=True, slots=True)
class Dated:
    """When an entry was appended.

    Attributes:
        at_us: On the steady clock.
        known: False if the id does not date it and it may have been there for long; `at_us` is the latest possible.
    """

    at_us: int
    known: bool


@dataclass(slots=True)
class Arrivals:
    """Dates entries by their ids and by when they were not there yet.

    Attributes:
        read_us: Until when all that was appended has been read, on the steady clock; 0 for never.
    """

    read_us: int = 0
    _lines: frozenset[str] = field(default_factory=frozenset)

    def date(self, line: str, entry_us: int, got_us: int, clock: RedisClock) -> Dated:
        """Date an entry.

        Args:
            line: Its line.
            entry_us: Redis' time in its id.
            got_us: When it was read, on the steady clock.
            clock: What is known of Redis' clock.
        """
        at_us = clock.steady_of(entry_us)
        if line not in self._lines:
            return Dated(min(at_us, got_us), at_us <= got_us + TOLERANCE_US)
        if self.read_us - TOLERANCE_US <= at_us <= got_us + TOLERANCE_US:
            return Dated(at_us, True)
        # Appended after the last complete read: unless that was long ago, it does not matter when.
        recent = got_us - self.read_us <= TOLERANCE_US
        return Dated(self.read_us if recent else got_us, recent)

    def complete(self, asked_us: int, lines: frozenset[str]) -> None:
        """Record a read that left nothing unread.

        Args:
            asked_us: When it was asked for, on the steady clock.
            lines: Lines that were read.
        """
        self.read_us = asked_us
        self._lines = lines

    def forget(self) -> None:
        """Begin again: what is read next may have been there for long."""
        self._lines = frozenset()

"""How long frames take to reach the hot keys: which entries count, and which are only read again. Pure.

A replay is no latency. What was in Redis already when a processor began to follow, what an ingestor appends again after
a failover, and what a processor reads again after a rebuild is old, however fast the pipeline is.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

WAITING_MAX: Final = 10_000
"""Entries that wait to be written; beyond it the oldest are not counted."""


class StampedEntry(Protocol):
    """The times of an entry.

    Attributes:
        stamp_us: When it was appended.
        first_received_us: When its first frame reached the ingestor, by the ingestor's clock.
    """

    @property
    def line(self) -> str: ...
    @property
    def stamp_us(self) -> int: ...
    @property
    def first_received_us(self) -> int: ...


class FrameDelays:
    """The entries of one symbol that came while its processor kept up. Times are Redis' clock in µs."""

    def __init__(self) -> None:
        self._since_us: int | None = None
        self._newest_us: dict[str, int] = {}
        self._waiting: deque[int] = deque(maxlen=WAITING_MAX)

    def replay(self) -> None:
        """Record that reading begins somewhere in the past; nothing counts until `keeps_up`."""
        self._since_us = None
        self._waiting.clear()

    def keeps_up(self, now_us: int) -> None:
        """Record that everything has been read: what is appended from now on counts."""
        if self._since_us is None:
            self._since_us = now_us

    def take(self, entry: StampedEntry, *, writes: bool = True) -> None:
        """Take in an entry.

        Args:
            entry: An ingestor's times rise along a line: one that is not later than those before it is a repetition.
            writes: Whether this processor is the writer.
        """
        line, received_us = entry.line, entry.first_received_us
        again = received_us <= self._newest_us.get(line, -1)
        self._newest_us[line] = max(received_us, self._newest_us.get(line, -1))
        if writes and not again and self._since_us is not None and entry.stamp_us > self._since_us:
            self._waiting.append(received_us)

    def written(self, now_us: int) -> list[float]:
        """Give the delays, in seconds, of all entries that the hot keys hold since now."""
        delays = [max(0, now_us - received_us) / 1e6 for received_us in self._waiting]
        self._waiting.clear()
        return delays

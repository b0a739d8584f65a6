"""One symbol's market as its lines bring it: entries in; findings, hot keys and their soundness out. Pure.

Times are of this machine's monotonic clock in µs unless a name says otherwise; inside, everything is judged on the
steady clock that is made of it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

from sheetanchor._decoder import Market
from sheetanchor.policy.gap_rules import SILENT_LINE_US, Finding
from sheetanchor.policy.soundness import LATE_US, Soundness, shown_in_time, trades_lost
from sheetanchor.process.market.arrival_clock import Arrivals
from sheetanchor.process.market.gap_detector import DetectorContext, GapDetector, live_lines
from sheetanchor.store.server_clock import RedisClock

LINES_MAX: Final = 16

IN_TIME_US: Final = LATE_US + 1_000_000
"""A validation that took no longer shows that the feed is not late: the stored book is up to a second old."""

JUMP_MATTERS_US: Final = 20_000_000
"""Longer than a replay reaches back."""

Lists = tuple[list[str], list[str], list[str], list[str]]
NOTHING: Final[Lists] = ([], [], [], [])


class ReadEntry(Protocol):
    """An entry of a line's stream."""

    @property
    def line(self) -> str:
        """Name of the line."""
        ...

    @property
    def stamp_us(self) -> int:
        """Redis' time in its id."""
        ...

    @property
    def frames(self) -> bytes:
        """Packed frames."""
        ...


@dataclass(slots=True)
class Follower:
    """Follows the lines of a symbol.

    Args:
        market: What is followed.
        detector: The rules that it is judged by.
        clock: What is known of Redis' clock.

    Attributes:
        caught_up: Whether everything that had been appended at the last read has been taken in.
        lines: Number of each line in the market.
        validated_us: When the last validation began that found the exchange's trade ids to be ours (steady clock).
    """

    market: Market
    detector: GapDetector
    clock: RedisClock
    caught_up: bool = False
    lines: dict[str, int] = field(default_factory=dict)
    validated_us: int = 0
    _arrivals: Arrivals = field(default_factory=Arrivals)
    _entry_us: dict[int, int] = field(default_factory=dict)
    _undated: bool = False
    _jumps: int = 0
    _jumped_us: int = 0

    def begin(self, market: Market, now_us: int) -> None:
        """Go on with a loaded market; its lines are read again from somewhere."""
        self.market = market
        self.rewound()
        self.detector.reload(market, self.clock.steady_us(now_us))
        self._follow_clock_jump(now_us)
        if self._jumped_us and now_us - self._jumped_us < JUMP_MATTERS_US:
            # Ids from before are of another clock: the replay may not reach back for as long as windows do.
            self.detector.memory = trades_lost(self.detector.memory, self.clock.steady_us(now_us))

    def _follow_clock_jump(self, now_us: int) -> None:
        """Note when Redis' clock jumped."""
        if self.clock.jumps != self._jumps:
            self._jumps, self._jumped_us = self.clock.jumps, now_us

    def rewound(self) -> None:
        """Record that lines are read again: what comes next may have been appended long ago."""
        self._arrivals.forget()
        self.caught_up = False

    def take(self, entry: ReadEntry, got_us: int) -> int:
        """Take in an entry.

        Returns:
            The number of its frames.

        Raises:
            ValueError: Its framing is broken; nothing was applied.
        """
        line = self.lines.setdefault(entry.line, len(self.lines) % LINES_MAX)
        dated = self._arrivals.date(entry.line, entry.stamp_us, self.clock.steady_us(got_us), self.clock)
        self._entry_us[line] = dated.at_us
        marks = self._marks()
        frames = self.market.feed(line, entry.frames, max(0, dated.at_us))
        if frames and (not dated.known or marks != self._marks()):
            self._undated = not dated.known
        return frames

    def read(self, asked_us: int, lines: Collection[str], *, complete: bool) -> None:
        """Record the end of a read.

        Args:
            asked_us: When it was asked for.
            lines: Lines that it was of.
            complete: Whether it left nothing unread on any of them.
        """
        self.caught_up = complete
        if complete:
            self._arrivals.complete(self.clock.steady_us(asked_us), frozenset(lines))

    def live_lines(self, now_us: int) -> tuple[str, ...]:
        """Name the lines that have brought an entry recently."""
        live = live_lines(self._entry_us, self.clock.steady_us(now_us))
        return tuple(name for name, index in self.lines.items() if live >> index & 1)

    @property
    def missing(self) -> str:
        """What the market waits for that no line has brought yet, "" if nothing."""
        found = self.market.depth_gap or self.market.trade_gap
        what = "update" if self.market.depth_gap else "trade"
        return f"expected {what} {found[0]}, found {found[1]}" if found else ""

    def apply_rules(self, asked_us: int, *, awaits_lines: bool = False) -> list[Finding]:
        """Apply the rules.

        Args:
            asked_us: When the last read was asked for. What was appended until then has been read; of what came later,
                after a pause of this process say, nothing is known yet.
            awaits_lines: Whether lines may still append again what was lost in a failover.
        """
        self._follow_clock_jump(asked_us)
        now_us = self.clock.steady_us(asked_us)
        context = DetectorContext(
            now_us=now_us,
            frames_us=max(self._entry_us.values(), default=0),
            live_lines=live_lines(self._entry_us, now_us),
            caught_up=self.caught_up,
            undated=self._undated,
            validated_us=self.validated_us,
            clock_jumps=self.clock.jumps,
            awaits_lines=awaits_lines,
        )
        return self.detector.apply_rules(self.market, context)

    def validated(self, began_redis_us: int, took_us: int) -> None:
        """Record a validation that found no difference between the exchange's data, as it began, and ours.

        Args:
            began_redis_us: When it began, on Redis' clock.
            took_us: How long it took: the feed cannot be later than that.
        """
        began_us = self.clock.steady_of(began_redis_us)
        self.validated_us = max(self.validated_us, began_us)
        if took_us <= IN_TIME_US:
            self.detector.memory = shown_in_time(self.detector.memory, began_us + took_us)

    def hot(self, now_us: int) -> tuple[Lists, str]:
        """Give the fields of the hot keys, or none and why they cannot be written."""
        try:
            ob, tr_1s, tr_5s, feat = self.market.hot_state(self.clock.steady_us(now_us))
        except ValueError as error:  # a side of the book is empty: only the heartbeat can be written
            return NOTHING, str(error)
        return ([*ob, "source", "sbe"], tr_1s, tr_5s, feat), ""

    def verdict(self, now_us: int, unwritten: str) -> Soundness:
        """Say what is wrong at a moment.

        Args:
            now_us: The moment.
            unwritten: Why the state cannot be written, "" if it can.
        """
        return self.detector.judge(self.clock.steady_us(now_us), unwritten)

    def event_age_us(self, now_us: int) -> int | None:
        """Give the time since the last message that moved an id; None before the first."""
        stamp_us = self.detector.event_stamp_us
        return max(0, self.clock.steady_us(now_us) - stamp_us) if stamp_us else None

    def event_redis_us(self) -> int:
        """Give the moment of the last message that moved an id, on Redis' clock as it goes now; 0 before the first."""
        stamp_us = self.detector.event_stamp_us
        return self.clock.of_steady(stamp_us) if stamp_us else 0

    def lines_behind(self, now_us: int) -> dict[str, list[str]]:
        """Name the lines that have long lacked a stream which another line brings, and the streams."""
        steady_us = self.clock.steady_us(now_us)
        names = {index: name for name, index in self.lines.items()}
        lacking: dict[str, list[str]] = {}
        for (index, stream), since_us in sorted(self.detector.behind.items()):
            if steady_us - since_us >= SILENT_LINE_US:
                lacking.setdefault(names.get(index, str(index)), []).append(stream)
        return lacking

    def _marks(self) -> tuple[int, int, int]:
        return self.market.update_id, self.market.bba_id, self.market.trade_id

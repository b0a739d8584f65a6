"""When each recorded message is sent, and what event time it then carries. Pure: no clock is read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sheetanchor.errors import BadSettings


class Pace(Protocol):
    """Maps a message's place in the recording to wall-clock time."""

    def times(self, index: int, recorded_us: int, event_us: int) -> tuple[int, int]:
        """Give when a message is due and its event time, both in µs of wall-clock time.

        Args:
            index: Place of the message in the order of sending; below 0 while warming up.
            recorded_us: When it was recorded, µs since playing began; below 0 while warming up.
            event_us: Its recorded event time on the same scale; at most `recorded_us`.
        """
        ...


@dataclass(frozen=True, slots=True)
class RecordedPace:
    """Keeps the recorded distances, shortened by `speed`.

    Attributes:
        start_us: Wall-clock time at which playing begins.
        speed: Recorded seconds per second.
    """

    start_us: int
    speed: float = 1.0

    def times(self, index: int, recorded_us: int, event_us: int) -> tuple[int, int]:
        """See `Pace.times`."""
        return self.start_us + round(recorded_us / self.speed), self.start_us + round(event_us / self.speed)


@dataclass(frozen=True, slots=True)
class Burst:
    """Every `every_us`, for its last `duration_us`, `per_s` messages a second are sent."""

    per_s: float
    duration_us: int
    every_us: int


@dataclass(frozen=True, slots=True)
class SteadyPace:
    """Sends a fixed number of messages a second whatever their recorded times; for load tests.

    Attributes:
        start_us: Wall-clock time at which playing begins.
        per_s: Messages a second.
        burst: Faster stretches in between, if any.
    """

    start_us: int
    per_s: float
    burst: Burst | None = None

    def times(self, index: int, recorded_us: int, event_us: int) -> tuple[int, int]:
        """See `Pace.times`; the event time is the moment of sending."""
        if index < 0:
            return self.start_us + recorded_us, self.start_us + event_us
        due_us = self.start_us + self._elapsed_us(index)
        return due_us, due_us

    def _elapsed_us(self, count: int) -> int:
        if self.burst is None:
            return round(count * 1e6 / self.per_s)
        calm_us = self.burst.every_us - self.burst.duration_us
        calm_count = self.per_s * calm_us / 1e6
        period_count = calm_count + self.burst.per_s * self.burst.duration_us / 1e6
        periods, rest = divmod(count, period_count)
        if rest > calm_count:
            within_us = calm_us + (rest - calm_count) * 1e6 / self.burst.per_s
        else:
            within_us = rest * 1e6 / self.per_s
        return round(periods * self.burst.every_us + within_us)


def parse_burst(text: str) -> Burst | None:
    """Read `MESSAGES_PER_S:DURATION_MS:EVERY_S`; empty text is no burst.

    Raises:
        BadSettings: Says what was expected.
    """
    if not text:
        return None
    wrong = BadSettings(
        f"burst = {text!r}: expected MESSAGES_PER_S:DURATION_MS:EVERY_S with a duration shorter than the interval, "
        "for instance 11000:100:10"
    )
    try:
        per_s, duration_ms, every_s = (float(part) for part in text.replace("/s", "").split(":"))
    except ValueError as error:
        raise wrong from error
    burst = Burst(per_s, round(duration_ms * 1_000), round(every_s * 1_000_000))
    if not (0 < burst.per_s <= 1e6 and 0 < burst.duration_us < burst.every_us <= 86_400_000_000):
        raise wrong
    return burst

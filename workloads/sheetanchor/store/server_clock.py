"""Redis' clock as this process can know it: an offset learnt from replies that carry Redis' time. Pure.

Slots and ages are measured on Redis' clock, so that nothing depends on how well the machines' clocks agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

JUMP_US: Final = 250_000
"""A difference beyond this is a clock that was set, or another server's, not a network that was slow for once."""

KEEP_US: Final = 30_000_000
"""A good sample serves this long; quartz drifts by some 50 µs per second at worst, 1.5 ms in this time."""


@dataclass(slots=True)
class RedisClock:
    """Estimates Redis' time from a local monotonic clock.

    Of recent samples the one with the shortest round trip is trusted: its error is at most half of that trip.

    Beside Redis' time it gives a steady one, which is Redis' time as first learnt and then goes by the local monotonic
    clock: Redis' clock may be set, or another server with another clock may answer, and the steady one does not jump.

    Attributes:
        jumps: How often Redis' time was found to have jumped.
        jump_us: By how much the last time.
    """

    _offset_us: int = 0
    _round_trip_us: int = 0
    _learnt_us: int = 0
    _known: bool = False
    _base_us: int = 0
    jumps: int = 0
    jump_us: int = 0

    @property
    def known(self) -> bool:
        """Whether any reply has been seen."""
        return self._known

    def learn(self, sent_us: int, received_us: int, redis_us: int) -> None:
        """Take in a reply.

        Args:
            sent_us: Local monotonic time when the call was made.
            received_us: Local monotonic time when its reply came.
            redis_us: Redis' time in the reply.
        """
        round_trip_us = received_us - sent_us
        offset_us = redis_us - (sent_us + received_us) // 2
        # A sample that contradicts the trusted one by more than both errors means that Redis' clock was set, or that
        # another server answers now.
        contradicts = abs(offset_us - self._offset_us) > round_trip_us + self._round_trip_us + 5_000
        old = received_us - self._learnt_us > KEEP_US
        if not self._known:
            self._base_us = offset_us
        elif contradicts and abs(offset_us - self._offset_us) > JUMP_US:
            self.jumps += 1
            self.jump_us = offset_us - self._offset_us
        if not self._known or old or contradicts or round_trip_us <= self._round_trip_us:
            self._offset_us = offset_us
            self._round_trip_us = round_trip_us
            self._learnt_us = received_us
            self._known = True

    def now_us(self, monotonic_us: int) -> int:
        """Give Redis' time at a local monotonic time."""
        return monotonic_us + self._offset_us

    def steady_us(self, monotonic_us: int) -> int:
        """Give the steady time at a local monotonic time."""
        return monotonic_us + self._base_us

    def steady_of(self, redis_us: int) -> int:
        """Give the steady time at a moment of Redis' clock as it goes now."""
        return redis_us - self._offset_us + self._base_us

    def of_steady(self, steady_us: int) -> int:
        """Give the moment of Redis' clock, as it goes now, at a steady time."""
        return steady_us - self._base_us + self._offset_us

    def monotonic_us(self, redis_us: int) -> int:
        """Give the local monotonic time at a moment of Redis' clock."""
        return redis_us - self._offset_us

"""The last milliseconds before a slot: dry runs up to its beginning.

After idle time a process and a server need several times as long for a slot as in a loop: its code and data are out of
the CPU's caches. They are displaced within a millisecond or two, whether the process sleeps or spins meanwhile. So the
whole slot is rehearsed until it begins; what is in the caches then was used at most one dry run ago.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

WARM_BEFORE_S: Final = 0.020
"""The first dry run begins this long before a slot: process and server are idle, and it may have to connect again."""

TIMER_S: Final = 0.0015
"""Timers of the event loop have a resolution of a millisecond, so what is nearer is waited for by turning the loop."""

GRACE_S: Final = 0.001
"""A dry run may end this late: cancelled in the middle of a call it costs a connection, and a new one takes longer."""

SHORTEST_S: Final = 0.0002
LONGEST_S: Final = 0.025
"""Longer than there is time: on a machine as busy as that most slots have no dry run, so that it delays none."""

STEP: Final = 1.25


@dataclass(frozen=True, slots=True)
class UsualLength:
    """How long a dry run usually takes: a running median, which a few slow ones do not move.

    Attributes:
        seconds: The present estimate.
    """

    seconds: float = 0.001

    def after(self, taken_s: float) -> UsualLength:
        """Take in how long one took."""
        moved_s = self.seconds * STEP if taken_s > self.seconds else self.seconds / STEP
        return UsualLength(min(LONGEST_S, max(SHORTEST_S, moved_s)))

    def begin_s(self, count: int) -> float:
        """Say how long before the slot so many have to begin; the first one finds cold caches and takes two's time."""
        return (count + 1) * self.seconds if count else 0.0

    def fits(self, left_s: float) -> bool:
        """Say whether one more ends before the slot: on a busy machine it may take all the time there is."""
        return left_s > 1.1 * self.seconds


class DryRuns:
    """The dry runs of one symbol.

    Args:
        rehearse: A dry run; it raises nothing but a cancellation.
        count: How many are made right before a slot, more if there is time; 0 for none at all.
    """

    def __init__(self, rehearse: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
        self.count = count
        self._rehearse = rehearse
        self._usual = UsualLength()

    async def until(self, left_s: Callable[[], float]) -> None:
        """Return when the slot begins, whatever becomes of the dry runs.

        Args:
            left_s: Gives the seconds until then, 0 when it has begun.
        """
        count = self.count
        if count and left_s() > WARM_BEFORE_S / 2:
            if self._usual.fits(left_s()):
                await self._run(left_s)
            else:
                count, self._usual = 0, self._usual.after(0.0)  # one of the next slots tries again
        while (left := left_s()) > 0:
            begin_s = self._usual.begin_s(count)
            if left <= begin_s and self._usual.fits(left):
                await self._run(left_s)
            else:
                await asyncio.sleep(max(0.0, left - begin_s - TIMER_S))

    async def _run(self, left_s: Callable[[], float]) -> None:
        """Make a dry run; one that does not end with the time before the slot is cancelled."""
        began = time.monotonic()
        running = asyncio.create_task(self._rehearse())
        try:
            await asyncio.wait([running], timeout=left_s() + GRACE_S)
        finally:
            running.cancel()
        self._usual = self._usual.after(time.monotonic() - began)

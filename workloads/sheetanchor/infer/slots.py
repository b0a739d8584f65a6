"""When to predict: which slot is next, how late it may be served, and how late it may be committed. Pure.

Slot `s` is read at `s * SLOT_MS` and open for a commit until the slot after it ends. A replica that starts or wakes in
the middle of a slot still serves it, because a late prediction is better than a missed slot, but not when the slot is
nearly over: serving it would delay the next one. All times are Redis' clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sheetanchor.contract import SLOT_MS, slot_of, slot_start_us

SLOT_US: Final = SLOT_MS * 1_000

LATE_MAX_US: Final = 1_500_000
"""A slot is begun at most this late; the half second that remains is the longest that its bounded calls take."""

OWN_DEGRADED_WAIT_US: Final = 600_000
"""A replica that is degraded for its own reasons commits this long after the slot, so that a healthy one is first."""

COMMIT_UNTIL_US: Final = 1_600_000
"""No try to commit begins later than this after the slot, so that the last one has ended when the next slot begins."""


@dataclass(frozen=True, slots=True)
class ServingTurn:
    """The slot to serve next.

    Attributes:
        slot: The slot to serve.
        wait_us: Time until it begins; 0 when it has begun.
        skipped: Slots since the last one served that cannot be served any more.
    """

    slot: int
    wait_us: int
    skipped: int = 0


RUNNING_US: Final = 60_000_000
"""A pipeline that has predicted within this time is expected to have every slot predicted."""


def first_served(now_us: int, last_known: int | None) -> int | None:
    """Choose the slot that a starting replica regards as served.

    In a running pipeline the current slot may need this replica, although it is late. In a new one it would only be a
    late first prediction, so the next slot is the first.

    Args:
        now_us: Redis' clock.
        last_known: Slot of the last prediction that any replica has committed.
    """
    current = slot_of(now_us)
    running = last_known is not None and abs(current - last_known) * SLOT_US <= RUNNING_US
    return None if running else current


def next_turn(now_us: int, served: int | None) -> ServingTurn:
    """Choose the slot to serve next.

    Args:
        now_us: Redis' clock.
        served: The slot served last; None before the first.
    """
    current = slot_of(now_us)
    late = now_us - slot_start_us(current) > LATE_MAX_US
    earliest = current + late
    # A served slot beyond the next one means that the clock was set back since.
    known = served if served is not None and served <= current + 1 else None
    slot = earliest if known is None else max(known + 1, earliest)
    skipped = 0 if known is None else slot - known - 1
    return ServingTurn(slot, max(0, slot_start_us(slot) - now_us), skipped)


def until_us(slot: int, now_us: int, offset_us: int) -> int:
    """Give the time until a moment within a slot, 0 when it has passed.

    Args:
        slot: The slot.
        now_us: Redis' clock.
        offset_us: The moment, counted from the slot's beginning.
    """
    return max(0, slot_start_us(slot) + offset_us - now_us)

"""Which slot is next, and when it is too late for one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.contract import slot_start_us
from sheetanchor.infer.slots import (
    LATE_MAX_US,
    OWN_DEGRADED_WAIT_US,
    RUNNING_US,
    SLOT_US,
    ServingTurn,
    first_served,
    next_turn,
    until_us,
)

SLOT = 850_000_000
START = slot_start_us(SLOT)


@pytest.mark.parametrize(
    ("now_us", "served", "expected"),
    [
        (START, None, ServingTurn(SLOT, 0)),
        (START + LATE_MAX_US, None, ServingTurn(SLOT, 0)),
        (START + LATE_MAX_US + 1, None, ServingTurn(SLOT + 1, SLOT_US - LATE_MAX_US - 1)),
        (START + 5_000, SLOT, ServingTurn(SLOT + 1, SLOT_US - 5_000)),
        (START + 5_000, SLOT - 1, ServingTurn(SLOT, 0)),
        (START - 1, SLOT - 1, ServingTurn(SLOT, 1)),
        (START + 5_000, SLOT - 4, ServingTurn(SLOT, 0, skipped=3)),
        (START + LATE_MAX_US + 1, SLOT - 1, ServingTurn(SLOT + 1, SLOT_US - LATE_MAX_US - 1, skipped=1)),
    ],
)
def test_the_next_slot_is_the_earliest_that_can_still_be_served(
    now_us: int, served: int | None, expected: ServingTurn
) -> None:
    """A slot is served once, late rather than never, but not when it is as good as over."""
    assert expected == next_turn(now_us, served)


def test_a_clock_that_wakes_early_does_not_serve_a_slot_twice() -> None:
    """Just before a slot that was served already, on a clock corrected by a hair, the one after it is next."""
    assert ServingTurn(SLOT + 1, SLOT_US + 10) == next_turn(START - 10, SLOT)


def test_a_clock_set_back_does_not_stop_the_beat() -> None:
    """After Redis' clock was set back by an hour the present slot is served, not the one an hour ahead."""
    assert ServingTurn(SLOT, 0) == next_turn(START + 1_000, SLOT + 1_800)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**16), st.none() | st.integers(0, 5 * 10**9))
def test_no_turn_waits_longer_than_two_slots_or_begins_too_late(now_us: int, served: int | None) -> None:
    """With any clock, the next slot starts within two slots, and a slot that is over is never started."""
    turn = next_turn(now_us, served)

    assert 0 <= turn.wait_us <= 2 * SLOT_US
    assert now_us + turn.wait_us - slot_start_us(turn.slot) <= LATE_MAX_US
    assert turn.slot != served
    assert turn.skipped >= 0


def test_a_whole_run_serves_every_slot_once() -> None:
    """Five minutes with calls that take from 1 ms to 1.4 s: 150 slots in a row, none twice, none left out."""
    now_us, served, slots = START - 1, None, []

    for step in range(150):
        turn = next_turn(now_us, served)
        slots.append(turn.slot)
        served = turn.slot
        now_us += turn.wait_us + (1_000 if step % 3 else 1_400_000)

    assert list(range(SLOT, SLOT + 150)) == slots


@pytest.mark.parametrize(
    ("last_known", "expected"),
    [
        (None, SLOT),
        (SLOT - 1, None),
        (SLOT - RUNNING_US // SLOT_US, None),
        (SLOT - RUNNING_US // SLOT_US - 1, SLOT),
    ],
)
def test_only_a_running_pipeline_needs_the_slot_in_hand(last_known: int | None, expected: int | None) -> None:
    """A replica that starts where predictions were made a moment ago serves the present slot; else the next one."""
    assert expected == first_served(START + 300_000, last_known)


def test_time_left_until_a_moment_of_a_slot() -> None:
    """Counted from the slot's beginning, and never negative."""
    assert OWN_DEGRADED_WAIT_US + 7 == until_us(SLOT, START - 7, OWN_DEGRADED_WAIT_US)
    assert until_us(SLOT, START + OWN_DEGRADED_WAIT_US + 1, OWN_DEGRADED_WAIT_US) == 0

"""Dry runs: when they are made, and that no slot waits for one. The clock of the slot is a stand-in."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.infer.dry_runs import LONGEST_S, SHORTEST_S, WARM_BEFORE_S, DryRuns, UsualLength
from support.patience import PATIENCE_S

LENGTHS_S = st.floats(0, 1, allow_nan=False)


class Slot:
    """A slot that begins some time from now."""

    def __init__(self, in_s: float) -> None:
        self.at = time.monotonic() + in_s

    def left_s(self) -> float:
        return max(0.0, self.at - time.monotonic())


@given(st.lists(LENGTHS_S))
def test_the_usual_length_stays_within_its_limits(lengths_s: list[float]) -> None:
    """Whatever dry runs take, the next ones begin neither earlier than they may nor so late that none is made."""
    usual = UsualLength()
    for taken_s in lengths_s:
        usual = usual.after(taken_s)

    assert SHORTEST_S <= usual.seconds <= LONGEST_S
    assert usual.fits(usual.begin_s(1))
    assert 0 == usual.begin_s(0)


@given(st.floats(SHORTEST_S, LONGEST_S), st.integers(0, 40))
def test_the_usual_length_is_a_median(usual_s: float, spot: int) -> None:
    """It comes within two steps of what most dry runs take; one in three that takes a second does not keep it away."""
    usual = UsualLength()
    for number in range(200 + spot):
        usual = usual.after(1.0 if number % 3 == 0 else usual_s)

    assert usual_s / 2 <= usual.seconds <= usual_s * 2


async def test_the_slot_is_rehearsed_until_it_begins() -> None:
    """Once well before it, then in its last milliseconds; each look at the clock takes a quarter of what is left."""
    left, made = [2 * WARM_BEFORE_S], list[float]()

    def left_s() -> float:
        left[0] = left[0] * 0.75 if left[0] > SHORTEST_S / 10 else 0.0
        return left[0]

    async def rehearse() -> None:
        made.append(left[0])

    await DryRuns(rehearse, 3).until(left_s)

    assert 0 == left[0]
    assert made[0] > WARM_BEFORE_S / 2
    assert 0 < made[-1] <= UsualLength(LONGEST_S).begin_s(3)
    assert len(made) >= 2


async def test_without_dry_runs_there_are_none() -> None:
    """The slot is waited for, and that is all."""
    slot = Slot(0.03)

    async def rehearse() -> None:
        raise AssertionError("a dry run was made")

    await DryRuns(rehearse, 0).until(slot.left_s)

    assert 0 == slot.left_s()


async def test_a_slot_does_not_wait_for_a_dry_run_that_hangs() -> None:
    """The dry run is cancelled when the slot begins, and nothing of it goes on beside the slot."""
    slot, begun, ended = Slot(0.1), list[bool](), list[bool]()

    def left_s() -> float:
        return slot.left_s() if begun else 0.1  # it cannot have begun before the first dry run, however busy it is

    async def rehearse() -> None:
        if not begun:
            slot.at = time.monotonic() + 0.1
        begun.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    await asyncio.wait_for(DryRuns(rehearse, 3).until(left_s), PATIENCE_S)
    await asyncio.sleep(0)

    assert 0 == slot.left_s()
    assert begun
    assert begun == ended


async def test_a_machine_on_which_dry_runs_take_too_long_has_fewer_of_them() -> None:
    """When all of them hang, slots without any come between; now and then one is tried again."""
    begun = list[int]()

    async def rehearse() -> None:
        begun.append(1)
        await asyncio.Event().wait()

    runs = DryRuns(rehearse, 3)
    for _ in range(30):
        await runs.until(Slot(0.012).left_s)
    first = len(begun)
    for _ in range(20):
        await runs.until(Slot(0.012).left_s)

    assert 0 < len(begun) - first < 15


async def test_a_slot_that_has_begun_is_not_rehearsed() -> None:
    """A late replica serves at once."""
    slot = Slot(-1)

    async def rehearse() -> None:
        raise AssertionError("a dry run was made")

    await DryRuns(rehearse, 3).until(slot.left_s)

    assert slot.left_s() == 0

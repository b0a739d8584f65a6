"""Where the time of a slot goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sheetanchor.infer.slot_times import STAGES, SlotTimes

SERVED = SlotTimes(1_000_000, 1_020_000, 1_140_000, 6e-6, 40e-6, 1_200_000, 1_210_000, 1_300_000, 1_420_000)


def test_the_stages_add_up_to_the_whole_slot() -> None:
    """From the slot's time until it is over nothing is counted twice or left out."""
    lengths_us = SERVED.stages_us()

    assert STAGES == tuple(lengths_us)
    assert pytest.approx([20, 120, 14, 6, 40, 10, 90, 120]) == list(lengths_us.values())
    assert pytest.approx((SERVED.done_ns - SERVED.due_ns) / 1e3) == sum(lengths_us.values())


@pytest.mark.parametrize("moment", ["begun_ns", "read_ns", "answered_ns", "recorded_ns", "committed_ns", "done_ns"])
def test_a_slot_that_has_not_come_to_its_end_is_not_whole(moment: str) -> None:
    """One moment that was not reached is enough."""
    assert SERVED.whole
    assert not replace(SERVED, **{moment: 0}).whole

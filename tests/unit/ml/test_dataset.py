"""Rows, labels and the split of a recorded market."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import HORIZON_MS, pack_frames
from sheetanchor.ml.dataset import HORIZON_SLOTS, SLOT_US, WARM_UP_US, Example, Row, label, rows, split
from sheetanchor.recording import recording_file
from sheetanchor.recording.recording_file import Recording

HORIZON_US = HORIZON_MS * 1_000


@pytest.fixture(scope="module")
def recorded() -> Recording:
    """The first minute and a half of the recording that ships."""
    whole = recording_file.load(recording_file.default_path())
    end_us = whole.snapshot_us + 90_000_000
    return replace(whole, events=[event for event in whole.events if event[0] <= end_us])


@pytest.fixture(scope="module")
def found(recorded: Recording) -> list[Row]:
    return list(rows(recorded))


def test_rows_lie_on_slots_without_a_missing_range(found: list[Row], recorded: Recording) -> None:
    """One row per slot, from the end of the warm-up to the last frame."""
    times = [row.at_us for row in found]

    assert all(at_us % SLOT_US == 0 for at_us in times)
    assert {SLOT_US} == {after - before for before, after in pairwise(times)}
    assert 0 <= times[0] - recorded.snapshot_us - WARM_UP_US < SLOT_US
    assert 0 < recorded.events[-1][0] - times[-1] <= SLOT_US


def test_a_row_is_the_hot_state_of_its_moment(found: list[Row], recorded: Recording) -> None:
    """It holds what a processor would have written then: frames up to the slot and none after it."""
    row = found[10]
    snapshot = recorded.snapshot
    market = Market(recorded.symbol)
    market.load_snapshot(
        snapshot.book_update_id, -8, -8, list(snapshot.bids), list(snapshot.asks), recorded.snapshot_us
    )

    for received_us, frame in recorded.events:
        if received_us > row.at_us:
            break
        market.feed(0, pack_frames([(received_us, frame)]), received_us)
    ob, tr_1s, tr_5s, feat = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in market.hot_state(row.at_us))

    assert {"ob": ob, "tr_1s": tr_1s, "tr_5s": tr_5s, "feat": feat} == row.groups
    assert row.mid == pytest.approx(market.mid)


def test_the_future_does_not_reach_a_row(found: list[Row], recorded: Recording) -> None:
    """A recording cut off right after a slot gives the very same rows up to it."""
    cut_us = found[20].at_us
    cut = replace(recorded, events=[event for event in recorded.events if event[0] <= cut_us + 100_000])

    assert found[:21] == list(rows(cut))


def test_a_label_is_the_return_over_exactly_ten_seconds(found: list[Row]) -> None:
    """The row five slots later decides; the last ten seconds have no label."""
    examples = label(found)

    assert len(found) - HORIZON_SLOTS == len(examples)
    assert [row.at_us for row in found[:-HORIZON_SLOTS]] == [example.at_us for example in examples]
    assert found[5 + HORIZON_SLOTS].mid / found[5].mid - 1 == examples[5].label


def test_a_missing_row_leaves_its_label_out(found: list[Row]) -> None:
    """Nothing is guessed from the rows beside it."""
    without = [row for row in found if row is not found[10]]

    times = {example.at_us for example in label(without)}

    assert found[10].at_us not in times
    assert found[10 - HORIZON_SLOTS].at_us not in times
    assert len(found) - HORIZON_SLOTS - 2 == len(times)


def test_rows_end_at_a_missing_range(found: list[Row], recorded: Recording) -> None:
    """After a lost diff the book is not the market's any more, so there are no rows from there on."""
    lost = next(
        at
        for at, (at_us, frame) in enumerate(recorded.events)
        if at_us > found[15].at_us and isinstance(sbe.decode(frame), sbe.DepthDiff)
    )
    holed = replace(recorded, events=[*recorded.events[:lost], *recorded.events[lost + 1 :]])

    kept = list(rows(holed))

    assert found[:16] == kept[:16]
    assert len(kept) <= 17


def test_an_empty_side_gives_no_row(recorded: Recording) -> None:
    """Where the book has no asks there is no price, hence no row; this is no error."""
    bare = replace(recorded, snapshot=replace(recorded.snapshot, asks=()), events=recorded.events[:1])
    later = (recorded.snapshot_us + 20_000_000, recorded.events[0][1])

    assert [] == list(rows(replace(bare, events=[later])))


def example(at_us: int) -> Example:
    return Example(at_us, 100.0, {}, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=60, max_size=200, unique=True), st.integers(0, 10**6))
def test_no_label_reaches_over_a_border(slots: list[int], pause_slots: int) -> None:
    """The latest outcome of a part lies at or before the first row of the next, whatever is missing in between."""
    middle = sorted(slots)[len(slots) // 2]
    times = [(slot + (pause_slots if slot >= middle else 0)) * SLOT_US for slot in slots]

    try:
        parts = split([example(at_us) for at_us in times])
    except ValueError:
        return  # too little is left beside the borders

    assert max(e.at_us for e in parts.train) + HORIZON_US <= min(e.at_us for e in parts.validation)
    assert max(e.at_us for e in parts.validation) + HORIZON_US <= min(e.at_us for e in parts.test)
    assert len(parts.train) >= len(parts.test) > 0


def test_the_parts_follow_each_other_in_time() -> None:
    """60, 20 and 20 %, less the ten seconds before each border."""
    parts = split([example(slot * SLOT_US) for slot in range(100)])

    assert (55, 15, 20) == (len(parts.train), len(parts.validation), len(parts.test))
    assert [0, 60, 80] == [part[0].at_us // SLOT_US for part in (parts.train, parts.validation, parts.test)]


def test_recordings_days_apart_can_be_learnt_from() -> None:
    """The pause between them leaves no part empty."""
    days = [example((slot + day * 43_200) * SLOT_US) for day in (0, 7) for slot in range(100)]

    parts = split(days)

    assert min(len(parts.train), len(parts.validation), len(parts.test)) > 20


@pytest.mark.parametrize(("count", "expected"), [(0, "at least one example"), (9, "at least 2 examples, found")])
def test_too_little_is_reported(count: int, expected: str) -> None:
    """One line says what was expected and what to do."""
    with pytest.raises(ValueError, match=expected):
        split([example(slot * SLOT_US) for slot in range(count)])

"""How predictions are scored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.contract import HORIZON_SLOTS
from sheetanchor.infer.accuracy import (
    DECIDED_MIN,
    SLOTS_1H,
    SLOTS_24H,
    AccuracyTracker,
    Direction,
    PredictionResult,
    RollingAccuracy,
    has_degraded,
    score,
)


@pytest.mark.parametrize(
    ("predicted", "later", "expected"),
    [
        ("up", 101.0, PredictionResult(7, 101.0, 0.01, "up", True)),
        ("down", 101.0, PredictionResult(7, 101.0, 0.01, "up", False)),
        ("down", 99.0, PredictionResult(7, 99.0, -0.01, "down", True)),
        ("flat", 101.0, PredictionResult(7, 101.0, 0.01, "up", None)),
        ("up", 100.0, PredictionResult(7, 100.0, 0.0, "flat", None)),
        ("flat", 100.0, PredictionResult(7, 100.0, 0.0, "flat", None)),
    ],
)
def test_a_direction_is_judged_only_where_there_was_one(
    predicted: Direction, later: float, expected: PredictionResult
) -> None:
    """A flat prediction and a price that did not move are neither hit nor miss."""
    scored = score(7, predicted, 100.0, later)

    assert expected.actual_return == pytest.approx(scored.actual_return)
    assert (expected.price, expected.direction, expected.hit) == (scored.price, scored.direction, scored.hit)


def test_the_outcome_is_the_price_exactly_five_slots_later() -> None:
    """Slots in between and after decide nothing about a prediction."""
    tracker = AccuracyTracker()

    found = [tracker.add(slot, "up", 100.0 + slot) for slot in range(7)]

    assert [None] * HORIZON_SLOTS == found[:HORIZON_SLOTS]
    assert [0, 1] == [result.slot for result in found[HORIZON_SLOTS:] if result]
    assert found[HORIZON_SLOTS] == score(0, "up", 100.0, 105.0)


@pytest.mark.parametrize("price", [None, float("nan"), float("inf"), 0.0, -1.0])
def test_a_price_in_doubt_decides_nothing(price: float | None) -> None:
    """Neither the prediction made at such a price nor the one that it would have judged gets an outcome."""
    tracker = AccuracyTracker()

    tracker.add(0, "up", 100.0)
    tracker.add(1, "up", price)
    judged_by_it = tracker.add(HORIZON_SLOTS, "up", price)
    made_at_it = tracker.add(HORIZON_SLOTS + 1, "up", 100.0)

    assert (None, None) == (judged_by_it, made_at_it)


def test_a_missed_slot_leaves_its_prediction_without_outcome() -> None:
    """There is no guessing from the slots beside it."""
    tracker = AccuracyTracker()

    tracker.add(0, "up", 100.0)
    found = [tracker.add(slot, "flat", 101.0) for slot in (4, 6)]

    assert [None, None] == found
    assert {"1h": None, "24h": None} == {"1h": tracker.last_1h.value, "24h": tracker.last_24h.value}


def test_a_slot_counts_once() -> None:
    """A second record of a slot, and one from before, change nothing."""
    tracker = AccuracyTracker()
    for slot in range(HORIZON_SLOTS + 1):
        tracker.add(slot, "up", 100.0 + slot)

    again = [tracker.add(slot, "down", 1.0) for slot in (HORIZON_SLOTS, 2)]

    assert [None, None] == again
    assert (1, 1.0) == (tracker.last_1h.decided, tracker.last_1h.value)


def test_accuracy_is_none_before_anything_was_decided() -> None:
    """No accuracy is not an accuracy of 0."""
    assert RollingAccuracy(10).value is None


def test_accuracy_forgets_what_left_its_window() -> None:
    """A miss an hour ago no longer counts for the last hour, but does for the last day."""
    hour, day = RollingAccuracy(SLOTS_1H), RollingAccuracy(SLOTS_24H)

    for window in (hour, day):
        window.add(0, False)
        window.add(SLOTS_1H - 1, True)
        window.advance(SLOTS_1H)

    assert (1.0, 0.5) == (hour.value, day.value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=200), st.integers(1, 20))
def test_accuracy_equals_counting_the_window(steps: list[tuple[int, bool]], window_slots: int) -> None:
    """The running count agrees with counting all results of the window afresh, and never holds more than it."""
    accuracy, slot, results = RollingAccuracy(window_slots), 0, []

    for step, hit in steps:
        slot += step
        results.append((slot, hit))
        accuracy.add(slot, hit)

    inside = [hit for at, hit in results if at > slot - window_slots]
    assert len(inside) == accuracy.decided <= window_slots
    assert (sum(inside) / len(inside) if inside else None) == accuracy.value


@pytest.mark.parametrize(
    ("hits", "decided", "baseline", "expected"),
    [
        (43, DECIDED_MIN, 0.55, True),
        (45, DECIDED_MIN, 0.55, False),
        (0, DECIDED_MIN - 1, 0.55, False),
        (0, DECIDED_MIN, None, False),
    ],
)
def test_a_fifth_below_the_baseline_is_worth_attention(
    hits: int, decided: int, baseline: float | None, expected: bool
) -> None:
    """A drop of more than 20 % counts, once there are enough results and something to compare with."""
    accuracy = RollingAccuracy(1_000)
    for slot in range(decided):
        accuracy.add(slot, slot < hits)

    assert expected == has_degraded(accuracy, baseline)

"""What a run has achieved is counted from the stream of predictions, the gaps and the receipts."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor.contract import HORIZON_SLOTS, slot_start_us
from sheetanchor.local.dashboard.tally import (
    HISTORY_SLOTS,
    ShownPrediction,
    Tally,
    end_after,
    judge,
    percentile,
    slot_time_text,
    summary,
)
from support.local_samples import FIRST_SLOT, gap, prediction, receipt

FIELDS = {
    "slot": "900000000",
    "price_now": "61837.63",
    "predicted_price": "61838.1",
    "direction": "up",
    "confidence": "0.55",
    "mode": "model",
    "degraded": "0",
    "reason": "",
    "latency_ms": "7.125",
    "ts": "1800000000",
    "feature_ts": "1799999999",
    "predicted_return": "0.00001",
    "model": "mlp@1",
    "epoch": "3",
}


def end_of(slot: int) -> int:
    return slot_start_us(slot + 1)


def filled(*slots: int) -> Tally:
    tally = Tally("BTCUSDT")
    for slot in slots:
        tally.add_prediction(prediction(FIRST_SLOT + slot))
    return tally


def test_summary_has_exactly_the_promised_keys() -> None:
    """An empty run ends with the same keys as a full one, and with nulls where nothing was measured."""
    found = summary([Tally("BTCUSDT")], [], 0)

    expected = {
        "slots": 0,
        "predictions": 0,
        "missed": 0,
        "degraded": 0,
        "gaps": 0,
        "validations": 0,
        "reanchors": 0,
        "epoch": 0,
        "latency_ms": {"p50": None, "p99": None},
        "directional_accuracy": None,
        "baseline_accuracy": None,
        "decided": 0,
    }
    assert expected == found
    assert list(expected) == list(found)


def test_entry_is_read_with_its_commit_time_from_the_id() -> None:
    """A stream entry gives the prediction; the first half of its id is when it became readable."""
    found = ShownPrediction.parse("1800000000008-0", FIELDS)

    expected = prediction(
        FIRST_SLOT,
        predicted_price=61_838.1,
        confidence=0.55,
        latency_ms=7.125,
        epoch=3,
        committed_us=1_800_000_000_008_000,
    )
    assert expected == found


@pytest.mark.parametrize("value", ["", "nan", "inf"])
def test_missing_price_is_none(value: str) -> None:
    """A prediction without a usable price has none, whichever way that is said."""
    assert ShownPrediction.parse("1-0", FIELDS | {"price_now": value}).price_now is None


@pytest.mark.parametrize(("text", "sign"), [("up", 1), ("down", -1), ("flat", 0)])
def test_directions(text: str, sign: int) -> None:
    """A direction is a sign."""
    assert sign == ShownPrediction.parse("1-0", FIELDS | {"direction": text}).direction


def test_slots_are_predictions_plus_missed() -> None:
    """A slot without a prediction counts as soon as it has ended, not before."""
    tally = filled(0, 1, 3)

    assert (4, 1) == (tally.slots(end_of(FIRST_SLOT + 3)), tally.missed(end_of(FIRST_SLOT + 3)))
    assert (4, 1) == (tally.slots(end_of(FIRST_SLOT + 4) - 1), tally.missed(end_of(FIRST_SLOT + 4) - 1))
    assert (5, 2) == (tally.slots(end_of(FIRST_SLOT + 4)), tally.missed(end_of(FIRST_SLOT + 4)))
    assert [FIRST_SLOT + 2, FIRST_SLOT + 4] == tally.missed_slots(end_of(FIRST_SLOT + 4))


def test_running_slot_counts_once_it_has_its_prediction() -> None:
    """The slot that is under way counts with its prediction, so that nothing reads as missed too early."""
    tally = filled(0, 1)

    assert (2, 0) == (tally.slots(slot_start_us(FIRST_SLOT + 1)), tally.missed(slot_start_us(FIRST_SLOT + 1)))


@pytest.mark.parametrize(("late_us", "missed"), [(-1_000, 0), (0, 1), (900_000, 1)])
def test_prediction_committed_after_its_slot_is_missed(late_us: int, missed: int) -> None:
    """What was not readable by the end of its slot does not count."""
    tally = filled(0)

    tally.add_prediction(prediction(FIRST_SLOT + 1, committed_us=end_of(FIRST_SLOT + 1) + late_us))

    assert missed == tally.missed(end_of(FIRST_SLOT + 1))


def test_second_entry_of_a_slot_is_not_counted() -> None:
    """One prediction per slot, whatever the stream holds."""
    tally = filled(0, 0, 0)

    assert 1 == tally.predictions


def test_slots_after_the_end_do_not_count() -> None:
    """A run of six seconds has three slots, even if a fourth was committed while it ended."""
    tally = filled(0)
    tally.end_us = end_after([FIRST_SLOT], 6.0)
    for slot in (1, 2, 3):
        tally.add_prediction(prediction(FIRST_SLOT + slot))

    assert (3, 3, 0) == (tally.slots(tally.end_us + 50_000), tally.predictions, tally.missed(tally.end_us + 50_000))


def test_run_ends_after_the_last_symbol_has_begun() -> None:
    """With several symbols the time begins when each has its first slot."""
    assert slot_start_us(FIRST_SLOT + 4) + 12_500_000 == end_after([FIRST_SLOT, FIRST_SLOT + 4], 12.5)


def test_degraded_predictions_are_predictions() -> None:
    """They are counted as both."""
    tally = filled(0)
    tally.add_prediction(prediction(FIRST_SLOT + 1, degraded=True))

    assert (2, 1) == (tally.predictions, tally.degraded)


def test_gaps_count_by_what_they_call_for() -> None:
    """A request for a rebuild counts as a gap, one for a check as a validation, and a user's request as neither."""
    tally = filled(0)
    after = slot_start_us(FIRST_SLOT) + 1
    for action in ("immediate_reanchor", "scheduled_reanchor", "emergency_reanchor", "validation_reanchor"):
        tally.add_gap(gap(action, at_us=after))
    tally.add_gap(gap(rule="request", at_us=after))

    assert (3, 1) == (tally.gaps, tally.validations)


def test_gaps_before_the_first_slot_do_not_count() -> None:
    """Whatever happened while the pipeline came up is not held against it."""
    tally = Tally("BTCUSDT")
    tally.add_gap(gap(at_us=1))
    tally.add_prediction(prediction(FIRST_SLOT))
    tally.add_gap(gap(at_us=slot_start_us(FIRST_SLOT) - 1))

    assert (0, 2) == (tally.gaps, len(tally.recent_gaps))


def test_first_anchor_counts_though_it_came_before_the_first_slot() -> None:
    """Rebuilds that were swapped in are counted; failed ones and mere checks are not."""
    tally = Tally("BTCUSDT")
    for result in ("swapped", "failed", "validated", "lock_held"):
        tally.add_receipt(receipt(result))

    assert 1 == tally.reanchors


@pytest.mark.parametrize(
    ("direction", "later", "hit"), [(1, 101.0, True), (1, 99.0, False), (-1, 99.0, True), (-1, 101.0, False)]
)
def test_direction_is_judged_by_the_later_price(direction: int, later: float, hit: bool) -> None:
    """Up is right when the price is higher ten seconds later."""
    judged = judge(prediction(1, price_now=100.0, direction=direction), prediction(6, price_now=later))

    assert (later, hit) == (judged.outcome_price, judged.hit)


@pytest.mark.parametrize(("direction", "later"), [(0, 101.0), (1, 100.0)])
def test_nothing_to_be_right_about(direction: int, later: float) -> None:
    """No direction or no movement: the outcome is known, but it is neither hit nor miss."""
    judged = judge(prediction(1, price_now=100.0, direction=direction), prediction(6, price_now=later))

    assert (later, None) == (judged.outcome_price, judged.hit)


@pytest.mark.parametrize("doubted", [{"price_now": None}, {"price_is_sound": False}])
def test_price_in_doubt_decides_nothing(doubted: dict[str, Any]) -> None:
    """Neither a doubtful price then nor a doubtful price now makes an outcome."""
    sound, doubtful = prediction(1), prediction(6, **doubted)

    assert sound == judge(sound, doubtful)
    assert doubtful == judge(doubtful, sound)


def test_doubts_about_the_state_are_doubts_about_its_price() -> None:
    """A suspect state's price is not judged by; a replica without a model still has a good price."""
    found = [
        ShownPrediction.parse("1-0", FIELDS | {"degraded": "1", "reason": reason}).price_is_sound
        for reason in ("suspect: a hole", "model: no model", "model: no model; stale: 6 s")
    ]

    assert [False, True, False] == found


def test_outcome_is_known_five_slots_later() -> None:
    """The price of the slot ten seconds on decides, and the accuracy is the share of hits."""
    tally = Tally("BTCUSDT")
    for number, (price, direction) in enumerate(
        [(100.0, 1), (100.0, -1), (1.0, 0), (1.0, 0), (1.0, 0), (101.0, 0), (101.0, 0)]
    ):
        tally.add_prediction(prediction(FIRST_SLOT + number, price_now=price, direction=direction))

    assert [True, False, None] == [tally.history[FIRST_SLOT + number].hit for number in range(3)]
    assert 0.5 == tally.directional_accuracy
    assert 101.0 == tally.history[FIRST_SLOT].outcome_price


@pytest.mark.parametrize(
    ("changes", "directions", "expected"),
    [
        ([1, 1, 1, 1, 0], [1, 1, -1, 1, 1], (0.75, 1.0, 4)),
        ([-1, -1, -1, 1, 0], [1, 1, 1, 1, -1], (0.25, 0.75, 4)),
        ([0, 0, 1, 0, 1], [1, -1, 1, -1, 0], (1.0, 1.0, 1)),
        ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], (None, None, 0)),
    ],
    ids=["rising", "mostly falling", "one decided", "at rest"],
)
def test_skill_is_shown_beside_what_needs_none(
    changes: list[int], directions: list[int], expected: tuple[float | None, float | None, int]
) -> None:
    """Of the same decided predictions: the share that came true, and that of always naming the more frequent way."""
    tally = Tally("BTCUSDT")
    for number, direction in enumerate(directions):
        tally.add_prediction(prediction(FIRST_SLOT + number, price_now=100.0, direction=direction))
    for number, change in enumerate(changes):
        made = prediction(FIRST_SLOT + HORIZON_SLOTS + number, price_now=100.0 + change, direction=0)
        tally.add_prediction(made)

    found = summary([tally], [1], end_of(FIRST_SLOT))

    assert expected == (found["directional_accuracy"], found["baseline_accuracy"], found["decided"])


def test_history_is_bounded() -> None:
    """A run of any length keeps a quarter of an hour."""
    tally = filled(*range(HISTORY_SLOTS + 100))

    assert (HISTORY_SLOTS, HISTORY_SLOTS + 100) == (len(tally.history), tally.predictions)
    assert 0 == tally.missed(end_of(FIRST_SLOT + HISTORY_SLOTS + 99))


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(range(1, 101)), 0.99, 99),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float | None) -> None:
    """A percentile is one of the values."""
    assert expected == percentile(values, share)


def test_symbols_are_added_up() -> None:
    """Several symbols give one object: sums, the highest epoch, percentiles over all."""
    first, second = filled(0, 1), Tally("ETHUSDT")
    second.add_prediction(prediction(FIRST_SLOT + 1, latency_ms=20.0, degraded=True))

    found = summary([first, second], [2, 5], end_of(FIRST_SLOT + 1))

    assert (3, 3, 0, 1, 5) == tuple(found[name] for name in ("slots", "predictions", "missed", "degraded", "epoch"))
    assert {"p50": 8.0, "p99": 20.0} == found["latency_ms"]


def test_slot_time_is_utc() -> None:
    """Slot numbers count two seconds each from the epoch."""
    assert "08:00:02" == slot_time_text(FIRST_SLOT + 1)

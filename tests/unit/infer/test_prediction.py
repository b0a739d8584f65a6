"""What degrades a prediction, predictions without a model, and how a record is stored."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.contract import STALE_AFTER_US, is_usable
from sheetanchor.infer.linear_trend import TREND_SPAN_US, linear_return
from sheetanchor.infer.prediction import (
    AHEAD_MAX_US,
    ANSWER_DOUBTS,
    REASON_LENGTH_MAX,
    SILENT_WRITER_US,
    TREND_CONFIDENCE,
    UNMOVED_WRITER_US,
    Doubt,
    ModelAnswer,
    Prediction,
    SlotState,
    aged,
    build,
    confidence_of,
    doubts_of,
    nothing_read,
    reason_of,
    without_model,
)
from sheetanchor.policy.soundness import REASON_KINDS

NOW = 1_700_000_000_000_000
SLOT = NOW // 2_000_000
SOUND = SlotState(
    now_us=NOW,
    epoch=3,
    anchored=True,
    suspect_reason="",
    incomplete="",
    stamp_us=NOW - 1_000,
    hashes={"ob": {"best_bid": "99.0", "best_ask": "101.0"}},
    heartbeat_us=NOW - 50_000,
    sound_until_us=NOW + 1_500_000,
)
ANSWER = ModelAnswer("model", 0.001, 0.4, "mlp@12345678")


def kinds(state: SlotState) -> list[str]:
    return [doubt.kind for doubt in doubts_of(state)]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (SOUND, []),
        (replace(SOUND, anchored=False, suspect_reason="gap"), ["suspect"]),
        (replace(SOUND, incomplete="feat missing"), ["incomplete"]),
        (replace(SOUND, stamp_us=NOW - STALE_AFTER_US), []),
        (replace(SOUND, stamp_us=NOW - STALE_AFTER_US - 1), ["stale"]),
        (replace(SOUND, stamp_us=0), ["stale"]),
        (replace(SOUND, stamp_us=NOW + AHEAD_MAX_US), []),
        (replace(SOUND, stamp_us=NOW + AHEAD_MAX_US + 1), ["clock"]),
        (replace(SOUND, heartbeat_us=NOW + AHEAD_MAX_US + 1), ["clock"]),
        (replace(SOUND, heartbeat_us=NOW - SILENT_WRITER_US), []),
        (replace(SOUND, heartbeat_us=NOW - SILENT_WRITER_US - 1), ["writer"]),
        (replace(SOUND, heartbeat_us=0), ["writer"]),
        (replace(SOUND, unmoved_us=UNMOVED_WRITER_US), []),
        (replace(SOUND, unmoved_us=UNMOVED_WRITER_US + 1), ["writer"]),
        (replace(SOUND, sound_until_us=NOW), []),
        (replace(SOUND, sound_until_us=NOW - 1), ["unproven"]),
        (replace(SOUND, sound_until_us=None), ["unproven"]),
        (replace(SOUND, sound_until_us=0, unsound="missing: depth; late: trade is late"), ["missing", "late"]),
        (replace(SOUND, unsound="late: trade is late"), ["late"]),
        (replace(SOUND, unsound="words of another version"), ["unproven"]),
        (aged(SOUND, NOW + 2_000_000, "no answer"), ["redis"]),
        (aged(SOUND, NOW + 8_000_000, "no answer"), ["redis", "stale"]),
        (nothing_read(NOW, "no answer"), ["redis", "incomplete", "stale"]),
    ],
)
def test_each_thing_that_does_not_hold_is_a_doubt_of_its_own(state: SlotState, expected: list[str]) -> None:
    """Nothing else about a state degrades a prediction."""
    assert expected == kinds(state)


def test_a_sound_prediction_has_no_reason() -> None:
    """Price, direction and predicted price follow from the book and the return."""
    record = build(SLOT, SOUND, ANSWER, "a")

    assert (100.0, "up", 0.001) == (record.price_now, record.direction, record.predicted_return)
    assert record.predicted_price == pytest.approx(100.1)
    assert (False, "", 3, NOW) == (record.degraded, record.reason, record.epoch, record.ts)
    assert NOW - 1_000 == record.feature_ts


@pytest.mark.parametrize(
    ("ob", "expected"),
    [
        ({"update_id": "7", "bba_id": "9"}, 9),
        ({"update_id": "7", "bba_id": "5"}, 7),
        ({"update_id": "7"}, 7),
        ({"update_id": "seven"}, None),
        ({}, None),
    ],
)
def test_a_prediction_names_the_update_that_its_price_is_of(ob: dict[str, str], expected: int | None) -> None:
    """With the exchange's messages the price can be verified; the field survives Redis."""
    record = build(SLOT, replace(SOUND, hashes={"ob": ob}), ANSWER, "a")
    stored = Prediction.parse({**record.fields(), "slot": str(SLOT)})

    assert (expected, expected) == (record.update_id, stored.update_id)


def test_every_doubt_is_a_reason() -> None:
    """Reasons of the state come first, then those of the answer; the text is bounded."""
    state = replace(SOUND, anchored=False, suspect_reason="depth: expected 5; found 9" + "!" * 500)
    record = build(SLOT, state, replace(ANSWER, doubts=(Doubt("symbols", "x"),)), "a")

    assert record.degraded
    assert record.reason.startswith("suspect: depth: expected 5, found 9")
    assert len(record.reason) == REASON_LENGTH_MAX


@pytest.mark.parametrize(
    ("state", "doubts", "expected"),
    [
        (SOUND, (), 100.0),
        (SOUND, (Doubt("symbols", "x"),), 100.0),
        (replace(SOUND, anchored=False), (), None),
        (replace(SOUND, stamp_us=NOW - STALE_AFTER_US - 1), (Doubt("model", "y"),), None),
    ],
)
def test_a_lesser_model_does_not_touch_the_price(
    state: SlotState, doubts: tuple[Doubt, ...], expected: float | None
) -> None:
    """For scoring a price counts unless the state itself was unsound."""
    assert expected == build(SLOT, state, replace(ANSWER, doubts=doubts), "a").sound_price


@settings(max_examples=100, deadline=None)
@given(
    st.none() | st.floats(1e-9, 1e9),
    st.floats(-0.1, 0.1),
    st.floats(0, 1),
    st.sampled_from(["model", "fallback", "linear_trend", "none"]),
)
def test_a_record_survives_redis(price: float | None, value: float, confidence: float, mode: str) -> None:
    """What is written as text reads back as the same record, and never says nan or inf."""
    ob = {} if price is None else {"best_bid": repr(price), "best_ask": repr(price)}
    answer = ModelAnswer(mode, value, confidence, "m@1")  # type: ignore[arg-type]  # hypothesis draws plain strings
    record = build(SLOT, replace(SOUND, hashes={"ob": ob}), answer, "replica")

    fields = {**record.fields(), "slot": str(SLOT), "latency_ms": "1.250"}

    assert replace(record, latency_ms=1.25, committed=True) == Prediction.parse(fields)
    assert not {"nan", "inf", "-inf"} & set(fields.values())


@pytest.mark.parametrize(("value", "expected"), [(0.1, True), (-0.1, True), (0.1001, False)])
def test_a_return_beyond_a_tenth_is_no_answer(value: float, expected: bool) -> None:
    """A model that says so has failed, as one that says nan or inf has."""
    assert expected == is_usable(value)
    assert not is_usable(math.nan)
    assert not is_usable(math.inf)


def test_confidence_is_the_chance_above_a_coin_toss() -> None:
    """One residual deviation is 68 % of the normal distribution; no prediction or no deviation known is 0."""
    assert confidence_of(0.0, 0.001) == 0
    assert confidence_of(-0.001, 0.001) == pytest.approx(0.6827, abs=1e-4)
    assert confidence_of(0.01, 0.0) == 0
    assert 0.999 < confidence_of(0.1, 0.001) <= 1


def test_without_a_model_the_trend_speaks_and_without_a_trend_nothing_does() -> None:
    """Confidence 0.1 for the line, 0 for nothing; both say why."""
    doubts = [Doubt("model", "gone")]

    line, nothing = without_model(-0.002, doubts), without_model(None, doubts)

    assert ("linear_trend", -0.002, TREND_CONFIDENCE) == (line.mode, line.predicted_return, line.confidence)
    assert ("none", 0.0, 0.0) == (nothing.mode, nothing.predicted_return, nothing.confidence)
    assert line.own_degraded
    assert nothing.own_degraded
    assert without_model(0.5, doubts).mode == "none"


def test_the_trend_continues_a_straight_line() -> None:
    """A price that rises by 0.1 a second is 1.0 higher in ten seconds."""
    points = [(NOW - 2_000_000 * back, 100.0 - 0.2 * back) for back in range(5, -1, -1)]

    assert linear_return(points, NOW) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(NOW - 1, 100.0), (NOW, 100.0)],
        [(NOW, 100.0)] * 5,
        [(NOW - TREND_SPAN_US - 1 - back, 100.0 + back) for back in range(5)],
    ],
)
def test_too_few_recent_prices_make_no_trend(points: list[tuple[int, float]]) -> None:
    """Two points, one moment, or the day before yesterday are no line."""
    assert linear_return(points, NOW) is None


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("suspect", False),
        ("incomplete", False),
        ("stale", False),
        *((kind, False) for kind in ("writer", "unproven", *REASON_KINDS)),
        ("redis", True),
        ("symbols", False),
        ("features", False),
        ("model", True),
        ("some kind of a later version", False),
    ],
)
def test_only_what_another_replica_may_be_without_lets_it_go_first(kind: str, own: bool) -> None:
    """To wait for others over what lies in the state or the model that all share would only make predictions late."""
    answer = replace(ANSWER, doubts=(Doubt("symbols", "x"), Doubt(kind, "y")))

    assert (own, own) == (Doubt(kind, "y").own, answer.own_degraded)


def test_the_page_reports_which_doubts_are_shared() -> None:
    """The table of reasons in docs/models.md and the code agree, kind by kind."""
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| (yes|no) \|$", page, re.MULTILINE)
    reported = {kind: shared for kinds, shared in rows for kind in re.findall(r"`(\w+)`", kinds)}

    assert reported == {kind: "no" if Doubt(kind, "").own else "yes" for kind in reported}
    assert {"suspect", "incomplete", "stale", "writer", "unproven", "redis", *REASON_KINDS, *ANSWER_DOUBTS} == set(
        reported
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["redis", "suspect", "stale", "model", "symbols"]), st.text(max_size=700)),
        max_size=8,
    )
)
def test_no_doubt_is_pushed_out_by_a_long_one(doubts: list[tuple[str, str]]) -> None:
    """The reason is bounded, and every kind is in it, in order: readers and scores go by the kinds."""
    reason = reason_of([Doubt(kind, text) for kind, text in doubts])

    assert len(reason) <= REASON_LENGTH_MAX
    assert [kind for kind, _ in doubts] == [part.partition(":")[0] for part in reason.split("; ") if part]


def test_a_cut_text_keeps_both_ends() -> None:
    """The end of a library's message is decisive, and the beginning of a text by a person."""
    decisive = "Unsupported model IR version: 99, max supported IR version: 14"
    text = f"cannot be loaded: {'x' * 900} {decisive}"

    reason = reason_of([Doubt("model", text), Doubt("stale", "last market event 9.0 s ago")])

    assert reason.startswith("model: cannot be loaded: xxx")
    assert reason.endswith(
        "Unsupported model IR version: 99, max supported IR version: 14; stale: last market event 9.0 s ago"
    )
    assert REASON_LENGTH_MAX == len(reason)

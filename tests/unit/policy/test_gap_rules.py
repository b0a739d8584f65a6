from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor._decoder import Market
from sheetanchor.contract import pack_frames
from sheetanchor.policy.gap_rules import (
    GAP_DETECTION_RULES,
    VOLUME_BUCKETS_MIN,
    Price,
    Progress,
    Sequence,
    Silence,
    Thresholds,
    Volume,
    gap_of,
    is_anomalous,
    is_final,
)
from sheetanchor.process.market.gap_detector import DetectorContext, GapDetector
from sheetanchor.sbe import DepthDiff, Trades, encode

MS = 1_000
NOW_US = 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("rule", "severity", "action", "suspects"),
    [
        ("sequence_gap", "high", "immediate_reanchor", True),
        ("time_gap", "medium", "scheduled_reanchor", False),
        ("volume_anomaly", "low", "validation_reanchor", False),
        ("price_discontinuity", "high", "immediate_reanchor", True),
        ("connection_loss", "critical", "emergency_reanchor", False),
        ("redis_failover", "high", "immediate_reanchor", True),
        ("sequence_reset", "high", "immediate_reanchor", True),
        ("book_edge", "medium", "immediate_reanchor", False),
        ("book_beyond", "high", "immediate_reanchor", True),
        ("stream_missing", "high", "validation_reanchor", False),
        ("feed_late", "medium", "validation_reanchor", False),
        ("clock_jump", "low", "validation_reanchor", False),
        ("trades_quiet", "low", "validation_reanchor", False),
    ],
)
def test_rules_say_how_bad_it_is_and_what_they_ask_for(rule: str, severity: str, action: str, suspects: bool) -> None:
    """Every reader of the stream of gaps depends on this table."""
    found = GAP_DETECTION_RULES[rule]

    assert (severity, action, suspects) == (found.severity, found.action, found.suspects)


@pytest.mark.parametrize(
    ("lines_past", "live", "age_ms", "final"),
    [
        (0b01, 0b11, 0, False),  # the other line may still have it
        (0b11, 0b11, 0, True),  # no line has it
        (0b01, 0b01, 0, True),  # the only live line has passed it
        (0b01, 0b11, 199, False),
        (0b01, 0b11, 200, True),  # waited long enough
        (0b01, 0b00, 0, True),  # no live line could deliver it
    ],
)
def test_a_hole_is_final_when_nobody_can_fill_it(lines_past: int, live: int, age_ms: int, final: bool) -> None:
    """Every live line has passed it, or 200 ms are over."""
    hole = (5, 7, NOW_US - age_ms * MS, lines_past)

    assert final == is_final(hole, live, NOW_US, 200 * MS)


def test_a_sequence_gap_names_both_ids_and_what_cures_it() -> None:
    """The text is for people; a rebuild must reach the last id that is missing."""
    _, finding = Sequence().missing("depth", (3, 5, 0, 1), 1)

    assert finding is not None
    assert ("Sequence gap detected: depth 2 → 5", 4) == (finding.reason, finding.cure_id)


def test_a_threshold_of_two_wants_two_holes_in_a_row() -> None:
    """Only a message without a missing range before it, and the gap itself, reset the counter."""
    one, first = Sequence().missing("depth", (3, 5, 0, 1), 2)
    _, after_sound = one.sound().missing("depth", (7, 9, 0, 1), 2)
    two, second = one.missing("depth", (7, 9, 0, 1), 2)
    _, third = two.missing("depth", (11, 12, 0, 1), 2)

    assert (None, None, True, None) == (first, after_sound, second is not None, third)


@pytest.mark.parametrize(("quiet_us", "found"), [(5_000_000, False), (5_000_001, True)])
def test_silence_is_a_gap_after_five_seconds(quiet_us: int, found: bool) -> None:
    """Exactly five seconds are not too long."""
    _, finding = Silence().check(NOW_US - quiet_us, NOW_US, 5_000_000)

    assert found == (finding is not None)


def test_silence_is_told_once_and_again_after_sound() -> None:
    """One event per silence, however often it is looked at."""
    state, first = Silence().check(0, 6_000_000, 5_000_000)
    state, second = state.check(0, 7_000_000, 5_000_000)
    state, sound = state.check(7_000_000, 7_100_000, 5_000_000)
    _, third = state.check(7_000_000, 13_000_000, 5_000_000)

    assert [True, False, False, True] == [finding is not None for finding in (first, second, sound, third)]


@pytest.mark.parametrize(("price", "found"), [(45_449.0, False), (45_451.0, True), (44_549.0, True), (44_551.0, False)])
def test_a_price_that_jumps_by_more_than_a_percent_is_a_discontinuity(price: float, found: bool) -> None:
    """In either direction; less is not."""
    state, _ = Price().check(45_000.0, NOW_US, 0.01)

    _, finding = state.check(price, NOW_US + MS, 0.01)

    assert found == (finding is not None)


def test_a_price_after_a_long_silence_is_no_discontinuity() -> None:
    """The price may have moved during the silence, which has its own rule."""
    state, _ = Price().check(45_000.0, NOW_US, 0.01)

    _, finding = state.check(50_000.0, NOW_US + 60_000_000, 0.01)

    assert finding is None


def test_a_jump_is_told_once() -> None:
    """The new price is the reference from then on."""
    state, _ = Price().check(45_000.0, NOW_US, 0.01)
    state, first = state.check(46_000.0, NOW_US + MS, 0.01)

    _, second = state.check(46_001.0, NOW_US + 2 * MS, 0.01)

    assert (True, None) == (first is not None, second)


@pytest.mark.parametrize(("volume", "found"), [(131.0, True), (129.0, False), (69.0, True), (71.0, False)])
def test_a_volume_beyond_three_deviations_is_an_anomaly(volume: float, found: bool) -> None:
    """Mean 100, deviation 10: the limits are 70 and 130."""
    history = (90.0, 110.0) * VOLUME_BUCKETS_MIN

    assert found == is_anomalous(volume, history, 3.0)


def test_volume_is_not_judged_without_a_history_or_a_deviation() -> None:
    """Too few spans, or spans that are all equal, are no basis for a finding."""
    assert not is_anomalous(1e9, (1.0,) * (VOLUME_BUCKETS_MIN - 1), 3.0)
    assert not is_anomalous(1e9, (1.0,) * 100, 3.0)


def test_the_history_of_volumes_is_bounded() -> None:
    """A pipeline that runs for months remembers ten minutes."""
    state = Volume()
    for step in range(1000):
        state, _ = state.check(float(step % 7), 3.0)

    assert 120 == len(state.history)


def test_ids_that_stand_still_while_frames_arrive_are_a_reset() -> None:
    """An exchange that went back in its ids would otherwise pass for fresh, duplicates all of it."""
    marks = (10, 10, 10)
    state, _ = Progress().check(marks, NOW_US)
    found = []
    for after_us in range(100_000, 2_400_000, 100_000):
        state, finding = state.check(marks, NOW_US + after_us)
        found.append((after_us, finding.rule) if finding else None)

    assert [(2_100_000, "sequence_reset")] == [one for one in found if one]


def test_a_pause_among_duplicates_is_not_a_reset() -> None:
    """Redis takes no writes for two seconds of a hand-over: before it another line's copy, after it old frames."""
    marks = (10, 10, 10)
    state, _ = Progress().check(marks, NOW_US)

    found = []
    for after_us in (1_000, 2_500_000, *range(2_510_000, 3_500_000, 10_000)):
        state, finding = state.check(marks, NOW_US + after_us)
        found.append(finding)

    assert {None} == set(found)
    _, moved = state.check((11, 10, 10), NOW_US + 3_500_000)
    assert moved is None


@pytest.mark.parametrize("apart_us", [20_000, 400_000, 3_000_000, 60_000_000])
def test_a_reset_is_found_at_any_rate_of_frames(apart_us: int) -> None:
    """In a thin market too: a few frames are enough, however far apart they come."""
    marks = (10, 10, 10)
    state, _ = Progress().check(marks, NOW_US)

    for number in range(1, 200):
        state, finding = state.check(marks, NOW_US + number * apart_us)
        if finding:
            break

    assert finding is not None
    assert number <= max(6, 2_100_000 // apart_us + 2)


def test_silence_is_not_a_reset() -> None:
    """Without frames the ids cannot move, and the first frame after a silence may be a duplicate."""
    marks = (10, 10, 10)
    state, _ = Progress().check(marks, NOW_US)

    state, silent = state.check(marks, NOW_US)
    _, duplicate = state.check(marks, NOW_US + 60_000_000)

    assert (None, None) == (silent, duplicate)


def test_the_event_carries_severity_and_action_of_its_rule() -> None:
    """Readers of the stream need not know the table."""
    _, finding = Silence().check(0, 6_000_000, 5_000_000)
    assert finding is not None

    gap = gap_of(finding, "BTCUSDT", "process", 17, 3)

    assert ("time_gap", "medium", "scheduled_reanchor", 3) == (gap.rule, gap.severity, gap.action, gap.epoch)


# The rules on a market


def diff(first: int, last: int) -> bytes:
    return encode(
        DepthDiff(
            event_time_us=NOW_US + last * MS,
            symbol="BTCUSDT",
            price_exponent=-2,
            qty_exponent=-2,
            first_update_id=first,
            last_update_id=last,
            bids=((100_00, last),),
            asks=((100_01, last),),
        )
    )


def trade(trade_id: int) -> bytes:
    return encode(
        Trades(
            event_time_us=NOW_US + trade_id * MS,
            transact_time_us=NOW_US + trade_id * MS,
            symbol="BTCUSDT",
            price_exponent=-2,
            qty_exponent=-2,
            trades=((trade_id, 100_00, 5, False),),
        )
    )


def market_at(update_id: int) -> Market:
    market = Market("BTCUSDT")
    market.load_snapshot(update_id, -2, -2, [(100_00, 1)], [(100_01, 1)], NOW_US)
    return market


def check(detector: GapDetector, market: Market, at_us: int, lines: int = 0b11) -> list[str]:
    found = detector.apply_rules(market, DetectorContext(at_us, at_us, lines, caught_up=True))
    return [finding.rule for finding in found]


@st.composite
def lossy_lines(draw: st.DrawFn) -> tuple[list[tuple[int, int]], set[int]]:
    """Two lines that carry messages 1..n, interleaved; each message is lost on one of them, on none, or on both."""
    count = draw(st.integers(2, 25))
    lost = {number: draw(st.sampled_from([set(), set(), {0}, {1}, {0, 1}])) for number in range(1, count)}
    lost[count] = set()
    queues = [[number for number in range(1, count + 1) if line not in lost[number]] for line in (0, 1)]
    order = []
    while queues[0] or queues[1]:
        line = draw(st.sampled_from([line for line in (0, 1) if queues[line]]))
        order.append((line, queues[line].pop(0)))
    return order, {number for number, lines in lost.items() if lines == {0, 1}}


@given(lossy_lines(), st.sampled_from(["depth", "trade"]))
@settings(max_examples=150, deadline=None)
def test_what_any_line_has_is_no_gap_and_what_none_has_is(
    lines: tuple[list[tuple[int, int]], set[int]], stream: str
) -> None:
    """Losses on one line only never give a gap; a run of messages lost on both gives exactly one."""
    order, lost = lines
    market = market_at(0)
    detector = GapDetector(Thresholds(), NOW_US)
    rules = []
    for line, number in [(0, 0), *order] if stream == "trade" else order:
        frame = diff(number, number) if stream == "depth" else trade(number)
        market.feed(line, pack_frames([(0, frame)]), NOW_US)
        rules += check(detector, market, NOW_US)
    runs = {number for number in lost if number - 1 not in lost}

    assert ["sequence_gap"] * len(runs) == rules
    assert max(number for _, number in order) == (market.update_id if stream == "depth" else market.trade_id)


def test_a_hole_is_not_judged_while_entries_are_unread() -> None:
    """After a pause one line's backlog is read first; the other line's may still contain the missing range."""
    market = market_at(0)
    detector = GapDetector(Thresholds(), NOW_US)
    market.feed(0, pack_frames([(0, diff(3, 3))]), NOW_US - 10_000_000)

    found = detector.apply_rules(market, DetectorContext(NOW_US, NOW_US, 0b11, caught_up=False))

    assert [] == found


def test_a_suppressed_rule_says_nothing_but_the_market_goes_on() -> None:
    """The book continues after the missing range; otherwise it would never change again."""
    market = market_at(0)
    detector = GapDetector(replace(Thresholds(), suppressed=frozenset({"sequence_gap"})), NOW_US)
    for line in (0, 1):
        market.feed(line, pack_frames([(0, diff(3, 3))]), NOW_US)

    assert [] == check(detector, market, NOW_US)
    assert 3 == market.update_id


def test_a_crossed_book_is_told_once() -> None:
    """Best bid at or above best ask after an update."""
    market = market_at(0)
    detector = GapDetector(Thresholds(), NOW_US)
    crossing = replace_prices(diff(1, 1))
    market.feed(0, pack_frames([(0, crossing)]), NOW_US)

    assert ["book_crossed"] == check(detector, market, NOW_US)
    assert [] == check(detector, market, NOW_US)


def replace_prices(_: bytes) -> bytes:
    return encode(
        DepthDiff(
            event_time_us=NOW_US,
            symbol="BTCUSDT",
            price_exponent=-2,
            qty_exponent=-2,
            first_update_id=1,
            last_update_id=1,
            bids=((100_02, 1),),
            asks=(),
        )
    )


def test_the_stamp_of_freshness_moves_only_with_the_ids() -> None:
    """Old frames that arrive again do not make a state fresh."""
    market = market_at(10)
    detector = GapDetector(Thresholds(), NOW_US)
    market.feed(0, pack_frames([(0, diff(11, 11))]), NOW_US)
    check(detector, market, NOW_US)

    market.feed(0, pack_frames([(0, diff(5, 5)), (0, diff(11, 11))]), NOW_US + 1_000_000)
    check(detector, market, NOW_US + 1_000_000)

    assert NOW_US == detector.event_stamp_us


def test_gaps_are_counted_by_the_day() -> None:
    """The count restarts at midnight UTC, also if nothing happens at that time."""
    midnight_us = 1_700_006_400_000_000
    detector, market = GapDetector(Thresholds(), 0), Market("BTCUSDT")
    told = []
    for at_us in (midnight_us - 2, midnight_us - 1):
        detector.count_gap(at_us)
        told.append(detector.report(market, at_us)["gaps_detected_today"])
    told.append(detector.report(market, midnight_us)["gaps_detected_today"])
    detector.count_gap(midnight_us + 1)
    told.append(detector.report(market, midnight_us + 1)["gaps_detected_today"])

    assert [1, 2, 0, 1] == told

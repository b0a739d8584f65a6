"""Event times that are off: one, some, or all from a moment on because the exchange's clock was set."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor import _decoder, sbe
from support import reference_market
from support.market_parts import Market, batch

T0 = 1_790_000_000_000_000
STEP_US = 100_000
HOUR_US = 3_600_000_000
KINDS = ("diff", "best", "trades", "depth20")


def fresh(kind: Any = _decoder.Market) -> Market:
    market = kind("X")
    market.load_snapshot(100, -8, -8, [(1000, 10)], [(1002, 10)], T0)
    return market


def message(kind: str, number: int, event_us: int, transact_us: int) -> sbe.Message:
    """The numberth message of a stream; the mid moves with it."""
    if kind == "diff":
        return sbe.DepthDiff(event_us, "X", -8, -8, 100 + number, 100 + number, ((1000, 10 + number),), ())
    if kind == "best":
        return sbe.BestBidAsk(event_us, "X", -8, -8, 100 + number, 1000, 10 + number, 1002 + number % 5, 9)
    if kind == "trades":
        return sbe.Trades(event_us, "X", -8, -8, transact_us, ((number, 1001, 7, number % 2 == 0),))
    return sbe.DepthSnapshot(event_us, "X", -8, -8, 99, ((1000, 10),), ())


def windows(market: Market, now_us: int) -> tuple[int, int]:
    """Counts of one and of five seconds."""
    parts = market.hot_state(now_us)[1:3]
    one, five = (int(dict(zip(part[::2], part[1::2], strict=True))["count"]) for part in parts)
    return one, five


def play(market: Market, steps: int, off_us: Callable[[int, str], int], *, look: bool = True) -> list[tuple[int, int]]:
    """Ten rounds a second of every stream, 3 ms on the way; gives the windows right after each round."""
    seen = []
    for number in range(1, steps + 1):
        now_us = T0 + number * STEP_US
        frames = []
        for kind in KINDS:
            event_us = now_us - 3_000 + off_us(number, kind)
            frames.append(message(kind, number, event_us, event_us))
        market.feed(0, batch(*frames), now_us)
        if look:
            seen.append(windows(market, now_us))
    return seen


CLEAN = play(fresh(), 200, lambda number, kind: 0)


@pytest.mark.parametrize("off_us", [HOUR_US, 240_000_000, 20_000_000, 2_000_000, -2_000_000, -20_000_000, -HOUR_US])
@pytest.mark.parametrize("kind", KINDS)
def test_one_odd_time_moves_no_window(off_us: int, kind: str) -> None:
    """A single frame of any stream, hours or seconds off: nothing but its own trade is missing, from that moment on."""
    seen = play(fresh(), 200, lambda number, of: off_us if (number, of) == (100, kind) else 0)

    assert all(clean - (kind == "trades") <= found for (_, clean), (_, found) in zip(CLEAN, seen, strict=True))
    assert all(clean - (kind == "trades") <= found for (clean, _), (found, _) in zip(CLEAN, seen, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(30, 150), st.sampled_from(["diff", "best", "depth20"])),
        st.one_of(st.integers(-2 * HOUR_US, -1_100_001), st.integers(1_100_001, 2 * HOUR_US)),
        max_size=40,
    )
)
def test_odd_times_among_sound_ones_move_no_window(odd: dict[tuple[int, str], int]) -> None:
    """Any number of odd times in streams, while another one is well: every window is what it is without them."""
    seen = play(fresh(), 200, lambda number, kind: odd.get((number, kind), 0))

    assert CLEAN == seen


@pytest.mark.parametrize("first", [1, 50])
@pytest.mark.parametrize("off_us", [HOUR_US, -HOUR_US, 30_000_000, -30_000_000, 5_000_000, -5_000_000])
def test_a_clock_that_is_set_is_followed(off_us: int, first: int) -> None:
    """When all streams jump for good, windows miss what came in about a second, and are whole six seconds later."""
    market = fresh()

    seen = play(market, 200, lambda number, kind: off_us if number >= first + 1 else 0)

    assert [] == [found for found in seen[60:] if found[1] < 35]
    assert CLEAN[130:] == seen[130:]
    assert T0 + 200 * STEP_US - 3_000 + off_us == market.event_us


@pytest.mark.parametrize("off_us", [HOUR_US, -HOUR_US])
def test_a_first_time_that_is_odd_holds_nothing(off_us: int) -> None:
    """If the very first frames are the odd ones, the others are believed within seconds."""
    market = fresh()

    seen = play(market, 200, lambda number, kind: off_us if number == 1 else 0)

    assert CLEAN[90:] == seen[90:]
    assert T0 + 200 * STEP_US - 3_000 == market.event_us


def test_a_clock_that_is_set_and_set_back() -> None:
    """An hour ahead for three seconds and back: both are followed, and the history is dated right again."""
    market = fresh()

    seen = play(market, 200, lambda number, kind: HOUR_US if 60 <= number < 90 else 0)

    assert [] == [found for found in seen[60:] if found[1] < 25]
    assert CLEAN[160:] == seen[160:]


@pytest.mark.parametrize("off_us", [2_500_000, 20_000_000, HOUR_US])
@pytest.mark.parametrize("kind", [_decoder.Market, reference_market.Market])
def test_a_line_that_is_read_after_another_moves_nothing(kind: Any, off_us: int) -> None:
    """After a pause two seconds of one line come first, then the same of the other; they begin with an odd time."""
    market = fresh(kind)
    play(market, 50, lambda number, of: 0)
    rounds = range(51, 75)

    for line in (0, 1):
        for number in rounds:
            now_us = T0 + number * STEP_US
            event_us = now_us - 3_000 + (off_us if number == 51 else 0)
            market.feed(line, batch(message("diff", number, event_us, event_us)), now_us)

    assert T0 + rounds[-1] * STEP_US - 3_000 == market.event_us


@pytest.mark.parametrize("off_us", [HOUR_US, 30_000_000, 20_000_000])
@pytest.mark.parametrize("kind", [_decoder.Market, reference_market.Market])
def test_a_wrong_time_is_not_kept_for_ever(kind: Any, off_us: int) -> None:
    """Followed with a stream that is silent from then on: no other's times have gone back, and they are right."""
    market = fresh(kind)
    for number in range(1, 30):
        now_us = T0 + number * STEP_US
        market.feed(0, batch(message("best", number, now_us + off_us, 0)), now_us)
    assert market.event_us > T0 + off_us

    for number in range(30, 100):
        now_us = T0 + number * STEP_US
        market.feed(0, batch(message("diff", number - 29, now_us - 3_000, 0)), now_us)

    assert (T0 + 99 * STEP_US - 3_000, False) == (market.event_us, market.clock_untrusted)


@pytest.mark.parametrize("kind", [_decoder.Market, reference_market.Market])
def test_a_doubt_that_nothing_agrees_with_is_forgotten(kind: Any) -> None:
    """One frame far ahead, and then a feed that has fallen behind: it is late, its clock is not in question."""
    market = fresh(kind)
    play(market, 50, lambda number, of: 0)
    at_us = T0 + 51 * STEP_US
    market.feed(0, batch(message("diff", 51, at_us + HOUR_US, 0)), at_us)
    assert market.clock_untrusted

    for number in range(52, 170):
        now_us = T0 + number * STEP_US
        market.feed(0, batch(message("best", number, now_us - 3_000 - (number - 50) * STEP_US, 0)), now_us)

    assert not market.clock_untrusted


@pytest.mark.parametrize("off_us", [HOUR_US, -HOUR_US])
def test_returns_and_the_book_s_time_go_on(off_us: int) -> None:
    """One odd best price is dated by the clock that is believed: returns and `ts_us` are those without it."""

    def told(odd: bool) -> list[tuple[str, str, str]]:
        market, out = fresh(), []
        for number in range(1, 120):
            now_us = T0 + number * STEP_US
            event_us = now_us - 3_000 + (off_us if odd and number == 60 else 0)
            market.feed(0, batch(message("best", number, event_us, 0)), now_us)
            ob, _, _, feat = (dict(zip(part[::2], part[1::2], strict=True)) for part in market.hot_state(now_us))
            out.append((ob["ts_us"], feat["ret_1s"], feat["ret_5s"]))
        return out

    clean, found = told(odd=False), told(odd=True)

    assert clean[:59] == found[:59]
    assert clean[61:69] == found[61:69]
    assert clean[111:] == found[111:]
    assert all(abs(int(a[0]) - int(b[0])) <= STEP_US for a, b in zip(clean, found, strict=True))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(-7_000_000, 3_000_000), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
    st.integers(0, 3_000_000),
)
def test_windows_take_what_belongs_in_them(ages: list[int], order: random.Random, later_us: int) -> None:
    """Trades of any times in any order of arrival and of ids: those within the window count, exactly."""
    market = fresh()
    for number in range(1, 31):  # the clock is known
        market.feed(0, batch(message("depth20", 1, T0 + number * STEP_US, 0)), T0 + number * STEP_US)
    end_us = T0 + 30 * STEP_US
    trades = [(number, end_us + age_us) for number, age_us in enumerate(ages, 1)]
    order.shuffle(trades)

    for number, at_us in trades:
        market.feed(0, batch(message("trades", number, end_us, at_us)), end_us)
    market.skip_trade_gap()
    found = windows(market, end_us + later_us)

    ends = end_us + later_us
    one, five = (
        sum(-1_000_000 <= ends - at_us <= window_us for _, at_us in trades) for window_us in (1_000_000, 5_000_000)
    )
    assert (one, five) == found


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.integers(0, 400_000),
            st.sampled_from([0, 0, 0, 0, 900_000, -900_000, HOUR_US, -HOUR_US, 20_000_000, -5_000_000]),
            st.integers(-2, 2),
            st.booleans(),
        ),
        max_size=80,
    )
)
def test_both_markets_follow_the_same_clock(steps: list[tuple[str, int, int, int, bool]]) -> None:
    """With any times, repetitions and pauses, the reference market in Python has the same times."""
    markets = [fresh(kind) for kind in (_decoder.Market, reference_market.Market)]
    now_us, off_us, numbers = T0, 0, Counter[str]()

    for kind, pause_us, jump_us, back, stays in steps:
        now_us += pause_us
        numbers[kind] += 1
        off_us = jump_us if stays else off_us
        event_us = now_us + (off_us if stays else jump_us)
        frame = batch(message(kind, max(1, numbers[kind] + min(0, back)), event_us, event_us))
        for market in markets:
            market.feed(0, frame, now_us)
        native, plain = markets

        assert (plain.event_us, plain.stamp_us) == (native.event_us, native.stamp_us)
        assert plain.hot_state(now_us + 50_000) == native.hot_state(now_us + 50_000)
        assert plain.volume_between(T0 - HOUR_US, T0 + 2 * HOUR_US) == native.volume_between(
            T0 - HOUR_US, T0 + 2 * HOUR_US
        )


def test_late_trades_in_falling_order_cost_no_more_than_others() -> None:
    """Frames full of delayed trades, newest first, behind 200,000 known ones: all are in place within a moment."""
    market = fresh()
    for start in range(0, 200_000, 50_000):
        entries = tuple((number, 1001, 1, True) for number in range(100_000 + start, 150_000 + start))
        market.feed(0, batch(sbe.Trades(T0, "X", -8, -8, T0, entries)), T0)
    falling = tuple((number, 1001, 1, True) for number in range(60_000, 0, -1))

    began_s = time.process_time()
    market.feed(0, batch(sbe.Trades(T0, "X", -8, -8, T0, falling)), T0)
    for number in range(99_999, 99_000, -1):
        market.feed(0, batch(sbe.Trades(T0, "X", -8, -8, T0, ((number, 1001, 1, True),))), T0)
    spent_s = time.process_time() - began_s

    assert 60_999 == market.counters()["trades_late"]
    assert 260_999e-8 == pytest.approx(market.volume_between(0, T0))
    assert spent_s < 1.0  # one by one it was several times that

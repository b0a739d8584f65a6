"""How far a book is known: a snapshot ends somewhere, and beyond it a level is unknown until it changes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import pytest

from sheetanchor import _decoder
from sheetanchor.policy.gap_rules import EDGE_LEVELS, HOT_LEVELS, Finding, Thresholds
from sheetanchor.process.market.gap_detector import EDGE_EVERY_US, DetectorContext, GapDetector
from sheetanchor.reanchor.comparison import common_edges
from sheetanchor.reanchor.validation import book_differences
from support.market_parts import Market, batch, diff

NOW_US = 1_700_000_000_000_000
LEVELS = 60
BIDS = [(5_000 - rank, 7) for rank in range(LEVELS)]
ASKS = [(5_001 + rank, 7) for rank in range(LEVELS)]


def cut_off_at(make: Any, cut_off: int) -> Market:
    market = make("BTCUSDT")
    market.load_snapshot(100, -2, -5, BIDS, ASKS, NOW_US, cut_off)
    return market


@pytest.mark.parametrize(
    ("cut_off", "edges"),
    [(0, (0, 0)), (LEVELS, (4_941, 5_060)), (LEVELS - 1, (4_941, 5_060)), (LEVELS + 1, (0, 0))],
)
def test_a_side_as_long_as_was_asked_for_was_cut_off(make: Any, cut_off: int, edges: tuple[int, int]) -> None:
    """A shorter side is known completely; a side has no edge if the requested number of levels is not known."""
    market = cut_off_at(make, cut_off)

    assert edges == (market.bid_edge, market.ask_edge)
    assert 25 == market.known_levels(25)


def test_one_side_may_be_whole(make: Any) -> None:
    """A thin side is known to its end beside one that is not."""
    market = make("BTCUSDT")
    market.load_snapshot(100, -2, -5, BIDS, ASKS[:3], NOW_US, LEVELS)

    assert (4_941, 0) == (market.bid_edge, market.ask_edge)
    assert 25 == market.known_levels(25)


def test_levels_beyond_the_edge_are_not_known(make: Any) -> None:
    """Diffs bring some levels beyond the edge; those between remain unknown."""
    market = cut_off_at(make, LEVELS)
    fallen = [(price, 0) for price, _ in BIDS[:52]]
    market.feed(0, batch(diff(101, 101, [*fallen, (4_900, 1), (4_800, 1)])), NOW_US)

    assert 8 == market.known_levels(EDGE_LEVELS)
    assert 4_941 == market.bid_edge


def test_a_new_snapshot_moves_the_edge(make: Any) -> None:
    """What it holds is known, whatever was before."""
    market = cut_off_at(make, LEVELS)
    market.load_snapshot(200, -2, -5, BIDS[5:], ASKS[:4], NOW_US, LEVELS - 5)

    assert (4_941, 0) == (market.bid_edge, market.ask_edge)


def test_finer_prices_move_the_edge_along(make: Any) -> None:
    """An exponent that becomes finer multiplies it as it does levels."""
    market = cut_off_at(make, LEVELS)
    market.load_snapshot(200, -3, -5, [(50_000, 1)], [(50_010, 1)], NOW_US, 9)
    assert (0, 0) == (market.bid_edge, market.ask_edge)

    market = cut_off_at(make, LEVELS)
    market.feed(0, batch(replace(diff(101, 101, [(50_000, 9)]), price_exponent=-3)), NOW_US)
    assert (49_410, 50_600) == (market.bid_edge, market.ask_edge)
    assert EDGE_LEVELS == market.known_levels(EDGE_LEVELS)


def test_the_edge_is_packed(make: Any) -> None:
    """A processor that takes over knows no more than the one before it."""
    market, other = cut_off_at(make, LEVELS), make("BTCUSDT")
    other.load_book(market.pack_book(1, {}))

    assert (4_941, 5_060) == (other.bid_edge, other.ask_edge)


def test_the_layout_before_is_read(make: Any) -> None:
    """A book that an older version has packed contains no edge."""
    body = cut_off_at(make, LEVELS).pack_book(7, {"a": "1-0"})[:-4]
    older = body[:4] + struct.pack("<H", 1) + body[6:88] + body[112:]
    market = make("BTCUSDT")

    assert (7, {"a": "1-0"}) == market.load_book(older + struct.pack("<I", zlib.crc32(older)))
    assert (0, 0, (BIDS, ASKS)) == (market.bid_edge, market.ask_edge, market.levels())


# The rules


def check(detector: GapDetector, market: Market, at_us: int) -> list[Finding]:
    return detector.apply_rules(market, DetectorContext(at_us, at_us, 0b1, caught_up=True))


def fall(market: Market, levels: range) -> None:
    """Take away bids, best first."""
    for rank in levels:
        update = market.update_id + 1
        market.feed(0, batch(diff(update, update, [(BIDS[rank][0], 0), (4_000 - rank, 1)])), NOW_US)


def test_it_is_told_before_the_hot_levels_are_unknown() -> None:
    """`book_edge` requests a snapshot while the state is right, `book_beyond` makes it suspect; each once."""
    market = cut_off_at(_decoder.Market, LEVELS)
    detector = GapDetector(Thresholds(), NOW_US)
    step_us = EDGE_EVERY_US

    assert [] == check(detector, market, NOW_US)
    fall(market, range(LEVELS - EDGE_LEVELS))
    assert [] == check(detector, market, NOW_US + step_us)
    fall(market, range(LEVELS - EDGE_LEVELS, LEVELS - EDGE_LEVELS + 1))
    assert [] == check(detector, market, NOW_US + step_us + 1)  # counted only every so often
    (near,) = check(detector, market, NOW_US + 2 * step_us)
    assert ("book_edge", True) == (near.rule, "only 19 are within" in near.reason)
    assert [] == check(detector, market, NOW_US + 3 * step_us)

    fall(market, range(LEVELS - EDGE_LEVELS + 1, LEVELS - HOT_LEVELS))
    assert [] == check(detector, market, NOW_US + 4 * step_us)
    fall(market, range(LEVELS - HOT_LEVELS, LEVELS - HOT_LEVELS + 1))
    assert ["book_beyond"] == [one.rule for one in check(detector, market, NOW_US + 5 * step_us)]
    assert [] == check(detector, market, NOW_US + 6 * step_us)


def test_a_price_that_swings_about_the_edge_is_told_once() -> None:
    """Each finding requests a rebuild, so reporting one ten times a second would be as many requests."""
    market = cut_off_at(_decoder.Market, LEVELS)
    detector = GapDetector(Thresholds(), NOW_US)
    fall(market, range(LEVELS - EDGE_LEVELS))
    told = []
    for turn in range(10):
        update, best = market.update_id + 1, BIDS[LEVELS - EDGE_LEVELS][0]
        market.feed(0, batch(diff(update, update, [(best, turn % 2 * 7)])), NOW_US)
        told += [one.rule for one in check(detector, market, NOW_US + (turn + 1) * EDGE_EVERY_US)]

    assert ["book_edge"] == told


def test_a_rebuilt_book_is_looked_at_anew() -> None:
    """Findings about the book before the rebuild are reported again for the rebuilt one."""
    market = cut_off_at(_decoder.Market, LEVELS)
    fall(market, range(LEVELS - 15))
    detector = GapDetector(Thresholds(), NOW_US)
    assert ["book_edge"] == [one.rule for one in check(detector, market, NOW_US)]

    detector.reload(market, NOW_US + 1)
    assert ["book_edge"] == [one.rule for one in check(detector, market, NOW_US + 2)]


def test_a_whole_book_has_no_edge() -> None:
    """A thin market may have fewer levels than are looked at: all of them are known."""
    market = _decoder.Market("BTCUSDT")
    market.load_snapshot(100, -2, -5, BIDS[:4], ASKS[:4], NOW_US, LEVELS)

    assert [] == check(GapDetector(Thresholds(), NOW_US), market, NOW_US)


def test_a_snapshot_of_few_levels_is_always_near_its_edge() -> None:
    """Another snapshot of twenty levels would not reach further, so neither rule applies."""
    market = _decoder.Market("BTCUSDT")
    market.load_snapshot(100, -2, -5, BIDS[:EDGE_LEVELS], ASKS[:EDGE_LEVELS], NOW_US, EDGE_LEVELS)
    fall(market, range(15))

    assert 5 == market.known_levels(EDGE_LEVELS)
    assert [] == check(GapDetector(Thresholds(), NOW_US), market, NOW_US)


# The comparison


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ((0, 0), (0, 0), (0, 0)),
        ((90, 110), (0, 0), (90, 110)),
        ((0, 0), (90, 110), (90, 110)),
        ((95, 120), (90, 110), (95, 110)),
    ],
)
def test_two_books_know_what_both_do(one: tuple[int, int], other: tuple[int, int], common: tuple[int, int]) -> None:
    """The nearer edge counts; a side without one is known whole."""
    assert common == common_edges(one, other)


def test_what_one_of_them_does_not_know_is_not_compared() -> None:
    """A level that the live book's snapshot did not hold is no difference; one that it did hold is."""
    held = [level for level in BIDS if level[0] != 4_975]
    told = ["bids: expected 26 levels, found 25"]

    assert [] == book_differences((held, ASKS), (BIDS, ASKS), edges=(4_976, 0))
    assert told == book_differences((held, ASKS), (BIDS, ASKS), edges=(4_975, 0))
    short = [level for level in ASKS if level[0] != 5_025]
    assert [] == book_differences((BIDS, short), (BIDS, ASKS), edges=(0, 5_024))
    assert [] != book_differences((BIDS, short), (BIDS, ASKS), edges=(0, 5_025))

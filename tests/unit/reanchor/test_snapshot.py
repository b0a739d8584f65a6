"""What a snapshot's answers say together."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor.reanchor.snapshot import Snapshot, build, limits_of, references
from sheetanchor.venue import Depth, Kline, Ticker, Trade

NOW_US = 1_726_700_000_000_000
SECOND_US = 1_000_000
ONE = 10**8
BOOK = Depth(500, [(100 * ONE - at, ONE) for at in range(50)], [(100 * ONE + 1 + at, ONE) for at in range(50)])


def trade(trade_id: int, age_s: float, price: int = 100) -> Trade:
    return Trade(trade_id, price * ONE, ONE, NOW_US - round(age_s * SECOND_US), False)


def candle(age_s: float, price: int = 100) -> Kline:
    """A minute's candle that began so long ago."""
    open_us = NOW_US - round(age_s * SECOND_US)
    return Kline(open_us, *[price * ONE] * 4, open_us + 60 * SECOND_US - 1)


def snapshot(**changes: Any) -> Snapshot:
    plain: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "depth": BOOK,
        "depth_limit": 100,
        "trades": (trade(7, 1),),
        "klines": (candle(30),),
        "ticker": Ticker(100 * ONE, 100 * ONE, 100 * ONE + 1, NOW_US),
        "asked_us": NOW_US,
        "heard_us": NOW_US,
    }
    return Snapshot(**plain | changes)


def test_trades_of_ten_minutes_are_kept() -> None:
    """A trade of 599.9 s ago is recent, one of 600.1 s ago is not: it sets no price and is not replayed."""
    old, edge, new = trade(5, 600.1, price=70), trade(6, 599.9, price=90), trade(7, 0.4)
    whole = snapshot(trades=(old, edge, new))

    reported = references(whole)

    assert (edge, new) == whole.recent_trades
    assert (90.0, 100.0) == (reported.trade_price_min, reported.trade_price_max)


def test_the_last_trade_says_which_id_comes_next() -> None:
    """However old it is; without any trade the first one of a line begins."""
    assert 7 == build(snapshot(trades=(trade(7, 86_400),))).trade_id
    assert -1 == build(snapshot(trades=())).trade_id


@pytest.mark.parametrize(
    ("changes", "new", "old"),
    [
        ({}, {"last trades", "kline", "ticker"}, set()),
        ({"trades": (trade(7, 59.9),), "klines": (candle(59.9),)}, {"last trades", "kline", "ticker"}, set()),
        ({"trades": (trade(7, 60.1),)}, {"ticker"}, {"last trades", "kline"}),
        ({"trades": (trade(7, 45),)}, {"last trades", "ticker"}, {"kline"}),
        ({"klines": (candle(14_400),)}, {"last trades", "ticker"}, {"kline"}),
        ({"klines": ()}, {"last trades", "ticker"}, set()),
        ({"trades": (), "klines": (candle(30),)}, {"ticker"}, {"kline"}),
        ({"ticker": Ticker(100 * ONE, None, None, NOW_US)}, {"last trades", "kline", "ticker"}, set()),
        (
            {"ticker": Ticker(100 * ONE, None, None, NOW_US), "trades": (trade(7, 3600),)},
            {"last trades", "kline", "ticker"},
            set(),
        ),
        ({"ticker": Ticker(0, None, None, NOW_US), "trades": (), "klines": ()}, set(), set()),
    ],
)
def test_references_have_an_age(changes: dict[str, Any], new: set[str], old: set[str]) -> None:
    """A recent price is compared with a book; a candle without a trade repeats an old one; quotes are recent.

    Old prices are used only if there are no recent ones.
    """
    reported = references(snapshot(**changes))

    assert (new, old) == (set(reported.prices), set(reported.old))


def test_a_side_that_was_cut_off_must_have_every_hot_level() -> None:
    """Fewer levels than were asked for are all there are; as many as were asked for are not."""
    thin, thinner = Depth(500, BOOK.bids[:3], BOOK.asks[:3]), Depth(500, BOOK.bids[:3], BOOK.asks[:2])
    cases = [snapshot(depth=thin), snapshot(depth_limit=50), snapshot(depth=thinner, depth_limit=3)]
    limits = [limits_of(case, 0.1) for case in cases]

    assert [(1, 1), (10, 10), (3, 1)] == [(limit.bids_min, limit.asks_min) for limit in limits]

"""The shipped recording through the native market and the plain one: the same at every checkpoint, to the byte."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from sheetanchor import _decoder, sbe
from sheetanchor.contract import pack_frames
from sheetanchor.recording import recording_file
from support import reference_market

# Long enough for the book's rows to be laid and for the market to move on; the plain market takes 50 µs a message.
MESSAGES = 12_000
CHECKPOINT = 250
TICK = 10**6
"""Of the recording, in mantissas: one cent at eight decimals."""


@cache
def recording() -> recording_file.Recording:
    return recording_file.load(recording_file.default_path())


def repriced(message: sbe.Message, price: Any, exponent: int) -> sbe.Message:
    """The message with every price changed."""
    if isinstance(message, sbe.Trades):
        trades = tuple((trade_id, price(p), qty, maker) for trade_id, p, qty, maker in message.trades)
        return replace(message, price_exponent=exponent, trades=trades)
    if isinstance(message, sbe.BestBidAsk):
        bid, ask = price(message.bid_price), price(message.ask_price)
        return replace(message, price_exponent=exponent, bid_price=bid, ask_price=ask)
    bids, asks = (tuple((price(p), qty) for p, qty in side) for side in (message.bids, message.asks))
    return replace(message, price_exponent=exponent, bids=bids, asks=asks)


def one_unit(price: int) -> int:
    """A tick of one mantissa unit."""
    return price // TICK


def wide(price: int) -> int:
    """A tick so large that the market's prices are nearly as large as may be."""
    return price // TICK * 10**11


@pytest.mark.parametrize(("change", "exponent"), [(int, -8), (one_unit, -2), (wide, -13)])
def test_the_recorded_market_is_the_same_in_both(change: Any, exponent: int) -> None:
    """Hot fields, packed book, counters and positions agree at every checkpoint, at three ticks."""
    taken = recording()
    book = taken.snapshot
    markets = _decoder.Market(taken.symbol), reference_market.Market(taken.symbol)
    sides = [[(change(price), qty) for price, qty in side] for side in (book.bids, book.asks)]
    for market in markets:
        market.load_snapshot(book.book_update_id, exponent, book.qty_exponent, *sides, 0, 1000)
    frames = [(at, sbe.encode(repriced(sbe.decode(frame), change, exponent))) for at, frame in taken.events[:MESSAGES]]

    for start in range(0, MESSAGES, CHECKPOINT):
        entry = pack_frames(frames[start : start + CHECKPOINT])
        native, plain = (observed(market, entry, start) for market in markets)

        assert plain == native, start


def observed(market: Any, entry: bytes, stamp_us: int) -> dict[str, object]:
    """What a market holds after an entry."""
    market.feed(0, entry, stamp_us)
    return {
        "hot": market.hot_state(stamp_us),
        "packed": market.pack_book(1, {"a": "1-0"}),
        "counters": market.counters(),
        "newest_messages": market.newest_messages(),
        "known": market.known_levels(2000),
        "best": (market.quoted_best, market.best_confirmed, market.mid, market.crossed),
    }

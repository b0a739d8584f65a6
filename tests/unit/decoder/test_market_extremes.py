"""The ends of what the wire can carry: every number of every message, and sums of the largest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor import _decoder, sbe
from support import reference_market
from support.market_parts import Market, batch, counted

T0 = 1_790_000_000_000_000
CAP = 2**63 - 1
"""At eight decimals 92,233,720,368.54775807, the largest quantity that the exchange documents."""

MESSAGES: dict[str, sbe.Message] = {
    "diff": sbe.DepthDiff(T0, "X", -8, -8, 101, 101, ((999, 5),), ((1003, 5),)),
    "best": sbe.BestBidAsk(T0, "X", -8, -8, 101, 1000, 5, 1001, 6),
    "trades": sbe.Trades(T0, "X", -8, -8, T0, ((1, 1000, 5, True),)),
    "depth20": sbe.DepthSnapshot(T0, "X", -8, -8, 100, ((1000, 10),), ((1001, 10),)),
}
EDGES = sorted(
    {sign * (2**bit + off) for bit in (0, 52, 61, 62, 63) for off in (-1, 0, 1) for sign in (1, -1)} | {0, 1000, T0}
)
NUMBERS = [edge for edge in EDGES if -(2**63) <= edge <= CAP]
EXPONENTS = [-128, -19, -18, -9, -8, -7, 0, 18, 19, 127]


def made(kind: Any, exponents: tuple[int, int] = (-8, -8)) -> Market:
    market = kind("X")
    market.load_snapshot(100, *exponents, [(1000, 10)], [(1001, 10)], T0)
    return market


def told(market: Market) -> list[str]:
    """All texts of the hot state at a moment."""
    return [text for part in market.hot_state(T0) for text in part]


def variants(message: sbe.Message) -> Iterator[sbe.Message]:
    """The message with each of its numbers at each edge, one at a time."""
    for part in fields(message):
        value = getattr(message, part.name)
        if part.name.endswith("exponent"):
            yield from (replace(message, **{part.name: edge}) for edge in EXPONENTS)
        elif type(value) is int and part.name != "trailing_bytes":
            yield from (replace(message, **{part.name: edge}) for edge in NUMBERS)
        elif isinstance(value, tuple):
            (entry,) = value
            numbers = [at for at, number in enumerate(entry) if type(number) is int]
            for at, edge in product(numbers, NUMBERS):
                yield replace(message, **{part.name: ((*entry[:at], edge, *entry[at + 1 :]),)})


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_every_number_at_every_edge(name: str) -> None:
    """With numbers at both ends of their type the frame is accepted or counted, and both markets agree."""
    for message in variants(MESSAGES[name]):
        native, plain = made(_decoder.Market), made(reference_market.Market)
        for market in (native, plain):
            market.feed(0, batch(message), T0)

        assert counted(plain) == counted(native), message
        assert plain.levels() == native.levels(), message
        assert plain.hot_state(T0) == native.hot_state(T0), message
        assert all(math.isfinite(float(text)) for text in told(native)[1::2]), message


@pytest.mark.parametrize("qty", [23_058_430_093 * 10**8, 46_116_860_414 * 10**8, 2**61, 2**61 + 1, 2**62, CAP])
@pytest.mark.parametrize("price", [1, 1000, 61_855 * 10**8, 2 * 10**9 * 10**8 // 100])
def test_documented_quantities_are_held(qty: int, price: int) -> None:
    """A diff, best prices, a trade, a snapshot and a packed book with quantities up to the wire's largest."""
    market = _decoder.Market("X")
    market.load_snapshot(100, -8, -8, [(price, qty)], [(price + 1, qty)], T0)
    frames = [
        sbe.DepthDiff(T0, "X", -8, -8, 101, 101, ((price, qty),), ((price + 2, qty),)),
        sbe.BestBidAsk(T0, "X", -8, -8, 102, price, qty, price + 1, qty),
        sbe.Trades(T0, "X", -8, -8, T0, ((1, price, qty, True), (2, price, qty, False))),
        sbe.DepthSnapshot(T0, "X", -8, -8, 101, ((price, qty),), ((price + 1, qty), (price + 2, qty))),
    ]

    market.feed(0, batch(*frames), T0)
    other = _decoder.Market("X")
    other.load_book(market.pack_book(1, {}))

    assert {"frames", "diffs_applied", "bba_applied", "trades_applied", "depth20_checked"} == set(counted(market))
    assert (101, 102, 2) == (market.update_id, market.bba_id, market.trade_id)
    assert market.levels() == other.levels() == ([(price, qty)], [(price + 1, qty), (price + 2, qty)])
    ob, _, five, feat = (dict(zip(part[::2], part[1::2], strict=True)) for part in market.hot_state(T0))
    assert f"{qty // 10**8}.{qty % 10**8:08d}" == ob["bid1_q"]
    assert (float(2 * qty) / 1e8, "0.0", "0.0") == (float(five["vol"]), five["signed_vol"], feat["vol_imbalance"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2**30, 2**56, 2**56 - 1]), st.sampled_from([1, 2**40, CAP - 1, CAP])),
        min_size=1,
        max_size=400,
    )
)
def test_sums_of_the_largest_are_exact(trades: list[tuple[int, int]]) -> None:
    """Volume and notional of a window are the exact sums, rounded once, however large each trade is."""
    market = made(_decoder.Market)
    entries = tuple((at, price, qty, True) for at, (price, qty) in enumerate(trades, 1))

    market.feed(0, batch(sbe.Trades(T0, "X", -8, -8, T0, entries)), T0)

    five = dict(zip(market.hot_state(T0)[2][::2], market.hot_state(T0)[2][1::2], strict=True))
    assert len(trades) == int(five["count"])
    volume, notional = sum(qty for _, qty in trades), sum(price * qty for price, qty in trades)
    assert float(volume) / 1e8 == float(five["vol"]) == -float(five["signed_vol"])
    assert float(notional) / 1e16 == float(five["notional"])
    assert float(Fraction(notional, volume * 10**8)) == pytest.approx(float(five["vwap"]), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 2**56), st.integers(CAP - 9, CAP)), min_size=1, max_size=10, unique_by=lambda x: x[0]
    ),
    st.lists(
        st.tuples(st.integers(1, 2**56), st.integers(CAP - 9, CAP)), min_size=1, max_size=10, unique_by=lambda x: x[0]
    ),
)
def test_value_sums_are_exact(bids: list[tuple[int, int]], asks: list[tuple[int, int]]) -> None:
    """Ten levels a side at the largest quantities: their values, and by how much one side outweighs the other."""
    markets = [kind("X") for kind in (_decoder.Market, reference_market.Market)]
    for market in markets:
        market.load_snapshot(1, -8, -8, bids, asks, T0)

    assert markets[1].hot_state(T0) == markets[0].hot_state(T0)


@pytest.mark.parametrize(("qty", "finer"), list(product([CAP, CAP // 10, CAP // 10 + 1], [-9])))
def test_a_finer_frame_leaves_a_full_market_as_it_is(qty: int, finer: int) -> None:
    """What a market holds is either brought to a finer exponent exactly or not touched at all."""
    market = made(_decoder.Market)
    market.feed(0, batch(sbe.DepthDiff(T0, "X", -8, -8, 101, 101, ((999, qty),), ())), T0)

    market.feed(0, batch(sbe.DepthDiff(T0, "X", -8, finer, 102, 102, ((998, 5),), ())), T0)

    fits = qty * 10 <= CAP
    assert (102 if fits else 101, int(not fits)) == (market.update_id, market.counters()["bad_value"])
    assert (qty * 10 if fits else qty) in [held for _, held in market.levels()[0]]

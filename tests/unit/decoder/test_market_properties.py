"""Random markets: the native one and the plain Python one must agree, whatever two lines do."""

from __future__ import annotations

import statistics
import struct
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor import _decoder, sbe
from support import reference_market

T0 = 1_726_700_000_000_000
READABLE = [
    "update_id",
    "bba_id",
    "trade_id",
    "last_seen_update_id",
    "event_us",
    "stamp_us",
    "has_book",
    "mid",
    "last_trade_price",
    "crossed",
    "depth_gap",
    "trade_gap",
    "cut_off",
    "bid_edge",
    "ask_edge",
    "price_exponent",
    "qty_exponent",
    "quoted_best",
    "best_confirmed",
    "clock_steps",
    "clock_untrusted",
    "misdated_trades",
]
Market = Any
Step = Callable[[Market], object]


def batch(frames: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Iq", len(frame), 0) + frame for frame in frames)


def state(market: Market) -> dict[str, object]:
    """Everything that can be read off a market."""
    out: dict[str, object] = {name: getattr(market, name) for name in READABLE}
    out |= {"levels": market.levels(), "counters": market.counters(), "known": market.known_levels(4)}
    out["newest_messages"] = market.newest_messages()
    out["missing"] = [
        market.missing_trades(market.stamp_us + 700_000, span_us) for span_us in (0, 1_000_000, 5_000_000)
    ]
    out["volume"] = market.volume_between(T0, T0 + 10_000_000)
    try:
        out["hot"] = market.hot_state(market.stamp_us + 700_000)
    except ValueError as error:
        out["hot"] = str(error)
    return out


def run(step: Step, market: Market) -> object:
    """What a step answers, or that it refused."""
    try:
        return step(market)
    except ValueError:
        return ValueError


def pair() -> tuple[Market, Market]:
    return _decoder.Market("X"), reference_market.Market("X")


PRICES = st.integers(90, 110)
QTYS = st.integers(0, 3)
SNAPSHOT = [(100, 1), (99, 2)], [(101, 5), (107, 1), (106, 2)]
LEVELS = st.lists(st.tuples(PRICES, QTYS), max_size=5)
EXPONENTS = st.sampled_from([(-2, -3), (-2, -3), (-2, -3), (-2, -3), (-1, -3), (-3, -5), (0, 0)])


@st.composite
def feeds(draw: st.DrawFn) -> list[bytes]:
    """A feed as the exchange sends it: diffs without gaps, consecutive trades, best prices in between."""
    frames = []
    best: dict[int, tuple[tuple[int, int], list[int]]] = {}
    update, trade, at = 100, 500, T0
    for _ in range(draw(st.integers(1, 25))):
        at += draw(st.integers(0, 900_000))
        exponents = draw(EXPONENTS)
        kind = draw(st.integers(0, 3))
        if kind == 0:
            first, update = update + 1, update + draw(st.integers(1, 4))
            sides = draw(LEVELS), draw(LEVELS)
            frames.append(sbe.DepthDiff(at, "X", *exponents, first, update, *map(tuple, sides)))
        elif kind == 1:
            count = draw(st.integers(0, 3))
            entries = [(trade + n, draw(PRICES), draw(QTYS) + 1, draw(st.booleans())) for n in range(count)]
            trade += count
            frames.append(sbe.Trades(at, "X", *exponents, at - draw(st.integers(0, 500)), tuple(entries)))
        elif kind == 2:
            told = update + draw(st.integers(-2, 3))
            # For one update the exchange sends one pair of prices, however often it does.
            exponents, (bid, ask) = best.setdefault(told, (exponents, sorted((draw(PRICES), draw(PRICES)))))
            frames.append(sbe.BestBidAsk(at, "X", *exponents, told, bid, 1, ask, 2))
        else:
            frames.append(sbe.DepthSnapshot(at, "X", *exponents, update, tuple(draw(LEVELS)), ()))
    return [sbe.encode(frame) for frame in frames]


@st.composite
def two_lines(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Two copies of one feed with drops, repeats and damage, in any interleaving."""
    feed = draw(feeds())
    arrivals = []
    for line in (0, 1):
        for place, frame in enumerate(feed):
            fate = draw(st.sampled_from(["kept"] * 7 + ["dropped", "twice", "damaged"]))
            if fate == "damaged":
                at = draw(st.integers(0, len(frame) - 1))
                frame = frame[:at] + bytes([draw(st.integers(0, 255))]) + frame[at + 1 :]
            if fate != "dropped":
                arrivals += [(place + draw(st.integers(0, 6)), line, frame)] * (2 if fate == "twice" else 1)
    return [(line, frame) for _, line, frame in sorted(arrivals, key=lambda arrival: arrival[0])]


@settings(max_examples=150, deadline=None)
@given(two_lines(), st.sets(st.integers(0, 40), max_size=4), st.integers(0, 60), st.integers(0, 4))
def test_both_markets_agree(arrivals: list[tuple[int, bytes]], skips: set[int], loaded_at: int, cut_off: int) -> None:
    """After every arrival, skip and load both markets read the same, to the last digit."""
    markets = pair()

    for place, (line, frame) in enumerate(arrivals):
        steps: list[Step] = [lambda m, f=frame, n=line, p=place: m.feed(n, batch([f]), p * 1000)]  # type: ignore[misc]  # bound now
        if place == loaded_at % (len(arrivals) + 3):
            steps.insert(0, lambda m: m.load_snapshot(102, -2, -3, *SNAPSHOT, 5, cut_off))
        if place in skips:
            steps += [lambda m: m.skip_depth_gap(), lambda m: m.skip_trade_gap()]
        for step in steps:
            native, plain = (run(step, market) for market in markets)

            assert plain == native
            assert state(markets[1]) == state(markets[0])


@settings(max_examples=60, deadline=None)
@given(feeds(), st.lists(st.sampled_from([0, 1]), min_size=25, max_size=25), st.data())
def test_two_lines_lose_nothing(feed: list[bytes], homes: list[int], data: st.DataObject) -> None:
    """Each frame by either line, the other late by a few, gives the same end as one whole line."""
    whole, merged = _decoder.Market("X"), _decoder.Market("X")
    for market in (whole, merged):
        market.load_snapshot(100, -3, -5, [(90000, 100)], [(111000, 100)], 0)
    late = [(place + data.draw(st.integers(0, 4)), place) for place in range(len(feed))]

    whole.feed(0, batch(feed), 0)
    for place, frame in enumerate(feed):
        if homes[place] == 0:
            merged.feed(0, batch([frame]), 0)
        for arrival, index in late:
            if arrival == place and homes[index] == 1:
                merged.feed(1, batch([feed[index]]), 0)
    merged.feed(1, batch(feed), 0)

    assert (None, None) == (merged.depth_gap, merged.trade_gap)
    assert (whole.levels(), whole.update_id, whole.trade_id) == (merged.levels(), merged.update_id, merged.trade_id)
    assert whole.hot_state(0)[1:3] == merged.hot_state(0)[1:3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LEVELS, LEVELS), max_size=30), st.integers(1, 12))
def test_books_stay_sorted(changes: list[tuple[Any, Any]], spread: int) -> None:
    """Sides stay sorted with positive quantities, whatever order changes come in and how far apart they are."""
    market = _decoder.Market("X")
    market.load_snapshot(0, 0, 0, [], [], 0)
    kept: tuple[dict[int, int], dict[int, int]] = {}, {}

    for update, sides in enumerate(changes, 1):
        sides = tuple(tuple((price * spread, qty) for price, qty in side) for side in sides)
        for side, levels in zip(kept, sides, strict=True):
            side.update(levels)
        market.feed(0, batch([sbe.encode(sbe.DepthDiff(T0, "X", 0, 0, update, update, *sides))]), 0)

        bids, asks = ({price: qty for price, qty in side.items() if qty} for side in kept)
        assert (sorted(bids.items(), reverse=True), sorted(asks.items())) == market.levels()


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(50, 3000), st.sampled_from([5, 40, 400]))
def test_deep_books(random: Any, depth: int, reach: int) -> None:
    """Books of thousands of levels keep every change, near the best and far out."""
    market = _decoder.Market("X")
    bids = {price: 1 for price in range(20_000, 20_000 - 3 * depth, -3)}
    market.load_snapshot(0, 0, 0, list(bids.items()), [(20_001, 1)], 0)

    for update in range(1, 60):
        centre = random.choice([20_000, 20_000 - random.randrange(3 * depth)])
        prices = {centre - random.randrange(reach) for _ in range(random.randrange(40))}
        levels = [(price, random.choice([0, 0, 1, 2])) for price in sorted(prices, reverse=random.random() < 0.8)]
        levels = [(price, qty) for price, qty in levels if price > 0]
        bids.update(levels)
        market.feed(0, batch([sbe.encode(sbe.DepthDiff(T0, "X", 0, 0, update, update, tuple(levels), ()))]), 0)

    bids = {price: qty for price, qty in bids.items() if qty}
    assert sorted(bids.items(), reverse=True) == market.levels()[0]


def test_a_full_side_forgets_its_outermost_levels() -> None:
    """A side of 32,768 levels drops its outermost sixteenth when another comes, and never the best."""
    market = _decoder.Market("X")
    market.load_snapshot(0, 0, 0, [(price, 1) for price in range(1, 32769)], [(40_000, 1)], 0)

    market.feed(0, batch([sbe.encode(sbe.DepthDiff(T0, "X", 0, 0, 1, 1, ((32_769, 1),), ()))]), 0)

    bids = market.levels()[0]
    assert (32768 * 15 // 16, 32_769, 32_769 - 32768 * 15 // 16 + 1) == (len(bids), bids[0][0], bids[-1][0])


@settings(max_examples=80, deadline=None)
@given(
    feeds(), st.integers(-(2**63), 2**63 - 1), st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4)
)
def test_packing_is_lossless(feed: list[bytes], epoch: int, line_ids: dict[str, str]) -> None:
    """Any market's book comes back from its packed form, and both kinds of market pack it alike."""
    native, plain = pair()
    for market in (native, plain):
        market.load_snapshot(100, -2, -3, [(99, 1)], [(101, 5)], 5)
        market.feed(0, batch(feed), 9)

    blob = native.pack_book(epoch, line_ids)
    other = _decoder.Market("X")
    loaded = other.load_book(blob)

    assert plain.pack_book(epoch, line_ids) == blob
    assert (epoch, line_ids) == loaded
    assert (blob, native.levels()) == (other.pack_book(*loaded), other.levels())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_crash_a_load(blob: bytes, marked: bool) -> None:
    """Arbitrary bytes are no packed book: a ValueError, never anything else."""
    market = _decoder.Market("X")

    assert ValueError is run(lambda m: m.load_book(b"SAbk\1\0" * marked + blob), market)
    assert not market.has_book


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e9), st.integers(-18, 18), st.integers(-18, 18))
def test_numbers_read_back(value: float, price_exponent: int, qty_exponent: int) -> None:
    """Level texts are exact decimals at every exponent, and computed values the shortest that read back."""
    markets = pair()
    price, qty = int(value) + 1, int(value * 7) % 1000 + 1

    for market in markets:
        market.load_snapshot(1, price_exponent, qty_exponent, [(price, qty)], [(price + 3, qty)], 0)

    assert markets[1].hot_state(0) == markets[0].hot_state(0)


PAST = st.lists(
    st.tuples(st.integers(0, 600_000), st.integers(1, 10**9), st.integers(1, 10**9), st.booleans()), max_size=30
)


@settings(max_examples=150, deadline=None)
@given(PAST, st.sampled_from([(1_000_000, 1), (5_000_000, 2)]), st.integers(0, 2_000_000))
def test_windows_follow_their_formulae(past: list[tuple[int, int, int, bool]], which: Any, later_us: int) -> None:
    """Statistics of a window are those of the textbook, in fractions, over the trades inside."""
    market, at, inside = _decoder.Market("X"), T0, []
    market.load_snapshot(1, -2, -3, [(5, 1)], [(7, 1)], 0)
    for trade_id, (gap_us, price, qty, maker) in enumerate(past):
        at += gap_us
        inside.append((at, Fraction(price, 100), Fraction(qty, 1000), maker))
        market.feed(0, batch([sbe.encode(sbe.Trades(at, "X", -2, -3, at, ((trade_id, price, qty, maker),)))]), 0)
    inside = [trade for trade in inside if at + later_us - trade[0] <= which[0]]

    fields = market.hot_state(later_us if past else T0)[which[1]]

    volume = sum(qty for _, _, qty, _ in inside)
    notional = sum(price * qty for _, price, qty, _ in inside)
    signed = sum(-qty if maker else qty for _, _, qty, maker in inside)
    gaps = [Fraction(b[0] - a[0], 10**6) for a, b in pairwise(inside)]
    expected = {
        "count": len(inside),
        "vol": volume,
        "signed_vol": signed,
        "notional": notional,
        "vwap": notional / volume if inside else 0,
        "vwap_minus_mid": notional / volume - Fraction(6, 100) if inside else 0,
        "avg_trade_size": volume / len(inside) if inside else 0,
        "interarr_mean": statistics.mean(gaps) if gaps else 0,
        "interarr_var": statistics.pvariance(gaps) if gaps else 0,
    }
    found = dict(zip(fields[::2], map(float, fields[1::2]), strict=True))
    assert {name: float(value) for name, value in expected.items()} == pytest.approx(
        {name: found[name] for name in expected}, rel=1e-12, abs=1e-9
    )


def test_history_stays_bounded() -> None:
    """An hour of trades leaves two minutes of them."""
    market = _decoder.Market("X")
    for second in range(3600):
        at = T0 + second * 1_000_000
        market.feed(0, batch([sbe.encode(sbe.Trades(at, "X", 0, 0, at, ((second + 1, 1, 1, True),)))]), 0)

    assert 121.0 == market.volume_between(0, 2**52 - 1)

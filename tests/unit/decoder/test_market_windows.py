"""Windows, features and packed books, on the native market and on the plain Python one."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest

from sheetanchor import _decoder
from support import reference_market
from support.market_parts import T0, Market, batch, best, diff, hot, native_market, trades

# --- windows and features


def test_window_statistics(market: Market) -> None:
    """Count, volumes, notional, vwap, intensity and inter-arrival of a window follow their formulae."""
    for n, (offset_us, price, qty, maker) in enumerate(
        [(0, 10000, 100000, False), (100_000, 10100, 200000, True), (300_000, 10000, 100000, False)], 1
    ):
        market.feed(0, batch(trades((n, price, qty, maker), at=T0 + offset_us)), 1000)

    one = hot(market)[1]

    expected = {
        "count": 3,
        "vol": 4,
        "volume": 4,
        "signed_vol": 0,
        "signed_volume": 0,
        "notional": 402,
        "buy_volume": 2,
        "sell_volume": 2,
        "vwap": 100.5,
        "vwap_minus_mid": 100.5 - 59786.775,
        "trade_intensity": 3,
        "avg_trade_size": 4 / 3,
        "interarr_mean": 0.15,
        "interarr_var": 0.0025,
        "last_ts_us": T0 + 300_000,
    }
    assert expected == pytest.approx({name: float(value) for name, value in one.items()}, abs=1e-9)


def test_quiet_windows_are_all_zero(market: Market) -> None:
    """Without trades a window is valid and all zero: no minus mid, no division by nothing."""
    one, five = hot(market)[1:3]

    assert {0.0} == {float(value) for value in [*one.values(), *five.values()]}


@pytest.mark.parametrize(
    ("age_us", "counts"),
    [(0, (1, 1)), (1_000_000, (1, 1)), (1_000_001, (0, 1)), (5_000_000, (0, 1)), (5_000_001, (0, 0))],
)
def test_windows_include_their_edge(market: Market, age_us: int, counts: tuple[int, int]) -> None:
    """A trade of exactly one or five seconds ago is inside; a microsecond more and it is not."""
    market.feed(0, batch(trades((1, 5, 6, True)), best(101, 5978660, 5978690, T0 + age_us)), 1000)

    one, five = hot(market)[1:3]

    assert counts == (int(one["count"]), int(five["count"]))


def test_windows_go_on_without_events(market: Market) -> None:
    """Windows end at the last event's time plus the time since it came, so that silence empties them."""
    market.feed(0, batch(trades((1, 5, 6, True))), 7_000_000)

    ages = {age: hot(market, 7_000_000 + age)[1]["count"] for age in (-500, 0, 1_000_000, 1_000_001)}

    assert {-500: "1", 0: "1", 1_000_000: "1", 1_000_001: "0"} == ages


def test_without_any_event(market: Market) -> None:
    """A market that only has a snapshot dates itself by the caller's clock."""
    ob, _, _, feat = hot(market, 1_700_000_000_900_000)

    assert ("500", "1700000000") == (ob["ts_us"], feat["ts"])


def test_book_features(market: Market) -> None:
    """Spread in basis points, value sums and imbalance follow their formulae over at most ten levels."""
    ob, _, _, feat = hot(market)

    assert 0.45 / 59786.55 * 10000 == pytest.approx(float(ob["spread_bp"]))
    bid_value, ask_value = 59786.55 * 1.5 + 59786 * 2.2, 59787 * 0.8 + 59788 * 0.6
    assert (bid_value, ask_value) == pytest.approx((float(ob["bid_value_sum"]), float(ob["ask_value_sum"])))
    assert (bid_value - ask_value) / (bid_value + ask_value) == pytest.approx(float(ob["ob_imbalance"]))
    assert (ob["spread_bp"], ob["ob_imbalance"]) == (feat["spread_bp"], feat["ob_imbalance"])


def test_at_most_ten_levels(make: Any) -> None:
    """The hot book has ten levels a side, numbered without gaps, and sums over just these."""
    market = make("BTCUSDT")
    market.load_snapshot(1, 0, 0, [(100 - n, 1) for n in range(15)], [(101 + n, 1) for n in range(3)], 0)

    ob = hot(market)[0]

    assert [f"bid{n}_p" for n in range(1, 11)] == [
        name for name in ob if name.startswith("bid") and name.endswith("_p")
    ]
    assert ["101", "102", "103"] == [ob[f"ask{n}_p"] for n in range(1, 4)]
    assert ("955.0", False) == (ob["bid_value_sum"], "ask4_p" in ob)


def test_returns_of_the_mid(market: Market) -> None:
    """A return compares the mid with the one in force one or five seconds before; without history it is 0."""
    fresh = hot(market)[3]["ret_1s"]
    market.feed(0, batch(best(101, 9900, 10100, T0), best(102, 9999, 10201, T0 + 4_500_000)), 1000)
    market.feed(0, batch(best(103, 10150, 10252, T0 + 5_500_000)), 1000)

    feat = hot(market)[3]

    assert "0.0" == fresh
    assert (10201 / 10100 - 1, 10201 / 10000 - 1) == pytest.approx((float(feat["ret_1s"]), float(feat["ret_5s"])))


def test_trades_stand_in_for_missing_mids(market: Market) -> None:
    """Where the mid's history does not reach back, the last trade's price then is what a return compares with."""
    market.seed_trades([(1, 5000000, 1, T0 - 3_000_000, True)], -2, -5)

    market.feed(0, batch(best(101, 4999900, 5500100, T0)), 1000)

    assert 5250000 / 5000000 - 1 == pytest.approx(float(hot(market)[3]["ret_1s"]))
    assert "0.0" == hot(market)[3]["ret_5s"]


def test_volume_imbalance(market: Market) -> None:
    """vol_imbalance is bought minus sold over all volume of five seconds."""
    market.feed(0, batch(trades((1, 5, 3, False), (2, 5, 1, True))), 1000)

    assert "0.5" == hot(market)[3]["vol_imbalance"]


def test_documented_sample_prices(make: Any) -> None:
    """The sample book 45229.50 / 45231.00 gives spread 1.5 and 0.3316 basis points, and keeps its digits."""
    market = make("BTCUSDT")
    market.load_snapshot(1, -2, -3, [(4522950, 1234)], [(4523100, 987)], 0)

    ob = hot(market)[0]

    assert ("45229.50", "45231.00", "1.5", "1.234") == (ob["best_bid"], ob["best_ask"], ob["spread"], ob["bid1_q"])
    assert 0.3316 == pytest.approx(float(ob["spread_bp"]), abs=1e-4)


# --- packing


def full(market: Market) -> Market:
    """Feed some of everything."""
    market.feed(0, batch(best(101, 5978660, 5978690, T0 - 3_000_000), trades((1, 5, 6, True), at=T0 - 900_000)), 900)
    market.feed(
        1, batch(diff(101, 102, [(5978640, 5)], at=T0), trades((2, 7, 8, False)), best(103, 5978661, 5978690)), 1000
    )
    return market


def test_packed_books_come_back(market: Market, make: Any) -> None:
    """Book, best prices, positions, epoch and line ids survive packing."""
    blob = full(market).pack_book(7, {"a": "12-0", "zone-b": "13-5"})
    other = make("BTCUSDT")

    loaded = other.load_book(blob)

    assert (7, {"a": "12-0", "zone-b": "13-5"}) == loaded
    assert blob == other.pack_book(*loaded)
    names = [
        "cut_off",
        "bid_edge",
        "ask_edge",
        "update_id",
        "bba_id",
        "trade_id",
        "event_us",
        "stamp_us",
        "mid",
        "price_exponent",
        "qty_exponent",
        "has_book",
    ]
    assert [getattr(market, name) for name in names] == [getattr(other, name) for name in names]


def test_both_pack_alike(market: Market) -> None:
    """The native and the plain market read each other's packed books."""
    blob = full(market).pack_book(7, {"a": "12-0"})

    for kind in (_decoder.Market, reference_market.Market):
        other = kind("BTCUSDT")
        other.load_book(blob)
        assert blob == other.pack_book(7, {"a": "12-0"})


def test_a_replay_fills_the_windows_again(market: Market, make: Any) -> None:
    """After loading a book, frames from before it fill windows and mid history without being applied twice."""
    before = hot(full(market), 2000)
    other = make("BTCUSDT")
    other.load_book(market.pack_book(7, {}))

    full(other)

    assert before == hot(other, 2000)
    assert (2, 0) == (other.counters()["trades_late"], other.counters()["trades_applied"])


def test_a_trade_gap_after_loading(market: Market, make: Any) -> None:
    """The first trade after a loaded book has to be the next id, or there is a gap."""
    other = make("BTCUSDT")
    other.load_book(full(market).pack_book(7, {}))

    other.feed(0, batch(trades((4, 5, 6, True))), 3000)

    assert (3, 4, 3000, 1) == other.trade_gap


@pytest.mark.parametrize(("age_us", "missing"), [(5_500_000, 1), (4_500_000, 2), (6_000_001, 0)])
def test_a_trade_lost_at_the_edge_of_a_window_is_missed(market: Market, age_us: int, missing: int) -> None:
    """Number 2 happened between 1 and 3, and so perhaps within the window though 1 did not."""
    market.feed(0, batch(trades((1, 10000, 5, False), at=T0)), 1000)
    market.feed(0, batch(trades((3, 10000, 5, False), at=T0 + 1_000_000)), 1_001_000)
    market.skip_trade_gap()
    market.feed(0, batch(trades((4, 10000, 5, False), at=T0 + age_us)), 1000 + age_us)

    assert min(missing, 1) == market.missing_trades(1000 + age_us, 5_000_000)


def test_what_came_before_a_history_is_not_missing(market: Market) -> None:
    """A market that begins with number 7 lacks nothing, however it began."""
    market.feed(0, batch(trades((7, 10000, 5, False))), 1000)

    assert 0 == market.missing_trades(1000, 5_000_000)


@pytest.mark.parametrize("place", [0, 4, 5, 6, 8, 20, 88, 96, 99, 120, -5, -1])
def test_damaged_books_are_refused(market: Market, place: int) -> None:
    """One changed byte anywhere makes a packed book useless, and the market stays as it was."""
    blob = bytearray(full(market).pack_book(7, {"a": "12-0"}))
    blob[place] ^= 1

    with pytest.raises(ValueError, match=r"^book"):
        market.load_book(bytes(blob))

    assert 102 == market.update_id


@pytest.mark.parametrize("size", [0, 3, 11, 12, 97, 150])
def test_short_books_are_refused(market: Market, size: int) -> None:
    """A packed book that was cut off is refused."""
    blob = full(market).pack_book(7, {})

    with pytest.raises(ValueError, match=r"^book"):
        market.load_book(blob[:size])


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [
        (4, "<H", 0),
        (4, "<H", 3),
        (6, "<b", -19),
        (16, "<q", -1),
        (24, "<q", 2**62),
        (32, "<q", 0),
        (80, "<q", 2**52),
        (88, "<q", -1),
        (96, "<q", 2**61 + 1),
        (104, "<q", -1),
        (112, "<I", 2**31),
        (112, "<I", 1),
        (130, "<q", 1),
    ],
)
def test_sealed_nonsense_is_refused(place: int, form: str, value: int) -> None:
    """A right checksum over wrong content does not make a book."""
    market = full(native_market())
    body = bytearray(market.pack_book(7, {})[:-4])
    struct.pack_into(form, body, place, value)

    with pytest.raises(ValueError, match=r"^book"):
        market.load_book(sealed(bytes(body)))


def test_books_of_other_symbols_are_refused() -> None:
    """A packed book is for its own symbol only."""
    blob = full(native_market()).pack_book(7, {})

    with pytest.raises(ValueError, match="expected symbol ETHUSDT, found BTCUSDT"):
        _decoder.Market("ETHUSDT").load_book(blob)

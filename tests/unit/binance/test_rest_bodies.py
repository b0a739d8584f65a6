"""Bodies of REST answers: exact numbers, and one clear error for each that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.binance.rest_bodies import (
    Body,
    Depth,
    Trade,
    parse_depth,
    parse_error,
    parse_klines,
    parse_server_time,
    parse_ticker,
    parse_trades,
)
from sheetanchor.binance.rest_client import depth_weight
from sheetanchor.errors import ExchangeError

TRADE = {
    "id": 28457,
    "price": "4.00000100",
    "qty": "12.00000000",
    "quoteQty": "48.000012",
    "time": 1499865549590,
    "isBuyerMaker": True,
    "isBestMatch": True,
}
KLINE = [
    1499040000000,
    "0.016",
    "0.8",
    "0.015",
    "0.0158",
    "148976.1",
    1499644799999,
    "2434.1",
    308,
    "1756",
    "28.4",
    "0",
]
TICKER = {"lastPrice": "4.00000200", "bidPrice": "4.00000000", "askPrice": "0.00000000", "closeTime": 1499869899040}


def body(value: Any, endpoint: str = "/api/v3/depth") -> Body:
    return Body(endpoint, json.dumps(value).encode())


def test_depth_is_exact() -> None:
    """Decimal text becomes mantissas at eight decimals without any rounding."""
    depth = parse_depth(body({"lastUpdateId": 7, "bids": [["4.1", "431.00000001"]], "asks": [["5", "0.5", []]]}), 100)

    assert Depth(7, [(410000000, 43100000001)], [(500000000, 50000000)]) == depth


@given(st.integers(min_value=1, max_value=2**62 - 1))
def test_any_mantissa_survives(mantissa: int) -> None:
    """Every number that fits is read back exactly."""
    text = f"{mantissa // 10**8}.{mantissa % 10**8:08d}"

    assert mantissa == body({}).decimal(text, "price")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    """No bytes at all lead to anything but a value or one clear error."""
    for parse in (lambda b: parse_depth(b, 100), lambda b: parse_trades(b, 100), parse_ticker):
        with pytest.raises(ExchangeError, match="GET /api/v3/depth"):
            parse(Body("/api/v3/depth", raw))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "body = []: expected an object"),
        ({}, "lastUpdateId is missing"),
        ({"lastUpdateId": "7"}, "lastUpdateId = '7': expected a whole number of at least 0"),
        ({"lastUpdateId": -1}, "lastUpdateId = -1: expected a whole number"),
        ({"lastUpdateId": True}, "lastUpdateId = True: expected a whole number"),
        ({"lastUpdateId": 7, "bids": {}}, "bids = {}: expected a list"),
        ({"lastUpdateId": 7, "bids": []}, "Invalid depth data received: bids is empty"),
        ({"lastUpdateId": 7, "bids": [["1", "1"]], "asks": []}, "Invalid depth data received: asks is empty"),
        ({"lastUpdateId": 7, "bids": [["1"]]}, "bids[0] = ['1']: expected a price and a quantity"),
        ({"lastUpdateId": 7, "bids": [[1.5, "1"]]}, "bids[0] = 1.5: expected a decimal number as text"),
        ({"lastUpdateId": 7, "bids": [["1", "0.0"]]}, "bids[0] = '0.0': expected a number above 0"),
        ({"lastUpdateId": 7, "bids": [["-1", "1"]]}, "bids[0] = '-1': expected a decimal number"),
        ({"lastUpdateId": 7, "bids": [["1e5", "1"]]}, "bids[0] = '1e5': expected a decimal number"),
        ({"lastUpdateId": 7, "bids": [["nan", "1"]]}, "bids[0] = 'nan': expected a decimal number"),
        ({"lastUpdateId": 7, "bids": [["1.000000001", "1"]]}, "bids[0] = '1.000000001': expected at most 8 decimals"),
        ({"lastUpdateId": 7, "bids": [["9" * 12, "1"]]}, "expected a number below"),
        ({"lastUpdateId": 7, "bids": [["1", "1"]] * 101}, "bids: expected at most 100 entries, found 101"),
    ],
)
def test_bad_depth_is_named(value: Any, words: str) -> None:
    """Each wrong field of a depth answer is named with what was expected and found."""
    with pytest.raises(ExchangeError) as caught:
        parse_depth(body(value), 100)

    assert str(caught.value).startswith("GET /api/v3/depth: ")
    assert words in str(caught.value)


def test_trailing_zeros_are_no_decimals() -> None:
    """More than eight decimals are fine as long as they are zeros."""
    assert 123 == body({}).decimal("0.0000012300000", "qty")


@pytest.mark.parametrize(("time", "time_us"), [(1499865549590, 1499865549590000), (1499865549590123, 1499865549590123)])
def test_times_in_either_unit(time: int, time_us: int) -> None:
    """Milliseconds and microseconds are distinguished by their size."""
    trade = parse_trades(body([TRADE | {"time": time}]), 10)[0]

    assert Trade(28457, 400000100, 1200000000, time_us, True) == trade


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"code": 1}, "body = {'code': 1}: expected a list"),
        ([TRADE | {"isBuyerMaker": 1}], "[0].isBuyerMaker = 1: expected true or false"),
        ([TRADE | {"qty": "x"}], "[0].qty = 'x': expected a decimal number"),
        ([7], "[0]. = 7: expected an object"),
        ([TRADE, TRADE], "id: expected rising trade ids"),
    ],
)
def test_bad_trades_are_named(value: Any, words: str) -> None:
    """Each wrong field of a trades answer is named."""
    with pytest.raises(ExchangeError) as caught:
        parse_trades(body(value), 10)

    assert words in str(caught.value)


def test_kline_and_ticker() -> None:
    """Candles and the ticker are read; a best price of zero counts as missing."""
    kline = parse_klines(body([KLINE]), 5)[0]
    ticker = parse_ticker(body(TICKER))

    assert (1499040000000000, 1600000, 80000000, 1500000, 1580000) == (
        kline.open_us,
        kline.open,
        kline.high,
        kline.low,
        kline.close,
    )
    assert (400000200, 400000000, None, 1499869899040000) == (ticker.last, ticker.bid, ticker.ask, ticker.close_us)
    assert 1499827319559000 == parse_server_time(body({"serverTime": 1499827319559}))


@pytest.mark.parametrize(
    ("parse", "value", "words"),
    [
        (lambda b: parse_klines(b, 5), [KLINE[:5]], "expected at least 7 values"),
        (lambda b: parse_klines(b, 5), [[*KLINE[:4], None, *KLINE[5:]]], "[0].close = None: expected a decimal"),
        (parse_ticker, TICKER | {"lastPrice": ""}, "lastPrice = '': expected a decimal number"),
        (parse_ticker, {"lastPrice": "1"}, "closeTime is missing"),
    ],
)
def test_bad_candles_and_tickers_are_named(parse: Any, value: Any, words: str) -> None:
    """Each wrong field of the smaller answers is named."""
    with pytest.raises(ExchangeError) as caught:
        parse(body(value))

    assert words in str(caught.value)


def test_complaints_of_the_exchange() -> None:
    """Code and message are reported if there are any, otherwise the beginning of the body."""
    assert "-1121 Invalid symbol." == parse_error(b'{"code":-1121,"msg":"Invalid symbol."}')
    assert "'<html>'" == parse_error(b"<html>")


@pytest.mark.parametrize(
    ("limit", "weight"), [(5, 5), (100, 5), (101, 25), (500, 25), (1000, 50), (1001, 250), (5000, 250)]
)
def test_weight_of_depth(limit: int, weight: int) -> None:
    """The weight of a depth request depends on its limit as the exchange says."""
    assert weight == depth_weight(limit)


@given(st.integers(min_value=1, max_value=2**63 - 1))
def test_every_documented_quantity_is_read(mantissa: int) -> None:
    """Up to the exchange's largest quantity, 92,233,720,368.54775807, levels and trades are read exactly."""
    text = f"{mantissa // 10**8}.{mantissa % 10**8:08d}"

    depth = parse_depth(body({"lastUpdateId": 7, "bids": [["1", text]], "asks": [["2", text]]}), 100)
    [trade] = parse_trades(body([TRADE | {"qty": text, "quoteQty": text}]), 10)

    assert [mantissa] * 3 == [depth.bids[0][1], depth.asks[0][1], trade.qty]


def test_one_more_is_no_quantity() -> None:
    """What no frame could carry either is refused, with the limit named."""
    with pytest.raises(ExchangeError, match=r"expected a number below 92233720368\.54775808"):
        body({}).decimal("92233720368.54775808", "qty")


WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.sampled_from(["140000000000.00", "9" * 40, "1e99", "-1", "NaN"]),
)


@given(st.lists(WILD, min_size=8, max_size=8), WILD)
def test_fields_that_nothing_uses_refuse_no_answer(wild: list[Any], more: Any) -> None:
    """Volume and counts of a candle, the quote of a trade, a day's statistics: whatever stands there is passed over."""
    volume, quote_qty, best_match, *rest = wild

    [kline] = parse_klines(body([[*KLINE[:5], volume, KLINE[6], *rest]]), 5)
    [trade] = parse_trades(body([TRADE | {"quoteQty": quote_qty, "isBestMatch": best_match, "later": more}]), 10)
    ticker = parse_ticker(body(TICKER | {"volume": volume, "quoteVolume": quote_qty, "openTime": more, "count": more}))
    depth = parse_depth(
        body({"lastUpdateId": 7, "bids": [["4", "1", more]], "asks": [["5", "1", *rest]], "T": more}), 9
    )

    assert (80000000, 28457, 400000200, 7) == (kline.high, trade.id, ticker.last, depth.last_update_id)

"""The local exchange over real sockets: REST forms, errors, weights and limits."""

from __future__ import annotations

import itertools
import time
from decimal import Decimal
from pathlib import Path

import pytest

from sheetanchor.simulator.limits import WeightBudget
from support.exchange_fixture import LocalExchange, eventually, local_exchange


async def test_rest_answers_have_the_documented_form(fast_exchange: LocalExchange) -> None:
    """Fields and types of every endpoint are the real ones."""
    began_ms = time.time() * 1000
    depth = await fast_exchange.get("/api/v3/depth", symbol="BTCUSDT")
    trades = await fast_exchange.get("/api/v3/trades", symbol="BTCUSDT", limit=3)
    old = await fast_exchange.get("/api/v3/historicalTrades", symbol="BTCUSDT", fromId=trades[0]["id"], limit=2)
    aggregates = await fast_exchange.get("/api/v3/aggTrades", symbol="BTCUSDT", limit=3)
    ticker = await fast_exchange.get("/api/v3/ticker/24hr", symbol="BTCUSDT")
    mini = await fast_exchange.get("/api/v3/ticker/24hr", symbols='["BTCUSDT"]', type="MINI")
    best = await fast_exchange.get("/api/v3/ticker/bookTicker", symbol="BTCUSDT")
    info = await fast_exchange.get("/api/v3/exchangeInfo")
    now = await fast_exchange.get("/api/v3/time")

    assert ({"lastUpdateId", "bids", "asks"}, 100, 100) == (set(depth), len(depth["bids"]), len(depth["asks"]))
    assert {"id", "price", "qty", "quoteQty", "time", "isBuyerMaker", "isBestMatch"} == set(trades[0])
    assert [trades[0]["id"], trades[0]["id"] + 1] == [item["id"] for item in old]
    assert set("apqflTmM") == set(aggregates[0])
    assert (21, 12) == (len(ticker), len(mini[0]))
    assert {"symbol", "bidPrice", "bidQty", "askPrice", "askQty"} == set(best)
    assert ["BTCUSDT"] == [item["symbol"] for item in info["symbols"]]
    assert 6_000 == info["rateLimits"][0]["limit"]
    assert began_ms - 5_000 < now["serverTime"] < time.time() * 1000 + 5_000


async def test_candles_add_up_to_the_trades(short_recording: Path) -> None:
    """After the recording has ended, one-second candles hold exactly the trades that were listed."""
    async with local_exchange(recording=[short_recording], loop=False, warmup_s=5, rate=50_000) as running:
        last_id = max(
            step.last_id for step in running.server.venue.markets["BTCUSDT"].script.steps if step.kind == "trade"
        )

        async def has_ended() -> bool:
            return bool((await running.checkpoint())["trade_id"] == last_id)

        await eventually(has_ended, within_s=20, what="the recording has been played")
        trades = await running.get("/api/v3/trades", symbol="BTCUSDT", limit=1000)
        candles = await running.get(
            "/api/v3/klines", symbol="BTCUSDT", interval="1s", startTime=trades[0]["time"] // 1000 * 1000 + 1000
        )

    first_ms = candles[0][0]
    volume = sum(Decimal(item["qty"]) for item in trades if item["time"] >= first_ms)
    assert volume == sum(Decimal(item[5]) for item in candles)
    assert all(Decimal(item[3]) <= Decimal(item[4]) <= Decimal(item[2]) for item in candles)
    assert all(later[0] == item[0] + 1000 for item, later in itertools.pairwise(candles))


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("depth", {}, -1102),
        ("depth", {"symbol": "NOPE"}, -1121),
        ("depth", {"symbol": "btcusdt"}, -1100),
        ("depth", {"symbol": "BTCUSDT", "limit": "ten"}, -1100),
        ("depth", {"symbol": "BTCUSDT", "limit": "0"}, -1130),
        ("depth", {"symbol": "BTCUSDT", "symbolStatus": "HALT"}, -1220),
        ("depth", {"symbol": "BTCUSDT", "colour": "red"}, -1104),
        ("klines", {"symbol": "BTCUSDT"}, -1102),
        ("klines", {"symbol": "BTCUSDT", "interval": "2m"}, -1120),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "startTime": "x"}, -1100),
        ("ticker/24hr", {"symbol": "BTCUSDT", "symbols": '["BTCUSDT"]'}, -1128),
        ("ticker/24hr", {"symbols": "BTCUSDT"}, -1100),
        ("depth", {"symbol": "BTCUSDT", "symbolStatus": "SLEEPING"}, -1122),
        ("ticker/price", {"symbolStatus": "trading"}, -1122),
        ("depth", {"symbol": ""}, -1105),
        ("depth", {"symbol": "BTCUSDT", "limit": ""}, -1105),
        ("depth", [("symbol", "BTCUSDT"), ("symbol", "BTCUSDT")], -1101),
        ("ticker/price", {"symbols": '["BTCUSDT","BTCUSDT"]'}, -1151),
        ("exchangeInfo", {"symbol": "BTCUSDT", "symbolStatus": "TRADING"}, -1128),
        ("exchangeInfo", {"symbols": '["BTCUSDT"]', "permissions": "SPOT"}, -1128),
        ("exchangeInfo", {"permissions": "EVERYTHING"}, -1130),
        ("exchangeInfo", {"showPermissionSets": "maybe"}, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "timeZone": "14:01"}, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "timeZone": "-12:30"}, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "timeZone": "Europe/Paris"}, -1130),
        ("uiKlines", {"symbol": "BTCUSDT", "interval": "2m"}, -1120),
        ("ticker", {}, -1102),
        ("ticker", {"symbol": "BTCUSDT", "windowSize": "60m"}, -1130),
        ("ticker", {"symbol": "BTCUSDT", "windowSize": "1d2h"}, -1130),
        ("ticker", {"symbol": "BTCUSDT", "type": "TINY"}, -1139),
        ("avgPrice", {}, -1102),
    ],
)
async def test_wrong_requests_are_reported(
    fast_exchange: LocalExchange, path: str, params: dict[str, str] | list[tuple[str, str]], code: int
) -> None:
    """A mistake is a 400 with the documented code."""
    async with fast_exchange.http.get(f"{fast_exchange.rest_url}/api/v3/{path}", params=params) as response:
        body = await response.json()

    assert (400, code) == (response.status, body["code"])
    assert body["msg"]


async def test_requests_weigh_what_they_should(fast_exchange: LocalExchange) -> None:
    """Each answer has the weight used so far, which rises by the documented amounts."""
    steps = [
        ("depth?symbol=BTCUSDT&limit=100", 5),
        ("depth?symbol=BTCUSDT&limit=500", 25),
        ("depth?symbol=BTCUSDT&limit=1000", 50),
        ("depth?symbol=BTCUSDT&limit=9999", 250),
        ("trades?symbol=BTCUSDT", 25),
        ("aggTrades?symbol=BTCUSDT", 4),
        ("klines?symbol=BTCUSDT&interval=1m", 2),
        ("ticker/24hr?symbol=BTCUSDT", 2),
        ("ticker/24hr", 80),
        ("exchangeInfo", 20),
        ("uiKlines?symbol=BTCUSDT&interval=1m", 2),
        ("avgPrice?symbol=BTCUSDT", 2),
        ("ticker?symbol=BTCUSDT", 4),
        ("ticker/price?symbol=BTCUSDT", 2),
        ("ticker/price", 4),
        ("time", 1),
    ]
    budget = fast_exchange.server.venue.budget
    for path, weight in steps:
        before = dict(minutes_of(budget))
        async with fast_exchange.http.get(f"{fast_exchange.rest_url}/api/v3/{path}") as response:
            assert response.status == 200
            used = int(response.headers["X-MBX-USED-WEIGHT-1M"])
        [(minute, _)] = minutes_of(budget)

        assert weight == used - before.get(minute, 0), path  # if a minute has ended in between the count restarts


def minutes_of(budget: WeightBudget) -> list[tuple[int, int]]:
    """Give the minute and the weight used in it of every caller."""
    return [(caller.minute, caller.used) for caller in budget._callers.values()]


async def test_too_much_weight_brings_429_and_then_418(short_recording: Path) -> None:
    """Over the limit: 429 with Retry-After; a caller that goes on is banned with 418."""
    async with local_exchange(recording=[short_recording], warmup_s=5, weight_limit=300) as running:
        statuses: list[int] = []
        while statuses.count(418) < 2 and len(statuses) < 60:
            async with running.http.get(running.rest_url + "/api/v3/depth?symbol=BTCUSDT&limit=5000") as response:
                statuses.append(response.status)
                if response.status != 200:
                    assert -1003 == (await response.json())["code"]
                    assert 1 <= int(response.headers["Retry-After"]) <= 120

    assert {200, 429, 418} == set(statuses)
    assert sorted(statuses.index(status) for status in (200, 429, 418)) == [
        statuses.index(status) for status in (200, 429, 418)
    ]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-MBX-TIME-UNIT": "NANOSECOND"}, -1194),
        ({"Accept": "application/sbe"}, -1152),
        ({"Accept": "application/sbe", "X-MBX-SBE": "three"}, -1152),
        ({"Accept": "application/sbe", "X-MBX-SBE": "3:5"}, -1153),
        ({"Accept": "application/sbe;application/json", "X-MBX-SBE": "3:5"}, 0),
        ({"X-MBX-TIME-UNIT": "microsecond"}, 0),
        ({"X-MBX-TIME-UNIT": "MILLISECOND"}, 0),
    ],
)
async def test_headers_are_read_too(fast_exchange: LocalExchange, headers: dict[str, str], code: int) -> None:
    """An unknown unit, and a format that is not served, are errors; a client that also accepts JSON gets it."""
    async with fast_exchange.http.get(fast_exchange.rest_url + "/api/v3/time", headers=headers) as response:
        body = await response.json()

    assert (400 if code else 200, code) == (response.status, body.get("code", 0))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/v3/depth", 405),
        ("DELETE", "/api/v3/depth?symbol=BTCUSDT", 405),
        ("POST", "/api/v3/order", 404),
        ("GET", "/api/v3/account", 404),
        ("GET", "/sapi/v1/nothing", 404),
        ("PUT", "/faults", 405),
        ("POST", "/ws", 405),
    ],
)
async def test_what_is_not_served_is_reported_in_json(
    fast_exchange: LocalExchange, method: str, path: str, status: int
) -> None:
    """A client parses every answer as JSON."""
    async with fast_exchange.http.request(method, fast_exchange.rest_url + path) as response:
        body = await response.json()

    assert status == response.status
    assert (-1020 if status == 405 else -1000, True) == (body["code"], bool(body["msg"]))


async def test_markets_are_chosen_by_status_and_permission(fast_exchange: LocalExchange) -> None:
    """All here trade, on spot: other filters give an empty list, a status that does not fit one symbol an error."""

    async def found(**params: str) -> list[str]:
        return [one["symbol"] for one in (await fast_exchange.get("/api/v3/exchangeInfo", **params))["symbols"]]

    assert ["BTCUSDT"] == await found() == await found(permissions="SPOT") == await found(symbolStatus="TRADING")
    assert ["BTCUSDT"] == await found(permissions='["MARGIN","SPOT"]')
    assert [] == await found(permissions="MARGIN") == await found(symbolStatus="BREAK")
    assert [] == await fast_exchange.get("/api/v3/ticker/price", symbolStatus="HALT")
    shown = await fast_exchange.get("/api/v3/exchangeInfo", showPermissionSets="false")
    assert [] == shown["symbols"][0]["permissionSets"]


@pytest.mark.parametrize(("zone", "ahead_min"), [("0", 0), ("8", 480), ("-1:00", -60), ("05:45", 345), ("+14", 840)])
@pytest.mark.parametrize("interval", ["1m", "1h", "12h", "1d", "1w"])
async def test_candles_begin_by_the_clocks_of_a_time_zone(
    fast_exchange: LocalExchange, zone: str, ahead_min: int, interval: str
) -> None:
    """Their days, hours and weeks begin there; what was traded is the same."""
    params = {"symbol": "BTCUSDT", "interval": interval}
    minutes = {"1m": 1, "1h": 60, "12h": 720, "1d": 1_440, "1w": 10_080}[interval]

    candles = await fast_exchange.get("/api/v3/klines", **params, timeZone=zone)

    monday_min = 4 * 1_440 if interval == "1w" else 0
    for candle in candles:
        assert 0 == (candle[0] // 60_000 + ahead_min - monday_min) % minutes
        assert candle[6] == candle[0] + minutes * 60_000 - 1


async def test_short_answers_agree_with_the_trades(fast_exchange: LocalExchange) -> None:
    """Last price, average and rolling window are computed from what `trades` lists."""
    [first] = await fast_exchange.get("/api/v3/trades", symbol="BTCUSDT", limit=1)
    price = await fast_exchange.get("/api/v3/ticker/price", symbol="BTCUSDT")
    average = await fast_exchange.get("/api/v3/avgPrice", symbol="BTCUSDT")
    window = await fast_exchange.get("/api/v3/ticker", symbol="BTCUSDT", windowSize="7d")
    mini = await fast_exchange.get("/api/v3/ticker", symbols='["BTCUSDT"]', type="MINI")
    last_id, trades = (await fast_exchange.checkpoint())["trade_id"], [first]
    while trades[-1]["id"] < last_id:  # more than one answer lists, if it has taken long
        later = {"fromId": trades[-1]["id"] + 1, "limit": 1000}
        trades += await fast_exchange.get("/api/v3/historicalTrades", symbol="BTCUSDT", **later)

    low, high = min(Decimal(one["price"]) for one in trades), max(Decimal(one["price"]) for one in trades)
    assert low <= Decimal(price["price"]) <= high
    assert 5 == average["mins"]
    assert Decimal(window["lowPrice"]) <= Decimal(average["price"]) <= Decimal(window["highPrice"])
    assert (0, True) == (window["openTime"] % 60_000, window["closeTime"] - window["openTime"] >= 7 * 86_400_000)
    assert window["count"] == window["lastId"] - window["firstId"] + 1
    assert set(window) - set(mini[0]) == {"priceChange", "priceChangePercent", "weightedAvgPrice"}

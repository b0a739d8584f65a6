"""Answers of an exchange that a re-anchor must refuse, and odd ones that it must take."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from conftest import RedisServer
from reanchor_parts import KEYS, SYMBOL, dump, reanchor, staging_left
from sheetanchor.hot_state import HotState
from sheetanchor.transport import redis_client

SECOND_MS = 1_000
Answers = dict[str, Any]


class Venue:
    """A server that gives the answers it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        self.now_ms = now_ms
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.answers: Answers = {
            "depth": {
                "lastUpdateId": 500,
                "bids": [[f"{100 - rank * 0.01:.8f}", "1.00000000"] for rank in range(50)],
                "asks": [[f"{100.01 + rank * 0.01:.8f}", "2.00000000"] for rank in range(50)],
            },
            "trades": [
                {"id": i, "price": "100.00", "qty": "0.5", "time": now_ms - 400 + i, "isBuyerMaker": i % 2 == 0}
                for i in range(10)
            ],
            "klines": [[now_ms - 60_000, "99", "101", "99", "100", "5", now_ms, "500", 10, "1", "1", "0"]],
            "ticker/24hr": {
                "lastPrice": "100.00",
                "bidPrice": "100.00",
                "askPrice": "100.01",
                "closeTime": now_ms,
            },
        }

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request of the REST interface."""
        name = request.match_info["name"]
        self.asked.append((name, dict(request.query)))
        self.headers.append(dict(request.headers))
        return web.json_response(self.answers[name])


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    """A running venue whose answers are sound."""
    running = Venue()
    app = web.Application()
    app.router.add_get("/api/v3/{name:.*}", running.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield running
    await runner.cleanup()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running server for all tests of this module."""
    running = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield running
    running.stop()


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty server."""
    client = redis_client(server.url)
    await client.flushall()
    yield client
    await client.aclose()


async def test_asks_for_what_it_needs_and_no_more(redis: Redis, venue: Venue) -> None:
    """One request each, with the exact limits, and times in microseconds are asked for."""
    await reanchor(redis, venue.url, depth_limit=5000)

    assert [
        ("depth", {"symbol": SYMBOL, "limit": "5000"}),
        ("klines", {"symbol": SYMBOL, "interval": "1m", "limit": "5"}),
        ("ticker/24hr", {"symbol": SYMBOL}),
        ("trades", {"symbol": SYMBOL, "limit": "1000"}),
    ] == sorted(venue.asked)
    assert {"MICROSECOND"} == {headers["X-MBX-TIME-UNIT"] for headers in venue.headers}


async def test_windows_end_at_the_exchanges_clock(redis: Redis, venue: Venue) -> None:
    """Windows are measured by the exchange's clock, not ours, and a server that answers in milliseconds will do."""
    for trade in venue.answers["trades"]:
        trade["time"] -= 3_600_000
    venue.answers["ticker/24hr"]["closeTime"] -= 3_600_000
    venue.answers["klines"][0][6] -= 3_600_000

    receipt = await reanchor(redis, venue.url)

    read = await HotState(redis, SYMBOL).read()
    assert "swapped" == receipt.result, receipt.message
    assert ("10", "10", "5.0") == (read.tr_1s["count"], read.tr_5s["count"], read.tr_5s["vol"])


async def test_windows_of_known_trades(redis: Redis, venue: Venue) -> None:
    """Trades 0.4, 0.8, 3 and 6 seconds old make two in the 1 s window and three in the 5 s window."""
    ages_ms = (6000, 3000, 800, 400)
    venue.answers["trades"] = [
        {"id": i, "price": "100.00", "qty": "1", "time": venue.now_ms - age_ms, "isBuyerMaker": False}
        for i, age_ms in enumerate(ages_ms)
    ]

    await reanchor(redis, venue.url)

    read = await HotState(redis, SYMBOL).read()
    assert ("2", "3") == (read.tr_1s["count"], read.tr_5s["count"])
    assert ("2.0", "3.0") == (read.tr_1s["signed_vol"], read.tr_5s["signed_vol"])


@pytest.mark.parametrize("age_ms", [8 * SECOND_MS, 11 * 60 * SECOND_MS])
async def test_quiet_market_succeeds(redis: Redis, venue: Venue, age_ms: int) -> None:
    """A market without a recent trade is re-anchored with windows of zero."""
    for trade in venue.answers["trades"]:
        trade["time"] -= age_ms

    receipt = await reanchor(redis, venue.url)

    read = await HotState(redis, SYMBOL).read()
    assert "swapped" == receipt.result, receipt.message
    assert ("0", "0", "0.0") == (read.tr_1s["count"], read.tr_5s["count"], read.tr_5s["vwap_minus_mid"])


async def test_ids_that_the_exchange_leaves_out(redis: Redis, venue: Venue) -> None:
    """Trade ids that are missing in the exchange's own list hold nothing up."""
    del venue.answers["trades"][3:6]

    receipt = await reanchor(redis, venue.url)

    assert "swapped" == receipt.result, receipt.message
    assert "7" == (await HotState(redis, SYMBOL).read()).tr_1s["count"]


async def test_one_odd_print_does_not_refuse(redis: Redis, venue: Venue) -> None:
    """A single trade far off, which is also last price and kline close, does not refuse a sound book."""
    venue.answers["trades"][-1]["price"] = "105.00"
    venue.answers["klines"][0][2] = venue.answers["klines"][0][4] = "105"
    venue.answers["ticker/24hr"]["lastPrice"] = "105"

    assert "swapped" == (await reanchor(redis, venue.url)).result


def crossed(answers: Answers) -> None:
    answers["depth"]["bids"][0][0] = "100.05000000"


def short(answers: Answers) -> None:
    del answers["depth"]["asks"][4:]


def twice(answers: Answers) -> None:
    answers["depth"]["bids"][1] = answers["depth"]["bids"][0]


def one_sided(answers: Answers) -> None:
    answers["depth"]["asks"] = []


def no_trades(answers: Answers) -> None:
    answers["trades"] = []


def far_kline(answers: Answers) -> None:
    answers["klines"][0][1:5] = ["80", "81", "79", "80"]


def far_from_all(answers: Answers) -> None:
    answers["klines"][0][1:5] = ["80", "81", "79", "80"]
    answers["ticker/24hr"] |= {"lastPrice": "80", "bidPrice": "80", "askPrice": "80.01"}


def shuffled(answers: Answers) -> None:
    answers["trades"].reverse()


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (crossed, 4, "Order book validation failed: book is crossed"),
        (short, 4, "Order book validation failed: asks: expected at least 10 levels, found 4"),
        (twice, 3, "Invalid depth or trades data received: bids: a price comes twice"),
        (one_sided, 3, "Invalid depth data received: asks is empty"),
        (no_trades, 3, "No recent trades data received"),
        (far_kline, 4, "Data consistency validation failed: mid 100.005 is more than 2% from kline 79 to 81"),
        (far_from_all, 4, "Order book validation failed: Price deviation too large from current estimate"),
        (shuffled, 3, "id: expected rising trade ids"),
    ],
)
async def test_unsound_answers_are_refused(
    redis: Redis, venue: Venue, spoil: Callable[[Answers], None], code: int, words: str
) -> None:
    """Answers that cannot be the market are refused in words, and the hot keys stay as they are."""
    await reanchor(redis, venue.url)
    before = await dump(redis)
    spoil(venue.answers)

    receipt = await reanchor(redis, venue.url)

    assert (code, "failed") == (receipt.exit_code, receipt.result), receipt.message
    assert words in receipt.message
    assert before == await dump(redis)
    assert [] == await staging_left(redis)
    assert 0 == await redis.exists(KEYS.lock)


async def test_old_price_does_not_block_recovery(redis: Redis, venue: Venue) -> None:
    """A hot state that is far off because of an outage is replaced when the exchange's own prices agree."""
    await reanchor(redis, venue.url)
    await redis.hset(KEYS.ob, mapping={"best_bid": "85", "best_ask": "85.01"})

    receipt = await reanchor(redis, venue.url)

    assert ("swapped", 2) == (receipt.result, receipt.epoch_after)


async def test_rate_limit_of_another_exchange_is_not_ours(redis: Redis, venue: Venue) -> None:
    """What one exchange was told to wait for does not keep a run from asking another one."""
    first = await reanchor(redis, venue.url)
    told = first.to_json().replace('"retry_at_us":0', f'"retry_at_us":{2**60}').replace(venue.url, "http://elsewhere")
    await redis.xadd(KEYS.receipts, {"receipt": told})

    assert "swapped" == (await reanchor(redis, venue.url)).result

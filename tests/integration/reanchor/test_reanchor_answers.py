"""Answers of an exchange that a re-anchor must refuse, and odd ones that it must take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from aiohttp import web
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.reanchor.receipts import redis_now_us
from sheetanchor.runtime.reliability import CircuitBreaker
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from sheetanchor.venue import counts_as_failure
from support.reanchor_parts import KEYS, SYMBOL, dump, quick_exchange, reanchor, reanchor_with, staging_left
from support.venue import Answers, Venue, running_venue

SECOND_MS = 1_000


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    """A running venue whose answers are sound."""
    async with running_venue() as running:
        yield running


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


def levels(best: float, step: float, count: int) -> list[list[str]]:
    return [[f"{best + rank * step:.8f}", "100.00000000"] for rank in range(count)]


def book_of(answers: Answers, bid: float, ask: float, step: float = 0.01, bids: int = 60, asks: int = 60) -> None:
    """Another book, which the ticker's quotes agree with, as they do at an exchange."""
    answers["depth"] |= {"bids": levels(bid, -step, bids), "asks": levels(ask, step, asks)}
    answers["ticker/24hr"] |= {"bidPrice": f"{bid:.8f}", "askPrice": f"{ask:.8f}"}


def last_traded(answers: Answers, price: str, seconds_ago: float) -> None:
    """One last trade, and candles that repeat its price since."""
    at_ms = answers["ticker/24hr"]["closeTime"] - int(seconds_ago * SECOND_MS)
    answers["trades"] = [{"id": 7, "price": price, "qty": "1", "time": at_ms, "isBuyerMaker": True}]
    answers["klines"][0][1:5] = [price] * 4
    answers["ticker/24hr"]["lastPrice"] = price


def wide(answers: Answers) -> None:
    book_of(answers, 97.0, 103.0)
    last_traded(answers, "97.00", 1200)


def very_wide(answers: Answers) -> None:
    book_of(answers, 60.0, 140.0)
    last_traded(answers, "60.00", 1)


def moved_in_hours(answers: Answers) -> None:
    book_of(answers, 105.0, 105.01)
    last_traded(answers, "100.00", 7200)


def moved_far_in_days(answers: Answers) -> None:
    book_of(answers, 250.0, 250.01)
    last_traded(answers, "100.00", 4 * 86_400)


def moved_in_seconds(answers: Answers) -> None:
    book_of(answers, 106.0, 106.01)
    last_traded(answers, "100.00", 20)


def old_candle(answers: Answers) -> None:
    hours_ms = 4 * 3_600_000
    answers["klines"] = [[venue_ms(answers) - hours_ms, *["80"] * 4, "1", venue_ms(answers) - hours_ms + 60_000]]


def venue_ms(answers: Answers) -> int:
    return int(answers["ticker/24hr"]["closeTime"])


def no_candle(answers: Answers) -> None:
    answers["klines"] = []


def six_bids(answers: Answers) -> None:
    book_of(answers, 100.0, 100.01, bids=6)


def one_level_a_side(answers: Answers) -> None:
    book_of(answers, 100.0, 100.01, bids=1, asks=1)


def three_satoshi(answers: Answers) -> None:
    book_of(answers, 0.00000003, 0.00000004, step=0.00000001, bids=3)
    last_traded(answers, "0.00000003", 1)


def one_satoshi(answers: Answers) -> None:
    book_of(answers, 0.00000001, 0.00000002, step=0.00000001, bids=1)
    last_traded(answers, "0.00000002", 1)


def a_tick_away(answers: Answers) -> None:
    """The answers belong to moments a tick apart, and a tick is a quarter of the price."""
    book_of(answers, 0.00000004, 0.00000005, step=0.00000001, bids=4)
    last_traded(answers, "0.00000003", 1)
    answers["ticker/24hr"] |= {"bidPrice": "0.00000003", "askPrice": "0.00000004"}


def no_trade_yet(answers: Answers) -> None:
    answers["trades"], answers["klines"] = [], []
    answers["ticker/24hr"]["lastPrice"] = "0.00000000"


def nothing_ever(answers: Answers) -> None:
    no_trade_yet(answers)
    answers["ticker/24hr"]["closeTime"] = 0


def at_rest(answers: Answers) -> None:
    last_traded(answers, "100.00", 3 * 86_400)
    answers["klines"][0][5] = "0"


ODD_BUT_SOUND = [
    (wide, "spread of 6.2%"),
    (very_wide, "spread of 133.3%"),
    (moved_in_hours, "from last trades 100 (old)"),
    (moved_far_in_days, "from last trades 100 (old)"),
    (moved_in_seconds, "from last trades 100"),
    (old_candle, "from kline 80 (old)"),
    (no_candle, ""),
    (six_bids, "bids: 6 levels in all"),
    (one_level_a_side, "asks: 1 levels in all"),
    (three_satoshi, "bids: 3 levels in all"),
    (one_satoshi, "spread of 100.0%"),
    (a_tick_away, "bids: 4 levels in all"),
    (no_trade_yet, "no trade yet"),
    (nothing_ever, "no trade yet"),
    (at_rest, ""),
]


@pytest.mark.parametrize(("change", "warning"), ODD_BUT_SOUND, ids=[change.__name__ for change, _ in ODD_BUT_SOUND])
async def test_odd_but_sound_markets_are_anchorable(
    redis: Redis, venue: Venue, change: Callable[[Answers], None], warning: str
) -> None:
    """What is valid at the exchange is anchored; what is unusual about it stands in the receipt."""
    change(venue.answers)

    receipt = await reanchor(redis, venue.url)

    read = await HotState(redis, SYMBOL).read()
    assert ("swapped", 0, "") == (receipt.result, receipt.exit_code, read.incomplete), receipt.message
    assert "anchored" == read.anchor["state"]
    assert any(warning in reported for reported in receipt.warnings) if warning else receipt.warnings == ()


async def test_what_is_odd_does_not_refuse_a_live_state(redis: Redis, venue: Venue) -> None:
    """A validation judges a live state as a rebuild does."""
    await reanchor(redis, venue.url)
    moved_in_hours(venue.answers)
    await reanchor(redis, venue.url)

    receipt = await reanchor(redis, venue.url, validate_only=True)

    assert "validated" == receipt.result, receipt.message


def quotes_elsewhere(answers: Answers) -> None:
    answers["ticker/24hr"] |= {"bidPrice": "95.00", "askPrice": "95.01"}


def no_quotes_and_trades_elsewhere(answers: Answers) -> None:
    last_traded(answers, "80.00", 7200)
    answers["ticker/24hr"] |= {"bidPrice": "0.00", "askPrice": "0.00"}


def nothing_to_compare(answers: Answers) -> None:
    no_trade_yet(answers)
    answers["ticker/24hr"] |= {"bidPrice": "0.00", "askPrice": "0.00"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (quotes_elsewhere, "from ticker 95 to 95.01"),
        (no_quotes_and_trades_elsewhere, "from last trades 80"),
        (nothing_to_compare, "the exchange gives no other price to compare the book with"),
    ],
)
async def test_a_book_that_nothing_vouches_for_is_refused(
    redis: Redis, venue: Venue, change: Callable[[Answers], None], words: str
) -> None:
    """Quotes that contradict the book refuse it; without quotes other prices do, however old; or there is no judge."""
    change(venue.answers)

    receipt = await reanchor(redis, venue.url)

    assert (4, "failed") == (receipt.exit_code, receipt.result)
    assert words in receipt.message


async def test_old_price_does_not_block_recovery(redis: Redis, venue: Venue) -> None:
    """A hot state that is far off because of an outage is replaced when the exchange's own prices agree."""
    await reanchor(redis, venue.url)
    await redis.hset(KEYS.ob, mapping={"best_bid": "85", "best_ask": "85.01"})

    receipt = await reanchor(redis, venue.url)

    assert ("swapped", 2) == (receipt.result, receipt.epoch_after)


async def test_rate_limit_of_another_exchange_is_not_ours(redis: Redis, venue: Venue) -> None:
    """A pause that one exchange has requested does not delay requests to another one."""
    first = await reanchor(redis, venue.url)
    reported = (
        first.to_json().replace('"retry_at_us":0', f'"retry_at_us":{2**60}').replace(venue.url, "http://elsewhere")
    )
    await redis.xadd(KEYS.receipts, {"receipt": reported})

    assert "swapped" == (await reanchor(redis, venue.url)).result


BANS: list[tuple[int, dict[str, str], str]] = [
    (418, {}, "Way too much request weight used; IP banned until {ms}. Please use WebSocket Streams."),
    (418, {"Retry-After": "1"}, "Way too many requests; IP(127.0.0.1) banned until {ms}."),
    (403, {}, "IP banned until {ms}."),
    (429, {"Retry-After": "120"}, "Too many requests."),
]


@pytest.mark.parametrize(("status", "headers", "words"), BANS)
async def test_a_ban_is_heeded_in_whichever_form(
    redis: Redis, venue: Venue, status: int, headers: dict[str, str], words: str
) -> None:
    """Until a ban is over no request is sent, by this run or the next, in whichever form its end was given."""
    until_ms = time.time_ns() // 1_000_000 + 120_000

    def ban(_: str) -> web.Response:
        reported = {"code": -1003, "msg": words.format(ms=until_ms)}
        return web.json_response(reported, status=status, headers=headers)

    venue.refusal = ban
    first = await reanchor(redis, venue.url)
    asked = len(venue.asked)
    second = await reanchor(redis, venue.url)

    assert (3, 3) == (first.exit_code, second.exit_code)
    assert asked <= 4, "the four requests of one collection at most"
    assert asked == len(venue.asked)
    assert abs(first.retry_at_us - until_ms * 1_000) < 60_000_000


async def test_the_breaker_is_one_over_all_runs(redis: Redis, venue: Venue) -> None:
    """Runs of their own that fail one after the other open it; while it is open the exchange is left alone."""
    venue.refusal = lambda _: web.Response(status=500)
    receipts = []
    for _ in range(8):
        breaker = CircuitBreaker("rest", 5, 4, counts=counts_as_failure)
        async with quick_exchange(venue.url, breaker=breaker) as exchange:
            receipts.append(await reanchor_with(redis, exchange))
        if "the next try is in" in receipts[-1].message:
            break
    asked = len(venue.asked)
    venue.refusal = lambda _: None
    await asyncio.sleep(4.1)
    async with quick_exchange(venue.url, breaker=CircuitBreaker("rest", 5, 4, counts=counts_as_failure)) as exchange:
        healed = await reanchor_with(redis, exchange)

    refused = receipts[-1]
    assert (3, 2, ()) == (refused.exit_code, refused.breaker, refused.calls)
    assert refused.retry_at_us > refused.finished_at_us
    assert ("swapped", 0) == (healed.result, healed.breaker)
    assert "ping" == venue.asked[asked][0], "one small question comes first"


async def test_a_receipt_reports_what_was_asked(redis: Redis, venue: Venue) -> None:
    """Requests with their status and time, retries, and the remaining weight, for the metrics of runs."""
    failing = ["trades", "trades"]

    def now_and_then(name: str) -> web.Response | None:
        if name in failing:
            failing.remove(name)
            return web.Response(status=502)
        return None

    venue.refusal = now_and_then
    receipt = await reanchor(redis, venue.url)

    by_status = sorted((endpoint.rpartition("/")[2], status) for endpoint, status, _ in receipt.calls)
    good = [("24hr", "200"), ("depth", "200"), ("klines", "200"), ("trades", "200")]
    assert [*good, ("trades", "502"), ("trades", "502")] == by_status
    assert 2 == receipt.retries
    assert all(0 < seconds < 60 for _, _, seconds in receipt.calls)
    assert 0 < receipt.weight_remaining < 9 * 10**8, "an exchange that does not tell its count is counted for"


async def test_receipts_are_stamped_by_redis(redis: Redis, venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose clock is an hour off leaves receipts that compare with what Redis has stamped."""
    monkeypatch.setattr(time, "time_ns", lambda ahead=time.time_ns: ahead() + 3_600_000_000_000)
    venue.refusal = lambda _: web.Response(status=429, headers={"Retry-After": "300"})

    receipt = await reanchor(redis, venue.url)

    now_us = await redis_now_us(redis)
    assert now_us - 300_000_000 < receipt.started_at_us <= receipt.finished_at_us <= now_us
    assert abs(receipt.retry_at_us - receipt.finished_at_us - 300_000_000) < 60_000_000

"""Re-anchors against a real Redis server and the local exchange, with and without lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from conftest import RedisServer, free_port_number, wait_until
from sheetanchor._decoder import Market
from sheetanchor.contract import Receipt
from sheetanchor.errors import ExchangeError
from sheetanchor.reanchor.receipts import new_id
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.patience import PATIENCE_S, patience
from support.reanchor_parts import (
    HOT_KEYS,
    KEYS,
    SHEETANCHOR,
    SYMBOL,
    ExchangeProcess,
    dump,
    exchange_process,
    fed_line,
    quick_exchange,
    reanchor,
    reanchor_with,
    staging_left,
)
from support.venue import running_venue


@pytest.fixture(scope="module")
def exchange_server() -> Iterator[ExchangeProcess]:
    """A running exchange for all tests of this module."""
    with exchange_process("--weight-limit", "1000000") as running:
        yield running


@pytest.fixture
def exchange(exchange_server: ExchangeProcess) -> Iterator[ExchangeProcess]:
    """A running exchange without any fault left over."""
    yield exchange_server
    for fault in exchange_server.ask("/faults").get("active", []) + exchange_server.ask("/faults").get("waiting", []):
        exchange_server.ask(f"/faults/{fault['id']}", method="DELETE")


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


async def last_receipt(redis: Redis) -> Receipt:
    """Read the newest receipt in Redis."""
    entries: Any = await redis.xrevrange(KEYS.receipts, count=1)
    return Receipt.from_json(entries[0][1][b"receipt"].decode())


async def test_first_anchor_needs_redis_and_exchange_only(redis: Redis, exchange: ExchangeProcess) -> None:
    """Without any line the state of the exchange becomes epoch 1, whole, anchored and fresh; the receipt says so."""
    receipt = await reanchor(redis, exchange.rest_url, reason="first", trigger="start")

    read = await HotState(redis, SYMBOL).read()
    assert ("swapped", 0, 0, 1) == (receipt.result, receipt.exit_code, receipt.epoch_before, receipt.epoch_after)
    assert ("", 1, "anchored", receipt.id) == (
        read.incomplete,
        read.epoch,
        read.anchor["state"],
        read.anchor["receipt"],
    )
    assert receipt.started_at_us - 5_000_000 < int(read.anchor["stamp_us"]) <= read.now_us
    assert "there is no line" in receipt.message
    assert "rest" == read.ob["source"]
    assert receipt == await last_receipt(redis)
    assert {"lock", "fetch", "build", "catch_up", "stage", "validate", "swap", "verify"} == set(receipt.phases)
    assert 8 == len(receipt.checks)


async def test_rebuilt_book_is_the_exchanges(redis: Redis) -> None:
    """Levels in the hash and in the packed book are those of the answer, to the last digit."""
    async with running_venue() as venue:
        receipt = await reanchor(redis, venue.url, depth_limit=5000)
        reported = venue.answers["depth"]

    market = Market(SYMBOL)
    market.load_book(await redis.get(KEYS.book) or b"")
    ob = (await HotState(redis, SYMBOL).read()).ob
    assert reported["lastUpdateId"] == receipt.snapshot_id == market.update_id == int(ob["update_id"])
    for side, levels in zip(("bid", "ask"), market.levels(), strict=True):
        assert reported[f"{side}s"] == [[f"{price / 1e8:.8f}", f"{qty / 1e8:.8f}"] for price, qty in levels]
        assert reported[f"{side}s"][:10] == [[ob[f"{side}{rank}_p"], ob[f"{side}{rank}_q"]] for rank in range(1, 11)]


async def test_lives_of_the_keys_after_a_swap(redis: Redis, exchange: ExchangeProcess) -> None:
    """Book keys live for ever, windows 300 s, features 120 s; no staging is left."""
    began_s = time.monotonic()
    await reanchor(redis, exchange.rest_url)

    lives = {key: await redis.ttl(key) for key in HOT_KEYS}

    took_s = time.monotonic() - began_s
    assert (-1, -1) == (lives[KEYS.ob], lives[KEYS.book])
    assert all(299 - took_s <= lives[key] <= 300 for key in (KEYS.tr_1s, KEYS.tr_5s))
    assert 119 - took_s <= lives[KEYS.feat] <= 120
    assert [] == await staging_left(redis)


def test_ids_of_the_same_second_differ() -> None:
    """Two runs that begin in the same second have different ids, with the symbol and the second in front."""
    ids = {new_id(SYMBOL, "", 1_700_000_000_000_000) for _ in range(100)}

    assert 100 == len(ids)
    assert all(one.startswith("reanchor_BTCUSDT_1700000000_") for one in ids)


async def test_request_is_done_once(redis: Redis, exchange: ExchangeProcess) -> None:
    """A second run for the same request changes nothing and reports the result of the first."""
    first = await reanchor(redis, exchange.rest_url, request_id="ticket-7")
    before = await dump(redis)

    second = await reanchor(redis, exchange.rest_url, request_id="ticket-7")
    await redis.delete(KEYS.receipts)
    third = await reanchor(redis, exchange.rest_url, request_id="ticket-7")
    other = await reanchor(redis, exchange.rest_url, request_id="ticket-8")

    assert (0, "repeated", 1) == (second.exit_code, second.result, second.epoch_after)
    assert "request ticket-7 was answered before: swapped" in second.message
    assert "repeated" == third.result, "the anchor alone remembers it too"
    assert before != await dump(redis)
    assert (first.epoch_after + 1, "swapped") == (other.epoch_after, other.result)


async def test_dry_run_swaps_nothing(redis: Redis, exchange: ExchangeProcess) -> None:
    """A dry run does everything but the swap and leaves nothing behind."""
    receipt = await reanchor(redis, exchange.rest_url, dry_run=True)

    assert (0, "dry_run", 0) == (receipt.exit_code, receipt.result, receipt.epoch_after)
    assert [None] * 5 == await dump(redis)
    assert [] == await staging_left(redis)
    assert 0 == await redis.exists(KEYS.lock)


async def test_catches_up_with_the_lines(redis: Redis, exchange: ExchangeProcess) -> None:
    """With a line the rebuilt state goes on from the snapshot to the newest diff, and keeps the lines' places."""
    async with fed_line(redis, exchange.ws_url):
        await asyncio.sleep(0.5)  # so that the line begins before the snapshot
        receipt = await reanchor(redis, exchange.rest_url)

    market = Market(SYMBOL)
    epoch, line_ids = market.load_book(await redis.get(KEYS.book) or b"")
    assert "swapped" == receipt.result, receipt.message
    assert "line" not in receipt.message
    assert receipt.update_id >= receipt.snapshot_id
    assert (1, {"a"}) == (epoch, set(line_ids))


async def test_fresh_line_makes_it_fetch_again(redis: Redis, exchange: ExchangeProcess) -> None:
    """A snapshot older than the first diff of the lines is fetched again."""
    await exchange.until_it_has_a_past()
    async with fed_line(redis, exchange.ws_url):
        exchange.fault("stale_snapshot", n=1, seconds=8)
        receipt = await reanchor(redis, exchange.rest_url)

    assert "swapped" == receipt.result, receipt.message
    assert receipt.phases["catch_up"] > 0.3, "it waited for the hole to be filled"


async def test_snapshot_that_stays_old_is_refused(redis: Redis, exchange: ExchangeProcess) -> None:
    """When every snapshot is older than the lines nothing is swapped: exit code 3."""
    await exchange.until_it_has_a_past()
    async with fed_line(redis, exchange.ws_url):
        exchange.fault("stale_snapshot", n=9, seconds=12)
        receipt = await reanchor(redis, exchange.rest_url)

    assert (3, "failed") == (receipt.exit_code, receipt.result)
    assert "no snapshot joined the lines in 3 tries" in receipt.message
    assert [None] * 5 == await dump(redis)


async def test_silent_lines_do_not_hold_up(redis: Redis, exchange: ExchangeProcess) -> None:
    """Lines that have gone silent are not waited for longer than two seconds, and the receipt says so."""
    async with fed_line(redis, exchange.ws_url):
        pass
    await asyncio.sleep(0.3)

    receipt = await reanchor(redis, exchange.rest_url)

    assert "swapped" == receipt.result
    assert "the lines deliver no frames" in receipt.message


async def test_lines_of_another_exchange_are_refused(redis: Redis, exchange: ExchangeProcess) -> None:
    """Lines that deliver frames but never reach the snapshot's update are an error."""
    with exchange_process("--warmup-s", "1") as other:
        other_id = other.ask(f"/checkpoint?symbol={SYMBOL}")["update_id"]
        here_id = exchange.ask(f"/checkpoint?symbol={SYMBOL}")["update_id"]
        assert other_id < here_id
        async with fed_line(redis, other.ws_url):
            receipt = await reanchor(redis, exchange.rest_url, catch_up_s=0.5)

    assert 3 == receipt.exit_code
    assert "are ws_url and rest_url of the same exchange?" in receipt.message


async def test_what_another_has_rebuilt_is_not_rebuilt_again(redis: Redis, exchange: ExchangeProcess) -> None:
    """A run that was asked for about an earlier epoch does nothing while a later one is sound."""
    hot = HotState(redis, SYMBOL)
    assert "swapped" == (await reanchor(redis, exchange.rest_url, doubted_epoch=0)).result

    late = await reanchor(redis, exchange.rest_url, doubted_epoch=0)
    assert ("superseded", 7, 1) == (late.result, late.exit_code, (await hot.anchor()).epoch)
    assert ("the state of epoch 1 is anchored; the doubt was about epoch 0", 0) == (late.message, late.snapshot_id)
    assert "" == await hot.lock_holder()

    await hot.suspect(0, "", 1, 0, "a gap")
    assert ("swapped", 2) == (
        (again := await reanchor(redis, exchange.rest_url, doubted_epoch=0)).result,
        again.epoch_after,
    )
    assert "swapped" == (await reanchor(redis, exchange.rest_url, doubted_epoch=2)).result


async def test_live_state_never_steps_back(redis: Redis, server: RedisServer, exchange: ExchangeProcess) -> None:
    """Rebuilds under a live processor never show readers an older update, a mixed state or a second writer."""
    hot = HotState(redis, SYMBOL)
    flags = ["--redis-url", server.url, "--rest-url", exchange.rest_url, "--http-host", "127.0.0.1"]
    process = begin([*SHEETANCHOR, "process", *flags])
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        while True:
            read = await hot.read()
            assert "" == read.incomplete
            seen.append((read.epoch, int(read.ob["update_id"])))
            await asyncio.sleep(0.001)

    try:
        async with fed_line(redis, exchange.ws_url):
            await asyncio.sleep(0.3)
            await reanchor(redis, exchange.rest_url)
            async with patience():
                while not (await hot.anchor()).writer:
                    await asyncio.sleep(0.05)
            watcher = asyncio.create_task(watch())
            # Of a hundred levels the recorded market at one place passes eighty within a second: that would be a gap.
            receipts = [await reanchor(redis, exchange.rest_url, depth_limit=1000) for _ in range(8)]
            await redis.hset(KEYS.anchor, "unvalidated", "2")
            validated = await reanchor(redis, exchange.rest_url, depth_limit=1000, validate_only=True)
            left = await redis.hget(KEYS.anchor, "unvalidated")
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.communicate, None, PATIENCE_S)

    assert ["swapped"] * 8 == [receipt.result for receipt in receipts], [r.message for r in receipts]
    assert sorted(seen) == seen
    assert [update for _, update in seen] == sorted(update for _, update in seen)
    assert ("validated", 9, 9) == (validated.result, validated.epoch_before, validated.epoch_after), validated.message
    assert b"0" == left


async def test_wrong_live_book_is_found_twice_and_replaced(redis: Redis, exchange: ExchangeProcess) -> None:
    """A validation that finds a level which the exchange does not have compares a second time, then rebuilds."""
    hot = HotState(redis, SYMBOL)
    await hot.lock("x")
    await hot.unlock("x")
    looks = 0

    async def spoil(place: str) -> None:
        nonlocal looks
        if place != "before:compare":
            return
        looks += 1
        # What a processor would have written, but for one quantity.
        [trade] = exchange.ask(f"/api/v3/trades?symbol={SYMBOL}&limit=1")
        update_id, wrong = live_book(exchange, more_at_bid=3)
        price, qty = mantissa(trade["price"]), mantissa(trade["qty"])
        wrong.seed_trades([(trade["id"], price, qty, trade["time"] * 1_000, trade["isBuyerMaker"])], -8, -8)
        wrong_book = wrong.pack_book(1, {})
        reply = await hot.apply(1, "spoiler", 1, update_id, 1, book=wrong_book)
        assert reply.ok, reply

    async with fed_line(redis, exchange.ws_url):
        await asyncio.sleep(0.3)
        await reanchor(redis, exchange.rest_url)
        assert (await hot.take(1, "spoiler", 0, "")).ok
        receipt = await reanchor(redis, exchange.rest_url, spoil, validate_only=True)

    assert 2 == looks
    assert ("swapped", 2) == (receipt.result, receipt.epoch_after), receipt.message
    assert "the live state was wrong: bid 4: expected" in receipt.message


async def test_a_difference_is_a_doubt_at_once_and_a_lost_one_is_repeated(
    redis: Redis, exchange: ExchangeProcess
) -> None:
    """Before the rebuild, and again if the rebuild fails after Redis has lost it; not if another run has rebuilt."""
    hot, states = HotState(redis, SYMBOL), []

    async def break_down(place: str) -> None:
        if place == "before:compare":
            update_id, wrong = live_book(exchange, more_at_bid=3)
            assert (await hot.apply(1, "spoiler", 1, update_id, 1, book=wrong.pack_book(1, {}))).ok
        if place == "before:stage":
            states.append((await hot.anchor()).state)
            await redis.hset(KEYS.anchor, "state", "anchored")  # as a failover may leave it
            raise ExchangeError("the exchange has gone")

    async with fed_line(redis, exchange.ws_url):
        await asyncio.sleep(0.3)
        await reanchor(redis, exchange.rest_url)
        assert (await hot.take(1, "spoiler", 0, "")).ok
        receipt = await reanchor(redis, exchange.rest_url, break_down, validate_only=True)
        states.append((await hot.anchor()).state)

    assert (3, ["suspect", "suspect"]) == (receipt.exit_code, states), receipt.message


async def test_a_live_state_that_lacks_the_newest_trade_is_replaced(redis: Redis, exchange: ExchangeProcess) -> None:
    """A book that is right to the letter is no proof that trades still come: a validation compares their ids too."""
    hot = HotState(redis, SYMBOL)
    await hot.lock("x")
    await hot.unlock("x")

    async def go_on_without_trades(place: str) -> None:
        if place != "before:compare":
            return
        update_id, live = live_book(exchange)
        reply = await hot.apply(1, "writer", 1, update_id, 1, book=live.pack_book(1, {}))
        assert reply.ok, reply

    async with fed_line(redis, exchange.ws_url):
        await asyncio.sleep(0.3)
        await reanchor(redis, exchange.rest_url)
        assert (await hot.take(1, "writer", 0, "")).ok
        receipt = await reanchor(redis, exchange.rest_url, go_on_without_trades, validate_only=True)

    assert ("swapped", 2) == (receipt.result, receipt.epoch_after), receipt.message
    assert "the live state has trades up to -1, the exchange up to" in receipt.message


def live_book(exchange: ExchangeProcess, more_at_bid: int | None = None) -> tuple[int, Market]:
    """Give the exchange's book as a market without trades, and its update; a unit too much at one bid if asked for."""
    reported = exchange.ask(f"/api/v3/depth?symbol={SYMBOL}&limit=1000")
    bids, asks = ([(mantissa(price), mantissa(qty)) for price, qty in reported[side]] for side in ("bids", "asks"))
    if more_at_bid is not None:
        bids[more_at_bid] = (bids[more_at_bid][0], bids[more_at_bid][1] + 1)
    market = Market(SYMBOL)
    market.load_snapshot(reported["lastUpdateId"], -8, -8, bids, asks, 1)
    return reported["lastUpdateId"], market


def mantissa(text: str) -> int:
    """Read a decimal text of the exchange as an integer at eight decimals."""
    return int(text.replace(".", ""))


async def test_validation_of_nothing_builds_it(redis: Redis, exchange: ExchangeProcess) -> None:
    """A validation of a symbol without any state rebuilds it and says why."""
    receipt = await reanchor(redis, exchange.rest_url, validate_only=True)

    assert ("swapped", 1) == (receipt.result, receipt.epoch_after)
    assert "the state is suspect: there is none yet" in receipt.message


@pytest.mark.parametrize("path", ["depth", "trades", "klines", "ticker/24hr"])
async def test_error_that_passes_is_tried_again(redis: Redis, exchange: ExchangeProcess, path: str) -> None:
    """An endpoint that fails twice with 500 is asked again, and the run succeeds."""
    exchange.fault("rest_status", n=2, code=500, path=path)

    assert 0 == (await reanchor(redis, exchange.rest_url)).exit_code


@pytest.mark.parametrize("path", ["depth", "trades", "klines", "ticker/24hr"])
@pytest.mark.parametrize(("code", "words"), [(500, "answered 500"), (403, "answered 403"), (418, "answered 418")])
async def test_error_that_stays_ends_the_run(
    redis: Redis, exchange: ExchangeProcess, path: str, code: int, words: str
) -> None:
    """An endpoint that goes on failing ends the run: exit code 3, nothing written, one line that names it."""
    exchange.fault("rest_status", n=20, code=code, path=path, retry_after=120)

    receipt = await reanchor(redis, exchange.rest_url)

    assert (3, "failed") == (receipt.exit_code, receipt.result)
    assert f"Data collection failed: GET /api/v3/{path} {words}" in receipt.message
    assert [None] * 5 == await dump(redis)
    assert [] == await staging_left(redis)
    assert 0 == await redis.exists(KEYS.lock)


@pytest.mark.parametrize("form", ["truncated", "html", "empty", "wrong"])
@pytest.mark.parametrize("path", ["depth", "trades", "klines", "ticker/24hr"])
async def test_unusable_body_ends_the_run(redis: Redis, exchange: ExchangeProcess, path: str, form: str) -> None:
    """A body that is not what it should be is one clear error that names the endpoint."""
    exchange.fault("rest_body", n=9, form=form, path=path)

    receipt = await reanchor(redis, exchange.rest_url)

    assert 3 == receipt.exit_code
    assert f"GET /api/v3/{path}" in receipt.message
    assert "\n" not in receipt.message
    assert [None] * 5 == await dump(redis)


async def test_retry_after_is_honoured(redis: Redis, exchange: ExchangeProcess) -> None:
    """After a 429 nothing is asked before its Retry-After is over; then the run goes on."""
    fault = exchange.fault("rest_status", n=1, code=429, path="depth", retry_after=2)
    started_s = time.monotonic()

    receipt = await reanchor(redis, exchange.rest_url)

    assert ("swapped", 1) == (receipt.result, exchange.applied(fault))
    assert 2 <= time.monotonic() - started_s


async def test_long_retry_after_is_remembered_by_the_next_run(redis: Redis, exchange: ExchangeProcess) -> None:
    """A Retry-After beyond a run's patience ends it, and the next run does not ask before it is over either."""
    fault = exchange.fault("rest_status", n=9, code=429, path="", retry_after=300)
    first = await reanchor(redis, exchange.rest_url)
    asked = exchange.applied(fault)

    second = await reanchor(redis, exchange.rest_url)

    assert (3, 3) == (first.exit_code, second.exit_code)
    assert first.retry_at_us > time.time_ns() // 1000 + 200_000_000
    assert 1 <= asked <= 4, "the four requests of one collection at most"
    assert asked == exchange.applied(fault)
    assert "the exchange requested a pause" in second.message


async def test_unresponsive_exchange(redis: Redis, exchange: ExchangeProcess) -> None:
    """An exchange that does not answer in time ends the run at once with words that say so."""
    exchange.fault("slow_rest", n=4, seconds=3, path="depth")

    async with quick_exchange(exchange.rest_url, timeout_s=0.5) as client:
        receipt = await reanchor_with(redis, client)

    assert 3 == receipt.exit_code
    assert "Data collection timeout - REST APIs unresponsive: GET /api/v3/depth" in receipt.message


async def test_slow_answers_are_fetched_in_parallel(redis: Redis, exchange: ExchangeProcess) -> None:
    """Four answers that take five seconds each are there before four times that."""
    exchange.fault("slow_rest", n=4, seconds=5, path="")

    receipt = await reanchor(redis, exchange.rest_url)

    assert 0 == receipt.exit_code
    assert 5 <= receipt.phases["fetch"] < 20


async def test_whole_run_has_an_end(redis: Redis, exchange: ExchangeProcess) -> None:
    """A run that is not done in time ends without a swap and says in which phase."""
    exchange.fault("slow_rest", n=4, seconds=3, path="depth")

    receipt = await reanchor(redis, exchange.rest_url, timeout_s=0.5)

    assert (3, "failed") == (receipt.exit_code, receipt.result)
    assert "not done within 0.5 s; the time was up during fetch" in receipt.message
    assert 0 == await redis.exists(KEYS.lock)


def command(server: RedisServer, rest_url: str, *flags: str) -> list[str]:
    """A re-anchor as a user starts it."""
    quick = ["--retry-max-attempts", "1", "--retry-initial-delay-ms", "100", "--depth-limit", "100"]
    return [*SHEETANCHOR, "reanchor", "--redis-url", server.url, "--rest-url", rest_url, *quick, *flags]


def begin(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a process without waiting for it."""
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def run_command(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHEETANCHOR_")}
    return subprocess.run(
        [*words, "--log-level", "error"], capture_output=True, text=True, timeout=60, env=clean, check=False
    )


async def test_exit_codes_of_the_command(redis: Redis, server: RedisServer, exchange: ExchangeProcess) -> None:
    """Each way to end has its exit code, one line on stderr, and a receipt on stdout."""
    dead = f"http://127.0.0.1:{free_port_number()}"
    done = run_command(command(server, exchange.rest_url))
    bad = run_command(command(server, exchange.rest_url, "--depth-limit", "4"))
    unreachable = run_command(command(server, dead))
    async with running_venue() as venue:
        venue.answers["depth"]["bids"][0][0] = "100.05000000"
        crossed = await asyncio.to_thread(run_command, command(server, venue.url))
    no_redis = run_command(
        [*SHEETANCHOR, "reanchor", "--redis-url", "redis://127.0.0.1:1/0", "--rest-url", exchange.rest_url]
    )
    await redis.set(KEYS.lock, "somebody else", ex=60)
    held = run_command(command(server, exchange.rest_url))

    results = [done, bad, unreachable, crossed, no_redis, held]
    assert [0, 2, 3, 4, 5, 6] == [result.returncode for result in results], [result.stderr for result in results]
    assert "" == done.stderr
    assert "swapped" == json.loads(done.stdout)["result"]
    assert all(1 == result.stderr.count("\n") for result in results[1:]), [result.stderr for result in results]
    assert "depth_limit = '4'" in bad.stderr
    assert f"cannot connect to {dead}" in unreachable.stderr
    assert "book is crossed" in crossed.stderr
    assert "Redis cannot do" in no_redis.stderr
    assert "already in progress" in held.stderr
    assert b"somebody else" == await redis.get(KEYS.lock)
    assert all(json.loads(result.stdout)["exit_code"] == result.returncode for result in results[2:])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_gives_the_lock_back(
    redis: Redis, server: RedisServer, exchange: ExchangeProcess, number: signal.Signals
) -> None:
    """A run that gets SIGTERM releases its lock, leaves the hot keys unchanged, and logs it."""
    await reanchor(redis, exchange.rest_url)
    before = await dump(redis)
    slow = exchange.fault("slow_rest", n=4, seconds=600, path="")
    process = begin(command(server, exchange.rest_url))
    await asyncio.to_thread(wait_until, lambda: exchange.applied(slow) > 0, within_s=20, what="the fetch has begun")
    assert 1 == await redis.exists(KEYS.lock)

    process.send_signal(number)
    out, _ = await asyncio.to_thread(process.communicate, None, PATIENCE_S)

    assert 143 == process.returncode
    assert "stopped during fetch" in json.loads(out)["message"]
    assert 0 == await redis.exists(KEYS.lock)
    assert before == await dump(redis)


async def test_old_state_with_higher_ids_is_replaced(redis: Redis, exchange: ExchangeProcess) -> None:
    """What an earlier pipeline left behind cannot keep a rebuild out, however high its update id."""
    await reanchor(redis, exchange.rest_url)
    await redis.hset(KEYS.ob, "update_id", str(2**52))
    await redis.hset(KEYS.anchor, mapping={"update_id": str(2**52), "stamp_us": "1700000000000000"})

    receipt = await reanchor(redis, exchange.rest_url)

    anchor = await HotState(redis, SYMBOL).anchor()
    assert ("swapped", 2, "anchored") == (receipt.result, anchor.epoch, anchor.state), receipt.message


async def test_live_state_that_stays_newer_is_left(redis: Redis, exchange: ExchangeProcess) -> None:
    """A fresh state that is newer than what can be rebuilt is not replaced: exit code 7."""
    await reanchor(redis, exchange.rest_url)
    await redis.hset(KEYS.ob, "update_id", str(2**52))
    before = await dump(redis)

    receipt = await reanchor(redis, exchange.rest_url)

    assert (7, "superseded") == (receipt.exit_code, receipt.result)
    assert "the live state was newer than the rebuilt one 50 times" in receipt.message
    assert before == await dump(redis)


async def test_several_symbols(redis: Redis, server: RedisServer) -> None:
    """Several symbols are each re-anchored, with a receipt a line; the worst exit code counts."""
    with exchange_process("--symbol", "BTCUSDT", "--symbol", "ETHUSDT") as exchange:
        both = run_command(command(server, exchange.rest_url, "--symbol", "BTCUSDT", "--symbol", "ETHUSDT"))
        one = run_command(command(server, exchange.rest_url, "--symbol", "BTCUSDT", "--symbol", "NONEUSDT"))

    assert (0, 3) == (both.returncode, one.returncode), both.stderr + one.stderr
    assert {"BTCUSDT", "ETHUSDT"} == {json.loads(line)["symbol"] for line in both.stdout.splitlines()}
    assert {0, 3} == {json.loads(line)["exit_code"] for line in one.stdout.splitlines()}

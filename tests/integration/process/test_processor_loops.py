"""What a processor observes besides its lines: that its own loops run, and the results of validations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.contract import CHECK_OF_TRADES, Receipt, keys
from sheetanchor.process.command import processors_of, watch_runs
from sheetanchor.process.rest_health import RestHealth
from sheetanchor.process.self_reanchor import RebuildRequest
from sheetanchor.process.symbol_processor import SymbolProcessor
from sheetanchor.runtime.settings import ProcessSettings
from sheetanchor.store.redis_client import redis_client
from sheetanchor.web.server import LOOP_STALL_MAX_S, Health
from support.process_parts import until

SYMBOLS = ("BTCUSDT", "ETHUSDT")
SECOND = 1_000_000
TOOK_US = 3 * SECOND
CLOSE_US = 1_000_000
"""How far Redis' clock is known, and what an entry's id rounds."""


@asynccontextmanager
async def made(server: RedisServer, health: Health) -> AsyncIterator[list[SymbolProcessor]]:
    """The writers of a processor of two symbols, as it makes them."""
    settings = ProcessSettings(symbol=list(SYMBOLS), redis_url=server.url)
    clients = [redis_client(server.url) for _ in (*SYMBOLS, "shared")]
    try:
        yield processors_of(settings, clients, {symbol: RebuildRequest() for symbol in SYMBOLS}, health)
    finally:
        for client in clients:
            await client.aclose()


@asynccontextmanager
async def at_work(*writers: SymbolProcessor) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.run(stop))
        yield
        stop.set()


# Heartbeats


async def test_a_symbol_whose_loop_stands_still_is_seen_beside_one_that_turns(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is not alive then, and is again when the loop turns."""
    health, go_on = Health("sheetanchor-process", []), asyncio.Event()
    turn = SymbolProcessor._run_once

    async def stands(writer: SymbolProcessor) -> None:
        if writer.symbol == SYMBOLS[1]:
            await go_on.wait()
        await turn(writer)

    monkeypatch.setattr(SymbolProcessor, "_run_once", stands)

    async with made(redis_server, health) as writers, at_work(*writers):
        await until(lambda: _is(len(health._heartbeats) == len(SYMBOLS)), 5, "both loops have begun")
        for symbol in SYMBOLS:
            health._heartbeats[symbol] -= LOOP_STALL_MAX_S
        await until(
            lambda: _is(health._heartbeats[SYMBOLS[0]] > health._heartbeats[SYMBOLS[1]]), 5, "the other loop turns"
        )
        alive = health.live
        go_on.set()
        await until(lambda: _is(health.live), 5, "both loops turn")

    assert not alive


async def test_without_redis_the_loops_turn(redis_server: RedisServer) -> None:
    """The checks report a lost server: a restart of the process would not help."""
    health = Health("sheetanchor-process", [])
    async with made(redis_server, health) as writers:
        redis_server.stop()
        async with at_work(*writers):
            await until(lambda: _is(len(health._heartbeats) == len(SYMBOLS)), 5, "both loops have begun")
            for symbol in SYMBOLS:
                health._heartbeats[symbol] -= LOOP_STALL_MAX_S
            await until(lambda: _is(health.live), 5, "both loops turn")


async def _is(condition: bool) -> bool:
    return condition


# Receipts


def receipt(now_us: int, **fields: object) -> Receipt:
    """What a validation that has found everything in order leaves behind."""
    good = Receipt(
        id="run",
        symbol=SYMBOLS[0],
        reason="trade: none has come for 61 s",
        trigger="scheduled",
        result="validated",
        started_at_us=now_us - TOOK_US,
        finished_at_us=now_us,
        epoch_before=1,
        epoch_after=1,
        snapshot_id=7,
        update_id=9,
        exit_code=0,
        message="",
        checks=("live_state", "live_book", CHECK_OF_TRADES),
    )
    return replace(good, **fields)


async def leave(redis: Redis, told: Receipt) -> int:
    """Write a receipt as a run does; gives the moment by Redis' clock in µs."""
    entry = await redis.xadd(keys(SYMBOLS[0]).receipts, {"receipt": told.to_json()})
    return int(entry.partition(b"-")[0]) * 1_000


@asynccontextmanager
async def listening(server: RedisServer) -> AsyncIterator[tuple[SymbolProcessor, Redis]]:
    """A writer that knows Redis' clock, and gets the receipts of runs."""
    async with made(server, Health("sheetanchor-process", [])) as (writer, _), at_work(writer):
        # How far it is known is half of what the reply took, which is long where this process stands still meanwhile.
        await until(lambda: _is(writer.clock.known and writer.clock._round_trip_us < CLOSE_US), 5, "Redis' clock")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch_runs(writer._redis, writer, {}, RestHealth()))
            yield writer, writer._redis
            task.cancel()


@pytest.mark.parametrize("off_us", [0, -3600 * SECOND, 3600 * SECOND])
async def test_a_validation_counts_from_its_beginning_by_redis_clock(redis_server: RedisServer, off_us: int) -> None:
    """Whatever the clock of the machine that it ran on says: its own times give nothing but how long it took."""
    async with listening(redis_server) as (writer, redis):
        ended_us = await leave(redis, receipt(writer.now_us + off_us))
        await until(lambda: _is(writer.follower.validated_us > 0), 5, "the receipt is recorded")
        began_us = writer.clock.of_steady(writer.follower.validated_us)

    assert abs(began_us - (ended_us - TOOK_US)) < CLOSE_US


@pytest.mark.parametrize(
    "fields",
    [
        {"result": "swapped"},
        {"result": "dry_run"},
        {"result": "repeated"},
        {"result": "failed", "exit_code": 4},
        {"checks": ()},
        {"checks": ("live_state", "live_book")},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())) or "nothing",
)
async def test_no_other_receipt_tells_that_trades_are_right(
    redis_server: RedisServer, fields: dict[str, object]
) -> None:
    """Only a validation that has compared the trade ids does; a later one counts all the same."""
    async with listening(redis_server) as (writer, redis):
        recorded: list[str] = []
        record, writer.record_run = (
            writer.record_run,
            lambda entry, told: (record(entry, told), recorded.append(told.id)),
        )  # type: ignore[method-assign,func-returns-value]
        await leave(redis, receipt(writer.now_us, id="other", **fields))
        await until(lambda: _is(recorded == ["other"]), 5, "the first receipt is looked at")
        believed_us = writer.follower.validated_us
        await leave(redis, receipt(writer.now_us))
        await until(lambda: _is(writer.follower.validated_us > believed_us), 5, "the second receipt is recorded")

    assert 0 == believed_us


async def test_an_older_validation_takes_nothing_back(redis_server: RedisServer) -> None:
    """One that began before another that is known, and ended after it, leaves the later beginning as it is."""
    async with listening(redis_server) as (writer, redis):
        await leave(redis, receipt(writer.now_us))
        await until(lambda: _is(writer.follower.validated_us > 0), 5, "the first receipt is recorded")
        first_us = writer.follower.validated_us
        writer.record_run(
            f"{writer.now_us // 1_000}-0", receipt(writer.now_us, started_at_us=writer.now_us - 60 * SECOND)
        )

    assert first_us == writer.follower.validated_us

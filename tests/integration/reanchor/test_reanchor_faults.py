"""A re-anchor that is broken at every place: the hot keys are as they were or wholly new, and the next run succeeds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.contract import Receipt
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.reanchor_parts import (
    KEYS,
    PLACES,
    SWAPPED_FROM,
    SYMBOL,
    ExchangeProcess,
    breaking_hook,
    dump,
    exchange_process,
    reanchor,
    staging_left,
)

SCRIPT = Path(__file__).parents[2] / "support" / "broken_reanchors.py"
TTL_S = 60


class Broken(Exception):
    """What the tests break a run with; no part of the product expects it."""


@pytest.fixture(scope="module")
def exchange() -> Iterator[ExchangeProcess]:
    """A running exchange for all tests of this module."""
    with exchange_process("--weight-limit", "1000000") as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running server for all tests of this module."""
    running = RedisServer(tmp_path_factory.mktemp("redis"), "--databases", "64").start()
    yield running
    running.stop()


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty server."""
    client = redis_client(server.url)
    await client.config_set("maxmemory", 0)
    await client.flushall()
    yield client
    await client.config_set("maxmemory", 0)
    await client.aclose()


async def assert_untouched_or_new(redis: Redis, before: list[bytes | None], *, swapped: bool, epoch: int = 2) -> None:
    """Check that the hot keys are byte-identical, or all of the new epoch."""
    if not swapped:
        assert before == await dump(redis)
        return
    read = await HotState(redis, SYMBOL).read()
    assert (epoch, "") == (read.epoch, read.incomplete)
    assert all(new not in (None, old) for old, new in zip(before, await dump(redis), strict=True))


@pytest.mark.parametrize("place", PLACES)
async def test_exception_at_any_place(redis: Redis, exchange: ExchangeProcess, place: str) -> None:
    """An unexpected exception before or after any phase leaves no staging, no lock and no half state."""
    assert 0 == (await reanchor(redis, exchange.rest_url)).exit_code
    before = await dump(redis)

    with pytest.raises(Broken):
        await reanchor(redis, exchange.rest_url, breaking_hook(place, Broken(place)))

    swapped = PLACES.index(place) >= SWAPPED_FROM
    await assert_untouched_or_new(redis, before, swapped=swapped)
    assert [] == await staging_left(redis)
    assert 0 == await redis.exists(KEYS.lock)
    assert 2 + swapped == (await reanchor(redis, exchange.rest_url)).epoch_after


@pytest.mark.parametrize("place", ["before:lock", "before:stage", "before:swap"])
async def test_redis_out_of_memory(redis: Redis, exchange: ExchangeProcess, place: str) -> None:
    """A server that runs out of memory refuses as a whole: exit code 5, and the next run with memory succeeds."""
    await reanchor(redis, exchange.rest_url)
    before = await dump(redis)

    async def fill(reached: str) -> None:
        if reached == place:
            await redis.config_set("maxmemory", 1)

    receipt = await reanchor(redis, exchange.rest_url, fill)

    assert (5, "failed") == (receipt.exit_code, receipt.result)
    assert "out of memory" in receipt.message
    await assert_untouched_or_new(redis, before, swapped=False)
    assert [] == await staging_left(redis)
    assert 0 == await redis.exists(KEYS.lock)
    await redis.config_set("maxmemory", 0)
    assert 2 == (await reanchor(redis, exchange.rest_url)).epoch_after


class BrokenRuns:
    """A run for each place that sends itself a signal there, each on a database of its own."""

    def __init__(self, server: RedisServer, exchange: ExchangeProcess, signal_name: str) -> None:
        words = [str(server.port), exchange.rest_url, signal_name, str(TTL_S), *PLACES]
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), *words], stdout=subprocess.PIPE, text=True)
        self.pids = [0] * len(PLACES)

    def until_all(self, event: str) -> list[int]:
        """Read what happens until it has happened to every run; give the value of each."""
        values: dict[int, int] = {}
        while len(values) < len(PLACES):
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line, f"the runs have ended before all have {event}"
            number, happened, value = line.split()
            if happened == "begun":
                self.pids[int(number)] = int(value)
            elif happened == event:
                values[int(number)] = int(value)
        return [values[number] for number in range(len(PLACES))]


@contextmanager
def broken_runs(server: RedisServer, exchange: ExchangeProcess, signal_name: str) -> Iterator[BrokenRuns]:
    """Runs that break, and their certain end."""
    runs = BrokenRuns(server, exchange, signal_name)
    try:
        yield runs
    finally:
        for pid in filter(None, runs.pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        runs.process.kill()
        runs.process.communicate()


@pytest.fixture
async def clients(redis: Redis, server: RedisServer, exchange: ExchangeProcess) -> AsyncIterator[list[Redis]]:
    """A database of its own for each place, with a sound state of epoch 1."""
    made = [redis_client(f"redis://127.0.0.1:{server.port}/{number}") for number in range(len(PLACES))]
    for client in made:
        assert 1 == (await reanchor(client, exchange.rest_url)).epoch_after
    yield made
    for client in made:
        await client.aclose()


async def let_lock_run_out(client: Redis) -> None:
    """Shorten what is left of the lock's life, and wait for its end."""
    if await client.exists(KEYS.lock):
        assert 0 < await client.ttl(KEYS.lock) <= TTL_S, "a lock without an end"
        await client.pexpire(KEYS.lock, 1)
    while await client.exists(KEYS.lock):
        await asyncio.sleep(0.002)


async def test_kill_at_every_place(clients: list[Redis], server: RedisServer, exchange: ExchangeProcess) -> None:
    """A run that is killed leaves whole hot keys; once its lock has run out the next run succeeds and cleans up."""
    before = [await dump(client) for client in clients]

    with broken_runs(server, exchange, "SIGKILL") as runs:
        codes = await asyncio.to_thread(runs.until_all, "ended")

    assert [-signal.SIGKILL] * len(PLACES) == codes
    for number, client in enumerate(clients):
        swapped = number >= SWAPPED_FROM
        await assert_untouched_or_new(client, before[number], swapped=swapped)
        await let_lock_run_out(client)
        assert 2 + swapped == (await reanchor(client, exchange.rest_url)).epoch_after, PLACES[number]
        assert [] == await staging_left(client), PLACES[number]


async def test_stop_past_the_life_of_the_lock(
    clients: list[Redis], server: RedisServer, exchange: ExchangeProcess
) -> None:
    """A run that slept past its lock never overwrites what another one swapped in meanwhile, nor harms its lock."""
    with broken_runs(server, exchange, "SIGSTOP") as runs:
        await asyncio.to_thread(runs.until_all, "stopped")
        for client in clients:
            await let_lock_run_out(client)
        others = [await reanchor(client, exchange.rest_url) for client in clients]
        foreign = [await HotState(client, SYMBOL).lock("somebody else") for client in clients]
        before = [await dump(client) for client in clients]

        for pid in runs.pids:
            os.kill(pid, signal.SIGCONT)
        codes = await asyncio.to_thread(runs.until_all, "ended")

    assert all(receipt.exit_code == 0 for receipt in others)
    assert all(foreign)
    for number, client in enumerate(clients):
        swapped = number >= SWAPPED_FROM
        # Before the lock was taken there was nothing to lose; it is held elsewhere now.
        assert (0 if swapped else 6 if number == 0 else 7) == codes[number], PLACES[number]
        assert before[number] == await dump(client), PLACES[number]
        assert b"somebody else" == await client.get(KEYS.lock), PLACES[number]
        assert [] == await staging_left(client), PLACES[number]


async def test_second_run_waits_outside(redis: Redis, exchange: ExchangeProcess) -> None:
    """A second run during the first one touches nothing and says that one is in progress."""
    second: list[Receipt] = []

    async def meanwhile(place: str) -> None:
        if place == "after:stage":
            second.append(await reanchor(redis, exchange.rest_url))

    first = await reanchor(redis, exchange.rest_url, meanwhile)

    assert (0, 1) == (first.exit_code, first.epoch_after)
    assert (6, "lock_held") == (second[0].exit_code, second[0].result)
    assert f"Re-anchor already in progress for {SYMBOL}" in second[0].message
    assert first.id in second[0].message


async def test_many_runs_at_once(redis: Redis, exchange: ExchangeProcess) -> None:
    """Of runs that begin together each one either swaps or steps aside, and every epoch has exactly one receipt."""
    rounds = [await asyncio.gather(*(reanchor(redis, exchange.rest_url) for _ in range(4))) for _ in range(3)]

    receipts = [receipt for one in rounds for receipt in one]
    swapped = [receipt.epoch_after for receipt in receipts if receipt.result == "swapped"]
    assert {0, 6, 7} >= {receipt.exit_code for receipt in receipts}
    assert list(range(1, len(swapped) + 1)) == sorted(swapped)
    assert len(swapped) >= len(rounds)
    assert [] == await staging_left(redis)
    assert 0 == await redis.exists(KEYS.lock)


async def test_state_rebuilt_by_another(redis: Redis, exchange: ExchangeProcess) -> None:
    """A run whose epoch has passed is superseded: exit code 7, nothing changed."""
    await reanchor(redis, exchange.rest_url)
    hot = HotState(redis, SYMBOL)

    async def overtake(place: str) -> None:
        if place == "before:swap":
            await hot.suspect(0, "", 5, 0, "rebuilt elsewhere")

    before = await dump(redis)
    receipt = await reanchor(redis, exchange.rest_url, overtake)

    assert (7, "superseded") == (receipt.exit_code, receipt.result)
    assert before == await dump(redis)
    assert [] == await staging_left(redis)


@pytest.mark.parametrize("missing", [KEYS.ob_new, KEYS.book_new, KEYS.tr_1s_new, KEYS.tr_5s_new, KEYS.feat_new])
async def test_staging_lost_before_the_swap(redis: Redis, exchange: ExchangeProcess, missing: str) -> None:
    """If one staging key is gone the swap refuses as a whole and names the key."""
    await reanchor(redis, exchange.rest_url)
    before = await dump(redis)

    async def lose(place: str) -> None:
        if place == "before:swap":
            await redis.delete(missing)

    receipt = await reanchor(redis, exchange.rest_url, lose)

    assert 5 == receipt.exit_code
    assert f"Temporary key missing: {missing}" in receipt.message
    assert before == await dump(redis)
    assert [] == await staging_left(redis)


async def test_redis_lost_in_mid_run(tmp_path: Path, exchange: ExchangeProcess) -> None:
    """A server that dies in mid-run ends it with exit code 5 and a line that says so."""
    server = RedisServer(tmp_path).start()
    client = redis_client(server.url)

    async def kill(place: str) -> None:
        if place == "before:stage":
            server.stop()

    try:
        receipt = await reanchor(client, exchange.rest_url, kill)
    finally:
        server.stop()
        await client.aclose()

    assert (5, "failed") == (receipt.exit_code, receipt.result)
    assert "Redis cannot do" in receipt.message
    assert "lock and staging keys could not be removed, they expire by themselves" in receipt.message


async def test_lost_reply_of_the_swap(tmp_path: Path, exchange: ExchangeProcess) -> None:
    """A server that is stopped during the swap swaps once, and the run learns the result by a second call."""
    server = RedisServer(tmp_path).start()
    client = redis_client(server.url, socket_timeout_s=0.5)
    assert server.process is not None
    process = server.process

    async def stand_still(place: str) -> None:
        if place == "before:swap":
            process.send_signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(1.2, process.send_signal, signal.SIGCONT)

    try:
        receipt = await reanchor(client, exchange.rest_url, stand_still)
        read = await HotState(client, SYMBOL).read()
    finally:
        process.send_signal(signal.SIGCONT)
        await client.aclose()
        server.stop()

    assert ("swapped", 1, receipt.id) == (receipt.result, read.epoch, read.anchor["receipt"]), receipt.message
    assert 0.5 < receipt.phases["swap"], "no reply was lost"

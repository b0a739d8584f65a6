"""The coordinator with a real server and real child processes that stand for rebuilds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor.contract import keys
from sheetanchor.local.coordinator import Coordinator
from sheetanchor.local.processes import Spec
from sheetanchor.local.relay import Relay
from sheetanchor.policy import reanchor_scheduler
from sheetanchor.store.redis_client import redis_client
from support.patience import limit_s

KEY = keys("BTCUSDT")

TAKE_THE_LOCK_AND_DIE = """
import os, signal, sys, redis
url, lock, owner, trace = sys.argv[1:]
redis.Redis.from_url(url).set(lock, owner, nx=True, ex=300)
open(trace, "a").write(owner + "\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of a server of its own."""
    client = redis_client(redis_server.url)
    yield client
    await client.aclose()


@contextlib.asynccontextmanager
async def coordinating(redis: Redis, url: str, trace: Path) -> AsyncIterator[Coordinator]:
    """Run a coordinator whose rebuilds take the lock and are killed; each leaves its owner's name in a file."""

    def make_spec(symbol: str, start: reanchor_scheduler.Start, request_id: str) -> Spec:
        words = (url, keys(symbol).lock, f"reanchor_{symbol}_1_x:{request_id}", str(trace))
        return Spec("reanchor", (sys.executable, "-c", TAKE_THE_LOCK_AND_DIE, *words), os.environ)

    policy = reanchor_scheduler.Policy(backoff_us=100_000, backoff_max_us=100_000)
    coordinator = Coordinator(redis, "BTCUSDT", make_spec, Relay(None), policy)
    task = asyncio.create_task(coordinator.run())
    try:
        yield coordinator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(condition: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(limit_s(within_s)):
        while not condition():
            await asyncio.sleep(0.02)


def runs(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


async def test_lock_of_a_killed_run_is_given_back_and_it_is_tried_again(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Without that the next run would have to wait for the end of the lock's life."""
    trace = tmp_path / "runs"
    async with coordinating(redis, redis_server.url, trace) as coordinator:
        await eventually(lambda: len(runs(trace)) >= 2)
        await eventually(lambda: not coordinator.running)

    assert len(runs(trace)) == len(set(runs(trace)))
    assert not coordinator.anchored


async def test_living_lock_of_another_is_respected(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> None:
    """While another run is at work none is started here."""
    await redis.set(KEY.lock, "somebody", ex=299)
    trace = tmp_path / "runs"

    async with coordinating(redis, redis_server.url, trace):
        await asyncio.sleep(1.5)

    assert (b"somebody", []) == (await redis.get(KEY.lock), runs(trace))


async def test_lock_that_is_older_than_any_run_is_taken_away(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Its owner has ended or was stopped, and its swap would be refused."""
    await redis.set(KEY.lock, "somebody", ex=150)
    trace = tmp_path / "runs"

    async with coordinating(redis, redis_server.url, trace):
        await eventually(lambda: len(runs(trace)) >= 1)

    assert await redis.get(KEY.lock) != b"somebody"

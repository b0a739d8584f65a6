"""Three servers with Sentinels as real processes: what is lost, and for how long, when one of them goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from conftest import server_binary
from sheetanchor.errors import RedisError, RedisRefused, RedisUnavailable
from sheetanchor.store.function_library import ensure_library, library_version
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import client_of, redis_client, server_identity
from sheetanchor.store.redis_connection import translate_errors
from support.patience import PATIENCE_S, limit_s, patience
from support.redis_set_parts import RedisSet, redis_set

pytestmark = pytest.mark.slow

WRITABLE_WITHIN_S = 20
"""A failover takes four seconds on a quiet machine."""

WHOLE_WITHIN_S = 40


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSet]:
    """A set that the tests of this module share; each leaves it whole."""
    with redis_set(tmp_path_factory.mktemp("set"), "--server", server_binary()) as running:
        yield running


@pytest.fixture(autouse=True)
def left_whole(members: RedisSet) -> Iterator[None]:
    """Whatever a test did, the next one finds the set whole."""
    yield
    for run in members.runs:
        if run.process is None or run.process.poll() is not None:
            run.start()
    members.wait(members.whole, WHOLE_WITHIN_S, "the set is whole again")


@pytest.fixture
async def client(members: RedisSet) -> AsyncIterator[Redis]:
    """What a processor has: a client that follows the master."""
    client = redis_client(members.url("process"), members.password_file("process"))
    yield client
    await client.aclose()


class Writer:
    """Writes one key after another, as long as the block runs, and notes which were acknowledged and when."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.acknowledged: list[tuple[float, str]] = []
        self.refused: list[RedisError] = []

    async def run(self) -> None:
        """Write until cancelled."""
        number = 0
        while True:
            key = f"ob:{id(self)}:{number}"
            try:
                with translate_errors("SET"):
                    await self._redis.set(key, number)
            except RedisError as error:
                self.refused.append(error)
            else:
                self.acknowledged.append((asyncio.get_running_loop().time(), key))
            number += 1
            await asyncio.sleep(0.01)

    async def goes_on(self, within_s: float = WRITABLE_WITHIN_S) -> None:
        """Wait for twenty more acknowledgements."""
        wanted = len(self.acknowledged) + 20
        async with asyncio.timeout(limit_s(within_s)):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.02)

    def until(self, moment: float) -> list[str]:
        """Keys that were acknowledged before a moment of the loop's clock."""
        return [key for when, key in self.acknowledged if when < moment]


@asynccontextmanager
async def writing(redis: Redis) -> AsyncIterator[Writer]:
    """Write while the block runs."""
    writer = Writer(redis)
    task = asyncio.create_task(writer.run())
    try:
        await writer.goes_on()
        yield writer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def missing(redis: Redis, names: list[str]) -> list[str]:
    """Name the keys that the master does not have."""
    pipeline = redis.pipeline(transaction=False)
    for name in names:
        pipeline.exists(name)
    return [name for name, exists in zip(names, await pipeline.execute(), strict=True) if not exists]


async def whole_again(members: RedisSet, master: int | None = None) -> None:
    """Wait until there is one master with two replicas and all Sentinels know it."""
    await asyncio.to_thread(members.wait, lambda: members.whole(master), WHOLE_WITHIN_S, "the set is whole again")


def test_three_nodes_form_a_set(members: RedisSet) -> None:
    """The first node is the master, the others follow it, and metrics and health say so."""
    roles = [members.info(index).get("role") for index in range(3)]
    metrics = [run.get("/metrics")[1] for run in members.servers]

    assert roles == ["master", "slave", "slave"]
    for index, text in enumerate(metrics):
        assert f'redis_master{{node="localhost"}} {1.0 if index == 0 else 0.0}' in text
        assert 'redis_up{node="localhost"} 1.0' in text
    assert 'redis_sentinel_others{node="localhost"} 2.0' in members.sentinels[0].get("/metrics")[1]
    assert all(run.get("/health/live")[0] == 200 for run in members.runs)


async def test_the_master_has_the_function_library(members: RedisSet, client: Redis) -> None:
    """Inference may not load it, and need not."""
    infer = redis_client(members.url("infer"), members.password_file("infer"))

    assert await ensure_library(infer) == library_version()
    assert (await HotState(infer, "BTCUSDT").read()).incomplete != ""
    assert (await server_identity(client)).role == "master"
    await infer.aclose()


async def test_a_wrong_password_is_refused_and_not_waited_for(members: RedisSet) -> None:
    """By the Sentinels as by the servers."""
    wrong = redis_client(members.url("infer"), members.password_file("process"))

    with pytest.raises(RedisRefused, match=r"(?i)WRONGPASS|invalid username-password"), translate_errors("PING"):
        await wrong.ping()

    await wrong.aclose()


async def test_without_any_sentinel_a_call_fails_soon(tmp_path: object, free_port: int) -> None:
    """With an error that is worth another try."""
    nowhere = redis_client(f"sentinel://infer@localhost:{free_port}/sheetanchor")

    async with patience():
        with pytest.raises(RedisUnavailable, match="no Sentinel names the master"), translate_errors("PING"):
            await nowhere.ping()

    await nowhere.aclose()


async def test_a_master_that_ends_hands_over_first(members: RedisSet, client: Redis) -> None:
    """Asked to end with its Sentinel, as a pod is, it loses no write that it acknowledged."""
    [old] = members.masters()
    async with writing(client) as writer:
        sentinel = members.sentinels[old].process
        assert sentinel is not None
        sentinel.terminate()
        code = await asyncio.to_thread(members.servers[old].terminate)
        await writer.goes_on()

    assert code == 0
    assert members.masters() not in ([], [old])
    assert await missing(client, writer.until(float("inf"))) == []
    await asyncio.to_thread(sentinel.wait, 60)
    for run in (members.servers[old], members.sentinels[old]):
        run.forget()
        run.start()
    await whole_again(members)


async def test_a_killed_master_is_replaced_and_comes_back_as_a_replica(members: RedisSet, client: Redis) -> None:
    """Writers write on by themselves, and what was written a second before is still there."""
    [old] = members.masters()
    async with writing(client) as writer:
        await asyncio.sleep(1.2)
        killed_at = asyncio.get_running_loop().time()
        members.servers[old].kill()
        await writer.goes_on()
        members.servers[old].forget()
        members.servers[old].start()
        await whole_again(members)

    assert members.masters() != [old]
    assert await missing(client, writer.until(killed_at - 1)) == []
    assert {type(error) for error in writer.refused} <= {RedisUnavailable}
    assert members.info(old)["role"] == "slave"


async def test_a_master_restarted_in_place_wipes_nobody(members: RedisSet, client: Redis) -> None:
    """It is back before a Sentinel has noticed, has lost its memory, and lets another one be promoted."""
    [old] = members.masters()
    async with writing(client) as writer:
        await asyncio.sleep(1.2)
        killed_at = asyncio.get_running_loop().time()
        members.servers[old].kill()
        members.servers[old].start()
        await writer.goes_on()
    await whole_again(members)

    assert members.masters() != [old]
    assert await missing(client, writer.until(killed_at - 1)) == []


async def test_a_frozen_master_is_left_and_does_not_come_back_as_one(members: RedisSet, client: Redis) -> None:
    """It still holds its connections and still believes to be the master."""
    [old] = members.masters()
    process = members.servers[old].process
    assert process is not None
    async with writing(client) as writer:
        os.killpg(process.pid, signal.SIGSTOP)
        try:
            await writer.goes_on()
        finally:
            os.killpg(process.pid, signal.SIGCONT)
        acknowledged = writer.until(float("inf"))[-20:]
        await whole_again(members)

    assert members.masters() != [old]
    assert await missing(client, acknowledged) == []


async def test_a_reader_leaves_a_master_that_was_replaced_while_it_still_answers(
    members: RedisSet, client: Redis
) -> None:
    """A requested failover leaves the old master running, which learns of it some seconds later."""
    [old] = members.masters()
    sentinel = client_of("localhost", members.sentinel_port(0), timeout_s=PATIENCE_S, **members.login("sentinel"))
    before = (await client.info("server"))["tcp_port"]

    await sentinel.execute_command("SENTINEL", "FAILOVER", "sheetanchor")
    async with asyncio.timeout(limit_s(WRITABLE_WITHIN_S)):
        while (await client.info("server"))["tcp_port"] == before:
            await asyncio.sleep(0.05)

    assert before == members.port(old)
    await sentinel.aclose()
    await whole_again(members)


def reached(members: RedisSet, index: int) -> list[bool | None]:
    """Whether another node's Sentinel says that it reaches a node's server, and its Sentinel; empty if it cannot."""
    code, text = members.sentinels[(index + 1) % 3].get("/peers")
    said = json.loads(text) if code == 200 else {"tilt": True}
    if said["tilt"] or said["age_ms"] >= 2_000:
        return []  # a Sentinel that had no processor for that long says so, and judges no server
    return [
        said["servers"][f"localhost:{members.port(index)}"],
        said["sentinels"][f"localhost:{members.sentinel_port(index)}"],
    ]


async def test_a_node_that_is_lost_with_its_sentinel_is_replaced(members: RedisSet, client: Redis) -> None:
    """Two Sentinels are enough to agree, and both come back with empty disks."""
    [old] = members.masters()
    async with writing(client) as writer:
        for run in (members.servers[old], members.sentinels[old]):
            run.kill()
        await writer.goes_on()
        gone = [False, False], [None, False]  # a failover makes Sentinels start over
        await asyncio.to_thread(members.wait, lambda: reached(members, old) in gone, 15, "a Sentinel reaches neither")
        for run in (members.servers[old], members.sentinels[old]):
            run.forget()
            run.start()
        await whole_again(members)

    await asyncio.to_thread(members.wait, lambda: reached(members, old) == [True, True], 15, "a Sentinel reaches it")
    assert members.masters() != [old]
    assert (await server_identity(client)).role == "master"


def test_a_set_that_was_lost_as_a_whole_starts_again(members: RedisSet) -> None:
    """Empty, but with one master: the hot state is rebuilt from the exchange."""
    for run in members.runs:
        run.kill()
        run.forget()

    members.start()

    assert members.masters() == [0]

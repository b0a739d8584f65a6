"""A master that takes acknowledged writes with it: the processor restates its memory, once, and has it validated."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from sheetanchor.contract import Receipt, keys
from sheetanchor.errors import RedisError
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.patience import patience
from support.redis_set_parts import RedisSet
from support.replicated_path import SYMBOL, HotPath, hot_path

pytestmark = pytest.mark.slow

KEYS = keys(SYMBOL)
LOST_S = 1.2
"""How long the master writes on without a replica before it is killed."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[HotPath]:
    """A running hot path on a replicated Redis whose master writes on without replicas."""
    with hot_path(tmp_path, "--min-replicas-to-write", "0") as running:
        yield running


def cut_off(members: RedisSet, master: int) -> None:
    """Keep every replica from following for a while, then kill the master."""
    for index in {0, 1, 2} - {master}:
        client: Any = sync_redis.Redis(port=members.port(index), **members.login("sentinel"))
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        client.close()
    time.sleep(LOST_S)  # less than Sentinels need to put it right
    members.servers[master].kill()


@contextlib.asynccontextmanager
async def watched(hot: HotState) -> AsyncIterator[list[tuple[int, str, str]]]:
    """Note every epoch, receipt and state that is stored while the block runs."""
    seen: list[tuple[int, str, str]] = []

    async def watch() -> None:
        while True:
            with contextlib.suppress(RedisError):
                anchor = await hot.anchor()
                if not seen or seen[-1] != (anchor.epoch, anchor.receipt, anchor.state):
                    seen.append((anchor.epoch, anchor.receipt, anchor.state))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def receipts(redis: Redis) -> list[Receipt]:
    """All receipts, oldest first."""
    return [Receipt.from_json(fields[b"receipt"].decode()) for _, fields in await redis.xrange(KEYS.receipts)]


async def test_what_the_master_took_with_it_is_restated_once(path: HotPath) -> None:
    """One failover, one more epoch, from memory with the same root; the exchange is asked afterwards and agrees."""
    members = path.members
    [first] = members.masters()
    client = redis_client(members.url("process"), members.password_file("process"))
    hot = HotState(client, SYMBOL)
    before = await hot.anchor()
    async with contextlib.aclosing(client), watched(hot) as seen:
        path.look()
        killed = path.last_slot
        await asyncio.to_thread(cut_off, members, first)
        await asyncio.to_thread(path.sound_for, 2, "sound predictions after the loss", killed + 2)

        async with patience():
            while "validated" not in [receipt.result for receipt in await receipts(client)]:
                await asyncio.sleep(0.2)
        after, told = await hot.anchor(), await receipts(client)

    degraded = [slot for slot, record in sorted(path.records.items()) if slot > killed and record["degraded"]]
    print(f"degraded slots: {len(degraded)}; stored: {seen}")
    [memory] = [receipt for receipt in told if receipt.result == "restated"]
    assert (before.epoch + 1, memory.id, before.receipt, 0, "anchored") == (
        after.epoch,
        after.receipt,
        after.root,
        after.unvalidated,
        after.state,
    )
    assert {(before.epoch, before.receipt), (after.epoch, after.receipt)} == {(at, receipt) for at, receipt, _ in seen}
    assert ("memory", "redis_failover", before.epoch) == (memory.source, memory.trigger, memory.epoch_before)
    assert len(degraded) <= 5

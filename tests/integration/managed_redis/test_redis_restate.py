"""A master that takes acknowledged writes with it: the processor restates its memory, once, and has it validated."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from sheetanchor.contract import Receipt, keys
from sheetanchor.errors import RedisError, RedisUnavailable
from sheetanchor.store.hot_records import Anchor
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from sheetanchor.store.redis_connection import translate_errors
from support.patience import PATIENT, patience
from support.redis_set_parts import RedisSet
from support.replicated_path import SYMBOL, HotPath, hot_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KEYS = keys(SYMBOL)
TOO_LATE = re.compile(
    "not restated from memory: "
    "(the restatement was refused: LATE|entries of the lines are still unread|a missing range may still be filled)"
)
Seen = list[tuple[int, str, str]]
"""Epoch, receipt and state, one after another."""

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
async def watched(hot: HotState) -> AsyncIterator[Seen]:
    """Note every epoch, receipt and state that is stored while the block runs."""
    seen: Seen = []

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


async def new_state(redis: Redis, known: int) -> Receipt:
    """Wait for a receipt of a new state after so many others; gives it."""
    while True:
        with contextlib.suppress(RedisUnavailable), translate_errors("XRANGE"):
            found = [
                receipt for receipt in (await receipts(redis))[known:] if receipt.result in ("restated", "swapped")
            ]
            if found:
                return found[0]
        await asyncio.sleep(0.2)


async def whole_again(path: HotPath, killed: int) -> None:
    """Start the server that was killed, and wait until everything is as it was."""
    path.members.servers[killed].start()
    await asyncio.to_thread(path.members.wait, path.members.whole, 40, "the set is whole again")
    await asyncio.to_thread(path.sound_for, 2, "sound predictions again", path.last_slot)


async def restated(path: HotPath, client: Redis) -> tuple[Anchor, Seen, int]:
    """Kill the master until what it took with it is restated; gives what was stored before, since then, and the slot.

    A memory that a busy machine lets be written too late is refused, which the processor reports, and rebuilt instead.
    """
    members, log, hot = path.members, path.folder / "process.log", HotState(client, SYMBOL)
    while True:
        [master] = members.masters()
        before, known, refused = await hot.anchor(), len(await receipts(client)), len(TOO_LATE.findall(log.read_text()))
        async with patience(), watched(hot) as seen:
            path.look()
            killed = path.last_slot
            await asyncio.to_thread(cut_off, members, master)
            first = await new_state(client, known)
        if first.result == "restated":
            return before, seen, killed
        assert len(TOO_LATE.findall(log.read_text())) > refused, log.read_text()
        await whole_again(path, master)


async def test_what_the_master_took_with_it_is_restated_once(path: HotPath) -> None:
    """One failover, one more epoch, from memory with the same root; the exchange is asked afterwards and agrees."""
    client = redis_client(path.members.url("process"), path.members.password_file("process"), **PATIENT)
    hot = HotState(client, SYMBOL)
    async with contextlib.aclosing(client):
        before, seen, killed = await restated(path, client)
        async with watched(hot) as since:
            await asyncio.to_thread(path.sound_for, 2, "sound predictions after the loss", killed + 2)
            async with patience():
                while "validated" not in {
                    one.result for one in await receipts(client) if one.epoch_before > before.epoch
                }:
                    await asyncio.sleep(0.2)
        after, told = await hot.anchor(), await receipts(client)
    seen += since

    degraded = [slot for slot, record in sorted(path.records.items()) if slot > killed and record["degraded"]]
    print(f"degraded slots: {len(degraded)}; stored: {seen}")
    [memory] = [receipt for receipt in told if receipt.result == "restated" and receipt.epoch_before >= before.epoch]
    assert (before.epoch + 1, memory.id, before.receipt, 0, "anchored") == (
        after.epoch,
        after.receipt,
        after.root,
        after.unvalidated,
        after.state,
    )
    assert {(before.epoch, before.receipt), (after.epoch, after.receipt)} == {(at, receipt) for at, receipt, _ in seen}
    assert ("memory", "redis_failover", before.epoch) == (memory.source, memory.trigger, memory.epoch_before)
    # From the restatement on only a slot for which Redis answers too slowly is degraded.
    later = [path.records[slot]["reason"] for slot in degraded if path.records[slot]["ts"] > memory.finished_at_us]
    assert {"redis"} >= {reason.partition(":")[0] for reason in later}, later

"""The processor and its Redis: one that restarts, is handed over, demoted, full or hung."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServer
from sheetanchor.contract import Receipt
from support.process_parts import KEYS, SYMBOL, Lines, Stage, moving, said, staged, until

pytestmark = pytest.mark.slow


@pytest.fixture
async def stage(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty server, and whatever is started on it is ended."""
    async with staged(redis_server.url, tmp_path) as made:
        yield made


async def test_an_emptied_redis_is_filled_again(stage: Stage, redis_server: RedisServer) -> None:
    """Redis restarts empty: the memory is restated above the last epoch, with a gap and a receipt, and goes on."""
    processor = await stage.started()
    await stage.rebuild(stage.feed.starting_market(), epoch=1)
    await stage.follows()
    redis_server.stop()
    await said(processor, "waiting for Redis")

    stage.lines = Lines(stage.redis)
    async with processor.asleep():  # a memory of a market that has stood still is not restated
        redis_server.start()
        await stage.lines.carry(stage.feed.step())
    async with moving(stage.lines, stage.feed):
        gap = await stage.told("redis_failover")
    await stage.follows()

    restated = await stage.hot.anchor()
    [(_, fields)] = await stage.redis.xrange(KEYS.receipts)
    receipt = Receipt.from_json(fields[b"receipt"].decode())
    assert ("high", "validation_reanchor", 3) == (gap.severity, gap.action, gap.epoch)
    assert ("anchored", 3, "receipt-1", 1) == (
        restated.state,
        restated.epoch,
        restated.root,
        restated.unvalidated,
    )
    assert ("restated", "redis_failover", "memory", restated.receipt) == (
        receipt.result,
        receipt.trigger,
        receipt.source,
        receipt.id,
    )
    assert ["redis_failover"] == await stage.rules()
    page = (await asyncio.to_thread(processor.get, "/metrics")).decode()
    assert f'sheetanchor_restatements_total{{status="RESTATED",symbol="{SYMBOL}"}} 1.0' in page


async def test_a_master_that_is_demoted_is_waited_for(stage: Stage, redis_server: RedisServer) -> None:
    """It becomes a replica of another server, with that one's data, and is promoted again: a failover, no end."""
    processor = await stage.started()
    (redis_server.folder / "other").mkdir()
    other = RedisServer(redis_server.folder / "other", "--repl-diskless-sync-delay", "0").start()

    async def has_gone() -> bool:
        return await stage.redis.dbsize() == 0

    try:
        await stage.redis.execute_command("REPLICAOF", "127.0.0.1", other.port)
        await said(processor, "waiting for Redis")
        await until(has_gone, 20, "the other server's data, which is none")
        stage.lines = Lines(stage.redis)
        async with processor.asleep():
            await stage.redis.execute_command("REPLICAOF", "NO", "ONE")
            await stage.lines.carry(stage.feed.step())

        async with moving(stage.lines, stage.feed):
            await stage.told("redis_failover")
        await stage.follows()
    finally:
        other.stop()

    restated = await stage.hot.anchor()
    found = (restated.state, restated.epoch, processor.process.poll())
    assert ("anchored", 2, None) == found, await stage.gaps()


async def test_a_hand_over_is_no_doubt(stage: Stage) -> None:
    """Redis is in another replication history, and has all that it acknowledged: same epoch, no gap, no rebuild."""
    processor = await stage.started()
    before = (await stage.redis.info("replication"))["master_replid"]
    await stage.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    await said(processor, "waiting for Redis")
    await stage.redis.execute_command("REPLICAOF", "NO", "ONE")

    await said(processor, "replication id has changed")
    await stage.follows()
    await asyncio.sleep(2.5)  # as long as lines are waited for

    anchor = await stage.hot.anchor()
    assert before != (await stage.redis.info("replication"))["master_replid"]
    assert ("anchored", 1, []) == (anchor.state, anchor.epoch, await stage.rules())


async def test_a_writer_that_was_replaced_wants_no_rebuild(stage: Stage) -> None:
    """It was waiting for a rebuild when another took over: the new writer judges the state, and it requests nothing."""
    processor = await stage.started("--self-reanchor-after-s", "10")
    writer = await stage.has_writer()
    other = stage.start()
    await said(other, "loaded epoch 1", within_s=30)
    await stage.hot.suspect(0, "", 1, 0, "somebody doubts it")
    await asyncio.sleep(0.3)  # much less than it waits, and it has heard by then
    async with processor.asleep():
        await stage.has_writer(other_than=writer)
    await said(processor, "no longer the writer")

    def said_since() -> str:
        """What it has said since it was replaced: if that came late, it may have begun a run before."""
        told = "\n".join(str(line["message"]) for line in processor.lines())
        return told.partition("no longer the writer")[2]

    for _ in range(110):  # for longer than it would have waited
        assert "running it here" not in said_since()
        await asyncio.sleep(0.1)


async def test_a_full_redis_is_waited_for(stage: Stage) -> None:
    """Out of memory: nothing is written, nothing ends; it goes on when there is memory again."""
    processor = await stage.started()
    await stage.redis.config_set("maxmemory", "1")
    await said(processor, "out of memory")

    await stage.redis.config_set("maxmemory", "0")

    await stage.follows()
    assert (None, []) == (processor.process.poll(), await stage.gaps())


async def test_a_hung_redis_is_no_reason_to_be_restarted(stage: Stage, redis_server: RedisServer) -> None:
    """While Redis does not answer the processor lives, is not ready, and answers at once."""
    processor = await stage.started("--health-check-interval-seconds", "1")
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        await said(processor, "waiting for Redis", within_s=20)
        live = await asyncio.to_thread(processor.get, "/health/live")

        async def says_no() -> bool:
            ready = json.loads(await asyncio.to_thread(processor.get, "/health/ready"))
            return bool(ready["status"] != "ready")

        await until(says_no, 20, "readiness says no")
        health = json.loads(await asyncio.to_thread(processor.get, "/health"))
    finally:
        redis_server.process.send_signal(signal.SIGCONT)

    assert {"status": "live"} == json.loads(live)
    assert ("unhealthy", "blind") == (health["status"], health["components"]["gap_detector"]["status"])
    await stage.follows()

"""Tasks that talk to Redis can be stopped."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from sheetanchor.store.frame_streams import LineWriter
from support.patience import PATIENCE_S


async def test_busy_writer_can_be_cancelled(redis: Redis) -> None:
    """A cancellation is never swallowed, however it falls between two writes."""
    lost = 0
    for trial in range(60):

        async def write() -> None:
            writer = LineWriter(redis, "BTCUSDT", "a")
            while True:
                await writer.append([(1, b"x" * 100)])

        task = asyncio.create_task(write())
        await asyncio.sleep(0.002 + trial * 0.0001)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
        lost += not done
        task.cancel()

    assert 0 == lost


async def test_connection_is_sound_after_a_cancellation(redis: Redis) -> None:
    """A command that was cancelled half-way never gives its answer to the next one."""
    await redis.set("a", "1")
    for trial in range(60):
        task = asyncio.create_task(redis.get("a"))
        await asyncio.sleep(trial * 0.00002)
        task.cancel()
        await asyncio.wait([task])

        assert b"echo %d" % trial == await redis.echo(f"echo {trial}")

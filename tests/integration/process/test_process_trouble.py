"""Two processors through random faults: kills, pauses, a hung Redis and rebuilds, mixed."""

from __future__ import annotations

import asyncio
import random
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from conftest import RedisServer
from sheetanchor._decoder import Market
from sheetanchor.contract import pack_frames
from sheetanchor.store.redis_client import redis_client
from support.process_parts import KEYS, SYMBOL, Processor, Stage, ended, moving, until
from support.reference_market import Market as ReferenceMarket

pytestmark = pytest.mark.slow

TROUBLES = ("kill", "pause one", "pause both", "hang redis", "rebuild", "kill", "pause one", "rebuild")


def everything(stage: Stage, market: Market | ReferenceMarket) -> None:
    """Feed a market all that the lines have carried, with the time of each entry as a re-anchor does."""
    for at_us, frame in stage.lines.carried:
        market.feed(0, pack_frames([(at_us, frame)]), at_us)


async def rebuild(stage: Stage, start: Market) -> None:
    """Do what a re-anchor does: stage what the lines have brought, catch up until it is not behind."""
    market = Market(SYMBOL)
    market.load_snapshot(1_000, -2, -2, *start.levels(), 0)

    def caught_up() -> Market:
        everything(stage, market)
        return market

    await stage.rebuild_moving(caught_up, (await stage.hot.anchor()).epoch)


async def pause(processes: list[Processor], seconds: float) -> None:
    """Stop processes for a while."""
    for processor in processes:
        processor.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    for processor in processes:
        processor.signal(signal.SIGCONT)


async def test_no_trouble_costs_an_update(redis_server: RedisServer, tmp_path: Path) -> None:
    """At the end the book is the reference market's; no update id went back within an epoch, and there was no gap."""
    chance = random.Random(11)
    client = redis_client(redis_server.url, socket_timeout_s=10)
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        while True:
            read = await stage.hot.read()
            seen.append((read.epoch, int(read.ob["update_id"])))
            await asyncio.sleep(0.01)

    with ended(Stage(client, redis_server.url, tmp_path)) as stage:
        start = stage.feed.starting_market()
        await stage.rebuild(start)
        running = [stage.start(), stage.start()]
        await stage.has_writer()
        watcher = asyncio.create_task(watch())
        async with moving(stage.lines, stage.feed, every_s=0.01):
            for trouble in chance.sample(TROUBLES, len(TROUBLES)):
                await asyncio.sleep(chance.uniform(0.2, 1))
                if trouble == "kill":
                    at = chance.randrange(2)
                    running[at].kill()
                    running[at] = stage.start()
                elif trouble == "rebuild":
                    await rebuild(stage, start)
                elif trouble == "hang redis":
                    assert redis_server.process is not None
                    redis_server.process.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(1.5)
                    redis_server.process.send_signal(signal.SIGCONT)
                else:
                    await pause(running if trouble == "pause both" else [chance.choice(running)], 1.5)
        await stage.follows()
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

        twin, loaded = ReferenceMarket(SYMBOL), Market(SYMBOL)
        twin.load_snapshot(1_000, -2, -2, *start.levels(), 0)
        everything(stage, twin)

        async def book_is_written() -> bool:
            loaded.load_book(await client.get(KEYS.book) or b"")
            return loaded.update_id == stage.feed.update_id

        await until(book_is_written, 5, "the book of the newest update")
        assert twin.levels() == loaded.levels()
        assert all(before <= after for before, after in pairwise(seen))
        assert ([], "anchored", 3) == (
            await stage.gaps(),
            (await stage.hot.anchor()).state,
            (await stage.hot.anchor()).epoch,
        )
    await client.aclose()

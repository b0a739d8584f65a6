"""Dry runs against a real Redis: they do what a slot does and leave no trace; a slot is of the state at its time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from sheetanchor.contract import SLOT_MS, keys, slot_of
from sheetanchor.infer.slot_loop import REFUSED_SLOT, SlotLoop
from sheetanchor.store.hot_records import CommitStatus
from support.inference_parts import LoopWorld, loop_world, next_slot, rebuild
from support.onnx_models import endless_model, model, promote

SYMBOL = "BTCUSDT"
KEYS = keys(SYMBOL)
OF_THE_PROCESS = ("process_", "python_", "sheetanchor_memory_")
LATE_US = 500_000
"""A turn that takes longer than this has kept the loop from its slots."""

POISON = {"feat": {"ret_1s": "0.25", "ret_5s": "0.25"}}


class World(LoopWorld):
    """A Redis with a sound state, and the loop of one symbol with a sound model."""

    def __init__(self, redis: Redis, models: Path) -> None:
        super().__init__(redis, models)
        self.slot_loop = SlotLoop(redis, SYMBOL, "a", self.chain)


@pytest.fixture
async def world(redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """As above, with everything loaded."""
    async with loop_world(World, redis_url, tmp_path / "models") as made:
        await made.hot.take(1, "market", 0, "")
        await rebuild(made.hot)
        await made.written()
        await made.fallbacks.start()
        yield made


async def _sound(world: World) -> None:
    """Leave it as it is."""


async def _garbled(world: World) -> None:
    await world.redis.hset(KEYS.anchor, "stamp_us", "soon")


async def _beat_garbled(world: World) -> None:
    await world.redis.hset(KEYS.anchor, "beat_us", "now")


async def _thin(world: World) -> None:
    await world.written(feat={"ret_1s": "0.0001"})


async def _emptied(world: World) -> None:
    await world.redis.flushall()


async def _of_another_type(world: World) -> None:
    await world.redis.set(KEYS.pred, "a string")


async def _infinite(world: World) -> None:
    promote(world.models, model(infinite_at=0.5))
    await world.chain.refresh()
    await world.written(**POISON)


async def _endless(world: World) -> None:
    promote(world.models, endless_model(at=0.5))
    await world.chain.refresh()
    await world.written(**POISON)


async def _no_model(world: World) -> None:
    world.chain._serving = None


SPOILT: list[Callable[[World], Awaitable[None]]] = [
    _sound, _garbled, _beat_garbled, _thin, _emptied, _of_another_type, _infinite, _endless, _no_model,
]  # fmt: skip


async def _traces(world: World) -> dict[str, object]:
    """All that a slot leaves behind: in Redis, in the metrics, in the loop and in the chain of models."""
    names = sorted([name async for name in world.redis.scan_iter()])
    loop, chain = world.slot_loop, world.chain
    return {
        "keys": {name: await world.redis.dump(name) for name in names},
        "metrics": [
            (sample.name, sample.labels, sample.value)
            for family in REGISTRY.collect()
            for sample in family.samples
            if not sample.name.startswith(OF_THE_PROCESS)
        ],
        "loop": (loop.state, loop.last_slot, loop.connected, loop.last_failure, loop._heard, loop.times),
        "records": (loop.latest(450), list(loop._mids), loop.accuracy(), loop.decided()),
        "chain": (chain.mode, chain.problem, chain.loaded, dict(chain._failures)),
    }


@pytest.mark.parametrize("spoil", SPOILT, ids=[spoil.__name__.strip("_") for spoil in SPOILT])
async def test_dry_runs_leave_no_trace(
    world: World, spoil: Callable[[World], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """No key, no metric, no log, no memory: neither of a sound state nor of one that would degrade a slot."""
    await spoil(world)
    await asyncio.sleep(0.05)  # lets the server's own fields settle: no other client writes
    caplog.clear()
    caplog.set_level(logging.DEBUG, "sheetanchor")
    before = await _traces(world)

    for _ in range(3):
        await world.slot_loop._rehearse()

    assert before == await _traces(world)
    assert [] == [record.getMessage() for record in caplog.records if record.name.startswith("sheetanchor")]


async def test_a_dry_run_does_all_that_a_slot_does(world: World) -> None:
    """It reads, runs the model and asks for a commit that is refused: else the slot would find the caches cold."""
    await world.redis.config_resetstat()

    await world.slot_loop._rehearse()

    stats = await world.redis.info("commandstats")
    reply = await world.hot.commit_prediction(REFUSED_SLOT, {"mode": "model"})
    assert (1, 1) == (stats["cmdstat_fcall_ro"]["calls"], stats["cmdstat_fcall"]["calls"])
    assert not {"cmdstat_xadd", "cmdstat_hset", "cmdstat_del"} & set(stats)
    assert CommitStatus.REFUSED == reply.status


async def test_a_slot_is_of_the_state_at_its_time(world: World) -> None:
    """The prediction is made from what was written between the dry run and the slot."""
    while True:
        slot = await next_slot()
        await world.slot_loop._rehearse()
        await world.written(200.0)
        assert await world.slot_loop._serve(slot)
        if slot_of(time.time_ns() // 1_000) == slot:
            break  # else it may have come too late to be committed

    [(record, _)] = world.slot_loop.latest(1)
    assert (200.0, True) == (record.price_now, record.committed)


async def test_every_slot_is_committed_once(world: World) -> None:
    """A loop with dry runs commits its slots one after another, none before its time and nothing beside them."""
    stop = asyncio.Event()
    running = asyncio.create_task(world.slot_loop.run(stop))
    began = slot_of(time.time_ns() // 1_000)
    stood_still: list[tuple[int, int]] = []
    while len(world.slot_loop.latest(10)) < 3:
        turned_us = time.time_ns() // 1_000
        await world.written()
        await asyncio.sleep(0.1)
        if (now_us := time.time_ns() // 1_000) - turned_us > LATE_US:
            stood_still.append((slot_of(turned_us), slot_of(now_us)))
    stop.set()
    await running

    entries = await world.redis.xrange(KEYS.preds)
    slots = [int(fields[b"slot"]) for _, fields in entries]
    missed = set(range(slots[0], slots[-1])) - set(slots)
    assert slots == sorted(set(slots))
    assert [] == [slot for slot in missed if not any(first <= slot <= last for first, last in stood_still)]
    assert began <= slots[0]
    assert all(float(fields[b"latency_ms"]) >= 0 for _, fields in entries)
    assert all(
        int(entry_id.split(b"-")[0]) >= slot * SLOT_MS for (entry_id, _), slot in zip(entries, slots, strict=True)
    )

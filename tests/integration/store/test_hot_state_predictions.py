"""One prediction per slot, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from redis.asyncio import Redis

from sheetanchor.contract import SLOT_MS, slot_of
from sheetanchor.store.hot_records import CommitReply
from sheetanchor.store.hot_state import HotState
from support.hot_state_cases import ends_s, redis_us
from support.patience import patience

T = TypeVar("T")


async def within_a_slot(
    redis: Redis, do: Callable[[int], Awaitable[T]], *, from_ms: int = 0, to_ms: int = SLOT_MS
) -> tuple[int, T]:
    """Do something on an empty server within a part of one slot; repeat it if some of it came later.

    Returns:
        The slot, and what came of it.
    """
    async with patience():
        while True:
            await redis.flushall()
            begun_us = await redis_us(redis)
            slot, gone_ms = slot_of(begun_us), begun_us // 1_000 % SLOT_MS
            if not from_ms <= gone_ms < to_ms:
                await asyncio.sleep((from_ms - gone_ms) % SLOT_MS / 1000 + 0.001)
                continue
            done = await do(slot)
            if await redis_us(redis) < slot * SLOT_MS * 1_000 + to_ms * 1_000:
                return slot, done


async def _stream_slots(redis: Redis) -> list[bytes]:
    return [fields[b"slot"] for _, fields in await redis.xrange("preds:{BTCUSDT}")]


async def test_the_first_commit_of_a_slot_wins(hot: HotState, redis: Redis) -> None:
    """A second commit is a no-op that says EXISTS; one record stands in the hash and in the stream."""

    async def twice(slot: int) -> list[CommitReply]:
        fields = ({"predicted_price": "1", "mode": "model"}, {"predicted_price": "2", "mode": "none"})
        return [await hot.commit_prediction(slot, these) for these in fields]

    slot, (first, second) = await within_a_slot(redis, twice)

    record = await redis.hgetall("pred:{BTCUSDT}")
    assert (first.status, second.status) == ("COMMITTED", "EXISTS")
    assert (record[b"predicted_price"], record[b"slot"]) == (b"1", str(slot).encode())
    assert await _stream_slots(redis) == [str(slot).encode()]
    assert pytest.approx(120, abs=1) == await ends_s(redis, "pred:{BTCUSDT}", first.now_us)


async def test_latency_is_measured_by_redis(hot: HotState, redis: Redis) -> None:
    """The stored latency is Redis' time at the commit less the slot's time, whatever the caller says."""
    fields = {"mode": "model", "latency_ms": "0", "slot": "1"}
    slot, reply = await within_a_slot(redis, lambda slot: hot.commit_prediction(slot, fields))

    stored = await redis.hgetall("pred:{BTCUSDT}")
    assert float(stored[b"latency_ms"]) == reply.latency_ms == (reply.now_us - slot * 2_000_000) / 1000
    assert stored[b"slot"] == str(slot).encode()


async def test_of_many_commits_at_once_one_wins(hot: HotState, redis: Redis) -> None:
    """Ten replicas at the same moment: one record."""

    async def together(slot: int) -> list[CommitReply]:
        return await asyncio.gather(*(hot.commit_prediction(slot, {"model": f"m{n}"}) for n in range(10)))

    _, replies = await within_a_slot(redis, together)

    assert sorted(reply.status for reply in replies) == ["COMMITTED", *["EXISTS"] * 9]
    assert len(await _stream_slots(redis)) == 1


@pytest.mark.parametrize("offset", [-100, -2, 1, 2])
async def test_other_slots_are_refused(hot: HotState, redis: Redis, offset: int) -> None:
    """Only Redis' current slot and the one before it are open."""
    _, reply = await within_a_slot(redis, lambda slot: hot.commit_prediction(slot + offset, {"mode": "model"}))

    assert reply.status == "REFUSED"
    assert await redis.dbsize() == 0


async def test_a_late_commit_joins_the_history_but_not_the_front(hot: HotState, redis: Redis) -> None:
    """The slot before, committed after the current one, enters the stream once and leaves `pred` alone."""

    async def late(slot: int) -> list[CommitReply]:
        await hot.commit_prediction(slot, {"mode": "model"})
        return [await hot.commit_prediction(slot - 1, {"mode": "late"}) for _ in range(2)]

    slot, replies = await within_a_slot(redis, late)

    assert [reply.status for reply in replies] == ["COMMITTED", "EXISTS"]
    assert await redis.hget("pred:{BTCUSDT}", "mode") == b"model"
    assert await _stream_slots(redis) == [str(slot).encode(), str(slot - 1).encode()]


async def test_a_prediction_is_replaced_as_a_whole(hot: HotState, redis: Redis) -> None:
    """No field of the slot before survives in the next."""

    async def one_after_the_other(slot: int) -> None:
        await hot.commit_prediction(slot - 1, {"mode": "model", "reason": "old"})
        await hot.commit_prediction(slot, {"mode": "model"})

    await within_a_slot(redis, one_after_the_other)

    assert set(await redis.hgetall("pred:{BTCUSDT}")) == {b"mode", b"slot", b"latency_ms"}


async def test_a_slot_stays_committed_when_the_hash_is_gone(hot: HotState, redis: Redis) -> None:
    """The history alone is enough to know that a slot has its prediction."""

    async def again(slot: int) -> CommitReply:
        await hot.commit_prediction(slot, {"mode": "model"})
        await redis.delete("pred:{BTCUSDT}")
        return await hot.commit_prediction(slot, {"mode": "other"})

    assert (await within_a_slot(redis, again))[1].status == "EXISTS"


async def test_a_replica_in_trouble_of_its_own_comes_second(hot: HotState, redis: Redis) -> None:
    """In the first half second a commit that is degraded for its own reasons is too early; a sound one is not."""

    async def both(slot: int) -> list[CommitReply]:
        early = await hot.commit_prediction(slot, {"mode": "none"}, own_degraded=True)
        return [early, await hot.commit_prediction(slot, {"mode": "model"})]

    _, replies = await within_a_slot(redis, both, to_ms=500)

    assert [reply.status for reply in replies] == ["EARLY", "COMMITTED"]


async def test_a_replica_in_trouble_commits_when_nobody_else_did(hot: HotState, redis: Redis) -> None:
    """After its wait the degraded prediction is better than none."""
    fields = {"mode": "none"}
    _, reply = await within_a_slot(
        redis, lambda slot: hot.commit_prediction(slot, fields, own_degraded=True), from_ms=600
    )

    assert reply.status == "COMMITTED"

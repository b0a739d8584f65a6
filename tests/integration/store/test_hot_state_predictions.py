"""One prediction per slot, on a real server."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from sheetanchor.contract import SLOT_MS, slot_of
from sheetanchor.store.hot_state import HotState
from support.patience import patience


async def _slot_with_time_left(redis: Redis, *, at_least_ms: int = 1200, begun_ms: int = 0) -> int:
    """Give Redis' current slot when so much of it is left and gone; waits for one at most once per slot."""
    async with patience():
        while True:
            seconds, microseconds = await redis.time()
            gone_ms = (seconds * 1000 + microseconds // 1000) % SLOT_MS
            if begun_ms <= gone_ms <= SLOT_MS - at_least_ms:
                return slot_of(seconds * 1_000_000 + microseconds)
            await asyncio.sleep((begun_ms - gone_ms) % SLOT_MS / 1000 + 0.001)


async def _stream_slots(redis: Redis) -> list[bytes]:
    return [fields[b"slot"] for _, fields in await redis.xrange("preds:{BTCUSDT}")]


async def test_the_first_commit_of_a_slot_wins(hot: HotState, redis: Redis) -> None:
    """A second commit is a no-op that says EXISTS; one record stands in the hash and in the stream."""
    slot = await _slot_with_time_left(redis)

    first = await hot.commit_prediction(slot, {"predicted_price": "1", "mode": "model"})
    second = await hot.commit_prediction(slot, {"predicted_price": "2", "mode": "none"})

    record = await redis.hgetall("pred:{BTCUSDT}")
    assert (first.status, second.status) == ("COMMITTED", "EXISTS")
    assert (record[b"predicted_price"], record[b"slot"]) == (b"1", str(slot).encode())
    assert await _stream_slots(redis) == [str(slot).encode()]
    assert 115 < await redis.ttl("pred:{BTCUSDT}") <= 120


async def test_latency_is_measured_by_redis(hot: HotState, redis: Redis) -> None:
    """The stored latency is Redis' time at the commit less the slot's time, whatever the caller says."""
    slot = await _slot_with_time_left(redis)

    reply = await hot.commit_prediction(slot, {"mode": "model", "latency_ms": "0", "slot": "1"})

    stored = await redis.hgetall("pred:{BTCUSDT}")
    assert float(stored[b"latency_ms"]) == reply.latency_ms == (reply.now_us - slot * 2_000_000) / 1000
    assert stored[b"slot"] == str(slot).encode()


async def test_of_many_commits_at_once_one_wins(hot: HotState, redis: Redis) -> None:
    """Ten replicas at the same moment: one record."""
    slot = await _slot_with_time_left(redis)

    replies = await asyncio.gather(*(hot.commit_prediction(slot, {"model": f"m{n}"}) for n in range(10)))

    assert sorted(reply.status for reply in replies) == ["COMMITTED", *["EXISTS"] * 9]
    assert len(await _stream_slots(redis)) == 1


@pytest.mark.parametrize("offset", [-100, -2, 1, 2])
async def test_other_slots_are_refused(hot: HotState, redis: Redis, offset: int) -> None:
    """Only Redis' current slot and the one before it are open."""
    slot = await _slot_with_time_left(redis)

    reply = await hot.commit_prediction(slot + offset, {"mode": "model"})

    assert reply.status == "REFUSED"
    assert await redis.dbsize() == 0


async def test_a_late_commit_joins_the_history_but_not_the_front(hot: HotState, redis: Redis) -> None:
    """The slot before, committed after the current one, enters the stream once and leaves `pred` alone."""
    slot = await _slot_with_time_left(redis)
    await hot.commit_prediction(slot, {"mode": "model"})

    replies = [await hot.commit_prediction(slot - 1, {"mode": "late"}) for _ in range(2)]

    assert [reply.status for reply in replies] == ["COMMITTED", "EXISTS"]
    assert await redis.hget("pred:{BTCUSDT}", "mode") == b"model"
    assert await _stream_slots(redis) == [str(slot).encode(), str(slot - 1).encode()]


async def test_a_prediction_is_replaced_as_a_whole(hot: HotState, redis: Redis) -> None:
    """No field of the slot before survives in the next."""
    slot = await _slot_with_time_left(redis)
    await hot.commit_prediction(slot - 1, {"mode": "model", "reason": "old"})

    await hot.commit_prediction(slot, {"mode": "model"})

    assert set(await redis.hgetall("pred:{BTCUSDT}")) == {b"mode", b"slot", b"latency_ms"}


async def test_a_slot_stays_committed_when_the_hash_is_gone(hot: HotState, redis: Redis) -> None:
    """The history alone is enough to know that a slot has its prediction."""
    slot = await _slot_with_time_left(redis)
    await hot.commit_prediction(slot, {"mode": "model"})
    await redis.delete("pred:{BTCUSDT}")

    assert (await hot.commit_prediction(slot, {"mode": "other"})).status == "EXISTS"


async def test_a_replica_in_trouble_of_its_own_comes_second(hot: HotState, redis: Redis) -> None:
    """In the first half second a commit that is degraded for its own reasons is too early; a sound one is not."""
    while True:
        slot = await _slot_with_time_left(redis, at_least_ms=1900)
        early = await hot.commit_prediction(slot, {"mode": "none"}, own_degraded=True)
        if early.now_us < slot * 2_000_000 + 500_000:
            break
        await redis.flushall()  # the half second had passed before it came

    sound = await hot.commit_prediction(slot, {"mode": "model"})

    assert (early.status, sound.status) == ("EARLY", "COMMITTED")


async def test_a_replica_in_trouble_commits_when_nobody_else_did(hot: HotState, redis: Redis) -> None:
    """After its wait the degraded prediction is better than none."""
    slot = await _slot_with_time_left(redis, begun_ms=600)

    assert (await hot.commit_prediction(slot, {"mode": "none"}, own_degraded=True)).status == "COMMITTED"

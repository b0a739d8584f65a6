"""Small hot states for tests: what a processor writes, what a re-anchor stages, how to compare them."""

from __future__ import annotations

from redis.asyncio import Redis

from sheetanchor.store.hot_records import ApplyReply, SwapReply
from sheetanchor.store.hot_state import HotState

BOOK = b"a packed book"


def ob(update_id: int, levels: int = 10) -> list[str]:
    """Give the order book's fields; every value says which update id it is from."""
    fields = ["best_bid", f"{update_id}.10", "best_ask", f"{update_id}.20", "update_id", str(update_id)]
    for level in range(1, levels + 1):
        for side in ("bid", "ask"):
            fields += [f"{side}{level}_p", f"{update_id}.{level}", f"{side}{level}_q", "1.50"]
    return fields


def window(update_id: int) -> list[str]:
    """Give a trade window's fields."""
    return ["count", str(update_id), "vol", "1.5"]


def feat(update_id: int) -> list[str]:
    """Give the features' fields."""
    return ["ret_1s", str(update_id), "ts", "1638360000"]


async def apply(
    hot: HotState, update_id: int, *, term: int = 1, writer: str = "a", epoch: int = 1, book: bytes = b""
) -> ApplyReply:
    """Write all hot keys as a processor."""
    lists = (ob(update_id), window(update_id), window(update_id), feat(update_id))
    return await hot.apply(term, writer, epoch, update_id, update_id, *lists, book)


async def stage(hot: HotState, owner: str, update_id: int) -> bool:
    """Stage a rebuild."""
    lists = (ob(update_id), window(update_id), window(update_id), feat(update_id))
    return await hot.stage(owner, *lists, BOOK + str(update_id).encode())


async def rebuild(hot: HotState, owner: str, epoch: int, update_id: int) -> SwapReply:
    """Lock, stage and swap."""
    assert await hot.lock(owner)
    assert await stage(hot, owner, update_id)
    return await hot.swap(owner, epoch, update_id, update_id, f"receipt-{owner}")


async def anchored(hot: HotState, update_id: int = 100) -> None:
    """Bring an empty server to epoch 1 with writer `a` under term 1."""
    assert (await hot.take(1, "a", 0, "")).ok
    assert (await rebuild(hot, "first", 0, update_id)).ok


async def fingerprint(redis: Redis) -> dict[bytes, tuple[bytes, bool]]:
    """Give every key's serialised value and whether it will expire."""
    keys = [key async for key in redis.scan_iter(count=1000)]
    return {key: (await redis.dump(key), await redis.ttl(key) > 0) for key in keys}


async def wait_for_beat_to_age(hot: HotState, redis: Redis) -> None:
    """Make the writer's last sign of life two seconds old, as if it had been silent since."""
    heartbeat_us = (await hot.anchor()).heartbeat_us
    await redis.hset(hot.keys.anchor, "beat_us", str(heartbeat_us - 2_000_000))


async def redis_us(redis: Redis) -> int:
    """Give Redis' clock."""
    seconds, micros = await redis.time()
    return int(seconds) * 1_000_000 + int(micros)


async def ends_s(redis: Redis, key: str, since_us: int) -> float:
    """Give for how long a key lives from a moment of Redis' clock on: what is left of it says when one looks."""
    return int(await redis.pexpiretime(key)) / 1e3 - since_us / 1e6

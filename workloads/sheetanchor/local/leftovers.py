"""Makes a Redis that others have used before ready for a run of its own.

An earlier run may have left any state: an old anchor, frames of a market whose ids have nothing to do with ours, a lock
whose owner is dead. Frames and hot keys are removed and the anchor is declared suspect; its epoch and term stay, as
they never go back. A Redis that a living processor writes to is refused.

The lock of a run that began before this one is taken away. That is safe: a swap checks that its lock is still its own,
so the worst that can happen to a living owner is that it has worked in vain.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from redis.asyncio import Redis

from sheetanchor.contract import keys, line_names, line_stream
from sheetanchor.errors import BadSettings
from sheetanchor.store.hot_records import Anchor
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_connection import translate_errors

log = logging.getLogger(__name__)

WRITER_GONE_AFTER_US: Final = 2_000_000
"""A processor shows that it lives ten times a second; twenty beats in a row do not go missing by chance."""

POLL_S: Final = 0.2


async def redis_now_us(redis: Redis) -> int:
    """Read Redis' clock in µs."""
    with translate_errors("TIME"):
        seconds, micros = await redis.time()
    return int(seconds) * 1_000_000 + int(micros)


def writer_age_us(anchor: Anchor, now_us: int) -> int | None:
    """Say how long ago a processor last wrote; None if none ever has."""
    return max(0, now_us - anchor.heartbeat_us) if anchor.heartbeat_us else None


async def refuse_if_alive(redis: Redis, hot: HotState) -> None:
    """Make sure that no other pipeline is writing this symbol.

    Raises:
        BadSettings: If one is.
        RedisError: If Redis cannot be asked.
    """
    first = await hot.anchor()
    while True:
        anchor = await hot.anchor()
        age_us = writer_age_us(anchor, await redis_now_us(redis))
        if age_us is None or age_us > WRITER_GONE_AFTER_US:
            return
        if anchor.heartbeat_us != first.heartbeat_us:
            raise BadSettings(
                f"redis_url: another pipeline is writing {hot.keys.symbol} there (writer {anchor.writer}): "
                "end it, or use another Redis or another database number"
            )
        await asyncio.sleep(POLL_S)


async def clear(redis: Redis, symbol: str, *, same_market: bool) -> None:
    """Remove what an earlier run left of a symbol, and declare its anchor suspect.

    Args:
        redis: Client of the server.
        symbol: Trading pair.
        same_market: Whether the earlier run may have spoken to the same exchange. Its receipts then stay: they say how
            long that exchange has asked not to be called.

    Raises:
        RedisError: If Redis cannot do it.
    """
    hot, key = HotState(redis, symbol), keys(symbol)
    holder = await hot.lock_holder()
    if holder:
        log.warning("%s: the lock of an earlier run (%s) is released", symbol, holder)
        await hot.unlock(holder)
    with translate_errors(f"removing old keys of {symbol}"):
        streams = [line_stream(symbol, line) for line in line_names(await redis.smembers(key.lines))]
        staging = [key.ob_new, key.book_new, key.tr_1s_new, key.tr_5s_new, key.feat_new]
        hot_keys = [key.ob, key.book, key.tr_1s, key.tr_5s, key.feat, key.pred]
        history = [] if same_market else [key.receipts]
        await redis.unlink(*streams, *staging, *hot_keys, *history, key.lines)
        # A rebuild must not have to reach an id of the old market before it counts as a cure.
        await redis.hdel(key.anchor, "suspect_id", "suspect_by", "update_id", "stamp_us")
    anchor = await hot.anchor()
    await hot.suspect(0, "", anchor.epoch, 0, "start")

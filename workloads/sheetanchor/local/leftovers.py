"""Prepares a Redis that an earlier run has used.

An earlier run may have left any state: an old anchor, frames of a market with unrelated ids, a lock whose owner has
ended. Frames and hot keys are removed and the anchor is declared suspect; its epoch and term stay, as they never
decrease. A Redis to which a running processor writes is refused.

The lock of a run that began before this one is released. That is safe: a swap checks that its lock is still its own, so
at worst an owner that still runs is refused its swap.
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
"""A processor renews its heartbeat ten times a second; twenty in a row are not missing by chance."""

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
    """Check that no other pipeline writes this symbol.

    Raises:
        BadSettings: If one is.
        RedisError: If Redis cannot be read.
    """
    first = await hot.anchor()
    while True:
        anchor = await hot.anchor()
        age_us = writer_age_us(anchor, await redis_now_us(redis))
        if age_us is None or age_us > WRITER_GONE_AFTER_US:
            return
        if anchor.heartbeat_us != first.heartbeat_us:
            raise BadSettings(
                f"redis_url: another pipeline is writing {hot.keys.symbol} to that Redis (processor {anchor.writer}): "
                "stop it, or use another Redis or another database number"
            )
        await asyncio.sleep(POLL_S)


async def clear(redis: Redis, symbol: str, *, same_market: bool) -> None:
    """Remove an earlier run's keys of a symbol, and declare its anchor suspect.

    Args:
        redis: Client of the server.
        symbol: Trading pair.
        same_market: Whether the earlier run may have used the same exchange. Its receipts then stay: they hold until
            when that exchange asked for no requests.

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
        # A rebuild must not have to reach an id of the old market before it clears the doubt.
        await redis.hdel(key.anchor, "suspect_id", "suspect_by", "update_id", "stamp_us")
    anchor = await hot.anchor()
    await hot.suspect(0, "", anchor.epoch, 0, "start")

"""Whether the live state agrees with the exchange, compared at the same update id."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from redis.asyncio import Redis

from sheetanchor._decoder import Market
from sheetanchor.reanchor.replay import Replay
from sheetanchor.reanchor.snapshot import Snapshot, build, references
from sheetanchor.reanchor.validation import (
    COMPARED_LEVELS,
    Levels,
    Limits,
    book_differences,
    check_consistency,
    check_features,
    check_order_book,
    check_trade_window,
    estimate_for,
    judge_prices,
)
from sheetanchor.store.hot_state import HotState

POLL_S: Final = 0.1
"""The full book is written once a second; polling ten times as often is enough."""


def compared_levels(depth_limit: int) -> int:
    """Give the levels a side to compare: half of the snapshot's, as the market moves through them meanwhile."""
    return min(COMPARED_LEVELS, max(1, depth_limit // 2))


async def compare(
    hot: HotState, redis: Redis, snapshot: Snapshot, limits: Limits, *, depth_limit: int, wait_s: float
) -> list[str]:
    """Name the differences between the live state and the exchange; none means that they agree.

    Args:
        hot: The live state.
        redis: Redis with the lines.
        snapshot: The exchange's answers.
        limits: Tolerances of prices.
        depth_limit: Levels a side of a snapshot.
        wait_s: Longest wait for a live book that can be reached from the snapshot by the lines' frames.

    Raises:
        RedisError: Redis does not answer.
    """
    reference = await _live_state(hot, snapshot, limits)
    return reference or await _live_book(hot, redis, snapshot, compared_levels(depth_limit), wait_s)


async def _live_state(hot: HotState, snapshot: Snapshot, limits: Limits) -> list[str]:
    """Run the checks of a rebuilt state on the live one."""
    read = await hot.read()
    if read.anchor.get("state") != "anchored":
        return [f"the state is suspect: {read.anchor.get('reason', 'there is none yet')}"]
    if read.incomplete:
        return [f"the state is incomplete: {read.incomplete}"]
    reference = references(snapshot)
    return [
        *check_order_book(read.ob, estimate_for(read.ob, reference, limits), limits.price_deviation_max),
        *judge_prices(read.ob, reference, limits.price_tolerance)[0],
        *check_trade_window(read.tr_1s, None, None),
        *check_trade_window(read.tr_5s, None, None),
        *check_features(read.feat),
        *check_consistency(read.ob, read.feat),
    ]


async def _live_book(hot: HotState, redis: Redis, snapshot: Snapshot, depth: int, wait_s: float) -> list[str]:
    """Bring the snapshot to the update of a live book that has the exchange's newest trade; compare level by level."""
    deadline_s = time.monotonic() + wait_s
    traded_id = max((trade.id for trade in snapshot.trades), default=-1)
    tried_id = -1
    while True:
        live = Market(snapshot.symbol)
        packed = await hot.book()
        try:
            live.load_book(packed or b"")
        except ValueError as error:
            return [f"the packed book cannot be read: {error}" if packed else "there is no packed book"]
        trades = live.trade_id >= traded_id
        if trades and live.update_id >= snapshot.depth.last_update_id and live.update_id != tried_id:
            tried_id = live.update_id
            fresh = await _exchange_book(redis, snapshot, tried_id, max(0.0, deadline_s - time.monotonic()))
            if fresh is not None:
                finest = (
                    min(live.price_exponent, fresh.price_exponent),
                    min(live.qty_exponent, fresh.qty_exponent),
                )
                edges = common_edges(_edges(live, finest[0]), _edges(fresh, finest[0]))
                return book_differences(_levels(live, *finest), _levels(fresh, *finest), depth, edges)
        if time.monotonic() > deadline_s:
            if not trades:
                known = f"the live state has trades up to {live.trade_id}, the exchange up to {traded_id}"
                return [f"{known}; waited {wait_s:g} s"]
            return [
                f"the live book at update {live.update_id} cannot be reached from the exchange's snapshot at "
                f"{snapshot.depth.last_update_id} within {wait_s:g} s"
            ]
        await asyncio.sleep(POLL_S)


async def _exchange_book(redis: Redis, snapshot: Snapshot, update_id: int, wait_s: float) -> Market | None:
    market = build(snapshot)
    replay = Replay(redis, market, snapshot.asked_us, min(wait_s, 1.0), snapshot.known_us)
    return market if await replay.reach(update_id) else None


def common_edges(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Give the last bid and ask price up to which both books are complete; 0 for a side that both have entirely."""
    asks = [edge for edge in (one[1], other[1]) if edge]
    return max(one[0], other[0]), min(asks, default=0)


def _edges(market: Market, price_exponent: int) -> tuple[int, int]:
    factor = 10 ** (market.price_exponent - price_exponent)
    return int(market.bid_edge * factor), int(market.ask_edge * factor)


def _levels(market: Market, price_exponent: int, qty_exponent: int) -> tuple[Levels, Levels]:
    """Give both sides at exponents no coarser than the market's own."""
    price_factor = 10 ** (market.price_exponent - price_exponent)
    qty_factor = 10 ** (market.qty_exponent - qty_exponent)
    bids, asks = market.levels()
    return (
        [(price * price_factor, qty * qty_factor) for price, qty in bids],
        [(price * price_factor, qty * qty_factor) for price, qty in asks],
    )

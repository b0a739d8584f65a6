"""Messages and small queries that the tests of the market share."""

from __future__ import annotations

import struct
from typing import Any

from sheetanchor import _decoder, sbe

T0 = 1_726_700_000_000_000
BIDS = [(5978655, 150000), (5978600, 220000)]
ASKS = [(5978700, 80000), (5978800, 60000)]
Market = Any


def batch(*frames: bytes | sbe.Message) -> bytes:
    raw = [frame if isinstance(frame, bytes) else sbe.encode(frame) for frame in frames]
    return b"".join(struct.pack("<Iq", len(frame), 7) + frame for frame in raw)


def diff(first: int, last: int, bids: Any = (), asks: Any = (), at: int = T0, symbol: str = "BTCUSDT") -> sbe.DepthDiff:
    return sbe.DepthDiff(at, symbol, -2, -5, first, last, tuple(bids), tuple(asks))


def trades(*entries: tuple[int, int, int, bool], at: int = T0) -> sbe.Trades:
    return sbe.Trades(at, "BTCUSDT", -2, -5, at, entries)


def best(update: int, bid: int, ask: int, at: int = T0) -> sbe.BestBidAsk:
    return sbe.BestBidAsk(at, "BTCUSDT", -2, -5, update, bid, 1000, ask, 2000)


def hot(market: Market, now_us: int = 0) -> tuple[dict[str, str], ...]:
    return tuple(dict(zip(part[::2], part[1::2], strict=True)) for part in market.hot_state(now_us))


def counted(market: Market) -> dict[str, int]:
    return {name: count for name, count in market.counters().items() if count}


def native_market() -> Market:
    """The native market of two levels a side at update 100."""
    market = _decoder.Market("BTCUSDT")
    market.load_snapshot(100, -2, -5, BIDS, ASKS, 500)
    return market

"""The trades, aggregated trades and candles of a market, bounded in number. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

TRADES_MAX: Final = 20_000
"""Trades that are kept for requests: twelve minutes at the recorded pace, and twenty of the longest answers."""

SECONDS_MAX: Final = 7_200
MINUTES_MAX: Final = 10_080
"""One-second candles of two hours, one-minute candles of a week; longer intervals are built from minutes."""

_SECOND_US: Final = 1_000_000
_MINUTE_US: Final = 60_000_000

INTERVALS_US: Final = {
    "1s": _SECOND_US,
    **{f"{n}m": n * _MINUTE_US for n in (1, 3, 5, 15, 30)},
    **{f"{n}h": n * 60 * _MINUTE_US for n in (1, 2, 4, 6, 8, 12)},
    **{f"{n}d": n * 1_440 * _MINUTE_US for n in (1, 3)},
    "1w": 7 * 1_440 * _MINUTE_US,
    "1M": 30 * 1_440 * _MINUTE_US,
}
"""Lengths of the documented intervals; a month is taken as thirty days."""

_MONDAY_US: Final = 4 * 1_440 * _MINUTE_US
"""Weeks begin on a Monday; the epoch was a Thursday."""


@dataclass(frozen=True, slots=True)
class TapeTrade:
    """One trade; prices and quantities are mantissas."""

    id: int
    price: int
    qty: int
    time_us: int
    is_buyer_maker: bool


@dataclass(slots=True)
class Aggregate:
    """Trades in a row of one price, side and moment."""

    id: int
    price: int
    qty: int
    time_us: int
    is_buyer_maker: bool
    first_trade_id: int
    last_trade_id: int


@dataclass(slots=True)
class Candle:
    """Trades of one interval; `quote` sums price times quantity, `taker_` is what buyers took."""

    open_us: int
    open: int
    high: int
    low: int
    close: int
    volume: int = 0
    quote: int = 0
    count: int = 0
    taker_volume: int = 0
    taker_quote: int = 0
    first_trade_id: int = -1
    last_trade_id: int = -1

    def add(self, trade: TapeTrade) -> None:
        """Count one more trade."""
        self.high = max(self.high, trade.price)
        self.low = min(self.low, trade.price)
        self.close = trade.price
        amount = trade.price * trade.qty
        self.volume += trade.qty
        self.quote += amount
        self.count += 1
        if not trade.is_buyer_maker:
            self.taker_volume += trade.qty
            self.taker_quote += amount
        if self.first_trade_id < 0:
            self.first_trade_id = trade.id
        self.last_trade_id = trade.id

    def join(self, later: Candle) -> None:
        """Count the trades of a later candle too."""
        self.high = max(self.high, later.high)
        self.low = min(self.low, later.low)
        self.close = later.close
        self.volume += later.volume
        self.quote += later.quote
        self.count += later.count
        self.taker_volume += later.taker_volume
        self.taker_quote += later.taker_quote
        if self.first_trade_id < 0:
            self.first_trade_id = later.first_trade_id
        self.last_trade_id = max(self.last_trade_id, later.last_trade_id)


class Tape:
    """The newest trades of one symbol."""

    def __init__(self) -> None:
        self.trades: deque[TapeTrade] = deque(maxlen=TRADES_MAX)
        self.aggregates: deque[Aggregate] = deque(maxlen=TRADES_MAX)
        self.seconds: deque[Candle] = deque(maxlen=SECONDS_MAX)
        self.minutes: deque[Candle] = deque(maxlen=MINUTES_MAX)

    @property
    def last_id(self) -> int:
        """Id of the newest trade; -1 before the first."""
        return self.trades[-1].id if self.trades else -1

    def add(self, trade: TapeTrade) -> None:
        """Append one trade, of a higher id than all before."""
        self.trades.append(trade)
        self._aggregate(trade)
        for candles, length_us in ((self.seconds, _SECOND_US), (self.minutes, _MINUTE_US)):
            self._fill(candles, length_us, trade.time_us, trade.price)
            candles[-1].add(trade)

    def _aggregate(self, trade: TapeTrade) -> None:
        last = self.aggregates[-1] if self.aggregates else None
        if (
            last is not None
            and (last.time_us, last.price) == (trade.time_us, trade.price)
            and last.is_buyer_maker == trade.is_buyer_maker
        ):
            last.qty += trade.qty
            last.last_trade_id = trade.id
            return
        number = last.id + 1 if last is not None else trade.id
        self.aggregates.append(
            Aggregate(number, trade.price, trade.qty, trade.time_us, trade.is_buyer_maker, trade.id, trade.id)
        )

    def _fill(self, candles: deque[Candle], length_us: int, until_us: int, price: int) -> None:
        """Begin the candle of a moment, and flat ones for intervals without a trade."""
        target_us = until_us - until_us % length_us
        if not candles:
            candles.append(Candle(target_us, price, price, price, price))
            return
        last = candles[-1]
        missing = (target_us - last.open_us) // length_us
        for number in range(max(1, missing - (candles.maxlen or 0) + 1), missing + 1):
            at_us = last.open_us + number * length_us
            flat = last.close if at_us < target_us else price
            candles.append(Candle(at_us, flat, flat, flat, flat))

    def candles(self, interval: str, now_us: int, zone_us: int = 0) -> list[Candle]:
        """Give all known candles of an interval in order, the running one included.

        Args:
            interval: A key of `INTERVALS_US`.
            now_us: Wall-clock time: intervals without a trade up to now are flat.
            zone_us: How far the clocks, by whose days and hours intervals begin, are ahead of UTC; whole minutes.
        """
        if self.trades:
            close = self.trades[-1].price
            self._fill(self.seconds, _SECOND_US, now_us, close)
            self._fill(self.minutes, _MINUTE_US, now_us, close)
        length_us = INTERVALS_US[interval]
        if length_us == _SECOND_US:
            return list(self.seconds)
        return joined(self.minutes, length_us, (_MONDAY_US if interval == "1w" else 0) - zone_us)

    def average(self, since_us: int) -> int:
        """Give the quantity-weighted average price since a moment; without trades the last trade's price, or 0."""
        inside = (
            list(takewhile(lambda trade: trade.time_us >= since_us, reversed(self.trades))) or list(self.trades)[-1:]
        )
        volume = sum(trade.qty for trade in inside)
        return sum(trade.price * trade.qty for trade in inside) // volume if volume else 0

    def day(self, now_us: int) -> Candle | None:
        """Give the last 24 hours as one candle; None before the first trade."""
        return self.since(now_us - 1_440 * _MINUTE_US)

    def since(self, first_us: int) -> Candle | None:
        """Give all minutes that begin at a moment or later as one candle; None without any."""
        inside = [candle for candle in self.minutes if candle.open_us >= first_us]
        if not inside:
            return None
        whole = Candle(inside[0].open_us, inside[0].open, inside[0].high, inside[0].low, inside[0].close)
        for candle in inside:
            whole.join(candle)
        return whole


def joined(candles: Iterable[Candle], length_us: int, offset_us: int = 0) -> list[Candle]:
    """Join candles into longer ones that begin at multiples of a length, moved by an offset."""
    longer: list[Candle] = []
    for candle in candles:
        open_us = candle.open_us - (candle.open_us - offset_us) % length_us
        if not longer or longer[-1].open_us != open_us:
            longer.append(Candle(open_us, candle.open, candle.high, candle.low, candle.close))
        longer[-1].join(candle)
    return longer

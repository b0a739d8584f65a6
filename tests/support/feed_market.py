"""An exchange in simulated time that knows what is true: its book at every update, its trades, and what it sent when.

Small and quick, so that thousands of feeds can be made of it. Prices are whole ticks; times are µs since the beginning.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cache

from sheetanchor import sbe

SYMBOL = "X"
EXPONENTS = (-2, -3)
DIFF_US = 100_000
SIDE = 14
"""Levels a side that the exchange has; ten are shown."""

Level = tuple[int, int]
Sides = tuple[tuple[Level, ...], tuple[Level, ...]]
FIRST_ID = 1_000


@dataclass(frozen=True, slots=True)
class Message:
    """A message to all lines: its event time is at byte 8, a trade's transact time behind it."""

    at_us: int
    stream: str
    first_id: int
    last_id: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Trade:
    id: int
    at_us: int
    price: int
    qty: int
    is_buyer_maker: bool


@dataclass
class Truth:
    """Everything that has been the case.

    Attributes:
        sides: Per update id the best ten levels a side; ids without a change of those share an object.
        id_times: When each update came to be, `FIRST_ID` at 0.
        messages: In the order of sending.
    """

    sides: list[Sides] = field(default_factory=list)
    id_times: list[int] = field(default_factory=list)
    trades: list[Trade] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    books: list[tuple[int, dict[int, int], dict[int, int]]] = field(default_factory=list)

    def sides_at(self, update_id: int) -> Sides:
        return self.sides[update_id - FIRST_ID]

    def update_at(self, at_us: int) -> int:
        """The newest update at a moment."""
        return FIRST_ID + bisect_right(self.id_times, at_us) - 1

    def trade_at(self, at_us: int) -> int:
        """The newest trade id at a moment, -1 before the first."""
        place = bisect_right(self.trades, at_us, key=lambda trade: trade.at_us)
        return self.trades[place - 1].id if place else -1

    def snapshot_at(self, at_us: int) -> tuple[int, dict[int, int], dict[int, int]]:
        """What REST answers: the whole book as of the last diff."""
        place = bisect_right(self.books, at_us, key=lambda book: self.id_times[book[0] - FIRST_ID])
        return self.books[max(0, place - 1)]


class Maker:
    """Makes a truth step by step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.truth = Truth()
        self.mid = 10_000
        self.bids = {self.mid - 1 - at: self.random.randrange(1, 900) for at in range(SIDE)}
        self.asks = {self.mid + 1 + at: self.random.randrange(1, 900) for at in range(SIDE)}
        self.changed: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.update_id = FIRST_ID
        self.sent_id = FIRST_ID
        self.trade_id = 500
        self.shown: tuple[Level, Level] | None = None
        self._note(0)
        self.truth.books.append((FIRST_ID, dict(self.bids), dict(self.asks)))

    def _note(self, at_us: int) -> None:
        truth = self.truth
        truth.id_times.append(at_us)
        top = (
            tuple(sorted(self.bids.items(), reverse=True)[:10]),
            tuple(sorted(self.asks.items())[:10]),
        )
        truth.sides.append(truth.sides[-1] if truth.sides and truth.sides[-1] == top else top)

    def change(self, at_us: int, side: int, price: int, qty: int) -> None:
        """One update of the book."""
        levels = (self.bids, self.asks)[side]
        if qty:
            levels[price] = qty
        else:
            levels.pop(price, None)
        self.changed[side][price] = qty
        self.update_id += 1
        self._note(at_us)

    def best(self, at_us: int) -> None:
        """Best prices, if they or their quantities have changed; real time. An empty side is sent as zeros."""
        bid = max(self.bids.items(), default=(0, 0))
        ask = min(self.asks.items(), default=(0, 0))
        if (bid, ask) == self.shown:
            return
        self.shown = bid, ask
        message = sbe.BestBidAsk(at_us, SYMBOL, *EXPONENTS, self.update_id, *bid, *ask)
        self._send(at_us, "bestBidAsk", self.update_id, self.update_id, message)

    def diff(self, at_us: int) -> None:
        """What has changed since the last diff."""
        if self.update_id == self.sent_id:
            return
        sides = [tuple(side.items()) for side in self.changed]
        message = sbe.DepthDiff(at_us, SYMBOL, *EXPONENTS, self.sent_id + 1, self.update_id, *sides)
        self._send(at_us, "depth", self.sent_id + 1, self.update_id, message)
        self.sent_id = self.update_id
        self.changed = ({}, {})
        self.truth.books.append((self.update_id, dict(self.bids), dict(self.asks)))

    def trade(self, at_us: int, side: int) -> None:
        """A trade takes some of the best level of a side, or all of it."""
        levels = (self.bids, self.asks)[side]
        if len(levels) < 3:
            return
        price = max(levels) if side == 0 else min(levels)
        qty = min(levels[price], self.random.randrange(1, 400))
        self.trade_id += 1
        trade = Trade(self.trade_id, at_us, price, qty, side == 0)
        self.truth.trades.append(trade)
        entry = (trade.id, price, qty, trade.is_buyer_maker)
        message = sbe.Trades(at_us, SYMBOL, *EXPONENTS, at_us, (entry,))
        self.change(at_us, side, price, levels[price] - qty)
        if price not in levels:
            self._refill(at_us)
        self.best(at_us)
        self._send(at_us, "trade", trade.id, trade.id, message)

    def _refill(self, at_us: int) -> None:
        for side, levels, sign in ((0, self.bids, -1), (1, self.asks, 1)):
            while len(levels) < SIDE:
                far = (min(levels, default=self.mid - 1) if side == 0 else max(levels, default=self.mid + 1)) + sign
                self.change(at_us, side, far, self.random.randrange(1, 900))

    def stir(self, at_us: int) -> None:
        """Some change of the book that is no trade."""
        side = self.random.randrange(2)
        levels = (self.bids, self.asks)[side]
        if self.random.random() < 0.2:  # a better price inside of the spread
            low, high = max(self.bids, default=0), min(self.asks, default=0)
            if high - low > 1:
                self.change(at_us, side, low + 1 if side == 0 else high - 1, self.random.randrange(1, 900))
        elif levels:
            price = self.random.choice(list(levels))
            self.change(at_us, side, price, self.random.randrange(1, 900))
        self.best(at_us)

    def empty(self, at_us: int, side: int) -> None:
        """A side of the book goes away."""
        levels = (self.bids, self.asks)[side]
        for price in list(levels):
            self.change(at_us, side, price, 0)
        self.best(at_us)

    def fill(self, at_us: int) -> None:
        """Sides that went away come back."""
        low, high = max(self.bids, default=self.mid), min(self.asks, default=self.mid)
        if not self.bids:
            self.change(at_us, 0, high - 2, 5)
        if not self.asks:
            self.change(at_us, 1, low + 2, 5)
        self._refill(at_us)
        self.best(at_us)

    def _send(self, at_us: int, stream: str, first_id: int, last_id: int, message: sbe.Message) -> None:
        self.truth.messages.append(Message(at_us, stream, first_id, last_id, sbe.encode(message)))


@cache
def truth(seed: int, duration_us: int, empties: tuple[tuple[int, int, int], ...] = ()) -> Truth:
    """Make a truth.

    Args:
        seed: Of its randomness.
        duration_us: How long it goes on.
        empties: When a side goes away, when it comes back, and which.
    """
    maker = Maker(seed)
    rate = maker.random
    at_us, next_trade_us = 0, 200_000
    while at_us < duration_us:
        end_us = at_us + DIFF_US
        gone = [side for start_us, until_us, side in empties if start_us <= at_us < until_us]
        for side in gone:
            if (maker.bids, maker.asks)[side]:
                maker.empty(at_us + 1, side)
        if not gone and not (maker.bids and maker.asks):
            maker.fill(at_us + 1)
        moments: list[tuple[int, bool]] = []
        if not gone:
            moments += [(at_us + rate.randrange(2, DIFF_US - 2), False) for _ in range(rate.choice((0, 0, 1, 1, 2)))]
            while next_trade_us < end_us:
                moments += [(max(at_us + 2, min(next_trade_us, end_us - 2)), True)] * rate.choice((1, 1, 2, 3))
                next_trade_us += round(rate.expovariate(1.2) * 1e6) + 1
        next_trade_us = max(next_trade_us, end_us)
        for moment_us, is_trade in sorted(moments):
            if is_trade:
                maker.trade(moment_us, rate.randrange(2))
            else:
                maker.stir(moment_us)
        maker.diff(end_us - 1)
        at_us = end_us
    made = maker.truth
    return made

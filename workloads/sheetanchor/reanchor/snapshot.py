"""The answers of the exchange's REST interface about a symbol at one moment, and the market that is built from them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import pack_frames
from sheetanchor.errors import ExchangeError, RateLimited
from sheetanchor.reanchor.validation import KLINE, LAST_TRADES, LEVELS_MIN, TICKER, Limits, References
from sheetanchor.venue import EXPONENT, Depth, Kline, Ticker, Trade, VenueRestClient

TRADES_LIMIT: Final = 1000
KLINES_LIMIT: Final = 5
TRADE_AGE_MAX_US: Final = 600_000_000
"""Trades older than ten minutes are used in no window and no estimate."""

REFERENCE_AGE_MAX_US: Final = 60_000_000
"""An older price is not compared with a book: quotes move without trades, in thin markets for hours."""

RECENT_TRADES: Final = 5
"""Trades whose median is taken as the last price, so that a single outlier does not matter."""

CLOCK_LINE: Final = 15
"""Number of the line under which the exchange's own clock is fed; real lines are numbered from 0."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The answers to requests that were sent at once.

    Attributes:
        depth_limit: Levels a side that were requested.
        asked_us: Redis' clock just before the requests.
        heard_us: Redis' clock at the answer of the ticker, which holds the exchange's clock.
    """

    symbol: str
    depth: Depth
    depth_limit: int
    trades: tuple[Trade, ...]
    klines: tuple[Kline, ...]
    ticker: Ticker
    asked_us: int
    heard_us: int

    @property
    def exchange_us(self) -> int:
        """Give the exchange's clock at `heard_us`; Redis' where the market has never had a trade or quote."""
        return max(self.ticker.close_us, self.trades[-1].time_us if self.trades else 0) or self.heard_us

    @property
    def known_us(self) -> int:
        """Give the exchange's time of the newest trade, or its clock if there is none."""
        return self.trades[-1].time_us if self.trades else self.exchange_us

    @property
    def recent_trades(self) -> tuple[Trade, ...]:
        """Give the trades of the last ten minutes."""
        oldest_us = self.exchange_us - TRADE_AGE_MAX_US
        return tuple(trade for trade in self.trades if trade.time_us >= oldest_us)


async def fetch(
    exchange: VenueRestClient, symbol: str, depth_limit: int, asked_us: int, clock_s: Callable[[], float]
) -> Snapshot:
    """Request depth, trades, klines and the ticker at once.

    Args:
        exchange: Client of the exchange.
        symbol: Trading pair.
        depth_limit: Levels a side.
        asked_us: Redis' clock now.
        clock_s: A monotonic clock.

    Raises:
        ExchangeError: The first failure; the other requests are cancelled.
    """
    started_s = clock_s()

    async def ticker() -> tuple[Ticker, int]:
        answer = await exchange.ticker_24hr(symbol)
        return answer, asked_us + int((clock_s() - started_s) * 1e6)

    try:
        async with asyncio.TaskGroup() as group:
            depth = group.create_task(exchange.depth(symbol, depth_limit))
            trades = group.create_task(exchange.trades(symbol, TRADES_LIMIT))
            klines = group.create_task(exchange.klines(symbol, "1m", KLINES_LIMIT))
            ticker_task = group.create_task(ticker())
    except ExceptionGroup as group_error:
        raise _most_informative(group_error) from group_error
    answer, heard_us = ticker_task.result()
    if answer.last and not trades.result():
        raise ExchangeError(f"No recent trades data received, though the last price is {value(answer.last):.10g}")
    return Snapshot(
        symbol,
        depth.result(),
        depth_limit,
        tuple(trades.result()),
        tuple(klines.result()),
        answer,
        asked_us,
        heard_us,
    )


def _most_informative(group: ExceptionGroup[Exception]) -> Exception:
    """Choose the failure to report: a rate limit has the time to wait, and a defect of ours must not be hidden."""
    unexpected = [error for error in group.exceptions if not isinstance(error, ExchangeError)]
    limited = [error for error in group.exceptions if isinstance(error, RateLimited)]
    return (unexpected or limited or list(group.exceptions))[0]


def build(snapshot: Snapshot) -> Market:
    """Make the market that the snapshot describes.

    Raises:
        ExchangeError: The levels or trades are inconsistent, for instance because a price occurs twice.
    """
    market = Market(snapshot.symbol)
    depth = snapshot.depth
    # Without recent trades the last one still gives the next id.
    trades = snapshot.recent_trades or snapshot.trades[-1:]
    try:
        market.load_snapshot(
            depth.last_update_id,
            EXPONENT,
            EXPONENT,
            depth.bids,
            depth.asks,
            snapshot.heard_us,
            cut_off=snapshot.depth_limit,
        )
        market.seed_trades(list(trades), EXPONENT, EXPONENT)
    except ValueError as error:
        raise ExchangeError(f"Invalid depth or trades data received: {error}") from error
    while market.trade_gap is not None:  # ids that the exchange's own answer skips are not missing
        market.skip_trade_gap()
    return market


def learn_time(market: Market, snapshot: Snapshot) -> None:
    """Feed the market the exchange's clock where no line does, so that its windows end at the right time."""
    tick = sbe.Trades(
        event_time_us=snapshot.exchange_us,
        symbol=snapshot.symbol,
        price_exponent=EXPONENT,
        qty_exponent=EXPONENT,
        transact_time_us=snapshot.exchange_us,
        trades=(),
    )
    market.feed(CLOCK_LINE, pack_frames([(snapshot.heard_us, sbe.encode(tick))]), snapshot.heard_us)


def value(mantissa: int) -> float:
    """Turn a mantissa of the REST interface into a number, for comparisons only."""
    return mantissa * 10.0**EXPONENT


def references(snapshot: Snapshot, traded_min: float = math.inf, traded_max: float = -math.inf) -> References:
    """Collect the prices that a book is compared with.

    Args:
        snapshot: The exchange's answers.
        traded_min: Lowest price of trades known from elsewhere.
        traded_max: Highest such price.
    """
    new: dict[str, tuple[float, float]] = {}
    old: dict[str, tuple[float, float]] = {}
    last_us = snapshot.trades[-1].time_us if snapshot.trades else 0
    oldest_us = snapshot.exchange_us - REFERENCE_AGE_MAX_US
    traded = new if last_us >= oldest_us else old
    if snapshot.trades:
        last = value(int(median(trade.price for trade in snapshot.trades[-RECENT_TRADES:])))
        traded[LAST_TRADES] = (last, last)
    if snapshot.klines:
        kline = snapshot.klines[-1]
        # A candle without a trade repeats an older price.
        is_new = traded is new and kline.open_us <= last_us and kline.close_us >= oldest_us
        (new if is_new else old)[KLINE] = (value(kline.low), value(kline.high))
    ticker = snapshot.ticker
    if ticker.bid and ticker.ask:
        new[TICKER] = (value(ticker.bid), value(ticker.ask))
    elif ticker.last:
        traded[TICKER] = (value(ticker.last), value(ticker.last))
    if not new:
        new, old = old, {}  # there is nothing newer: a check that is not made would not have passed
    known = [value(trade.price) for trade in snapshot.recent_trades]
    low, high = min([traded_min, *known]), max([traded_max, *known])
    return References(
        new,
        low if low < math.inf else None,
        high if high > -math.inf else None,
        old,
        quoted=bool(ticker.bid and ticker.ask),
    )


def limits_of(snapshot: Snapshot, price_deviation_max: float) -> Limits:
    """Give the limits for a rebuilt state: a side that the snapshot truncated must fill every hot level."""
    least = min(LEVELS_MIN, snapshot.depth_limit)
    bids, asks = (len(side) < snapshot.depth_limit for side in (snapshot.depth.bids, snapshot.depth.asks))
    return Limits(price_deviation_max, bids_min=1 if bids else least, asks_min=1 if asks else least)

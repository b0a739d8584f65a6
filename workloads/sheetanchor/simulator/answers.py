"""Bodies of the REST answers, as the exchange writes them: numbers are strings of eight decimals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sheetanchor.simulator.playback.book import Book
from sheetanchor.simulator.playback.market import PlaybackMarket
from sheetanchor.simulator.playback.tape import INTERVALS_US, Aggregate, Candle, TapeTrade

DECIMALS: Final = 8
DAY_US: Final = 86_400_000_000
MINUTE_US: Final = 60_000_000
AVERAGE_MINUTES: Final = 5

Clock = Callable[[int], int]
"""Converts µs to the unit that the client requested."""


def decimal(mantissa: int, exponent: int) -> str:
    """Write `mantissa * 10**exponent` with eight decimals, digits beyond them cut off."""
    scaled = mantissa * 10 ** (exponent + DECIMALS) if exponent >= -DECIMALS else None
    if scaled is None:
        scaled = abs(mantissa) // 10 ** (-DECIMALS - exponent) * (1 if mantissa >= 0 else -1)
    whole, rest = divmod(abs(scaled), 10**DECIMALS)
    return f"{'-' if scaled < 0 else ''}{whole}.{rest:0{DECIMALS}d}"


class NumberFormat:
    """Writes the prices, quantities and amounts of one market."""

    def __init__(self, market: PlaybackMarket) -> None:
        self._price = market.script.price_exponent
        self._qty = market.script.qty_exponent

    def price(self, mantissa: int) -> str:
        """Write a price."""
        return decimal(mantissa, self._price)

    def qty(self, mantissa: int) -> str:
        """Write a quantity."""
        return decimal(mantissa, self._qty)

    def amount(self, mantissa: int) -> str:
        """Write a sum of price times quantity."""
        return decimal(mantissa, self._price + self._qty)

    def levels(self, levels: Sequence[tuple[int, int]]) -> list[list[str]]:
        """Write levels of a book."""
        return [[self.price(price), self.qty(qty)] for price, qty in levels]


def depth(market: PlaybackMarket, book: Book, limit: int) -> dict[str, Any]:
    """Answer `depth`."""
    numbers = NumberFormat(market)
    bids, asks = book.top(limit)
    return {"lastUpdateId": book.update_id, "bids": numbers.levels(bids), "asks": numbers.levels(asks)}


def checkpoint(market: PlaybackMarket) -> dict[str, Any]:
    """Answer `checkpoint`: the whole book and the ids and counts that belong to it."""
    whole = depth(market, market.book, max(len(market.book.bids), len(market.book.asks), 1))
    return {
        "symbol": market.symbol,
        "update_id": whole["lastUpdateId"],
        "bids": whole["bids"],
        "asks": whole["asks"],
        "trade_id": market.tape.last_id,
        "event_time_us": market.event_us,
    }


def trade(market: PlaybackMarket, item: TapeTrade, clock: Clock) -> dict[str, Any]:
    """Write one trade of `trades` and `historicalTrades`."""
    numbers = NumberFormat(market)
    return {
        "id": item.id,
        "price": numbers.price(item.price),
        "qty": numbers.qty(item.qty),
        "quoteQty": numbers.amount(item.price * item.qty),
        "time": clock(item.time_us),
        "isBuyerMaker": item.is_buyer_maker,
        "isBestMatch": True,
    }


def aggregate(market: PlaybackMarket, item: Aggregate, clock: Clock) -> dict[str, Any]:
    """Write one entry of `aggTrades`."""
    numbers = NumberFormat(market)
    return {
        "a": item.id,
        "p": numbers.price(item.price),
        "q": numbers.qty(item.qty),
        "f": item.first_trade_id,
        "l": item.last_trade_id,
        "T": clock(item.time_us),
        "m": item.is_buyer_maker,
        "M": True,
    }


def candle(market: PlaybackMarket, item: Candle, interval: str, clock: Clock) -> list[Any]:
    """Write one entry of `klines`."""
    numbers = NumberFormat(market)
    close_us = item.open_us + INTERVALS_US[interval]
    return [
        clock(item.open_us),
        numbers.price(item.open),
        numbers.price(item.high),
        numbers.price(item.low),
        numbers.price(item.close),
        numbers.qty(item.volume),
        clock(close_us) - 1,
        numbers.amount(item.quote),
        item.count,
        numbers.qty(item.taker_volume),
        numbers.amount(item.taker_quote),
        "0",
    ]


def ticker_24hr(market: PlaybackMarket, now_us: int, clock: Clock, *, full: bool) -> dict[str, Any]:
    """Write one entry of `ticker/24hr`; before the first trade all numbers are zero."""
    numbers = NumberFormat(market)
    day = market.tape.day(now_us) or Candle(now_us, 0, 0, 0, 0)
    mini = _mini(market, day, clock(now_us - DAY_US), clock(now_us))
    if not full:
        return mini
    last = market.tape.trades[-1] if market.tape.trades else None
    return {
        **mini,
        **_change(market, day),
        "prevClosePrice": numbers.price(day.open),
        "lastQty": numbers.qty(last.qty if last else 0),
        **_best(market, numbers),
    }


def ticker(market: PlaybackMarket, now_us: int, window_us: int, clock: Clock, *, full: bool) -> dict[str, Any]:
    """Write one entry of `ticker`, whose window begins on a minute; before the first trade all numbers are zero."""
    open_us = (now_us - window_us) // MINUTE_US * MINUTE_US
    window = market.tape.since(open_us) or Candle(now_us, 0, 0, 0, 0)
    mini = _mini(market, window, clock(open_us), clock(now_us))
    return {**mini, **_change(market, window)} if full else mini


def _mini(market: PlaybackMarket, window: Candle, open_time: int, close_time: int) -> dict[str, Any]:
    numbers = NumberFormat(market)
    return {
        "symbol": market.symbol,
        "openPrice": numbers.price(window.open),
        "highPrice": numbers.price(window.high),
        "lowPrice": numbers.price(window.low),
        "lastPrice": numbers.price(window.close),
        "volume": numbers.qty(window.volume),
        "quoteVolume": numbers.amount(window.quote),
        "openTime": open_time,
        "closeTime": close_time,
        "firstId": window.first_trade_id,
        "lastId": window.last_trade_id,
        "count": window.count,
    }


def _change(market: PlaybackMarket, window: Candle) -> dict[str, Any]:
    numbers = NumberFormat(market)
    change = window.close - window.open
    percent = 100 * change / window.open if window.open else 0.0
    return {
        "priceChange": numbers.price(change),
        "priceChangePercent": f"{percent:.3f}",
        "weightedAvgPrice": numbers.price(window.quote // window.volume if window.volume else 0),
    }


def ticker_price(market: PlaybackMarket) -> dict[str, Any]:
    """Write one entry of `ticker/price`: the last trade's price."""
    last = market.tape.trades[-1].price if market.tape.trades else 0
    return {"symbol": market.symbol, "price": NumberFormat(market).price(last)}


def average_price(market: PlaybackMarket, now_us: int, clock: Clock) -> dict[str, Any]:
    """Answer `avgPrice`."""
    last_us = market.tape.trades[-1].time_us if market.tape.trades else 0
    average = market.tape.average(now_us - AVERAGE_MINUTES * MINUTE_US)
    return {"mins": AVERAGE_MINUTES, "price": NumberFormat(market).price(average), "closeTime": clock(last_us)}


def book_ticker(market: PlaybackMarket) -> dict[str, Any]:
    """Write one entry of `ticker/bookTicker`."""
    return {"symbol": market.symbol, **_best(market, NumberFormat(market))}


def _best(market: PlaybackMarket, numbers: NumberFormat) -> dict[str, str]:
    bids, asks = market.book.top(1)
    bid, ask = (bids or [(0, 0)])[0], (asks or [(0, 0)])[0]
    return {
        "bidPrice": numbers.price(bid[0]),
        "bidQty": numbers.qty(bid[1]),
        "askPrice": numbers.price(ask[0]),
        "askQty": numbers.qty(ask[1]),
    }


def exchange_info(
    markets: Sequence[PlaybackMarket], now: int, weight_limit: int, *, permission_sets: bool = True
) -> dict[str, Any]:
    """Answer `exchangeInfo`."""
    return {
        "timezone": "UTC",
        "serverTime": now,
        "rateLimits": [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": weight_limit},
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100},
            {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": 200_000},
            {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 300_000},
        ],
        "exchangeFilters": [],
        "symbols": [_symbol_info(market.symbol, permission_sets=permission_sets) for market in markets],
    }


_QUOTES: Final = ("USDT", "USDC", "FDUSD", "BTC", "ETH", "BNB", "EUR", "TRY")

_ORDER_FLAGS: Final = (
    "icebergAllowed",
    "ocoAllowed",
    "otoAllowed",
    "opoAllowed",
    "quoteOrderQtyMarketAllowed",
    "allowTrailingStop",
    "cancelReplaceAllowed",
    "amendAllowed",
    "pegInstructionsAllowed",
)

_FILTERS: Final[tuple[dict[str, Any], ...]] = (
    {
        "filterType": "PRICE_FILTER",
        "minPrice": "0.01000000",
        "maxPrice": "1000000.00000000",
        "tickSize": "0.01000000",
    },
    {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
    {"filterType": "ICEBERG_PARTS", "limit": 100},
    {"filterType": "MARKET_LOT_SIZE", "minQty": "0.00000000", "maxQty": "100.00000000", "stepSize": "0.00000000"},
    {
        "filterType": "TRAILING_DELTA",
        "minTrailingAboveDelta": 10,
        "maxTrailingAboveDelta": 2000,
        "minTrailingBelowDelta": 10,
        "maxTrailingBelowDelta": 2000,
    },
    {
        "filterType": "PERCENT_PRICE_BY_SIDE",
        "bidMultiplierUp": "5",
        "bidMultiplierDown": "0.2",
        "askMultiplierUp": "5",
        "askMultiplierDown": "0.2",
        "avgPriceMins": AVERAGE_MINUTES,
    },
    {
        "filterType": "NOTIONAL",
        "minNotional": "5.00000000",
        "applyMinToMarket": True,
        "maxNotional": "9000000.00000000",
        "applyMaxToMarket": False,
        "avgPriceMins": AVERAGE_MINUTES,
    },
    {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
    {"filterType": "MAX_NUM_ORDER_LISTS", "maxNumOrderLists": 20},
    {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
    {"filterType": "MAX_NUM_ORDER_AMENDS", "maxNumOrderAmends": 10},
)


def _symbol_info(symbol: str, *, permission_sets: bool) -> dict[str, Any]:
    quote = next((asset for asset in _QUOTES if symbol.endswith(asset) and symbol != asset), symbol[-3:])
    base = symbol.removesuffix(quote)
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": DECIMALS,
        "quoteAsset": quote,
        "quotePrecision": DECIMALS,
        "quoteAssetPrecision": DECIMALS,
        "baseCommissionPrecision": DECIMALS,
        "quoteCommissionPrecision": DECIMALS,
        "orderTypes": [
            "LIMIT",
            "LIMIT_MAKER",
            "MARKET",
            "STOP_LOSS",
            "STOP_LOSS_LIMIT",
            "TAKE_PROFIT",
            "TAKE_PROFIT_LIMIT",
        ],
        **dict.fromkeys(_ORDER_FLAGS, True),
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [dict(one) for one in _FILTERS],
        "permissions": [],
        "permissionSets": [["SPOT"]] if permission_sets else [],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH", "DECREMENT"],
    }

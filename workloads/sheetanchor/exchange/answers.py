"""Bodies of the REST answers, as the exchange writes them: numbers are strings of eight decimals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sheetanchor.exchange.book import Book
from sheetanchor.exchange.market import Market
from sheetanchor.exchange.tape import INTERVALS_US, Aggregate, Candle, Trade

DECIMALS: Final = 8
DAY_US: Final = 86_400_000_000

Clock = Callable[[int], int]
"""Turns µs into the unit the caller asked for."""


def decimal(mantissa: int, exponent: int) -> str:
    """Write `mantissa * 10**exponent` with eight decimals, digits beyond them cut off."""
    scaled = mantissa * 10 ** (exponent + DECIMALS) if exponent >= -DECIMALS else None
    if scaled is None:
        scaled = abs(mantissa) // 10 ** (-DECIMALS - exponent) * (1 if mantissa >= 0 else -1)
    whole, rest = divmod(abs(scaled), 10**DECIMALS)
    return f"{'-' if scaled < 0 else ''}{whole}.{rest:0{DECIMALS}d}"


class Numbers:
    """Writes the prices, quantities and amounts of one market."""

    def __init__(self, market: Market) -> None:
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


def depth(market: Market, book: Book, limit: int) -> dict[str, Any]:
    """Answer `depth`."""
    numbers = Numbers(market)
    bids, asks = book.top(limit)
    return {"lastUpdateId": book.update_id, "bids": numbers.levels(bids), "asks": numbers.levels(asks)}


def checkpoint(market: Market) -> dict[str, Any]:
    """Answer `checkpoint`: the whole book and where everything stands."""
    whole = depth(market, market.book, max(len(market.book.bids), len(market.book.asks), 1))
    return {
        "symbol": market.symbol,
        "update_id": whole["lastUpdateId"],
        "bids": whole["bids"],
        "asks": whole["asks"],
        "trade_id": market.tape.last_id,
        "event_time_us": market.event_us,
    }


def trade(market: Market, item: Trade, clock: Clock) -> dict[str, Any]:
    """Write one trade of `trades` and `historicalTrades`."""
    numbers = Numbers(market)
    return {
        "id": item.id,
        "price": numbers.price(item.price),
        "qty": numbers.qty(item.qty),
        "quoteQty": numbers.amount(item.price * item.qty),
        "time": clock(item.time_us),
        "isBuyerMaker": item.is_buyer_maker,
        "isBestMatch": True,
    }


def aggregate(market: Market, item: Aggregate, clock: Clock) -> dict[str, Any]:
    """Write one entry of `aggTrades`."""
    numbers = Numbers(market)
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


def candle(market: Market, item: Candle, interval: str, clock: Clock) -> list[Any]:
    """Write one entry of `klines`."""
    numbers = Numbers(market)
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


def ticker_24hr(market: Market, now_us: int, clock: Clock, *, full: bool) -> dict[str, Any]:
    """Write one entry of `ticker/24hr`; before the first trade all numbers are zero."""
    numbers = Numbers(market)
    day = market.tape.day(now_us) or Candle(now_us, 0, 0, 0, 0)
    mini = {
        "symbol": market.symbol,
        "openPrice": numbers.price(day.open),
        "highPrice": numbers.price(day.high),
        "lowPrice": numbers.price(day.low),
        "lastPrice": numbers.price(day.close),
        "volume": numbers.qty(day.volume),
        "quoteVolume": numbers.amount(day.quote),
        "openTime": clock(now_us - DAY_US),
        "closeTime": clock(now_us),
        "firstId": day.first_trade_id,
        "lastId": day.last_trade_id,
        "count": day.count,
    }
    if not full:
        return mini
    change = day.close - day.open
    percent = 100 * change / day.open if day.open else 0.0
    last = market.tape.trades[-1] if market.tape.trades else None
    return {
        **mini,
        "priceChange": numbers.price(change),
        "priceChangePercent": f"{percent:.3f}",
        "weightedAvgPrice": numbers.price(day.quote // day.volume if day.volume else 0),
        "prevClosePrice": numbers.price(day.open),
        "lastQty": numbers.qty(last.qty if last else 0),
        **_best(market, numbers),
    }


def book_ticker(market: Market) -> dict[str, Any]:
    """Write one entry of `ticker/bookTicker`."""
    return {"symbol": market.symbol, **_best(market, Numbers(market))}


def _best(market: Market, numbers: Numbers) -> dict[str, str]:
    bids, asks = market.book.top(1)
    bid, ask = (bids or [(0, 0)])[0], (asks or [(0, 0)])[0]
    return {
        "bidPrice": numbers.price(bid[0]),
        "bidQty": numbers.qty(bid[1]),
        "askPrice": numbers.price(ask[0]),
        "askQty": numbers.qty(ask[1]),
    }


def exchange_info(markets: Sequence[Market], now_ms: int, weight_limit: int) -> dict[str, Any]:
    """Answer `exchangeInfo`."""
    return {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": weight_limit},
            {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 300_000},
        ],
        "exchangeFilters": [],
        "symbols": [_symbol_info(market.symbol) for market in markets],
    }


_QUOTES: Final = ("USDT", "USDC", "FDUSD", "BTC", "ETH", "BNB", "EUR", "TRY")


def _symbol_info(symbol: str) -> dict[str, Any]:
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
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": "0.01000000",
                "maxPrice": "1000000.00000000",
                "tickSize": "0.01000000",
            },
            {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_MAKER"],
    }

"""The toy exchange as a venue of the pipeline: what a package beside `binance/` would hold."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Self

import aiohttp

from sheetanchor import sbe
from sheetanchor.errors import (
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    MaxRetriesExceeded,
    RateLimited,
    Unresponsive,
)
from sheetanchor.runtime.reliability import CircuitBreaker, RetryPolicy, TokenBucket, retry
from sheetanchor.venue import (
    EXPONENT,
    ConnectionState,
    Depth,
    EndpointCalls,
    Kline,
    OnFrame,
    Ticker,
    Trade,
)

MARKETS = {"BTCUSDT": "XBT-USD", "ETHUSDT": "ETH-USD"}
KINDS = {"depth": "chg", "trade": "fill", "bestBidAsk": "top"}
REQUESTS_PER_MINUTE = 600


def mantissa(text: str) -> int:
    """Turn a decimal number into the pipeline's; nothing is rounded.

    Raises:
        ValueError: It has more decimals than that.
    """
    scaled = Decimal(text).scaleb(-EXPONENT)
    if scaled != int(scaled):
        raise ValueError(f"expected at most {-EXPONENT} decimals, found {text!r}")
    return int(scaled)


def level(entry: dict[str, str]) -> tuple[int, int]:
    """Read a price and a quantity."""
    return mantissa(entry["px"]), mantissa(entry["sz"])


def frame_of(line: str) -> bytes | None:
    """Translate one message; None for one that is not of the market, and as it came what cannot be translated."""
    try:
        body = json.loads(line)
        kind = body["k"]
        if kind == "pong":
            return None
        symbol = next(ours for ours, theirs in MARKETS.items() if theirs == body["m"])
        return sbe.encode(_message(kind, body, symbol, body["at"] * 1_000))
    except (ValueError, KeyError, TypeError, ArithmeticError, StopIteration, sbe.EncodeError):
        return line.encode()


def _message(kind: str, body: dict[str, Any], symbol: str, at_us: int) -> sbe.Message:
    head: dict[str, Any] = {
        "event_time_us": at_us,
        "symbol": symbol,
        "price_exponent": EXPONENT,
        "qty_exponent": EXPONENT,
    }
    if kind == "chg":
        bids, asks = (tuple(level(entry) for entry in body[side]) for side in ("buy", "sell"))
        first, last = body["seq"]
        return sbe.DepthDiff(first_update_id=first, last_update_id=last, bids=bids, asks=asks, **head)
    if kind == "fill":
        trade = body["no"], mantissa(body["px"]), mantissa(body["sz"]), body["taker"] == "sell"
        return sbe.Trades(transact_time_us=at_us, trades=(trade,), **head)
    if kind == "top":
        (bid, bid_qty), (ask, ask_qty) = level(body["buy"]), level(body["sell"])
        prices: dict[str, Any] = {"bid_price": bid, "bid_qty": bid_qty, "ask_price": ask, "ask_qty": ask_qty}
        return sbe.BestBidAsk(book_update_id=body["seq"], **prices, **head)
    raise ValueError(f"expected chg, fill or top, found {kind!r}")


class ToyConnection:
    """See `sheetanchor.venue.VenueConnection`."""

    def __init__(self, url: str, wanted: dict[str, Any], api_key: str, on_frame: OnFrame, ask_after_s: float) -> None:
        self._url, self._wanted, self._api_key, self._on_frame = url, wanted, api_key, on_frame
        self._ask_after_s = ask_after_s
        self._opened_s: float | None = None
        self._last_message_s: float | None = None
        self._last_sign_s: float | None = None
        self.replaced_s: float | None = None

    @property
    def state(self) -> ConnectionState:
        """What is known of the connection."""
        return ConnectionState(
            opened_s=self._opened_s,
            last_message_s=self._last_message_s,
            replaced_s=self.replaced_s,
            last_sign_s=self._last_sign_s,
        )

    async def run(self) -> str:
        """Connect, and receive until the connection ends."""
        async with aiohttp.ClientSession() as session:
            try:
                socket = await session.ws_connect(self._url, headers={"Toy-Key": self._api_key})
            except aiohttp.WSServerHandshakeError as error:
                kind = ExchangeRefused if error.status == 401 else ExchangeUnavailable
                raise kind(f"the toy exchange answered {error.status}") from error
            except (aiohttp.ClientError, OSError) as error:
                raise ExchangeUnavailable(f"no connection to the toy exchange: {error}") from error
            async with socket:
                await socket.send_json(self._wanted)
                self._opened_s = time.monotonic()
                asking = asyncio.create_task(self._ask(socket))
                try:
                    async for message in socket:
                        self._take(message.data)
                finally:
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
        return f"closed with code {socket.close_code}"

    def _take(self, text: str) -> None:
        at_us, self._last_sign_s = time.time_ns() // 1_000, time.monotonic()
        for line in text.splitlines():
            frame = frame_of(line)
            if frame is not None:
                self._last_message_s = self._last_sign_s
                self._on_frame(frame, at_us)

    async def _ask(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await socket.send_str('{"k": "ping"}')
            await asyncio.sleep(self._ask_after_s)


def _kline(bar: dict[str, str]) -> Kline:
    opened, high, low, close = (mantissa(bar[name]) for name in "ohlc")
    return Kline(int(bar["from"]) * 1_000, opened, high, low, close, int(bar["to"]) * 1_000)


class ToyRest:
    """See `sheetanchor.venue.VenueRestClient`. Weight is requests here."""

    def __init__(self, url: str, timeout_s: float, retry_policy: RetryPolicy, breaker: CircuitBreaker) -> None:
        self.url = url
        self.breaker = breaker
        self._retry_policy = retry_policy
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._asked: dict[str, EndpointCalls] = {}
        self._spent = 0
        self._blocked_until_s = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def weight_remaining(self) -> int:
        """Give the requests left."""
        return REQUESTS_PER_MINUTE - self._spent

    def asked(self, symbol: str) -> EndpointCalls:
        """Give what was asked for a symbol so far."""
        return self._asked.setdefault(symbol, EndpointCalls())

    def recall_weight(self, remaining: int, ago_s: float) -> None:
        """Take in what an earlier process had left."""
        if ago_s < 60:
            self._spent = max(self._spent, REQUESTS_PER_MINUTE - remaining)

    def honour_retry_after(self, seconds: float) -> None:
        """Ask nothing for some seconds."""
        self._blocked_until_s = max(self._blocked_until_s, time.monotonic() + seconds)

    async def depth(self, symbol: str, limit: int) -> Depth:
        """Ask for the order book."""
        body = await self._get("book", symbol, limit)
        bids, asks = ([level(entry) for entry in body[side]] for side in ("buy", "sell"))
        return Depth(body["seq"], bids, asks)

    async def trades(self, symbol: str, limit: int) -> list[Trade]:
        """Ask for the most recent trades."""
        newest_first = await self._get("fills", symbol, limit)
        return [
            Trade(one["no"], mantissa(one["px"]), mantissa(one["sz"]), one["at"] * 1_000, one["taker"] == "sell")
            for one in reversed(newest_first)
        ]

    async def klines(self, symbol: str, interval: str, limit: int) -> list[Kline]:
        """Ask for the most recent candles, which are of a minute here."""
        assert interval == "1m"
        bars = await self._get("bars", symbol, limit)
        return [_kline(bar) for bar in bars]

    async def ticker_24hr(self, symbol: str) -> Ticker:
        """Ask for the last price and the quote."""
        body = await self._get("quote", symbol, 1)
        last, bid, ask = (mantissa(body[name]) for name in ("last", "buy", "sell"))
        return Ticker(last, bid, ask, body["at"] * 1_000)

    async def probe(self, symbol: str) -> None:
        """Ask one small question, once."""
        await self._once("up", symbol, 1)

    async def _get(self, endpoint: str, symbol: str, most: int) -> Any:
        try:
            return await retry(lambda: self._once(endpoint, symbol, most), "rest", self._retry_policy)
        except MaxRetriesExceeded as error:
            raise error.last_error from error

    async def _once(self, endpoint: str, symbol: str, most: int) -> Any:
        wait_s = self._blocked_until_s - time.monotonic()
        if wait_s > 0:
            raise RateLimited(f"{endpoint}: not asked", retry_after_s=wait_s)
        assert self._session is not None
        self._spent += 1
        query, status = {"m": MARKETS[symbol], "most": str(most)}, "none"
        started_s = time.monotonic()
        try:
            async with self._session.get(f"{self.url}/ask/{endpoint}", params=query) as answer:
                status = str(answer.status)
                if answer.status != 200:
                    raise ExchangeRefused(f"{endpoint} answered {answer.status}: {await answer.text()}")
                return await answer.json()
        except TimeoutError as error:
            raise Unresponsive(f"{endpoint}: no answer") from error
        except ValueError as error:
            raise ExchangeError(f"{endpoint}: expected JSON: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExchangeUnavailable(f"{endpoint}: {error}") from error
        finally:
            self.asked(symbol).calls.append((endpoint, status, round(time.monotonic() - started_s, 6)))


class ToyVenue:
    """See `sheetanchor.venue.TradingVenue`."""

    def connection(
        self,
        origin: str,
        symbols: Sequence[str],
        streams: Sequence[str],
        api_key: str,
        line: str,
        on_frame: OnFrame,
        *,
        ask_after_s: float,
    ) -> ToyConnection:
        """Make a connection that asks for markets and kinds in its first message."""
        wanted = {
            "markets": [MARKETS[symbol] for symbol in symbols],
            "kinds": [KINDS[stream] for stream in streams],
            "for": line,
        }
        return ToyConnection(f"{origin}/feed", wanted, api_key, on_frame, ask_after_s)

    def attempt_budget(self, clock: Callable[[], float]) -> TokenBucket:
        """Make the budget of connections."""
        return TokenBucket(10, 10, clock=clock)

    def rest_client(self, url: str, *, timeout_s: float, retry_policy: RetryPolicy, breaker: CircuitBreaker) -> ToyRest:
        """Make a client."""
        return ToyRest(url, timeout_s, retry_policy, breaker)

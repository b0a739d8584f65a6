"""The exchange's REST interface for market data.

Owns the HTTP session, time-outs, retries and the request-weight budget, and sends nothing before a `Retry-After` is
over. It never touches Redis. When the exchange is unreachable every call raises within its time-out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from typing import Any, Final, Self

import aiohttp

from sheetanchor import __version__
from sheetanchor.binance import rate_limits
from sheetanchor.binance.rest_bodies import (
    Body,
    parse_depth,
    parse_error,
    parse_klines,
    parse_server_time,
    parse_ticker,
    parse_trades,
)
from sheetanchor.errors import (
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    MaxRetriesExceeded,
    OperationFailed,
    RateLimited,
    Unresponsive,
)
from sheetanchor.runtime.reliability import DEFAULT_RETRY, CircuitBreaker, RetryPolicy, retry
from sheetanchor.venue import Depth, EndpointCalls, Kline, Ticker, Trade, counts_as_failure

TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 3.0
BODY_BYTES_MAX: Final = 8 * 1024 * 1024
"""The largest answer, 5,000 levels a side, has well under one MiB."""

WEIGHT_PER_MINUTE: Final = 6_000
"""Request weight per minute that the exchange allows an address, as `exchangeInfo` says."""

WEIGHT_SHARE: Final = 0.9
"""Share of the weight that we use; the rest is for other clients behind the same address."""

PATIENCE_S: Final = 30.0
"""Longest Retry-After that is waited for; a longer one raises RateLimited."""

CALLS_KEPT: Final = 200
"""Requests of one symbol that are remembered; a run makes at most four a fetch, each tried a few times."""

DEPTH_WEIGHTS: Final = ((100, 5), (500, 25), (1000, 50), (5000, 250))
TRADES_WEIGHT: Final = 25
LIGHT_WEIGHT: Final = 2

log = logging.getLogger(__name__)


def depth_weight(limit: int) -> int:
    """Give the request weight of a depth answer of up to `limit` levels a side."""
    return next((weight for levels, weight in DEPTH_WEIGHTS if limit <= levels), DEPTH_WEIGHTS[-1][1])


class Weight:
    """The request weight used in this minute: as the exchange reports it, and of requests that it has not reported yet.

    A request counts as soon as it is allowed, so that parallel requests do not each use the same remainder. The weight
    reported in an answer replaces our count; where an exchange, or a proxy before it, reports none our count stays.

    Args:
        per_minute: Weight that the exchange allows per minute.
    """

    def __init__(self, per_minute: int = WEIGHT_PER_MINUTE) -> None:
        self._limit = int(per_minute * WEIGHT_SHARE)
        self._minute = -1
        self._reported = 0
        self._untold = 0
        self._in_flight = 0

    def _begin_minute(self, now_s: float) -> None:
        if self._minute != int(now_s // 60):
            self._minute, self._reported, self._untold = int(now_s // 60), 0, 0

    def take(self, cost: int, now_s: float) -> float:
        """Take the weight of a request that is about to be sent.

        Args:
            cost: Its weight.
            now_s: Wall-clock time.

        Returns:
            0 if it was taken; else nothing is taken, and these are the seconds until the next minute.
        """
        if cost > self.remaining(now_s):
            return 60 - now_s % 60
        self._in_flight += cost
        return 0.0

    def settle(self, cost: int, used: str | None, now_s: float) -> None:
        """Correct the count with the answer to a request.

        Args:
            cost: Weight that was taken for it.
            used: Value of `X-MBX-USED-WEIGHT-1M` in its answer, None without one.
            now_s: Wall-clock time.
        """
        self._begin_minute(now_s)
        self._in_flight -= cost
        if used is not None and used.isascii() and used.isdigit():
            self._reported = max(
                self._reported, int(used[:12])
            )  # answers may arrive in another order than the requests were counted in
        else:
            self._untold += cost

    def recall(self, remaining: int, at_s: float) -> None:
        """Start with the weight that an earlier process had left.

        Args:
            remaining: Weight that it had left.
            at_s: When that was, by the wall clock.
        """
        self._begin_minute(at_s)
        self._reported = max(self._reported, self._limit - remaining)

    def remaining(self, now_s: float) -> int:
        """Give the weight that may still be used in this minute."""
        self._begin_minute(now_s)
        return self._limit - self._reported - self._untold - self._in_flight


class RestClient:
    """A client of one exchange; use it as an asynchronous context manager.

    Every method raises `ExchangeUnavailable`, `Unresponsive`, `RateLimited`, `ExchangeRefused` or, for an answer
    that cannot be used, `ExchangeError`, each naming endpoint and field; `CircuitOpen` if no request was sent.

    Args:
        rest_url: Origin; `/api/v3/…` is appended.
        timeout_s: Seconds that one request may take.
        patience_s: Longest wait for a `Retry-After` or for the next minute's weight; a longer one raises RateLimited.
        retry_policy: How often passing failures are tried again.
        breaker: Stops requests to an exchange that keeps failing.
        weight_per_minute: Weight that the exchange allows per minute.
    """

    def __init__(
        self,
        rest_url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        retry_policy: RetryPolicy = DEFAULT_RETRY,
        breaker: CircuitBreaker | None = None,
        weight_per_minute: int = WEIGHT_PER_MINUTE,
    ) -> None:
        self.url = rest_url.rstrip("/")
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._retry_policy = replace(retry_policy, retry_after_max_s=patience_s)
        self._breaker = breaker or CircuitBreaker("rest", counts=counts_as_failure)
        self._weight = Weight(weight_per_minute)
        self._asked: dict[str, EndpointCalls] = {}
        self._blocked_until = -math.inf
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": f"sheetanchor/{__version__}", "X-MBX-TIME-UNIT": "MICROSECOND"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def weight_remaining(self) -> int:
        """Give the request weight left in this minute."""
        return self._weight.remaining(time.time())

    @property
    def breaker(self) -> CircuitBreaker:
        """Give the circuit breaker; an earlier process may have left it open."""
        return self._breaker

    def asked(self, symbol: str) -> EndpointCalls:
        """Give the requests sent for a symbol so far."""
        return self._asked.setdefault(symbol, EndpointCalls())

    def recall_weight(self, remaining: int, ago_s: float) -> None:
        """Start with the weight that an earlier process had left some seconds ago."""
        now_s = time.time()
        if (now_s - ago_s) // 60 == now_s // 60:
            self._weight.recall(remaining, now_s)

    def honour_retry_after(self, seconds: float) -> None:
        """Send no requests for some seconds, for instance because an earlier process received a Retry-After."""
        self._blocked_until = max(self._blocked_until, time.monotonic() + seconds)

    @property
    def blocked_s(self) -> float:
        """Give the seconds for which the exchange has asked us to send nothing."""
        return max(0.0, self._blocked_until - time.monotonic())

    async def depth(self, symbol: str, limit: int = 100) -> Depth:
        """Request the order book.

        Args:
            symbol: Trading pair.
            limit: Levels a side, at most 5000.
        """
        body = await self._get("/api/v3/depth", {"symbol": symbol, "limit": limit}, depth_weight(limit))
        return parse_depth(body, limit)

    async def trades(self, symbol: str, limit: int = 1000) -> list[Trade]:
        """Request the most recent trades, oldest first; at most 1000."""
        body = await self._get("/api/v3/trades", {"symbol": symbol, "limit": limit}, TRADES_WEIGHT)
        return parse_trades(body, limit)

    async def klines(self, symbol: str, interval: str = "1m", limit: int = 5) -> list[Kline]:
        """Request the most recent candles, oldest first."""
        query = {"symbol": symbol, "interval": interval, "limit": limit}
        return parse_klines(await self._get("/api/v3/klines", query, LIGHT_WEIGHT), limit)

    async def ticker_24hr(self, symbol: str) -> Ticker:
        """Request the statistics of the last 24 hours."""
        return parse_ticker(await self._get("/api/v3/ticker/24hr", {"symbol": symbol}, LIGHT_WEIGHT))

    async def server_time(self) -> int:
        """Request the exchange's clock in µs."""
        return parse_server_time(await self._get("/api/v3/time", {}, 1))

    async def ping(self) -> None:
        """Check that the exchange answers."""
        await self._get("/api/v3/ping", {}, 1)

    async def probe(self, symbol: str) -> None:
        """Send one cheap request, once, and count it for a symbol."""
        asked = self.asked(symbol)
        await self._wait_for_permission("/api/v3/ping", 1)
        await self._once("/api/v3/ping", {}, 1, asked)

    async def _get(self, endpoint: str, query: dict[str, Any], weight: int) -> Body:
        asked = self.asked(str(query.get("symbol", "")))
        tries = 0

        async def once() -> bytes:
            nonlocal tries
            tries += 1
            asked.retries += tries > 1
            await self._wait_for_permission(endpoint, weight)
            return await self._once(endpoint, query, weight, asked)

        try:
            return Body(endpoint, await self._breaker.call(lambda: retry(once, "rest", self._retry_policy)))
        except MaxRetriesExceeded as error:  # not counted by the breaker: a rate limit is no failure of the exchange
            raise error.last_error from error
        except OperationFailed as error:
            cause = error.__cause__
            raise (cause.last_error if isinstance(cause, MaxRetriesExceeded) else cause or error) from error

    async def _wait_for_permission(self, endpoint: str, weight: int) -> None:
        """Sleep until a request may be sent, and take its weight.

        Raises:
            RateLimited: If that would take longer than `patience_s`.
        """
        deadline_s = time.monotonic() + self._patience_s
        while True:
            wait_s = self.blocked_s
            why = "the exchange requested a pause"
            if wait_s == 0:
                left = self.weight_remaining
                wait_s = self._weight.take(weight, time.time())
                why = f"the request weight of this minute is used up ({left} left, {weight} needed)"
            if wait_s == 0:
                return
            if time.monotonic() + wait_s > deadline_s:
                raise RateLimited(f"GET {endpoint}: not sent: {why}, wait another {wait_s:.0f} s", retry_after_s=wait_s)
            log.info("GET %s waits %.1f s: %s", endpoint, wait_s, why)
            await asyncio.sleep(wait_s)

    async def _once(self, endpoint: str, query: dict[str, Any], weight: int, asked: EndpointCalls) -> bytes:
        """Send the request once.

        Raises:
            ExchangeError: The subclass for the answer, or for its absence.
        """
        started_s = time.monotonic()
        status, used = "none", None
        try:
            if self._session is None:
                raise ExchangeUnavailable(f"GET {endpoint}: not sent: the session is not open")
            async with self._session.get(self.url + endpoint, params=query, allow_redirects=False) as response:
                status = str(response.status)
                used = response.headers.get("X-MBX-USED-WEIGHT-1M")
                raw = await _bounded_body(response, endpoint)
                self._check_status(endpoint, response, raw)
                return raw
        except aiohttp.ConnectionTimeoutError as error:
            status = "timeout"
            raise ExchangeUnavailable(f"GET {endpoint}: no connection to {self.url}") from error
        except TimeoutError as error:
            status = "timeout"
            raise Unresponsive(f"GET {endpoint}: no answer from {self.url} within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            status = "error"
            message = error.os_error.strerror or error.os_error
            raise ExchangeUnavailable(f"GET {endpoint}: cannot connect to {self.url}: {message}") from error
        except (aiohttp.ClientError, OSError) as error:
            status = "error"
            message = " ".join(str(error).split()) or type(error).__name__
            raise ExchangeUnavailable(f"GET {endpoint}: {message}") from error
        finally:
            self._weight.settle(weight, used, time.time())
            if len(asked.calls) < CALLS_KEPT:
                asked.calls.append((endpoint, status, round(time.monotonic() - started_s, 6)))

    def _check_status(self, endpoint: str, response: aiohttp.ClientResponse, raw: bytes) -> None:
        status = response.status
        if status == 200:
            return
        text = f"GET {endpoint} answered {status}: {parse_error(raw)}"
        said = raw[: rate_limits.TEXT_MAX].decode("utf-8", "replace")
        if rate_limits.asks_for_silence(status, said):
            headers = response.headers
            wait_s = rate_limits.silence_s(
                headers.get("Retry-After"), headers.get("Date"), said, time.time(), rate_limits.WAIT_DEFAULT_S
            )
            self.honour_retry_after(wait_s)
            log.warning("Binance rate limit hit, waiting %gs", wait_s)
            raise RateLimited(f"{text}; it requests to wait {wait_s:g} s", retry_after_s=wait_s, status=status)
        if status >= 500:
            raise ExchangeUnavailable(text)
        raise ExchangeRefused(text)


async def _bounded_body(response: aiohttp.ClientResponse, endpoint: str) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_chunked(65_536):
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise ExchangeError(f"GET {endpoint}: expected an answer of at most {BODY_BYTES_MAX} bytes, found more")
        chunks.append(chunk)
    return b"".join(chunks)

"""The exchange's REST interface for market data.

Owns the HTTP session, time-outs, retries, the request-weight budget and the promise never to ask again before a
`Retry-After` is over. It never touches Redis. When the exchange is gone every call raises within its time-out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from typing import Any, Final, Self

import aiohttp

from sheetanchor import __version__, metrics
from sheetanchor.errors import (
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    MaxRetriesExceeded,
    OperationFailed,
    RateLimited,
)
from sheetanchor.reliability import DEFAULT_RETRY, CircuitBreaker, RetryPolicy, retry
from sheetanchor.rest_bodies import (
    Body,
    Depth,
    Kline,
    Ticker,
    Trade,
    parse_complaint,
    parse_depth,
    parse_klines,
    parse_server_time,
    parse_ticker,
    parse_trades,
)

TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 3.0
BODY_BYTES_MAX: Final = 8 * 1024 * 1024
"""The largest answer, 5,000 levels a side, has well under one MiB."""

WEIGHT_PER_MINUTE: Final = 6_000
"""What the exchange allows an address; `exchangeInfo` says the same."""

WEIGHT_SHARE: Final = 0.9
"""Share of the weight that we use; the rest is for whoever else uses this address."""

PATIENCE_S: Final = 30.0
"""Longest Retry-After that is slept through; beyond it the caller is told."""

RETRY_AFTER_DEFAULT_S: Final = 10.0
RETRY_AFTER_MAX_S: Final = 3 * 86_400.0
"""The exchange's longest ban."""

DEPTH_WEIGHTS: Final = ((100, 5), (500, 25), (1000, 50), (5000, 250))
TRADES_WEIGHT: Final = 25
LIGHT_WEIGHT: Final = 2

log = logging.getLogger(__name__)


class Unresponsive(ExchangeError):
    """No answer within the whole time-out: waiting as long again would only hold up whoever asks."""


def speaks_against(error: BaseException) -> bool:
    """Say whether a failure means that the exchange is not well; a wrong question or too many of them do not."""
    cause = error.last_error if isinstance(error, MaxRetriesExceeded) else error
    return isinstance(cause, (ExchangeUnavailable, Unresponsive))


def depth_weight(limit: int) -> int:
    """Give the request weight of a depth answer of up to `limit` levels a side."""
    return next((weight for levels, weight in DEPTH_WEIGHTS if limit <= levels), DEPTH_WEIGHTS[-1][1])


class Weight:
    """What of the minute's request weight is used, as the exchange's last answer said.

    Args:
        per_minute: What the exchange allows.
    """

    def __init__(self, per_minute: int = WEIGHT_PER_MINUTE) -> None:
        self._limit = int(per_minute * WEIGHT_SHARE)
        self._minute = -1
        self._used = 0

    def note(self, used: str | None, now_s: float) -> None:
        """Take the header of an answer.

        Args:
            used: Value of `X-MBX-USED-WEIGHT-1M`, None if there was none.
            now_s: Wall-clock time.
        """
        if used is not None and used.isascii() and used.isdigit():
            self._minute, self._used = int(now_s // 60), int(used[:12])

    def remaining(self, now_s: float) -> int:
        """Give the weight that may still be used in this minute."""
        return self._limit - (self._used if self._minute == int(now_s // 60) else 0)

    def wait_s(self, cost: int, now_s: float) -> float:
        """Give the seconds until a request of this cost fits into the budget; 0 for at once."""
        return 0.0 if cost <= self.remaining(now_s) else 60 - now_s % 60


class Exchange:
    """A client of one exchange; use it as an asynchronous context manager.

    Every method raises `ExchangeUnavailable`, `Unresponsive`, `RateLimited`, `ExchangeRefused` or, for an answer
    that is not what it should be, `ExchangeError`, each naming endpoint and field; `CircuitOpen` if it was not even
    asked.

    Args:
        rest_url: Origin; `/api/v3/…` is appended.
        timeout_s: Seconds that one request may take.
        patience_s: Longest wait for a `Retry-After` or for the next minute's weight; a longer one raises RateLimited.
        retry_policy: How often failures that may pass are tried again.
        breaker: Stops asking an exchange that keeps failing.
        weight_per_minute: What the exchange allows.
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
        self._breaker = breaker or CircuitBreaker("rest", counts=speaks_against)
        self._weight = Weight(weight_per_minute)
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

    def stay_away(self, seconds: float) -> None:
        """Ask nothing for some seconds, for instance because an earlier process was told so."""
        self._blocked_until = max(self._blocked_until, time.monotonic() + seconds)

    @property
    def blocked_s(self) -> float:
        """Give the seconds for which the exchange has told us to stay away."""
        return max(0.0, self._blocked_until - time.monotonic())

    async def depth(self, symbol: str, limit: int = 100) -> Depth:
        """Ask for the order book.

        Args:
            symbol: Trading pair.
            limit: Levels a side, at most 5000.
        """
        body = await self._get("/api/v3/depth", {"symbol": symbol, "limit": limit}, depth_weight(limit))
        return parse_depth(body, limit)

    async def trades(self, symbol: str, limit: int = 1000) -> list[Trade]:
        """Ask for the most recent trades, oldest first; at most 1000."""
        body = await self._get("/api/v3/trades", {"symbol": symbol, "limit": limit}, TRADES_WEIGHT)
        return parse_trades(body, limit)

    async def klines(self, symbol: str, interval: str = "1m", limit: int = 5) -> list[Kline]:
        """Ask for the most recent candles, oldest first."""
        query = {"symbol": symbol, "interval": interval, "limit": limit}
        return parse_klines(await self._get("/api/v3/klines", query, LIGHT_WEIGHT), limit)

    async def ticker_24hr(self, symbol: str) -> Ticker:
        """Ask for the statistics of the last 24 hours."""
        return parse_ticker(await self._get("/api/v3/ticker/24hr", {"symbol": symbol}, LIGHT_WEIGHT))

    async def server_time(self) -> int:
        """Ask for the exchange's clock in µs."""
        return parse_server_time(await self._get("/api/v3/time", {}, 1))

    async def ping(self) -> None:
        """Make sure that the exchange answers."""
        await self._get("/api/v3/ping", {}, 1)

    async def _get(self, endpoint: str, query: dict[str, Any], weight: int) -> Body:
        async def once() -> bytes:
            await self._wait_for_permission(endpoint, weight)
            return await self._once(endpoint, query)

        try:
            return Body(endpoint, await self._breaker.call(lambda: retry(once, "rest", self._retry_policy)))
        except MaxRetriesExceeded as error:  # uncounted by the breaker: we were told to wait
            raise error.last_error from error
        except OperationFailed as error:
            cause = error.__cause__
            raise (cause.last_error if isinstance(cause, MaxRetriesExceeded) else cause or error) from error

    async def _wait_for_permission(self, endpoint: str, weight: int) -> None:
        """Sleep until the exchange may be asked.

        Raises:
            RateLimited: If that would take longer than our patience.
        """
        wait_s = self.blocked_s
        why = "the exchange told us to stay away"
        if wait_s == 0:
            wait_s = self._weight.wait_s(weight, time.time())
            why = f"the request weight of this minute is used up ({self.weight_remaining} left, {weight} needed)"
        if wait_s == 0:
            return
        if wait_s > self._patience_s:
            raise RateLimited(f"GET {endpoint}: not asked: {why} for another {wait_s:.0f} s", retry_after_s=wait_s)
        log.info("waiting %.1f s: %s", wait_s, why)
        await asyncio.sleep(wait_s)

    async def _once(self, endpoint: str, query: dict[str, Any]) -> bytes:
        """Ask once.

        Raises:
            ExchangeError: Of the kind that the answer, or its absence, calls for.
        """
        if self._session is None:
            raise ExchangeUnavailable(f"GET {endpoint}: the session is not open")
        started_s = time.monotonic()
        status = "none"
        try:
            async with self._session.get(self.url + endpoint, params=query, allow_redirects=False) as response:
                status = str(response.status)
                self._weight.note(response.headers.get("X-MBX-USED-WEIGHT-1M"), time.time())
                raw = await _bounded_body(response, endpoint)
                self._check_status(endpoint, response, raw)
                return raw
        except aiohttp.ConnectionTimeoutError as error:
            status = "timeout"
            raise ExchangeUnavailable(f"GET {endpoint}: no connection to {self.url}") from error
        except TimeoutError as error:
            status = "timeout"
            metrics.TIMEOUTS.labels("rest").inc()
            raise Unresponsive(f"GET {endpoint}: no answer from {self.url} within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            status = "error"
            told = error.os_error.strerror or error.os_error
            raise ExchangeUnavailable(f"GET {endpoint}: cannot connect to {self.url}: {told}") from error
        except (aiohttp.ClientError, OSError) as error:
            status = "error"
            told = " ".join(str(error).split()) or type(error).__name__
            raise ExchangeUnavailable(f"GET {endpoint}: {told}") from error
        finally:
            metrics.REST_CALLS.labels(endpoint, status).inc()
            metrics.REST_LATENCY.labels(endpoint).observe(time.monotonic() - started_s)

    def _check_status(self, endpoint: str, response: aiohttp.ClientResponse, raw: bytes) -> None:
        status = response.status
        if status == 200:
            return
        text = f"GET {endpoint} answered {status}: {parse_complaint(raw)}"
        if status in (418, 429):
            wait_s = retry_after_s(response.headers.get("Retry-After"))
            self.stay_away(wait_s)
            log.warning("Binance rate limit hit, waiting %gs", wait_s)
            raise RateLimited(f"{text}; asks for {wait_s:g} s of silence", retry_after_s=wait_s, status=status)
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


def retry_after_s(header: str | None) -> float:
    """Read a `Retry-After` header in seconds; what cannot be read counts as ten seconds."""
    if header is not None and header.isascii() and header.strip().isdigit():
        return min(float(header), RETRY_AFTER_MAX_S)
    return RETRY_AFTER_DEFAULT_S

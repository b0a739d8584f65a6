"""Binance as a venue of the pipeline. Its stream has the pipeline's format, so frames are passed on unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from sheetanchor.binance.connection_limits import attempt_budget
from sheetanchor.binance.rest_client import RestClient
from sheetanchor.binance.websocket import Connection, stream_url
from sheetanchor.runtime.reliability import CircuitBreaker, RetryPolicy, TokenBucket
from sheetanchor.venue import OnFrame


class Binance:
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
    ) -> Connection:
        """Make a connection to the SBE stream."""
        return Connection(stream_url(origin, symbols, streams), api_key, line, on_frame, ask_after_s=ask_after_s)

    def attempt_budget(self, clock: Callable[[], float]) -> TokenBucket:
        """Make the budget of connections that an address may open."""
        return attempt_budget(clock)

    def rest_client(
        self, url: str, *, timeout_s: float, retry_policy: RetryPolicy, breaker: CircuitBreaker
    ) -> AbstractAsyncContextManager[RestClient]:
        """Make a client of the REST interface."""
        return RestClient(url, timeout_s=timeout_s, retry_policy=retry_policy, breaker=breaker)

"""What the pipeline needs of an exchange: a connection that brings frames, and four REST requests.

A second venue is a package beside `binance/` that implements `TradingVenue`, and a line in `venue_lookup`. Prices,
times and symbols here are the pipeline's; names, addresses and formats of the exchange stay in its package.

Frames have the format of the pipeline (`sheetanchor.sbe`), which is the only one that the decoder, the streams,
recordings and replays read. It is Binance's schema, so Binance's frames pass through unchanged and at no cost. A venue
with another wire format translates each message with `sbe.encode`. A neutral type of message between the two would be
the same four records again, and one more copy of each frame on the hot path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from sheetanchor.contract import Call
from sheetanchor.errors import ExchangeUnavailable, MaxRetriesExceeded, Unresponsive
from sheetanchor.runtime.reliability import CircuitBreaker, RetryPolicy, TokenBucket

# -- frames -----------------------------------------------------------------------------------------------------------

OnFrame = Callable[[bytes, int], None]
"""(frame, receive time in µs since 1970).

Gaps are found by ids, so these have to be consecutive where nothing is lost: a diff begins right after the previous one
ends, a trade has the id after the last one's, and REST answers use the same ids. A message that cannot be translated is
passed on unchanged: the decoder refuses it, so that it is counted and reported.
"""


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """The state of one connection, in monotonic seconds; None for what has not happened.

    Attributes:
        opened_s: When it was open.
        last_message_s: When its last market message was received.
        unanswered_s: When the ping was sent that no pong has answered.
        replaced_s: When another connection replaced it.
        leaving: The exchange has announced that it will close it.
        last_sign_s: When anything was last received on it.
        answers: False while it has answered no ping of ours but sends pings itself.
    """

    opened_s: float | None = None
    last_message_s: float | None = None
    unanswered_s: float | None = None
    replaced_s: float | None = None
    leaving: bool = False
    last_sign_s: float | None = None
    answers: bool = True

    @property
    def heard_s(self) -> float | None:
        """When anything was last received, or the connection was opened."""
        return max((at_s for at_s in (self.last_message_s, self.last_sign_s) if at_s is not None), default=None)

    @property
    def healthy(self) -> bool:
        """Whether anything was received on it."""
        return self.heard_s is not None


class VenueConnection(Protocol):
    """One connection from its first packet to its last. Reconnecting is decided elsewhere.

    Attributes:
        replaced_s: When another connection replaced it; set by the connection supervisor, and part of its state.
    """

    replaced_s: float | None

    @property
    def state(self) -> ConnectionState:
        """The state of the connection."""
        ...

    async def run(self) -> str:
        """Connect, and pass on frames until the connection ends or the task is cancelled.

        Returns:
            How it ended, for the log.

        Raises:
            ExchangeRefused: The key or the request was refused.
            RateLimited: Too many connections or requests.
            ExchangeUnavailable: No connection could be made.
        """
        ...


# -- REST -------------------------------------------------------------------------------------------------------------

EXPONENT: Final = -8
"""Prices and quantities of answers are whole multiples of 10**EXPONENT, so that no float rounds them."""


class Trade(NamedTuple):
    """One trade; price and quantity are mantissas."""

    id: int
    price: int
    qty: int
    time_us: int
    is_buyer_maker: bool


@dataclass(frozen=True, slots=True)
class Depth:
    """An order book as it was right after update `last_update_id`; levels are `(price, quantity)` mantissas."""

    last_update_id: int
    bids: list[tuple[int, int]]
    asks: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Kline:
    """One candle; prices are mantissas. Other fields are not read, so that they cannot make an answer invalid."""

    open_us: int
    open: int
    high: int
    low: int
    close: int
    close_us: int


@dataclass(frozen=True, slots=True)
class Ticker:
    """The last 24 hours.

    Attributes:
        last: Price of the last trade, a mantissa.
        bid: Best bid; None where the answer has none.
        ask: Best ask; None where the answer has none.
        close_us: The exchange's clock at the time of the answer.
    """

    last: int
    bid: int | None
    ask: int | None
    close_us: int


@dataclass(slots=True)
class EndpointCalls:
    """The requests for one symbol.

    Attributes:
        calls: Each request; the oldest are kept.
        retries: Tries after the first one.
    """

    calls: list[Call] = field(default_factory=list)
    retries: int = 0


def counts_as_failure(error: BaseException) -> bool:
    """Say whether an error counts as a failure of the exchange; a wrong request or too many requests do not."""
    cause = error.last_error if isinstance(error, MaxRetriesExceeded) else error
    return isinstance(cause, (ExchangeUnavailable, Unresponsive))


class VenueRestClient(Protocol):
    """Sends requests to one exchange, within its limits.

    Every request raises `ExchangeUnavailable`, `Unresponsive`, `RateLimited`, `ExchangeRefused` or, for an answer that
    cannot be used, `ExchangeError`; `CircuitOpen` if it was not sent. It retries by its policy, and waits for limits
    that end soon. Limits are in the exchange's own units of request weight.
    """

    @property
    def url(self) -> str:
        """Give the origin; receipts name the exchange by it."""
        ...

    @property
    def weight_remaining(self) -> int:
        """Give the request weight left in this minute."""
        ...

    @property
    def breaker(self) -> CircuitBreaker:
        """Give the circuit breaker; an earlier process may have left it open."""
        ...

    def asked(self, symbol: str) -> EndpointCalls:
        """Give the requests sent for a symbol so far."""
        ...

    def recall_weight(self, remaining: int, ago_s: float) -> None:
        """Start with the weight that an earlier process had left some seconds ago."""
        ...

    def honour_retry_after(self, seconds: float) -> None:
        """Send no requests for some seconds, for instance because an earlier process received a Retry-After."""
        ...

    async def depth(self, symbol: str, limit: int) -> Depth:
        """Request the order book of up to so many levels a side, in the ids of the frames."""
        ...

    async def trades(self, symbol: str, limit: int) -> list[Trade]:
        """Request the most recent trades, oldest first, in the ids of the frames."""
        ...

    async def klines(self, symbol: str, interval: str, limit: int) -> list[Kline]:
        """Request the most recent candles, oldest first; the pipeline uses those of a minute, `1m`."""
        ...

    async def ticker_24hr(self, symbol: str) -> Ticker:
        """Request the statistics of the last 24 hours."""
        ...

    async def probe(self, symbol: str) -> None:
        """Send one cheap request, once, and count it for a symbol."""
        ...


# -- the venue --------------------------------------------------------------------------------------------------------


class TradingVenue(Protocol):
    """An exchange. It has no state: connections and clients have."""

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
    ) -> VenueConnection:
        """Make a connection that subscribes to streams of symbols; it is opened by its `run`.

        Args:
            origin: `ws://host:port` or `wss://host:port`.
            symbols: Trading pairs as the pipeline writes them.
            streams: Stream types as the pipeline writes them, see `contract.STREAM_TYPES`.
            api_key: Sent to this origin only.
            line: Name of the line, to be found in the exchange's logs.
            on_frame: Called with every frame. It must not block: nothing is read while it runs.
            ask_after_s: Seconds without receiving anything after which the connection sends pings.
        """
        ...

    def attempt_budget(self, clock: Callable[[], float]) -> TokenBucket:
        """Make the budget of connections that an address may open; the clock is monotonic, in seconds."""
        ...

    def rest_client(
        self, url: str, *, timeout_s: float, retry_policy: RetryPolicy, breaker: CircuitBreaker
    ) -> AbstractAsyncContextManager[VenueRestClient]:
        """Make a client of the exchange's REST interface.

        Args:
            url: Origin.
            timeout_s: Seconds that one request may take.
            retry_policy: How often passing failures are tried again.
            breaker: Stops requests to an exchange that keeps failing.
        """
        ...

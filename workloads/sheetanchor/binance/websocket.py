"""One connection to the exchange's SBE stream.

Owns the socket. Passes every binary frame on as soon as it is read, answers pings, and ends when the exchange ends it
or its task is cancelled; either way the exchange is sent a CLOSE frame. Reconnecting is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohappyeyeballs
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, ProtocolError, WebSocketException
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event, State
from websockets.uri import WebSocketURI, parse_uri

from sheetanchor import __version__
from sheetanchor.binance import rate_limits
from sheetanchor.binance.connection_limits import message_budget
from sheetanchor.contract import stream_symbol
from sheetanchor.errors import ExchangeError, ExchangeRefused, ExchangeUnavailable, RateLimited
from sheetanchor.venue import ConnectionState, OnFrame

log = logging.getLogger(__name__)

library_log: Final = logging.getLogger(f"{__name__}.library")
library_log.setLevel(logging.INFO)  # at DEBUG the library logs the headers of its request, the API key among them

FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
"""A diff with the most levels that its count fields allow has 2 MiB."""

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
NEXT_ADDRESS_AFTER_S: Final = 0.25
"""Where a name has several addresses, the next is tried beside one that has not answered by then (RFC 8305)."""

RETRY_AFTER_DEFAULT_S: Final = 60.0
"""Limits of the exchange are counted by the minute."""

PING_INTERVAL_S: Final = 180.0
ASK_AFTER_S: Final = 1.25
"""A quarter of the 5 s after which a silent connection is replaced, so that one lost pong does not cost it."""


class Connection:
    """A connection from its first packet to its last.

    Args:
        url: `ws://…/stream?streams=…`, see `stream_url`.
        api_key: Sent as `X-MBX-APIKEY`.
        line: Name of the line, part of the User-Agent.
        on_frame: Called with every binary frame. It must not block: nothing is read while it runs.
        ping_interval_s: Seconds between two pings of ours while frames arrive.
        ask_after_s: Seconds without any frame after which a ping is sent, repeatedly.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        line: str,
        on_frame: OnFrame,
        *,
        ping_interval_s: float = PING_INTERVAL_S,
        ask_after_s: float = ASK_AFTER_S,
    ) -> None:
        self._url = url
        self._key_header = {"X-MBX-APIKEY": api_key}
        self._user_agent = f"sheetanchor/{__version__} line={line}"
        self._on_frame = on_frame
        self._ping_interval_s = ping_interval_s
        self._ask_after_s = ask_after_s
        self._budget = message_budget(time.monotonic)
        self._ended = asyncio.Event()
        self._failure: Exception | None = None
        self._opened_s: float | None = None
        self._last_message_s: float | None = None
        self._last_sign_s: float | None = None
        self._answers = False
        self._asked = False
        self._is_pinged = False
        self._last_ping_s = 0.0
        self._unanswered_s: float | None = None
        self._leaving = False
        self.replaced_s: float | None = None
        self.unknown_texts = 0

    @property
    def state(self) -> ConnectionState:
        """What is known of the connection."""
        return ConnectionState(
            self._opened_s,
            self._last_message_s,
            self._unanswered_s,
            self.replaced_s,
            self._leaving,
            self._last_sign_s,
            self._answers or not self._asked or not self._is_pinged,
        )

    async def run(self) -> str:
        """Connect, and receive until the connection ends.

        Returns:
            How it ended, for the log.

        Raises:
            ExchangeRefused: The key or the request was refused.
            RateLimited: Too many connections or requests.
            ExchangeUnavailable: No connection could be made.
        """
        opened = await self._connect()
        self._opened_s = self._last_ping_s = time.monotonic()
        asking = asyncio.create_task(self._ask(opened))
        try:
            await self._ended.wait()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await _close(opened)
        if self._failure is not None:
            raise self._failure
        return _how_it_ended(opened)

    async def _connect(self) -> ClientConnection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                uri = parse_uri(self._url)
                return await _ConnectHereOnly(
                    self._url,
                    sock=await _tcp_connection(uri),
                    ssl=_tls() if uri.secure else None,
                    additional_headers=self._key_header,
                    user_agent_header=self._user_agent,
                    compression=None,
                    proxy=None,  # a proxy from the environment would see the API key
                    open_timeout=None,
                    ping_interval=None,  # pings, and what a missing pong means, are decided by the connection policy
                    close_timeout=None,
                    logger=library_log,
                    create_connection=self._make,  # type: ignore[arg-type]  # its documentation allows a wrapper
                )
        except InvalidStatus as error:
            raise _refusal(self._url, error.response) from error
        except (WebSocketException, OSError, TimeoutError, UnicodeError) as error:
            text = str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s, check the address and the network"
            raise ExchangeUnavailable(f"no connection to the exchange at {_origin(self._url)}: {text}") from error

    def _make(self, protocol: ClientProtocol, **options: Any) -> ClientConnection:
        return ClientConnection(_Protocol(protocol.uri, self), **options)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def take(self, opcode: Opcode, message: bytes) -> None:
        """Handle a complete message, or a control frame, which shows that the connection is alive.

        Raises:
            ProtocolError: A text is not UTF-8.
        """
        self._last_sign_s = time.monotonic()
        if opcode is Opcode.BINARY:
            self._last_message_s = self._last_sign_s
            self._on_frame(message, time.time_ns() // 1_000)
        elif opcode is Opcode.TEXT:
            try:
                self._on_text(message.decode())
            except UnicodeDecodeError as error:
                raise ProtocolError("a text that is not UTF-8") from error
        elif opcode is Opcode.PING:
            self._is_pinged = True
        elif opcode is Opcode.PONG:
            self._unanswered_s = None
            self._answers = True

    def may_pong(self) -> bool:
        """Say whether a ping may be answered now: the exchange closes a connection on which a client sends too much."""
        allowed = self._budget.take()
        if not allowed:
            log.warning("a ping is left unanswered: more than five messages within a second would close the connection")
        return allowed

    def end(self, failure: Exception | None = None) -> None:
        """Note that the connection receives nothing more.

        Args:
            failure: An error of ours, which `run` raises.
        """
        self._failure = self._failure or failure
        self._ended.set()

    def _on_text(self, text: str) -> None:
        if '"serverShutdown"' in text:
            log.info("the exchange announces the end of this connection")
            self._leaving = True
            return
        self.unknown_texts += 1
        if self.unknown_texts == 1:
            log.warning("unexpected text from the exchange (further ones are only counted): %.200s", text)

    # -- sending ------------------------------------------------------------------------------------------------------

    async def _ask(self, opened: ClientConnection) -> None:
        """Ping at an interval, and when nothing was received for a while; until cancelled or the connection ends."""
        while True:
            now_s = time.monotonic()
            heard_s = self._last_sign_s or self._opened_s or now_s
            silent = now_s - heard_s >= self._ask_after_s and now_s - self._last_ping_s >= self._ask_after_s
            # The first ping shows whether this peer answers pings at all.
            first = not self._asked and now_s - self._last_ping_s >= self._ask_after_s
            if first or silent or now_s - self._last_ping_s > self._ping_interval_s:
                try:
                    await self._ping(opened)
                except (WebSocketException, OSError) as error:
                    log.debug("no ping: %s", error)  # reading notices the end of the connection
                    return
            await asyncio.sleep(min(self._ask_after_s, self._ping_interval_s) / 4)

    async def _ping(self, opened: ClientConnection) -> None:
        # One token is left for a pong: the exchange may ping within the same second.
        if self._budget.available >= 2 and self._budget.take():
            self._asked = True
            self._last_ping_s = time.monotonic()
            self._unanswered_s = self._unanswered_s or self._last_ping_s
            opened.pending_pings.clear()  # the library keeps each until its pong, which some peers never send
            await opened.ping()


class _ConnectHereOnly(connect):
    """The library's `connect` without redirects.

    A redirected upgrade would send the API key to another address, perhaps in clear, and take its frames for market
    data.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _Protocol(ClientProtocol):
    """The library's protocol, but frames are passed on while they are read instead of being queued.

    A queue would cost every frame more time than its parsing does, and would have to be emptied at the end; and the
    library stops reading while it is full, so that a CLOSE behind it would not be seen.

    Args:
        uri: Address of the exchange.
        connection: Receives the frames.
    """

    def __init__(self, uri: WebSocketURI, connection: Connection) -> None:
        super().__init__(uri, max_size=FRAME_BYTES_MAX, logger=library_log)
        self._connection = connection
        self._kind = Opcode.BINARY
        self._parts = bytearray()

    def events_received(self) -> list[Event]:
        """Pass on what was read; the answer to the upgrade, and pongs, are left to the library."""
        left: list[Event] = []
        try:
            for event in super().events_received():
                if isinstance(event, Frame):
                    self._take(event)
                else:
                    left.append(event)
        except ProtocolError as error:
            self.parser_exc = error
            self.fail(CloseCode.INVALID_DATA, str(error))
        except Exception as error:  # noqa: BLE001 - raised by `Connection.run`
            self._connection.end(error)
            self.fail(CloseCode.INTERNAL_ERROR)
        if self.close_expected():
            self._connection.end()
        return left

    def _take(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT and frame.fin:
            self._connection.take(frame.opcode, bytes(frame.data))
            return
        if frame.opcode is not Opcode.CONT:
            self._kind, self._parts = frame.opcode, bytearray()
        self._parts += frame.data  # the protocol bounds the size of a message
        if frame.fin:
            self._connection.take(self._kind, bytes(self._parts))
            self._parts = bytearray()

    def receive_eof(self) -> None:
        """Note that the peer sends no more, or that the connection was lost."""
        super().receive_eof()
        self._connection.end()

    def send_frame(self, frame: Frame) -> None:
        """Send a frame, unless it is a pong beyond the message limit."""
        if frame.opcode is not Opcode.PONG or self._connection.may_pong():
            super().send_frame(frame)


async def _addresses(uri: WebSocketURI) -> Sequence[aiohappyeyeballs.AddrInfoType]:
    return await asyncio.get_running_loop().getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)


async def _tcp_connection(uri: WebSocketURI) -> socket.socket:
    """Connect to the first address of the exchange that answers.

    The event loop would try one after the other, and wait for an unreachable one until the time-out.
    """
    return await aiohappyeyeballs.start_connection(await _addresses(uri), happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Make the TLS settings, once: reading the certificates blocks the event loop for milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # HTTP/2 has no such upgrade
    return context


async def _close(opened: ClientConnection) -> None:
    """Send a CLOSE frame and wait for the answer, for a limited time: a peer may go on sending instead."""
    if opened.state is not State.OPEN:
        opened.transport.close()  # the last frame is sent; a peer that keeps it open would delay the next connection
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await opened.close()
    except TimeoutError:
        log.debug("the connection ended without an answer to our CLOSE")
    finally:
        opened.transport.abort()


def _how_it_ended(opened: ClientConnection) -> str:
    broken, received = opened.protocol.parser_exc, opened.protocol.close_rcvd
    if broken is not None and not isinstance(broken, EOFError):
        return f"protocol error: {broken}"
    return f"closed with code {int(received.code if received else CloseCode.ABNORMAL_CLOSURE)}"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _refusal(url: str, response: Response) -> ExchangeError:
    """Make the error for an answer to an upgrade other than 101."""
    status = response.status_code
    if 300 <= status < 400:
        return ExchangeUnavailable(
            f"the exchange answered {status} to the WebSocket upgrade: redirects are not followed, "
            f"since the API key may be sent to {_origin(url)} only: set ws_url to the exchange's own address"
        )
    # A server may send a header more than once.
    retry_after, date = (next(iter(response.headers.get_all(name)), "") for name in ("Retry-After", "Date"))
    text = bytes(response.body[: rate_limits.TEXT_MAX]).decode(errors="replace")
    return upgrade_error(status, retry_after, date, text)


def upgrade_error(status: int, retry_after: str = "", date: str = "", text: str = "") -> ExchangeError:
    """Make the error for the exchange's answer to an upgrade.

    Args:
        status: HTTP status.
        retry_after: The header of that name, "" without one.
        date: The header of that name, "" without one.
        text: Body of the answer, which may name the end of a ban.
    """
    message = f"the exchange answered {status} to the WebSocket upgrade"
    if status in rate_limits.TOO_MANY:
        wait_s = rate_limits.silence_s(retry_after, date, text, time.time(), RETRY_AFTER_DEFAULT_S)
        return RateLimited(f"{message}: too many requests", retry_after_s=wait_s, status=status)
    if status in (401, 403):
        return ExchangeRefused(f"{message}: check the API key, it does not accept this one; it must be an Ed25519 key")
    return ExchangeRefused(message) if 400 <= status < 500 else ExchangeUnavailable(message)


def stream_url(origin: str, symbols: Sequence[str], streams: Sequence[str]) -> str:
    """Give the address that subscribes to streams of symbols.

    Args:
        origin: `ws://host:port` or `wss://host:port`.
        symbols: Trading pairs; letters A to Z are sent in lower case, other scripts percent-encoded.
        streams: trade, bestBidAsk, depth.
    """
    names = [f"{quote(stream_symbol(symbol))}@{stream}" for symbol in symbols for stream in streams]
    return f"{origin}/stream?streams={'/'.join(names)}"

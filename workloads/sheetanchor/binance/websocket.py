"""One connection to the exchange's SBE stream.

Owns the socket. Hands every binary frame on as it came, answers pings, and ends when the other side ends it or its task
is cancelled; either way the exchange is sent a CLOSE frame. It decides nothing about reconnecting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote

import aiohttp

from sheetanchor import __version__
from sheetanchor.binance import rate_limits
from sheetanchor.binance.connection_policy import PING_INTERVAL_S, Policy, Vitals, message_budget
from sheetanchor.contract import stream_symbol
from sheetanchor.errors import ExchangeError, ExchangeRefused, ExchangeUnavailable, RateLimited

log = logging.getLogger(__name__)

FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
"""A diff of the most levels that its counts allow has 2 MiB."""

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
RETRY_AFTER_DEFAULT_S: Final = 60.0
"""Limits of the exchange are counted by the minute."""


async def refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Let no answer lead a request to another address; for the session that connections are made with.

    An upgrade would be sent there with the API key, perhaps in clear, and its frames be taken for the market. The
    client itself only keeps back headers that it knows to be secret.

    Raises:
        ExchangeUnavailable: The answer is a redirect.
    """
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise ExchangeUnavailable(
            f"the exchange answered {response.status} to the WebSocket upgrade: redirects are not followed, "
            f"for the API key is only for {request.url.origin()}"
        )
    return response


OnFrame = Callable[[bytes, int], None]
"""(frame, receive time in µs since 1970)"""


class Connection:
    """A connection from its first packet to its last.

    Args:
        url: `ws://…/stream?streams=…`, see `stream_url`.
        api_key: Sent as `X-MBX-APIKEY`.
        line: Name of the line, part of the User-Agent.
        on_frame: Told every binary frame.
        ping_interval_s: Seconds between two pings of ours while it speaks.
        ask_after_s: Seconds without a sign of life after which a ping asks for one, again and again.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        line: str,
        on_frame: OnFrame,
        *,
        ping_interval_s: float = PING_INTERVAL_S,
        ask_after_s: float = Policy().ask_after_s,
    ) -> None:
        self._url = url
        self._headers = {"X-MBX-APIKEY": api_key, "User-Agent": f"sheetanchor/{__version__} line={line}"}
        self._on_frame = on_frame
        self._ping_interval_s = ping_interval_s
        self._ask_after_s = ask_after_s
        self._budget = message_budget(time.monotonic)
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
    def vitals(self) -> Vitals:
        """What is known of the connection."""
        return Vitals(
            self._opened_s,
            self._last_message_s,
            self._unanswered_s,
            self.replaced_s,
            self._leaving,
            self._last_sign_s,
            self._answers or not self._asked or not self._is_pinged,
        )

    async def run(self, session: aiohttp.ClientSession) -> str:
        """Connect, and receive until the connection ends.

        Returns:
            How it ended, in words.

        Raises:
            ExchangeRefused: The key or the request was refused.
            RateLimited: Too many connections or requests.
            ExchangeUnavailable: No connection could be made.
        """
        socket = await self._connect(session)
        self._opened_s = self._last_ping_s = time.monotonic()
        asking = asyncio.create_task(self._ask(socket))
        try:
            return await self._receive(socket)
        except (aiohttp.ClientError, OSError) as error:  # a pong finds the connection gone before a read does
            return f"broken: {error or type(error).__name__}"
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await _close(socket)

    async def _connect(self, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        timeout = aiohttp.ClientWSTimeout(ws_receive=None, ws_close=CLOSE_TIMEOUT_S)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await session.ws_connect(
                    self._url, headers=self._headers, autoping=False, max_msg_size=FRAME_BYTES_MAX, timeout=timeout
                )
        except aiohttp.WSServerHandshakeError as error:
            told = [error.headers.get(name, "") if error.headers else "" for name in ("Retry-After", "Date")]
            raise upgrade_error(error.status, *told) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            text = str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
            raise ExchangeUnavailable(f"no connection to the exchange: {text}") from error

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        while True:
            message = await socket.receive()
            self._last_sign_s = time.monotonic()
            if message.type is aiohttp.WSMsgType.BINARY:
                self._last_message_s = self._last_sign_s
                self._on_frame(message.data, time.time_ns() // 1_000)
            elif message.type is aiohttp.WSMsgType.PING:
                self._is_pinged = True
                await self._pong(socket, message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                self._on_text(message.data)
            elif message.type is aiohttp.WSMsgType.PONG:
                self._unanswered_s = None
                self._answers = True
            elif message.type is aiohttp.WSMsgType.ERROR:
                return f"protocol error: {message.data or socket.exception()}"
            else:
                return f"closed with code {socket.close_code}"

    async def _ask(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Ping now and then, and whenever nothing has come for a while; until cancelled, or the connection is gone."""
        while True:
            now_s = time.monotonic()
            heard_s = self._last_sign_s or self._opened_s or now_s
            silent = now_s - heard_s >= self._ask_after_s and now_s - self._last_ping_s >= self._ask_after_s
            # The first one shows whether this peer answers pings at all.
            first = not self._asked and now_s - self._last_ping_s >= self._ask_after_s
            if first or silent or now_s - self._last_ping_s > self._ping_interval_s:
                try:
                    await self._ping(socket)
                except (aiohttp.ClientError, OSError) as error:
                    log.debug("no ping: %s", error)  # whoever reads will find the connection gone
                    return
            await asyncio.sleep(min(self._ask_after_s, self._ping_interval_s) / 4)

    async def _ping(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        # One token is left for the pong that the exchange may want within the same second.
        if self._budget.available >= 2 and self._budget.take():
            self._asked = True
            self._last_ping_s = time.monotonic()
            self._unanswered_s = self._unanswered_s or self._last_ping_s
            await socket.ping()

    async def _pong(self, socket: aiohttp.ClientWebSocketResponse, payload: bytes) -> None:
        # The exchange closes a connection that does not copy the payload, or that sends more than it may.
        if self._budget.take():
            await socket.pong(payload)
        else:
            log.warning("ping left unanswered: more than five messages within a second would close the connection")

    def _on_text(self, text: str) -> None:
        if '"serverShutdown"' in text:
            log.info("the exchange announces the end of this connection")
            self._leaving = True
            return
        self.unknown_texts += 1
        if self.unknown_texts == 1:
            log.warning("unexpected text from the exchange (further ones are only counted): %.200s", text)


async def _close(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Send a CLOSE frame and wait for the answer, but not for ever: a peer may go on sending instead."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await socket.close()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        log.debug("the connection ended without an answer to our CLOSE: %s", error)


def upgrade_error(status: int, retry_after: str = "", date: str = "") -> ExchangeError:
    """Say what the exchange's answer to an upgrade means.

    Args:
        status: HTTP status.
        retry_after: The header of that name, "" without one.
        date: The header of that name, "" without one.
    """
    told = f"the exchange answered {status} to the WebSocket upgrade"
    if status in rate_limits.TOO_MANY:  # the library does not give the text of such an answer
        wait_s = rate_limits.silence_s(retry_after, date, "", time.time(), RETRY_AFTER_DEFAULT_S)
        return RateLimited(f"{told}: too many requests", retry_after_s=wait_s, status=status)
    if status in (401, 403):
        return ExchangeRefused(f"{told}: it does not accept the API key, which must be an Ed25519 key")
    return ExchangeRefused(told) if 400 <= status < 500 else ExchangeUnavailable(told)


def stream_url(origin: str, symbols: Sequence[str], streams: Sequence[str]) -> str:
    """Give the address that subscribes to streams of symbols.

    Args:
        origin: `ws://host:port` or `wss://host:port`.
        symbols: Trading pairs; letters A to Z are sent in lower case, other scripts percent-encoded.
        streams: trade, bestBidAsk, depth.
    """
    names = [f"{quote(stream_symbol(symbol))}@{stream}" for symbol in symbols for stream in streams]
    return f"{origin}/stream?streams={'/'.join(names)}"

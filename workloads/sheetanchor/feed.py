"""One connection to the exchange's SBE stream.

Owns the socket. Hands every binary frame on as it came, answers pings, and ends when the other side ends it or the
caller closes it. It decides nothing about reconnecting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp

from sheetanchor import __version__
from sheetanchor.connection import Vitals, message_budget
from sheetanchor.errors import ExchangeRefused, ExchangeUnavailable

log = logging.getLogger(__name__)

FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
"""A diff of the most levels that its counts allow has 2 MiB."""

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0

OnFrame = Callable[[bytes, int], None]
"""(frame, receive time in µs since 1970)"""


class Connection:
    """A connection from its first packet to its last.

    Args:
        url: `ws://…/stream?streams=…`, see `stream_url`.
        api_key: Sent as `X-MBX-APIKEY`.
        line: Name of the line, part of the User-Agent.
        on_frame: Told every binary frame.
    """

    def __init__(self, url: str, api_key: str, line: str, on_frame: OnFrame) -> None:
        self._url = url
        self._headers = {"X-MBX-APIKEY": api_key, "User-Agent": f"sheetanchor/{__version__} line={line}"}
        self._on_frame = on_frame
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._budget = message_budget(time.monotonic)
        self._begun_s = time.monotonic()
        self._opened_s: float | None = None
        self._last_message_s: float | None = None
        self._leaving = False
        self.unknown_texts = 0

    @property
    def vitals(self) -> Vitals:
        """What is known of the connection."""
        return Vitals(self._begun_s, self._opened_s, self._last_message_s, self._leaving)

    async def run(self, session: aiohttp.ClientSession) -> str:
        """Connect, and receive until the connection ends.

        Returns:
            How it ended, in words.

        Raises:
            ExchangeRefused: The key or the request was refused.
            ExchangeUnavailable: No connection could be made.
        """
        timeout = aiohttp.ClientWSTimeout(ws_receive=None, ws_close=CLOSE_TIMEOUT_S)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._socket = await session.ws_connect(
                    self._url, headers=self._headers, autoping=False, max_msg_size=FRAME_BYTES_MAX, timeout=timeout
                )
        except aiohttp.WSServerHandshakeError as error:
            if 400 <= error.status < 500 and error.status not in (418, 429):
                hint = ": is the API key right? It must be an Ed25519 key" if error.status in (401, 403) else ""
                raise ExchangeRefused(f"the exchange answered {error.status} to the WebSocket upgrade{hint}") from error
            raise ExchangeUnavailable(f"the exchange answered {error.status} to the WebSocket upgrade") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            text = str(error) or type(error).__name__
            raise ExchangeUnavailable(f"no connection to the exchange: {text}") from error
        self._opened_s = time.monotonic()
        try:
            return await self._receive(self._socket)
        finally:
            await self._socket.close()

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        while True:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                self._last_message_s = time.monotonic()
                self._on_frame(message.data, time.time_ns() // 1_000)
            elif message.type is aiohttp.WSMsgType.PING:
                await self._pong(socket, message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                self._on_text(message.data)
            elif message.type is aiohttp.WSMsgType.PONG:
                continue
            elif message.type is aiohttp.WSMsgType.ERROR:
                return f"protocol error: {socket.exception()}"
            else:
                return f"closed with code {socket.close_code}"

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
        else:
            self.unknown_texts += 1
            log.warning("unexpected text from the exchange: %.200s", text)

    async def close(self) -> None:
        """Send a CLOSE frame and end the connection."""
        if self._socket is not None:
            await self._socket.close()


def stream_url(origin: str, symbols: Sequence[str], streams: Sequence[str]) -> str:
    """Give the address that subscribes to streams of symbols.

    Args:
        origin: `ws://host:port` or `wss://host:port`.
        symbols: Trading pairs; the exchange wants them in lower case.
        streams: trade, bestBidAsk, depth.
    """
    names = [f"{symbol.lower()}@{stream}" for symbol in symbols for stream in streams]
    return f"{origin}/stream?streams={'/'.join(names)}"

"""One WebSocket connection: its subscriptions, what is sent on it, and when it ends.

Writes go directly to the transport. A client that reads too slowly first loses best-bid-ask messages that a newer one
has replaced, as on the real exchange; beyond a bound it is disconnected. Nothing here waits for a client.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import WSCloseCode, web

from sheetanchor.simulator.control import Subscriptions, answer
from sheetanchor.simulator.faults import Client, Edit
from sheetanchor.simulator.limits import MessageBudget
from sheetanchor.simulator.playback.market import MarketEvent
from sheetanchor.simulator.wire import BINARY, PING, PONG, TEXT, wire_frame

log = logging.getLogger(__name__)

PONG_WITHIN_PINGS: Final = 3
"""The exchange pings every 20 s and waits a minute for the pong; shorter intervals keep the proportion."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a connection may last and how many bytes may wait for it.

    Attributes:
        backlog_bytes: Unread bytes above which best-bid-ask messages are dropped: a few hundred ordinary messages.
        buffer_max_bytes: Unread bytes above which a client is disconnected.
    """

    ping_interval_s: float = 20.0
    life_s: float = 86_400.0
    backlog_bytes: int = 256 * 1024
    buffer_max_bytes: int = 16 * 1024 * 1024


@dataclass(slots=True)
class _Ping:
    payload: bytes
    sent_s: float


@dataclass(slots=True)
class _Counts:
    culled: int = 0
    received: int = 0


@dataclass(slots=True)
class _Backlog:
    """Messages that wait for a client: the latest best prices by stream, and all while the connection is held."""

    best: dict[str, bytes] = field(default_factory=dict)
    held: list[bytes] = field(default_factory=list)
    held_bytes: int = 0
    holding: bool = False


class Session:
    """A connection from its upgrade to its end."""

    def __init__(
        self,
        client: Client,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport,
        terms: Terms,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        now_s: float,
    ) -> None:
        self.client = client
        self.number = client.number
        self.subscriptions = Subscriptions()
        self.streams: frozenset[str] = frozenset()
        self.counts = _Counts()
        self._socket = socket
        self._transport = transport
        self._terms = terms
        self._spawn = spawn
        self._budget = MessageBudget()
        self._backlog = _Backlog()
        self._ping: _Ping | None = None
        self._next_ping_s = now_s + terms.ping_interval_s
        self._end_s = now_s + terms.life_s
        self._ended = False
        self.silent = False
        """Set while nothing is sent, pings and answers included; messages due meanwhile are lost."""

    def subscribe(self, streams: Sequence[str]) -> None:
        """Subscribe to the streams that the URL names."""
        self.subscriptions.streams.update(dict.fromkeys(streams))
        self.streams = frozenset(self.subscriptions.streams)

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write whole frames; disconnect the client when too many bytes wait for it."""
        if not data or self.silent or self._gone():
            return
        if self._backlog.holding:
            self._backlog.held.append(data)
            self._backlog.held_bytes += len(data)
        else:
            self._transport.write(data)
        waiting = self._waiting_bytes()
        if waiting > self._terms.buffer_max_bytes:
            self.abort(f"slow consumer: {waiting} bytes are unread")

    def _gone(self) -> bool:
        """Say whether nothing more can be written; the client may have disconnected since the last tick."""
        return self._ended or self._transport.is_closing()

    def _unread_bytes(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def _waiting_bytes(self) -> int:
        return self._unread_bytes() + self._backlog.held_bytes

    def is_special(self) -> bool:
        """Say whether messages have to be handled one by one."""
        return bool(self._backlog.best) or self._is_slow()

    def _is_slow(self) -> bool:
        return self._unread_bytes() > self._terms.backlog_bytes

    def send_each(self, events: Sequence[MarketEvent], wires: Sequence[bytes], edits: Mapping[int, Edit]) -> None:
        """Write the subscribed messages, with scripted edits, and without old best prices when it is slow."""
        slow = self._is_slow()
        parts: list[bytes] = []
        if not slow:
            parts += self._backlog.best.values()
            self._backlog.best.clear()
        for place, event in enumerate(events):
            if event.stream not in self.streams:
                continue
            if place in edits:
                parts += [wire_frame(BINARY, payload) for payload in edits[place].payloads]
            elif slow and event.kind == "bestBidAsk":
                self.counts.culled += event.stream in self._backlog.best
                self._backlog.best[event.stream] = wires[place]
            else:
                parts.append(wires[place])
        self.send(b"".join(parts))

    def hold(self, wanted: bool) -> None:
        """Begin or end holding back all messages."""
        if self._backlog.holding and not wanted:
            held = b"".join(self._backlog.held)
            self._backlog = _Backlog(best=self._backlog.best)
            self.send(held)
        self._backlog.holding = wanted

    # -- ending -----------------------------------------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """Cut the connection without a CLOSE frame."""
        log.info("connection %d is cut: %s", self.number, reason)
        self._ended = True
        self._transport.abort()

    def close(self, code: int, reason: str) -> None:
        """Close the connection with a CLOSE frame."""
        if self._ended:
            return
        log.info("connection %d is closed with %d: %s", self.number, code, reason)
        self._ended = True
        self._spawn(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        await self._socket.close(code=code, message=reason.encode(), drain=False)
        self._transport.close()

    def announce_shutdown(self, now_us: int, after_s: float) -> None:
        """Send `serverShutdown`; the connection ends a little later."""
        text = json.dumps({"e": "serverShutdown", "E": now_us // 1000}, separators=(",", ":"))
        self.send(wire_frame(TEXT, text.encode()))
        self._end_s = min(self._end_s, asyncio.get_running_loop().time() + after_s)

    def maintain(self, now_s: float) -> None:
        """Ping when it is time; close a connection that is too old or does not answer."""
        if self._gone():
            return
        if self._ping is not None and now_s - self._ping.sent_s > PONG_WITHIN_PINGS * self._terms.ping_interval_s:
            self.close(WSCloseCode.POLICY_VIOLATION, "Pong timeout")
        elif now_s >= self._end_s:
            self.close(WSCloseCode.GOING_AWAY, "the connection has reached its maximum age")
        elif now_s >= self._next_ping_s and not self.silent:
            self._next_ping_s = now_s + self._terms.ping_interval_s
            payload = str(int(now_s * 1000)).encode()
            # The oldest unanswered ping counts; a pong to a later one answers it too.
            self._ping = self._ping or _Ping(payload, now_s)
            self._ping.payload = payload
            self.send(wire_frame(PING, payload))

    # -- receiving --------------------------------------------------------------------------------------------------

    async def receive(self) -> None:
        """Answer the client until the connection ends."""
        now = asyncio.get_running_loop().time
        while True:
            message = await self._socket.receive()
            if message.type not in (web.WSMsgType.TEXT, web.WSMsgType.PING, web.WSMsgType.PONG):
                if message.type is web.WSMsgType.BINARY:
                    self.close(WSCloseCode.UNSUPPORTED_DATA, "binary messages are not accepted")
                    continue
                return
            self.counts.received += 1
            if not self._budget.spend(now()):
                self.close(WSCloseCode.POLICY_VIOLATION, "Too many requests")
            elif message.type is web.WSMsgType.TEXT:
                reply = answer(message.data, self.subscriptions)
                self.streams = frozenset(self.subscriptions.streams)
                self.send(wire_frame(TEXT, reply.encode()))
            elif message.type is web.WSMsgType.PING:
                self.send(wire_frame(PONG, bytes(message.data)))
            elif self._ping is not None and bytes(message.data) == self._ping.payload:
                self._ping = None

    def report(self) -> dict[str, Any]:
        """Render for HTTP."""
        return {
            "number": self.number,
            "user_agent": self.client.user_agent,
            "streams": list(self.subscriptions.streams),
            "received": self.counts.received,
            "culled": self.counts.culled,
            "waiting_bytes": self._waiting_bytes(),
        }

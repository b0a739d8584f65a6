"""What an exchange, or another server at its address, may answer to a line."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection

from sheetanchor.ingest import connection_supervisor
from sheetanchor.ingest.connection_policy import LACKS_AFTER_S
from support.exchange_fixture import eventually
from support.line import Line, best, line, peer

QUICK = {"reconnect_delay_s": 0.05, "reconnect_delay_max_s": 0.2}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_gets_no_key(status: int, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A redirect is not followed: neither the key nor the subscription goes to another origin."""
    asked: list[str] = []

    async def elsewhere(socket: ServerConnection) -> None:
        assert socket.request is not None
        asked.append(str(socket.request.headers))
        await socket.send(best(1))
        await socket.wait_closed()

    async def point(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} Elsewhere\r\nLocation: {target}/stream\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with peer(elsewhere) as origin:
        target = origin.replace("ws://127.0.0.1", "http://localhost")
        server = await asyncio.start_server(point, "127.0.0.1", 0)
        async with server, line(redis_url, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", **QUICK) as running:
            await eventually(lambda: _said(caplog, f"answered {status}"), within_s=5, what="the redirect is told")
            await asyncio.sleep(0.3)  # time for a request that must not come
            stored = await running.frames()

    assert ([], []) == (asked, stored)
    assert "redirects are not followed" in caplog.text


async def _said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


# -- a market without events ------------------------------------------------------------------------------------------


@pytest.fixture
def judged_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a line judge only where its loop, in which the exchange runs too, has just turned without a stop."""
    monkeypatch.setattr(connection_supervisor, "LATE_S", 1.5 * connection_supervisor.TICK_S)


@pytest.mark.parametrize("first", [True, False], ids=["after a message", "without any"])
@pytest.mark.usefixtures("judged_in_time")
async def test_a_quiet_market_keeps_its_connection(first: bool, redis_url: str) -> None:
    """Many times the longest silence without an event, pings answered: one connection, no loss, and the next event."""
    connections, go_on = 0, asyncio.Event()

    async def speak(socket: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        if first:
            await socket.send(best(1))
        await go_on.wait()
        await socket.send(best(2))
        await socket.wait_closed()

    settings = QUICK | {"silence_s": 0.6, "connection_loss_s": 0.8}
    async with peer(speak) as origin, line(redis_url, origin, **settings) as running:
        await running.shows("sbe_websocket", "status", lambda status: status == "connected")
        await asyncio.sleep(4)  # the silence itself
        status = (await running.stats())["sbe_websocket"]["status"]
        go_on.set()
        await running.connected()
        await eventually(lambda: _last_is(running, best(2)), within_s=5, what="the event after the silence")
        gaps = await running.gaps()

    assert (1, "connected", []) == (connections, status, gaps)


async def _last_is(running: Line, frame: bytes) -> bool:
    return (await running.frames())[-1:] == [frame]


@asynccontextmanager
async def bare_peer(*, pings: bool) -> AsyncIterator[tuple[str, list[float]]]:
    """Upgrade, send one message, and then no more than pings, if that; whatever comes is never answered."""
    opened: list[float] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        opened.append(time.monotonic())
        key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", request)[0]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + bytes([0x82, len(best(1))]) + best(1))
        with contextlib.suppress(ConnectionError):
            heard = b"-"
            while heard and not heard.startswith(b"\x88"):
                writer.write(b"\x89\x01x" if pings else b"")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    heard = await asyncio.wait_for(reader.read(1024), 0.2)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", opened


@pytest.mark.usefixtures("judged_in_time")
async def test_pings_of_the_exchange_are_life(redis_url: str) -> None:
    """Where the exchange pings and nothing else, the connection stays."""
    async with bare_peer(pings=True) as (origin, opened), line(redis_url, origin, silence_s=0.6, **QUICK) as running:
        await running.connected()
        await asyncio.sleep(3)  # the silence itself
        status = (await running.stats())["sbe_websocket"]["status"]

    assert (1, "connected") == (len(opened), status)


async def test_a_peer_that_gives_no_sign_is_left(redis_url: str) -> None:
    """Neither message nor ping nor pong: the connection is replaced, and a lasting loss is reported."""
    async with bare_peer(pings=False) as (origin, opened), line(redis_url, origin, silence_s=0.6, **QUICK) as running:
        await running.connected()
        await running.shows("sbe_websocket", "reconnect_count", lambda count: count >= 1)

    assert len(opened) >= 2


async def test_a_missing_stream_is_reported_and_the_connection_kept(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Best prices go on and the book does not: the stream is named, and another connection tried beside this one."""
    monkeypatch.setitem(LACKS_AFTER_S, "depth", 0.5)
    opened, closed, number = [0.0], [0.0], 0

    async def speak(socket: ServerConnection) -> None:
        nonlocal number
        opened.append(time.monotonic())
        with contextlib.suppress(Exception):
            while True:
                number += 1
                await socket.send(best(number))
                await asyncio.sleep(0.02)
        closed.append(time.monotonic())

    async with peer(speak) as origin, line(redis_url, origin, health_check_interval_seconds=1, **QUICK) as running:
        await running.connected()
        await eventually(
            lambda: _said(caplog, "BTCUSDT: no depth message for"), within_s=10, what="the stream is named"
        )
        await eventually(lambda: _is(len(opened) >= 3), within_s=10, what="a second connection")
        await eventually(lambda: _is(len(closed) >= 2), within_s=10, what="the first one is retired")
        await running.shows("sbe_websocket", "lacking", lambda found: found == ["BTCUSDT@depth"])
        await eventually(lambda: _degraded(running), within_s=10, what="health says so")
        page = await running.page("/metrics")
        stats = await running.stats()

    assert closed[1] > opened[2]
    assert 0 == stats["sbe_websocket"]["reconnect_count"]
    assert 'ingestor_sbe_stream_lacking{stream="depth",symbol="BTCUSDT"} 1.0' in page
    assert 'ingestor_sbe_stream_lacking{stream="bestBidAsk",symbol="BTCUSDT"} 0.0' in page
    assert "SBE WebSocket disconnected" not in caplog.text


async def _is(value: bool) -> bool:
    return value


async def _degraded(running: Line) -> bool:
    body = json.loads(await running.page("/health"))
    return body["status"] == "degraded" and "BTCUSDT@depth" in body["checks"]["sbe_websocket"].get("message", "")

"""What an exchange, or whoever stands in its place, may answer to a line."""

from __future__ import annotations

import asyncio

import pytest
from websockets.asyncio.server import ServerConnection

from exchange_fixture import eventually
from line import best, line, peer

QUICK = {"reconnect_delay_s": 0.05, "reconnect_delay_max_s": 0.2}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_gets_no_key(status: int, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever the exchange points to is not asked: neither key nor market leave for another origin."""
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

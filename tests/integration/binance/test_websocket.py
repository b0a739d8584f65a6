"""The client of the exchange's stream against peers that keep to the protocol, or do not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import socket
import ssl
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from sheetanchor.binance import websocket
from sheetanchor.binance.websocket import CLOSE_TIMEOUT_S, FRAME_BYTES_MAX, Connection
from sheetanchor.errors import ExchangeRefused, ExchangeUnavailable, RateLimited
from support.exchange_fixture import API_KEY, eventually
from support.line import best, peer
from support.patience import awake_timeout

TLS = Path(__file__).parents[2] / "data" / "tls"


class Received:
    """A connection and the frames that it has brought."""

    def __init__(self, origin: str, *, fails_at: int = -1) -> None:
        self.frames: list[bytes] = []
        self.fails_at = fails_at
        self.connection = Connection(f"{origin}/stream?streams=btcusdt@trade", API_KEY, "a", self._take)

    def _take(self, frame: bytes, at_us: int) -> None:
        if len(self.frames) == self.fails_at:
            raise ZeroDivisionError("a fault of ours")
        self.frames.append(frame)

    async def has(self, count: int) -> None:
        """Wait for so many frames."""

        async def there() -> bool:
            return len(self.frames) >= count

        await eventually(there, within_s=5, what=f"{count} frames")


@asynccontextmanager
async def receiving(origin: str) -> AsyncIterator[Received]:
    """Receive while the block runs."""
    received = Received(origin)
    task = asyncio.create_task(received.connection.run())
    try:
        yield received
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def bare(speak: Callable[[bytes, StreamWriter], Awaitable[None]], **options: Any) -> AsyncIterator[int]:
    """Run a server that reads a request and then does what a test wants, in bytes.

    Yields:
        Its port.
    """
    open_ones: set[StreamWriter] = set()

    async def accept(reader: StreamReader, writer: StreamWriter) -> None:
        open_ones.add(writer)
        with contextlib.suppress(ConnectionError):
            await speak(await reader.readuntil(b"\r\n\r\n"), writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, **options)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for writer in open_ones:
            writer.transport.abort()


def upgrade(request: bytes) -> bytes:
    """Answer an upgrade as RFC 6455, 4.2.2 wants it."""
    key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", request)[0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    return head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"


def answering(answer: bytes) -> Callable[[bytes, StreamWriter], Awaitable[None]]:
    async def speak(request: bytes, writer: StreamWriter) -> None:
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    return speak


# -- where the key goes -----------------------------------------------------------------------------------------------


async def test_the_key_is_in_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Also with every line that there is, from whatever library, the key is in none."""
    caplog.set_level(logging.DEBUG)

    async def speak(request: ServerConnection) -> None:
        await request.send(best(1))
        await request.wait_closed()

    asked = answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    async with peer(speak) as origin, receiving(origin) as received:
        await received.has(1)
    async with bare(asked) as port:
        with pytest.raises(ExchangeRefused):
            await Received(f"ws://127.0.0.1:{port}").connection.run()

    client_lines = [record.getMessage() for record in caplog.records if "server" not in record.name]
    assert API_KEY not in "\n".join(client_lines)


async def test_no_proxy_of_the_environment_gets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection goes to the exchange itself, whatever the environment says of proxies."""
    asked: list[bytes] = []

    async def proxy(request: bytes, writer: StreamWriter) -> None:
        asked.append(request)
        writer.close()

    async def speak(request: ServerConnection) -> None:
        await request.send(best(1))
        await request.wait_closed()

    async with bare(proxy) as port, peer(speak) as origin:
        for name in ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with receiving(origin) as received:
            await received.has(1)

    assert [] == asked


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system trusts the tests' own authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "ca.crt"))
    websocket._tls.cache_clear()
    yield
    websocket._tls.cache_clear()


@asynccontextmanager
async def over_tls(asked: list[bytes]) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "server.crt", TLS / "server.key")

    async def speak(request: bytes, writer: StreamWriter) -> None:
        asked.append(request)
        frame = best(1)
        writer.write(upgrade(request) + bytes([0x82, len(frame)]) + frame)
        await writer.drain()

    async with bare(speak, ssl=context) as port:
        yield port


async def test_an_exchange_of_a_trusted_authority_is_received(trusted: None) -> None:
    """Over TLS the same comes as without."""
    asked: list[bytes] = []

    async with over_tls(asked) as port, receiving(f"wss://localhost:{port}") as received:
        await received.has(1)

    assert [best(1)] == received.frames
    assert API_KEY.encode() in asked[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the server's half of the handshake
async def test_a_strange_certificate_gets_no_key() -> None:
    """If the exchange's certificate is not trusted nothing is sent, and the error says so."""
    asked: list[bytes] = []

    async with over_tls(asked) as port:
        with pytest.raises(ExchangeUnavailable, match="certificate verify failed"):
            await Received(f"wss://localhost:{port}").connection.run()

    assert [] == asked


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_certificate_of_another_host_gets_no_key(trusted: None) -> None:
    """A certificate is for the host that was asked for, or it is none."""
    asked: list[bytes] = []

    async with over_tls(asked) as port:
        with pytest.raises(ExchangeUnavailable, match="certificate verify failed"):
            await Received(f"wss://127.0.0.1:{port}").connection.run()

    assert [] == asked


async def test_nothing_is_offered_that_would_change_the_frames() -> None:
    """No compression, no subprotocol, no origin: what comes is what the exchange encoded."""
    offered: list[set[str]] = []

    async def speak(request: bytes, writer: StreamWriter) -> None:
        offered.append({line.partition(b":")[0].decode().lower() for line in request.splitlines()[1:] if line})

    async with bare(speak) as port, receiving(f"ws://127.0.0.1:{port}"):
        await eventually(lambda: _is(bool(offered)), within_s=5, what="the upgrade")

    assert {
        "host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "user-agent", "x-mbx-apikey",
    } == offered[0]  # fmt: skip


async def _is(value: bool) -> bool:
    return value


# -- answers to an upgrade --------------------------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (b"429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", 7.0),
        (b"429 Too Many Requests\r\nRetry-After: 7\r\n" + CHUNKED, 7.0),
        (b"418 I'm a teapot\r\nRetry-After: 8\r\nRetry-After: 900\r\nContent-Length: 2\r\n\r\n{}", 8.0),
        (b"429 Too Many Requests\r\n" + CHUNKED, 60.0),
    ],
    ids=["plain", "in chunks", "a header twice", "without a header"],
)
async def test_a_rate_limit_is_heeded_however_it_is_written(answer: bytes, wait_s: float) -> None:
    """What stands between the exchange and here, a CDN for instance, has its own way to write an answer."""
    async with bare(answering(b"HTTP/1.1 " + answer)) as port:
        with pytest.raises(RateLimited) as caught:
            await Received(f"ws://127.0.0.1:{port}").connection.run()

    assert wait_s == caught.value.retry_after_s


async def test_the_end_of_a_ban_is_read_from_the_answer() -> None:
    """Without a header the exchange's own sentence says until when."""
    began_s = time.time()
    until_ms = round((began_s + 300) * 1000)
    body = f'{{"code":-1003,"msg":"Way too much request weight used; IP banned until {until_ms}."}}'.encode()
    head = f"HTTP/1.1 418 I'm a teapot\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async with bare(answering(head + body)) as port:
        with pytest.raises(RateLimited) as caught:
            await Received(f"ws://127.0.0.1:{port}").connection.run()

    assert 299 - (time.time() - began_s) < caught.value.retry_after_s <= 301


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "the exchange answered 503"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "redirects are not followed"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no connection to the exchange at ws://127.0.0.1:"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "no connection to the exchange at ws://127.0.0.1:"),
    ],
)
async def test_any_other_answer_is_no_connection(answer: bytes, words: str) -> None:
    """Any other answer is logged in one line, and the next attempt follows as after any loss."""
    async with bare(answering(answer)) as port:
        with pytest.raises(ExchangeUnavailable, match=words):
            await Received(f"ws://127.0.0.1:{port}").connection.run()


async def test_a_dead_address_does_not_hide_a_living_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two addresses the first answers nothing: the second is tried while there is time."""

    async def speak(request: ServerConnection) -> None:
        await request.send(best(1))
        await request.wait_closed()

    async with peer(speak) as origin:
        port = int(origin.rpartition(":")[2])
        with contextlib.ExitStack() as held:
            dead = held.enter_context(socket.socket())
            dead.bind(("127.0.0.2", port))
            dead.listen(0)
            for _ in range(2):  # with its queue full, Linux answers no further SYN
                waiting = held.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.2", port))
            loop = asyncio.get_running_loop()
            both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
            monkeypatch.setattr(websocket, "_addresses", lambda uri: loop.run_in_executor(None, lambda: both))
            async with receiving(origin) as received:
                await received.has(1)  # one after the other none would be reached: the dead one takes all the time


# -- frames -----------------------------------------------------------------------------------------------------------


async def test_split_messages_keep_their_place() -> None:
    """A message in several frames, pings between them, comes whole and between those before and after it."""
    long = bytes(range(256)) * 1000

    async def speak(request: ServerConnection) -> None:
        await request.send(best(1))

        async def parts() -> AsyncIterator[bytes]:
            for at in range(0, len(long), 100_000):
                yield long[at : at + 100_000]
                await request.ping()

        await request.send(parts())
        await request.send(["serverShut", "down"])
        await request.send(best(2))
        await request.wait_closed()

    async with peer(speak) as origin, receiving(origin) as received:
        await received.has(3)

    assert [best(1), long, best(2)] == received.frames
    assert 1 == received.connection.unknown_texts


@pytest.mark.parametrize("parts", [1, 5])
async def test_the_size_of_a_message_is_bounded(parts: int) -> None:
    """The largest message comes; one byte more ends the connection with 1009, in one frame or in several."""
    codes: list[int] = []

    async def speak(request: ServerConnection) -> None:
        await request.send(bytes(FRAME_BYTES_MAX))
        size = (FRAME_BYTES_MAX + parts) // parts
        with contextlib.suppress(ConnectionClosed):
            await request.send([bytes(size)] * parts if parts > 1 else bytes(FRAME_BYTES_MAX + 1))
            await request.recv()
        codes.append(request.close_code or 0)

    async with peer(speak) as origin:
        received = Received(origin)
        how = await received.connection.run()
        await eventually(lambda: _is(bool(codes)), within_s=5, what="the end")

    assert [FRAME_BYTES_MAX] == [len(frame) for frame in received.frames]
    assert how.startswith("protocol error: ")
    assert [1009] == codes


async def test_a_text_that_is_none_ends_the_connection() -> None:
    """Text is UTF-8 (RFC 6455, 8.1): anything else is reported to the peer as 1007."""
    codes: list[int] = []

    async def speak(request: ServerConnection) -> None:
        await request.send(best(1))
        await request.send(b"\xff\xfe", text=True)
        with contextlib.suppress(ConnectionClosed):
            await request.recv()
        codes.append(request.close_code or 0)

    async with peer(speak) as origin:
        received = Received(origin)
        how = await received.connection.run()
        await eventually(lambda: _is(bool(codes)), within_s=5, what="the end")

    assert ([best(1)], [1007]) == (received.frames, codes)
    assert "protocol error: a text that is not UTF-8" == how


async def test_a_fault_of_ours_is_not_swallowed() -> None:
    """An exception in handling a frame ends the connection and reaches its caller."""

    async def speak(request: ServerConnection) -> None:
        for number in range(5):
            await request.send(best(number))
        await request.wait_closed()

    async with peer(speak) as origin:
        received = Received(origin, fails_at=2)
        with pytest.raises(ZeroDivisionError, match="a fault of ours"):
            await received.connection.run()

    assert [best(0), best(1)] == received.frames


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("close", "how"), [(b"\x88\x02\x03\xe9", "1001"), (b"\x88\x00", "1005")])
async def test_an_end_is_seen_behind_any_number_of_frames(close: bytes, how: str) -> None:
    """A CLOSE after a burst is seen at once, after every frame before it, without waiting for the end of TCP."""
    count, frame = 5000, best(1)

    async def speak(request: bytes, writer: StreamWriter) -> None:
        writer.write(upgrade(request) + (bytes([0x82, len(frame)]) + frame) * count + close)
        await writer.drain()
        await asyncio.sleep(3_600)  # a peer that leaves the connection open

    async with bare(speak) as port:
        received = Received(f"ws://127.0.0.1:{port}")
        async with awake_timeout(CLOSE_TIMEOUT_S):
            reported = await received.connection.run()

    assert f"closed with code {how}" == reported
    assert count == len(received.frames)


@pytest.mark.usefixtures("trusted")
async def test_a_connection_over_tls_ends_in_time() -> None:
    """A peer that never ends its half of TLS does not hold up the end either."""
    async with over_tls([]) as port:
        received = Received(f"wss://localhost:{port}")
        task = asyncio.create_task(received.connection.run())
        await received.has(1)
        task.cancel()
        async with awake_timeout(CLOSE_TIMEOUT_S + 1):
            await asyncio.gather(task, return_exceptions=True)


async def test_a_connection_that_breaks_is_reported_as_such() -> None:
    """Without a CLOSE the code is 1006."""

    async def speak(request: bytes, writer: StreamWriter) -> None:
        writer.write(upgrade(request))
        await writer.drain()
        writer.close()

    async with bare(speak) as port:
        assert "closed with code 1006" == await Received(f"ws://127.0.0.1:{port}").connection.run()


# -- the event loop of the roles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    [
        test_split_messages_keep_their_place,
        lambda: test_the_size_of_a_message_is_bounded(5),
        test_a_text_that_is_none_ends_the_connection,
        test_a_fault_of_ours_is_not_swallowed,
        lambda: test_an_end_is_seen_behind_any_number_of_frames(b"\x88\x02\x03\xe9", "1001"),
        test_a_connection_that_breaks_is_reported_as_such,
        lambda: test_an_exchange_of_a_trusted_authority_is_received(None),
        test_a_connection_over_tls_ends_in_time,
    ],
    ids=["split", "size", "text", "fault", "end", "break", "TLS", "end of TLS"],
)
def test_it_is_the_same_on_uvloop(claim: Callable[[], Coroutine[Any, Any, None]], trusted: None) -> None:
    """Roles run on uvloop, whose transports differ from asyncio's where something ends or goes wrong."""
    uvloop.run(claim())

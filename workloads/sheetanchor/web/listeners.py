"""Listeners of HTTP servers: their addresses, the number of connections, and how long each may be idle.

A connection costs a file descriptor even if it is idle. So their number is bounded, and the connection that has been
idle for longest is closed for a new one: idle connections, however many, cannot keep other clients out. A client that
has not sent a complete request after some seconds, sends it byte by byte, or does not read the answer, is disconnected.

One module, since the bound, the time limits and the listeners that they apply to only work together.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

ANY: Final = "*"
"""Every address of this machine, IPv4 and IPv6."""

LOCAL: Final = "localhost"
"""This machine only, by IPv4 and IPv6."""

BACKLOG: Final = 128
"""Connections that the kernel keeps until they are accepted, possibly all at once."""

PROBES_ACCEPTED_AT_ONCE: Final = 32
"""Connections that one turn of the probes' event loop accepts; their requests are read some turns later."""

PROBES_BACKLOG: Final = 4096
"""Connections of probes that the kernel keeps, or as many as it allows. Beyond it the kernel drops the attempt, and the
client repeats it after a second, which is too late for a probe."""

PORT_TRIES: Final = 20

REQUEST_TIMEOUT_S: Final = 5.0
"""A request fits into one packet. A client that has not sent a complete one by then is slow on purpose, or gone."""

ANSWER_TIMEOUT_S: Final = 30.0
"""Longest time for an answer to be made and read; no answer here takes a second."""

PROBE_END_S: Final = 1

_FAMILIES: Final = {socket.AF_INET: ("0.0.0.0", "127.0.0.1"), socket.AF_INET6: ("::", "::1")}
_ABSENT: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)

Connection = TypeVar("Connection")
App = Callable[[Any, Any, Any], Awaitable[None]]


def addresses_of(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Give the addresses of a setting.

    Args:
        host: `*`, `::` or nothing for every address of both families, `localhost` for this machine only, else an
            address or a name.

    Raises:
        OSError: The name cannot be resolved.
    """
    if host in (ANY, "::", ""):
        return [(family, everywhere) for family, (everywhere, _) in _FAMILIES.items()]
    if host == LOCAL:
        return [(family, here) for family, (_, here) in _FAMILIES.items()]
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a setting; a family that the machine does not have is left out.

    Args:
        host: As for `addresses_of`.
        port: Port; 0 picks one that is free on all of them.

    Raises:
        OSError: The port is taken, or none of the addresses is this machine's.
    """
    addresses = addresses_of(host)
    for _ in range(PORT_TRIES):
        try:
            return _listen(addresses, port)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on every address")


def _listen(addresses: list[tuple[socket.AddressFamily, str]], port: int) -> list[socket.socket]:
    absent: OSError | None = None
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        for family, address in addresses:
            chosen = listeners[0].getsockname()[1] if listeners else port
            try:
                # An IPv6 socket accepts IPv6 only, so that both families can use the port.
                listener = socket.create_server((address, chosen), family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno not in _ABSENT or len(addresses) == 1:
                    raise
                absent = error
            else:
                listeners.append(stack.enter_context(listener))
        if not listeners:
            raise absent or OSError(errno.EADDRNOTAVAIL, "no address to listen on")
        stack.pop_all()
        return listeners


def is_local(listeners: list[socket.socket]) -> bool:
    """Say whether only this machine can reach these listeners."""
    return all(str(one.getsockname()[0]).startswith("127.") or one.getsockname()[0] == "::1" for one in listeners)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many connections a listener keeps.

    Attributes:
        most: Connections in all.
        per_address: Connections from one address.
        request_s: Seconds in which a complete request has to arrive.
        answer_s: Seconds in which its answer has to be made and read.
    """

    most: int
    per_address: int
    request_s: float = REQUEST_TIMEOUT_S
    answer_s: float = ANSWER_TIMEOUT_S


READERS: Final = Bounds(384, 256)
PROBES: Final = Bounds(256, 192)
"""Both allow more from one address than are accepted before the first request is read: `BACKLOG`, and some turns of the
probes' loop. Together well below the thousand descriptors that a process has by default."""


class Places(Generic[Connection]):
    """The open connections, and which one is closed for a new one: the one that has been idle for longest.

    It is taken from the address with the most idle connections, so that one client cannot crowd out others.
    """

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._address_of: dict[Connection, str] = {}
        self._held: dict[str, int] = {}
        self._waiting: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._address_of)

    def enter(self, connection: Connection, address: str) -> Connection | None:
        """Add a connection; gives the one to close for it, which may be itself."""
        crowded = self._held.get(address, 0) >= self._per_address
        full = len(self._address_of) >= self._most
        leaving = self._longest_waiting(address if crowded else None) if crowded or full else None
        if (crowded or full) and leaving is None:
            return connection
        if leaving is not None:
            self.leave(leaving)
        self._address_of[connection] = address
        self._held[address] = self._held.get(address, 0) + 1
        self.waits(connection)
        return leaving

    def _longest_waiting(self, address: str | None) -> Connection | None:
        if address is None:
            address = max(self._waiting, key=lambda one: len(self._waiting[one]), default="")
        return next(iter(self._waiting.get(address, ())), None)

    def waits(self, connection: Connection) -> None:
        """Note that it is idle: it has sent no request, or its request is answered."""
        address = self._address_of.get(connection)
        if address is not None:
            self._waiting.setdefault(address, {})[connection] = None

    def asks(self, connection: Connection) -> None:
        """Note that its request is being answered."""
        address = self._address_of.get(connection, "")
        waiting = self._waiting.get(address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[address]

    def leave(self, connection: Connection) -> None:
        """Note that it is closed."""
        self.asks(connection)
        address = self._address_of.pop(connection, None)
        if address is not None:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]


class _Config(uvicorn.Config):
    """uvicorn's configuration, with what the connections of one listener share."""

    def __init__(self, app: App, bounds: Bounds, bad_request: Callable[[], bytes] | None, **options: Any) -> None:
        super().__init__(app, http=_Bounded, **options)
        self.bounds = bounds
        self.places: Places[_Bounded] = Places(bounds.most, bounds.per_address)
        self.bad_request = bad_request


class _Bounded(H11Protocol):
    """A connection with a place among the bounded ones, and a deadline."""

    config: _Config

    def __init__(self, config: _Config, *more: Any, **named: Any) -> None:
        super().__init__(config, *more, **named)
        self._places = config.places
        self._bounds = config.bounds
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        leaving = self._places.enter(self, self.client[0] if self.client else "")
        if leaving is not self:
            self._due_within(self._bounds.request_s)
        if leaving is not None:
            leaving.transport.abort()

    def _due_within(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._settle()

    def _settle(self) -> None:
        """Set the deadline of the answer once the complete request is read."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._places.asks(self)
            self._due_within(self._bounds.answer_s)

    def on_response_complete(self) -> None:
        self._places.waits(self)
        self._due_within(self._bounds.request_s)
        super().on_response_complete()
        self._settle()  # the next request may have arrived with the last

    def connection_lost(self, exc: Exception | None) -> None:
        self._places.leave(self)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.config.bad_request is None:
            super().send_400_response(msg)
            return
        body = self.config.bad_request()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: a role stops its server itself, at the end of its shutdown."""

    def __init__(self, config: uvicorn.Config, backlog: int) -> None:
        super().__init__(config)
        self._backlog = backlog
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            # asyncio has one number for the connections accepted at once and for those that the kernel keeps meanwhile.
            listener.listen(self._backlog)
        self.up.set()


def _server(
    app: App, bounds: Bounds, bad_request: Callable[[], bytes] | None, end_s: int, at_once: int, backlog: int
) -> _Server:
    config = _Config(
        app,
        bounds,
        bad_request,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        backlog=at_once,
        timeout_keep_alive=int(REQUEST_TIMEOUT_S),
        timeout_graceful_shutdown=end_s,
        ws="none",
    )
    return _Server(config, backlog)


@asynccontextmanager
async def serving(
    app: App, listeners: list[socket.socket], bad_request: Callable[[], bytes] | None = None, bounds: Bounds = READERS
) -> AsyncIterator[None]:
    """Serve an ASGI application while the block runs; the listeners are closed at its end.

    Args:
        app: The application.
        listeners: Sockets from `open_listeners`.
        bad_request: Gives the body of the answer to a request that is no HTTP; without it the server's own is sent.
        bounds: Number and deadlines of connections.
    """
    server = _server(app, bounds, bad_request, 5, BACKLOG, BACKLOG)
    task = asyncio.create_task(server._serve(listeners))
    await asyncio.wait([task, waiter := asyncio.create_task(server.up.wait())], return_when="FIRST_COMPLETED")
    try:
        if task.done():
            waiter.cancel()
            await task
        yield
    finally:
        server.should_exit = True
        await task
        for listener in listeners:
            listener.close()


@contextmanager
def probes(is_live: Callable[[], bool], is_ready: Callable[[], bool], host: str, port: int) -> Iterator[int]:
    """Answer `/health/live` and `/health/ready`, and nothing else, on a port of their own while the block runs.

    A thread of its own answers, so that neither readers nor the process's own work can delay it. The callbacks must be
    safe to be called from that thread.

    Args:
        is_live: Whether the process works; if not it has to be restarted.
        is_ready: Whether requests should be sent here.
        host: As for `addresses_of`.
        port: Port; 0 picks a free one.

    Yields:
        The port in use.

    Raises:
        OSError: The port cannot be used.
    """
    listeners = open_listeners(host, port)
    up = threading.Event()
    running: list[_Server] = []

    async def answer() -> None:
        app = _probe_app(
            {"/health/live": (is_live, "live", "stalled"), "/health/ready": (is_ready, "ready", "not ready")}
        )
        server = _server(app, PROBES, None, PROBE_END_S, PROBES_ACCEPTED_AT_ONCE, PROBES_BACKLOG)
        running.append(server)
        task = asyncio.create_task(server._serve(listeners))
        await asyncio.wait([task, waiter := asyncio.create_task(server.up.wait())], return_when="FIRST_COMPLETED")
        up.set()
        waiter.cancel()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(answer()), name="probes", daemon=True)
    thread.start()
    try:
        up.wait()
        yield int(listeners[0].getsockname()[1])
    finally:
        for server in running:
            server.should_exit = True
        thread.join()
        for listener in listeners:
            listener.close()


def _probe_app(answers: dict[str, tuple[Callable[[], bool], str, str]]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = answers.get(scope["path"]) if scope["method"] in ("GET", "HEAD") else None
        if found is None:
            status, message = 404, "only /health/live and /health/ready are answered here"
        else:
            good = found[0]()
            status, message = (200, found[1]) if good else (503, found[2])
        body = f'{{"status": "{message}"}}'.encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app

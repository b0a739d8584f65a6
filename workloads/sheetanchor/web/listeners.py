"""Listeners of HTTP servers: on which addresses, how many connections at a time, and how long each may say nothing.

A connection costs a file descriptor whether it says anything or not. So there is a bound, and whoever waits longest
without having asked for anything makes room for a newcomer: idle connections, however many, keep nobody out. Whoever
has not asked a whole question after some seconds, sends it byte by byte, or does not take the answer, is dropped.

One module, since the bound, the time limits and the listeners that they hold for only work together.
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
"""Every address of this machine, of both families."""

LOCAL: Final = "localhost"
"""This machine alone, by both families."""

BACKLOG: Final = 128
"""Connections that the kernel keeps until they are accepted, which may be all in one go."""

PROBES_ACCEPTED_AT_ONCE: Final = 32
"""Connections that one turn of the probes' event loop accepts; what they ask is read some turns later."""

PROBES_BACKLOG: Final = 4096
"""Probes that the kernel keeps, or as many as it allows. A connection for which there is no place is not answered, and
whoever made it tries again after a second, which for a probe is too late."""

PORT_TRIES: Final = 20

REQUEST_TIMEOUT_S: Final = 5.0
"""A request fits into one packet. Whoever has not sent a whole one by now is slow on purpose, or gone."""

ANSWER_TIMEOUT_S: Final = 30.0
"""Longest time for an answer to be made and taken; no answer here takes a second."""

PROBE_END_S: Final = 1

_FAMILIES: Final = {socket.AF_INET: ("0.0.0.0", "127.0.0.1"), socket.AF_INET6: ("::", "::1")}
_ABSENT: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)

Connection = TypeVar("Connection")
App = Callable[[Any, Any, Any], Awaitable[None]]


def addresses_of(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Give the addresses that a setting means.

    Args:
        host: `*`, `::` or nothing for every address of both families, `localhost` for this machine alone, else an
            address or a name.

    Raises:
        OSError: If the name is not known.
    """
    if host in (ANY, "::", ""):
        return [(family, everywhere) for family, (everywhere, _) in _FAMILIES.items()]
    if host == LOCAL:
        return [(family, here) for family, (_, here) in _FAMILIES.items()]
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listen on every address that a setting means; a family that the machine does not have is left out.

    Args:
        host: As `addresses_of` takes it.
        port: Port; 0 picks one that is free on all of them.

    Raises:
        OSError: If the port is taken, or none of the addresses is this machine's.
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
                # An IPv6 socket takes IPv6 alone, so that both families can have the port.
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
    """Say whether only this machine can reach these."""
    return all(str(one.getsockname()[0]).startswith("127.") or one.getsockname()[0] == "::1" for one in listeners)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many connections a listener keeps.

    Attributes:
        most: In all.
        per_address: From one address.
        request_s: Seconds in which a whole request has to come.
        answer_s: Seconds in which its answer has to be made and taken.
    """

    most: int
    per_address: int
    request_s: float = REQUEST_TIMEOUT_S
    answer_s: float = ANSWER_TIMEOUT_S


READERS: Final = Bounds(384, 256)
PROBES: Final = Bounds(256, 192)
"""Both more from one address than are accepted until what the first asks is read: `BACKLOG`, and some turns' of the
probes' loop.
Together well below the thousand descriptors that a process has by default."""


class Places(Generic[Connection]):
    """Who holds a connection, and who has to go for a newcomer: whoever has waited longest without asking.

    Of all addresses the one that has most waiting connections gives one up, so that nobody can crowd others out.
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
        """Take a newcomer in; gives who has to go for it, which may be the newcomer itself."""
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
        """Note that it has asked for nothing, or that what it has asked for is answered."""
        address = self._address_of.get(connection)
        if address is not None:
            self._waiting.setdefault(address, {})[connection] = None

    def asks(self, connection: Connection) -> None:
        """Note that it has asked, and is being answered."""
        address = self._address_of.get(connection, "")
        waiting = self._waiting.get(address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[address]

    def leave(self, connection: Connection) -> None:
        """Note that it is gone."""
        self.asks(connection)
        address = self._address_of.pop(connection, None)
        if address is not None:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]


class _Config(uvicorn.Config):
    """uvicorn's, with what the connections of one listener share."""

    def __init__(self, app: App, bounds: Bounds, bad_request: Callable[[], bytes] | None, **options: Any) -> None:
        super().__init__(app, http=_Bounded, **options)
        self.bounds = bounds
        self.places: Places[_Bounded] = Places(bounds.most, bounds.per_address)
        self.bad_request = bad_request


class _Bounded(H11Protocol):
    """A connection that has a place and a deadline."""

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
        """Give the time for the answer once the whole question is there."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._places.asks(self)
            self._due_within(self._bounds.answer_s)

    def on_response_complete(self) -> None:
        self._places.waits(self)
        self._due_within(self._bounds.request_s)
        super().on_response_complete()
        self._settle()  # a next question may have come along with the last

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
    """uvicorn without its own signal handling: a role stops its server itself, after its last work."""

    def __init__(self, config: uvicorn.Config, backlog: int) -> None:
        super().__init__(config)
        self._backlog = backlog
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            # asyncio takes one number for what it accepts at once and for what the kernel keeps meanwhile.
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
        app: What answers.
        listeners: What `open_listeners` gave.
        bad_request: Gives the body of the answer to what is no HTTP; absent leaves that to the server.
        bounds: How many connections, and for how long.
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

    A thread of its own answers, so that neither readers nor the process's own work can keep it from that. What it asks
    must be safe to be asked from there.

    Args:
        is_live: Whether a new start would not help.
        is_ready: Whether requests should come here.
        host: As `addresses_of` takes it.
        port: Port; 0 picks a free one.

    Yields:
        The port in use.

    Raises:
        OSError: If the port cannot be had.
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

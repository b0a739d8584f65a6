"""A network between processes of one machine that can lose, delay and cut: a TCP proxy that knows who is at both ends.

Every server of a test listens on `SERVER_HOST`; its clients know it as `CLIENT_HOST` with the same port, where a proxy
listens. The proxy knows the server's place by the port, and the client's by asking the kernel whose socket is at the
other end of the connection, so programs need no setting for it. A rule holds for the bytes that go from some places to
others, so it can hold for one direction alone.

Bytes of a cut direction are kept and sent when it is whole again, as TCP does it; so is the news that a connection has
ended. One thing differs from a real network: a connection through a cut is accepted at once, and hangs then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

CLIENT_HOST: Final = "127.0.0.1"
SERVER_HOST: Final = "127.0.0.2"

OUTSIDE: Final = "outside"
"""The place of every process that is not part of the pipeline, such as the tests."""

BUFFER_MAX: Final = 1_000_000
"""Bytes of one direction that are kept before its sender has to wait."""

RETRANSMIT_S: Final = 0.2
"""How long TCP waits until it sends a lost packet again, the first time."""

START_WITHIN_S: Final = 10

PORTS: Final = range(12_000, 30_000)
"""Below those that the kernel gives to clients: one of these could be taken again before it is listened on."""


def free_port() -> int:
    """Choose a port that is not listened on, at the client's and at the server's address.

    Raises:
        OSError: If none of a hundred is free.
    """
    for _ in range(100):
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind((CLIENT_HOST, port))
            other.bind((SERVER_HOST, port))
            return port
    raise OSError(f"no port of {PORTS} is free")


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of bytes from some places to others.

    Attributes:
        sources: Places that send.
        targets: Places that receive.
        blocked: Nothing arrives.
        delay_s: Everything arrives so much later.
        loss: Part of the packets that is lost and comes again, 0 to 1.
    """

    sources: frozenset[str]
    targets: frozenset[str]
    blocked: bool = False
    delay_s: float = 0.0
    loss: float = 0.0

    def holds(self, source: str, target: str) -> bool:
        """Say whether it is about a direction."""
        return source in self.sources and target in self.targets and source != target


class _End:
    """Where one end of a connection is. A client's place costs a search, so it is looked up once a rule asks for it."""

    def __init__(self, find: Callable[[], str]) -> None:
        self._find = find

    @cached_property
    def place(self) -> str:
        """Its place."""
        return self._find()


@dataclass
class _Direction:
    """Bytes on their way from one end to the other."""

    network: Network
    source: _End
    target: _End
    queue: deque[tuple[float, bytes | None]] = field(default_factory=deque)
    size: int = 0
    last_due_s: float = 0.0
    reader: asyncio.Transport | None = None
    writer: asyncio.Transport | None = None
    wakeup: asyncio.TimerHandle | None = None

    def push(self, data: bytes | None) -> None:
        """Take bytes, or the end."""
        delay_s = self.network.delay_s(self.source, self.target)
        # What comes later never overtakes: TCP keeps the order.
        self.last_due_s = max(self.last_due_s, self.network.loop.time() + delay_s)
        self.queue.append((self.last_due_s, data))
        self.size += len(data or b"")
        if self.size > BUFFER_MAX and self.reader is not None and not self.reader.is_closing():
            self.reader.pause_reading()
        self.pump()

    def pump(self) -> None:
        """Send on what is due."""
        if self.wakeup is not None:
            self.wakeup.cancel()
            self.wakeup = None
        if self.writer is None or not self.queue or self.network.is_blocked(self.source, self.target):
            return
        now_s = self.network.loop.time()
        while self.queue and self.queue[0][0] <= now_s:
            _, data = self.queue.popleft()
            if data is None:
                self.writer.close()
                self.network.directions.discard(self)
                return
            self.size -= len(data)
            if not self.writer.is_closing():
                self.writer.write(data)
        if self.size < BUFFER_MAX // 2 and self.reader is not None and not self.reader.is_closing():
            self.reader.resume_reading()
        if self.queue:
            self.wakeup = self.network.loop.call_at(self.queue[0][0], self.pump)

    __hash__ = object.__hash__


class _Socket(asyncio.Protocol):
    """One socket of a connection: what it reads goes into one direction, what it writes comes from the other."""

    def __init__(self, outgoing: _Direction, incoming: _Direction) -> None:
        self.outgoing = outgoing
        self.incoming = incoming

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=BUFFER_MAX)
        self.outgoing.reader = self.incoming.writer = transport
        self.incoming.pump()

    def data_received(self, data: bytes) -> None:
        self.outgoing.push(data)

    def pause_writing(self) -> None:
        if self.incoming.reader is not None and not self.incoming.reader.is_closing():
            self.incoming.reader.pause_reading()

    def resume_writing(self) -> None:
        if self.incoming.reader is not None and not self.incoming.reader.is_closing():
            self.incoming.reader.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.outgoing.push(None)
        self.incoming.network.directions.discard(self.incoming)


class _Accepted(_Socket):
    """The client's end: the server's is connected once the first bytes could have reached it."""

    def __init__(self, network: Network, port: int, place: str, server_port: int) -> None:
        self.network = network
        self.port = port
        self.place = place
        self.server_port = server_port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer, network, place = transport.get_extra_info("peername"), self.network, self.place
        client, server = _End(lambda: network.place_of_client(peer, self.port)), _End(lambda: place)
        there, back = _Direction(network, client, server), _Direction(network, server, client)
        self.network.directions |= {there, back}
        super().__init__(there, back)
        super().connection_made(transport)
        self.network.start(self._connect(transport))

    async def _connect(self, transport: asyncio.Transport) -> None:
        while self.network.is_blocked(self.outgoing.source, self.outgoing.target):
            if transport.is_closing():
                return
            await self.network.change()
        try:
            await self.network.loop.create_connection(
                lambda: _Socket(self.incoming, self.outgoing), SERVER_HOST, self.server_port
            )
        except OSError:
            self.incoming.push(None)


class Network:
    """All connections of a world, in a thread of its own.

    One class, since rules, connections and the thread end together.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.loop = asyncio.new_event_loop()
        self.directions: set[_Direction] = set()
        self.roots: dict[int, str] = {}
        self._rules: list[Rule] = []
        self._owners: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._random = random.Random(seed)
        self._thread = threading.Thread(target=self.loop.run_forever, name="network", daemon=True)
        self._thread.start()

    # For tests

    def listen(self, port: int, place: str, server_port: int = 0) -> None:
        """Carry connections to a server's port.

        Args:
            port: Where clients connect.
            place: The place behind it.
            server_port: Where the server listens; 0 for the same number.

        Raises:
            OSError: If the port is taken.
        """

        async def begin() -> None:
            server = await self.loop.create_server(
                lambda: _Accepted(self, port, place, server_port or port), CLIENT_HOST, port
            )
            self._servers.append(server)

        asyncio.run_coroutine_threadsafe(begin(), self.loop).result(START_WITHIN_S)

    def belongs(self, pid: int, place: str) -> None:
        """Say where a process and all that it starts are."""
        self.roots[pid] = place

    @contextlib.contextmanager
    def rule(self, rule: Rule) -> Iterator[None]:
        """Have a rule while the block runs."""
        self._change(lambda: self._rules.append(rule))
        try:
            yield
        finally:
            self._change(lambda: self._rules.remove(rule))

    def close(self) -> None:
        """End all connections and the thread."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in self._tasks:
                task.cancel()
            for direction in list(self.directions):
                for transport in (direction.reader, direction.writer):
                    if transport is not None:
                        transport.abort()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(START_WITHIN_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(START_WITHIN_S)
        self.loop.close()

    def _change(self, change: Callable[[], None]) -> None:
        async def apply() -> None:
            change()
            self._owners = {}
            self._changed.set()
            self._changed = asyncio.Event()
            for direction in list(self.directions):
                direction.pump()

        asyncio.run_coroutine_threadsafe(apply(), self.loop).result(START_WITHIN_S)

    # For its connections, in its thread

    def start(self, work: object) -> None:
        """Run a coroutine until it or the network ends."""
        assert asyncio.iscoroutine(work)
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def change(self) -> None:
        """Wait for the next change of the rules."""
        await self._changed.wait()

    def is_cut(self, source: str, target: str) -> bool:
        """Say whether nothing goes from one place to another."""
        return any(rule.blocked and rule.holds(source, target) for rule in list(self._rules))

    def is_blocked(self, source: _End, target: _End) -> bool:
        """Say whether nothing goes from one end to the other."""
        return any(rule.blocked and rule.holds(source.place, target.place) for rule in self._rules)

    def delay_s(self, source: _End, target: _End) -> float:
        """Give the delay of the next packet, that of its losses included."""
        delay_s = 0.0
        for rule in self._rules:
            if rule.holds(source.place, target.place):
                delay_s += rule.delay_s
                wait_s = RETRANSMIT_S
                while self._random.random() < rule.loss and wait_s < 10:
                    delay_s += wait_s
                    wait_s *= 2
        return delay_s

    def place_of_client(self, client: tuple[str, int], server_port: int) -> str:
        """Ask the kernel whose socket a connection to a port comes from, and give its place."""
        inode = _inode_of(client, server_port)
        if inode and inode not in self._owners:
            self._owners = dict.fromkeys(_inodes(os.getpid()), OUTSIDE)
        if inode and inode not in self._owners:
            self._owners |= {
                found: place
                for root, place in list(self.roots.items())
                for pid in [root, *descendants(root)]
                for found in _inodes(pid)
            }
        return self._owners.get(inode, OUTSIDE)


_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_INODE_AT: Final = 16 + 68
"""After the header, the last field of `struct inet_diag_msg`."""

_SOCKET = re.compile(r"socket:\[(\d+)\]")


def _inode_of(client: tuple[str, int], server_port: int) -> str:
    """Ask the kernel for the inode of the client's end of a connection; "" if it is gone.

    This is what `ss` asks. The list of all sockets, /proc/net/tcp, takes a tenth of a second to read on large machines.
    """
    client_host, server_host = (socket.inet_aton(host) + bytes(12) for host in (client[0], CLIENT_HOST))
    ports = struct.pack("!HH", client[1], server_port)
    asked = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + ports + client_host + server_host
    asked += bytes(4) + b"\xff" * 8  # any interface, any cookie
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1)
        kernel.send(_HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, 1, 1, 0) + asked)
        told = kernel.recv(8192)
    if _HEADER.unpack_from(told)[1] != _SOCK_DIAG_BY_FAMILY:
        return ""
    return str(struct.unpack_from("=I", told, _INODE_AT)[0])


def _inodes(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if (match := _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{name}"))) is not None:
                    found.add(match[1])
    return found


def descendants(pid: int) -> list[int]:
    """Give all processes that a process has started, and those that these have; itself not."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
                for child in map(int, children):
                    found += [child, *descendants(child)]
    return found


def cut(sources: set[str], targets: set[str], *, both: bool = True) -> list[Rule]:
    """Give the rules of a partition, or of one direction of it."""
    there = Rule(frozenset(sources), frozenset(targets), blocked=True)
    back = Rule(frozenset(targets), frozenset(sources), blocked=True)
    return [there, back] if both else [there]


def slow(sources: set[str], targets: set[str], *, delay_s: float = 0.0, loss: float = 0.0) -> list[Rule]:
    """Give the rules of a link that delays and loses, in both directions."""
    pairs: list[Mapping[str, frozenset[str]]] = [
        {"sources": frozenset(one), "targets": frozenset(other)}
        for one, other in ((sources, targets), (targets, sources))
    ]
    return [Rule(**pair, delay_s=delay_s, loss=loss) for pair in pairs]

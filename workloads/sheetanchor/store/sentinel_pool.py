"""Connections to the server that the Sentinels report as the master.

Owns a pool whose connections ask the Sentinels before they connect, and a look once a second, while the pool is used,
whether the master is another one by now: a server that was cut off would go on answering reads. Nothing waits for an
election here: as long as there is no master, connecting fails at once and the caller decides when to try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 0.5
"""A Sentinel answers within a millisecond; one that has not by now counts as unreachable."""

CONNECT_TIMEOUT_S: Final = 1.0
"""Shorter than a single server's: another attempt asks the Sentinels again and may reach another server."""

CHECK_EVERY_S: Final = 1.0

STRAGGLER_S: Final = 0.02
"""How much later than most a Sentinel may answer before its connection is given up."""

REST_S: Final = 3.0
"""A Sentinel that gave no answer is not asked for this long while others answer: resolving a lost name is slow."""


@dataclass(frozen=True, slots=True)
class Master:
    """What a Sentinel says about a set of servers.

    Attributes:
        host: Name or address of the master.
        config_epoch: Rises with every failover; the highest one is right.
        down: The Sentinel does not reach it, so an election is near.
        others: How many other Sentinels it knows.
        replicas: How many replicas it knows.
    """

    host: str
    port: int
    config_epoch: int = 0
    down: bool = False
    others: int = 0
    replicas: int = 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port


def parse_master(fields: dict[str, str]) -> Master:
    """Read what `SENTINEL MASTER` answers.

    Raises:
        ValueError: If a number is none.
    """
    flags = set(fields.get("flags", "").split(","))
    return Master(
        host=fields.get("ip", ""),
        port=int(fields.get("port", "0")),
        config_epoch=int(fields.get("config-epoch", "0")),
        down=bool(flags & {"s_down", "o_down"}),
        others=int(fields.get("num-other-sentinels", "0")),
        replicas=int(fields.get("num-slaves", "0")),
    )


def newest(answers: Sequence[Master]) -> Master | None:
    """Give the answer of the highest configuration epoch; down only if most of the Sentinels that name it say so."""
    if not answers:
        return None
    epoch = max(answer.config_epoch for answer in answers)
    same = [answer for answer in answers if answer.config_epoch == epoch]
    down = sum(answer.down for answer in same)
    return Master(same[0].host, same[0].port, epoch, down=2 * down > len(same))


async def ask_master(sentinel: Redis, service: str) -> Master:
    """Ask one Sentinel.

    Args:
        sentinel: Its client.
        service: Name of the set.

    Raises:
        RedisError: redis-py's, if it does not answer or does not know the set.
        OSError: If it cannot be reached.
        ValueError: If it answers nonsense.
    """
    execute: Callable[..., Awaitable[Any]] = sentinel.execute_command
    raw = await execute("SENTINEL", "MASTER", service)
    pairs = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    master = parse_master({_text(name): _text(value) for name, value in pairs})
    address = await execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    host, port = (_text(address[0]), int(address[1])) if address else master.address
    # The Sentinel that leads a failover names the promoted server here before it does so there.
    return master if (host, port) == master.address else replace(master, host=host, port=port, down=False)


class Masters:
    """The Sentinels of one set of servers.

    Args:
        sentinels: A client of each; they must not retry.
        service: Name of the set.
    """

    def __init__(self, sentinels: Sequence[Redis], service: str) -> None:
        self._sentinels = list(sentinels)
        self._service = service
        self._rests_until = dict.fromkeys(range(len(self._sentinels)), 0.0)

    async def find(self) -> Master:
        """Ask all Sentinels; most of them suffice, and after half a second any.

        Raises:
            ConnectionError: If none names a master; redis-py's.
            AuthenticationError: If none names one and one wants another password; redis-py's.
        """
        now = asyncio.get_running_loop().time()
        awake = [number for number, until in self._rests_until.items() if now >= until]
        said = await self._query_all(awake)
        if not _masters(said) and len(awake) < len(self._sentinels):
            said = await self._query_all(list(self._rests_until))
        found = newest(_masters(said))
        if found is None:
            raise self._none_found([error for error in said if isinstance(error, Exception)])
        return found

    async def _query_all(self, numbers: Sequence[int]) -> list[Master | Exception]:
        tasks = [asyncio.create_task(self._query(number)) for number in numbers]
        if not tasks:
            return []
        answers = 0
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                for finished in asyncio.as_completed(tasks):
                    answers += isinstance(await finished, Master)
                    if 2 * answers > len(self._sentinels):
                        break
            await asyncio.wait(tasks, timeout=STRAGGLER_S)
        except TimeoutError:
            pass  # the answers so far have to suffice
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks if not task.cancelled()]

    async def _query(self, number: int) -> Master | Exception:
        loop = asyncio.get_running_loop()
        # One that was waited for in vain is not asked for a while either.
        self._rests_until[number] = loop.time() + REST_S
        try:
            master = await ask_master(self._sentinels[number], self._service)
            self._rests_until[number] = 0.0
            return master
        except (exceptions.RedisError, OSError, ValueError) as error:
            return error

    def _none_found(self, refusals: Sequence[Exception]) -> exceptions.RedisError:
        for error in refusals:
            if isinstance(error, (exceptions.AuthenticationError, exceptions.NoPermissionError)):
                return error
        message = "; ".join(sorted({" ".join(str(error).split()) for error in refusals})) or "no answer in time"
        return exceptions.ConnectionError(f"no Sentinel names the master of {self._service!r}: {message}")

    async def aclose(self) -> None:
        """Close the connections to the Sentinels."""
        for sentinel in self._sentinels:
            await sentinel.aclose()


def _masters(said: Sequence[Master | Exception]) -> list[Master]:
    return [answer for answer in said if isinstance(answer, Master)]


class MasterConnection(Connection):
    """A connection that asks the Sentinels where to connect to."""

    def __init__(self, *, masters: Masters, **options: Any) -> None:
        super().__init__(host="", **options)
        self._masters = masters

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect once, to the master; a retry asks the Sentinels again."""
        if self.is_connected:
            return
        master = await self._masters.find()
        if master.down:
            # A host that has vanished would cost the whole time-out at each attempt.
            raise exceptions.ConnectionError(
                f"the master {master.host}:{master.port} is down, another is being elected"
            )
        self.host, self.port = master.address
        await super().connect_check_health(check_health=check_health, retry_socket_connect=False)

    async def check_health(self) -> None:
        """Check the connection once now and then; retries of this inside those of the command would multiply."""
        if self.health_check_interval and asyncio.get_running_loop().time() > self.next_health_check:
            ping: Callable[[], Awaitable[None]] = self._send_ping
            await ping()

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, and make sure that this is a master: Sentinels report a failover before the server knows of it."""
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE", check_health=False)
        try:
            answer: Any = await self.read_response()
        except exceptions.NoPermissionError:
            return  # a user of an external server that may not ask; a replica refuses writes anyway
        if _text(answer[0]) != "master":
            raise exceptions.ConnectionError(f"{self.host}:{self.port} is not the master (any more)")


class MasterTlsConnection(MasterConnection, SSLConnection):
    """A connection to the master over TLS."""


class MasterPool(ConnectionPool):
    """Connections to the master; closing it closes those to the Sentinels too.

    Args:
        masters: Who to ask.
        options: What a redis-py pool takes.
    """

    def __init__(self, masters: Masters, **options: Any) -> None:
        super().__init__(masters=masters, **options)
        self._masters = masters
        self._master: Master | None = None
        self._checked_at = 0.0
        self._check: asyncio.Task[None] | None = None

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Give a connection; once a second, check in the background whether it is one to the right server."""
        now = asyncio.get_running_loop().time()
        if now - self._checked_at >= CHECK_EVERY_S and (self._check is None or self._check.done()):
            self._checked_at = now
            self._check = asyncio.create_task(self._follow())
        get: Callable[[], Awaitable[Any]] = super().get_connection
        return await get()

    async def _follow(self) -> None:
        with contextlib.suppress(exceptions.RedisError, OSError):
            master = await self._masters.find()
            before, self._master = self._master, master
            if before is not None and before.address != master.address:
                log.warning("the Redis master is now %s:%d", master.host, master.port)
                for connection in self._get_in_use_connections():
                    mark: Callable[[], None] = connection.mark_for_reconnect
                    mark()
                await self.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._check is not None:
            self._check.cancel()
            await asyncio.gather(self._check, return_exceptions=True)
        await super().aclose()
        await self._masters.aclose()


MakeClient = Callable[[str, int], Redis]


def master_pool(
    sentinels: Sequence[tuple[str, int]], service: str, make_sentinel: MakeClient, *, tls: bool, **options: Any
) -> MasterPool:
    """Make a pool of connections to the master.

    Args:
        sentinels: Host and port of each Sentinel.
        service: Name of the set of servers.
        make_sentinel: Makes the client of a Sentinel; it must not retry.
        tls: Whether the servers use TLS.
        options: What a redis-py pool takes.
    """
    masters = Masters([make_sentinel(host, port) for host, port in sentinels], service)
    return MasterPool(masters, connection_class=MasterTlsConnection if tls else MasterConnection, **options)


def _text(value: bytes | str | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

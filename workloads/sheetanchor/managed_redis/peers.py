"""Requests to the other nodes of a managed Redis, and to the own server: their roles, and handing the master over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio import Redis

from sheetanchor.managed_redis.topology import (
    ObservedServer,
    RedisNode,
    SentinelReport,
    TopologyObservation,
    named_master,
)
from sheetanchor.store.redis_client import client_of
from sheetanchor.store.sentinel_pool import ask_master

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 1.0
CATCH_UP_S: Final = 1.5
"""How long writes are paused while the replicas catch up; less than the silence after which a Sentinel fails over."""

PAUSE_MS: Final = 4000
"""Writes are paused a little longer than a promotion takes; the server ends afterwards anyway."""

POLL_S: Final = 0.1

_FAILED: Final = (exceptions.RedisError, OSError, ValueError)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Replication:
    """The replication state of a server, from its `INFO`.

    Attributes:
        role: master or slave.
        link_up: Whether a replica follows its master; true on a master.
        replicas: Replicas that a master reaches.
        caught_up: How many of them have all writes.
    """

    role: str
    master: tuple[str, int]
    link_up: bool
    replicas: int
    caught_up: int
    offset: int
    has_data: bool
    replication_id: str
    memory_bytes: int
    memory_max_bytes: int
    clients: int


def parse_info(info: Mapping[str, Any]) -> Replication:
    """Read redis-py's form of `INFO`."""
    role = str(info.get("role", ""))
    master = role == "master"
    offset = int(info.get("master_repl_offset" if master else "slave_repl_offset", 0))
    replicas = [info[f"slave{i}"] for i in range(int(info.get("connected_slaves", 0))) if f"slave{i}" in info]
    online = [replica for replica in replicas if replica.get("state") == "online"]
    databases = [info[name] for name in info if name.startswith("db") and isinstance(info[name], dict)]
    return Replication(
        role=role,
        master=(str(info.get("master_host", "")), int(info.get("master_port", 0))),
        link_up=master or info.get("master_link_status") == "up",
        replicas=len(online),
        caught_up=sum(int(replica.get("offset", -1)) >= offset for replica in online),
        offset=offset,
        has_data=any(int(database.get("keys", 0)) > 0 for database in databases),
        replication_id=str(info.get("master_replid", "")),
        memory_bytes=int(info.get("used_memory", 0)),
        memory_max_bytes=int(info.get("maxmemory", 0)),
        clients=int(info.get("connected_clients", 0)),
    )


async def replication_of(server: Redis) -> Replication:
    """Read the replication state of a server.

    Raises:
        RedisError: redis-py's, if it does not answer.
    """
    return parse_info(await server.info())


async def _or_none(answer: Awaitable[Answer]) -> Answer | None:
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await answer
    except (*_FAILED, TimeoutError):
        return None


class Peers:
    """The nodes of the set, as seen from one of them.

    Args:
        own: This node.
        nodes: All nodes.
        password: That of the user `sentinel`.
        service: Name of the set.
    """

    def __init__(self, own: RedisNode, nodes: Sequence[RedisNode], password: str, service: str) -> None:
        self._own = own
        self._service = service
        # The own Sentinel last: its node is about to end when a failover is requested.
        order = sorted(nodes, key=lambda node: node == own)

        def client(host: str, port: int) -> Redis:
            return client_of(host, port, username="sentinel", password=password, timeout_s=ASK_TIMEOUT_S)

        self._sentinels = {node: client(node.host, node.sentinel_port) for node in order}
        self._servers = {node: client(node.host, node.port) for node in order if node != own}

    async def observe(self) -> TopologyObservation:
        """Read the state of all nodes at once; takes a second at most."""
        reports, servers = await asyncio.gather(
            asyncio.gather(*(_or_none(self._ask_sentinel(client)) for client in self._sentinels.values())),
            asyncio.gather(*(_or_none(self._server(client)) for client in self._servers.values())),
        )
        return TopologyObservation(
            sentinels={node: one for node, one in zip(self._sentinels, reports, strict=True) if one is not None},
            servers={node: one for node, one in zip(self._servers, servers, strict=True) if one is not None},
        )

    async def _ask_sentinel(self, sentinel: Redis) -> SentinelReport:
        master = await ask_master(sentinel, self._service)
        return SentinelReport(master.address, master.config_epoch)

    async def _server(self, server: Redis) -> ObservedServer:
        found = await replication_of(server)
        return ObservedServer(found.role, found.has_data, found.master, found.offset)

    async def request_failover(self) -> bool:
        """Request a failover from one Sentinel after the other until one accepts; the own one last."""
        for node, sentinel in self._sentinels.items():
            execute: Callable[..., Awaitable[Any]] = sentinel.execute_command
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    await execute("SENTINEL", "FAILOVER", self._service)
            except (*_FAILED, TimeoutError) as error:
                log.info("the Sentinel of %s refuses to fail over: %s", node.host, " ".join(str(error).split()))
            else:
                log.info("the Sentinel of %s starts a failover", node.host)
                return True
        return False

    async def hand_over(self, local: Redis, within_s: float) -> bool:
        """Promote another node without losing a write; true when it is the master.

        Args:
            local: The own server, which is the master.
            within_s: Longest duration.
        """
        try:
            async with asyncio.timeout(within_s):
                execute: Callable[..., Awaitable[Any]] = local.execute_command
                await execute("CLIENT", "PAUSE", PAUSE_MS, "WRITE")
                if not await self._caught_up(local) or not await self.request_failover():
                    await execute("CLIENT", "UNPAUSE")
                    return False
                await self._other_master()
                return True
        except (*_FAILED, TimeoutError) as error:
            log.warning("the master role cannot be handed over: %s", " ".join(str(error).split()) or "it took too long")
            return False

    async def _other_master(self) -> None:
        while True:
            named = named_master(await self.observe())
            if named not in (None, self._own.address):
                return
            await asyncio.sleep(POLL_S)

    async def _caught_up(self, local: Redis) -> bool:
        deadline = asyncio.get_running_loop().time() + CATCH_UP_S
        while asyncio.get_running_loop().time() < deadline:
            found = await replication_of(local)
            if found.caught_up:
                return True
            if not found.replicas:
                break
            await asyncio.sleep(POLL_S)
        log.warning("the master role cannot be handed over: no replica has all the data")
        return False

    async def aclose(self) -> None:
        """Close all connections."""
        for client in (*self._sentinels.values(), *self._servers.values()):
            await client.aclose()

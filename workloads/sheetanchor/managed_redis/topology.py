"""A set of Redis servers with Sentinels: its nodes, and the role in which a node may start.

Decisions only. The most important one: a server without data on disk that restarts as the master would make its
replicas discard everything, since they copy their master. So a node that was the master and starts empty has another
one promoted first, and starts as its replica.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

SETTLE_S: Final = 3.0
"""How long a node waits for others before it assumes that there are none: new pods' names and networks take a while."""

PROMOTION_WAIT_S: Final = 30.0
"""How long a former master without data waits for another to be promoted; a failover takes four seconds."""

_NODE: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253})(?::(?P<redis>\d{1,5})(?::(?P<sentinel>\d{1,5}))?)?")


@dataclass(frozen=True, slots=True, order=True)
class RedisNode:
    """One server and its Sentinel.

    Attributes:
        host: Name under which every node reaches it.
        port: Port of the server.
        sentinel_port: Port of the Sentinel.
    """

    host: str
    port: int = REDIS_PORT
    sentinel_port: int = SENTINEL_PORT

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        return self.host, self.port

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_node(text: str) -> RedisNode:
    """Read `HOST`, `HOST:REDIS_PORT` or `HOST:REDIS_PORT:SENTINEL_PORT`.

    Raises:
        ValueError: Says what was expected.
    """
    found = _NODE.fullmatch(text)
    redis = int((found and found["redis"]) or REDIS_PORT)
    sentinel = int((found and found["sentinel"]) or SENTINEL_PORT)
    if found is None or not 0 < redis < 65_536 or not 0 < sentinel < 65_536 or redis == sentinel:
        raise ValueError(f"expected HOST, HOST:REDIS_PORT or HOST:REDIS_PORT:SENTINEL_PORT, not {text!r}")
    return RedisNode(found["host"], redis, sentinel)


def own_node(nodes: Sequence[RedisNode], named: str, host_name: str) -> RedisNode:
    """Find the node that this process is.

    Args:
        nodes: All nodes.
        named: Name in the settings, "" if they have none.
        host_name: Name of this machine or pod; a node's host is that name or begins with it and a dot.

    Raises:
        ValueError: If it is none of them or more than one.
    """
    if named:
        found = [node for node in nodes if node == parse_node(named)]
    else:
        found = [node for node in nodes if node.host == host_name or node.host.startswith(host_name + ".")]
    if len(found) != 1:
        listed = ", ".join(map(str, nodes))
        raise ValueError(f"{named or host_name!r} is {'none' if not found else 'more than one'} of the nodes {listed}")
    return found[0]


@dataclass(frozen=True, slots=True)
class SentinelReport:
    """The master as a Sentinel reports it.

    Attributes:
        master: Host and port.
        config_epoch: Rises with every failover.
    """

    master: tuple[str, int]
    config_epoch: int = 0


@dataclass(frozen=True, slots=True)
class ObservedServer:
    """A server's report about itself.

    Attributes:
        role: master or slave, as the server reports it.
        has_data: Whether it holds any key.
        master: The master that a replica follows.
        offset: Its position in the stream of writes.
    """

    role: str
    has_data: bool = False
    master: tuple[str, int] = ("", 0)
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TopologyObservation:
    """The state of the set at one moment; nodes that did not answer are absent.

    Attributes:
        sentinels: By node.
        servers: By node, without the own one.
    """

    sentinels: Mapping[RedisNode, SentinelReport] = field(default_factory=dict)
    servers: Mapping[RedisNode, ObservedServer] = field(default_factory=dict)


class NodeStep(StrEnum):
    """What a starting node does next."""

    MASTER = "master"
    REPLICA = "replica"
    FAIL_OVER = "fail over"  # request a failover from a Sentinel, then observe again
    WAIT = "wait"  # observe again


@dataclass(frozen=True, slots=True)
class Decision:
    """A step and its reason.

    Attributes:
        master: Address of the master to follow; the own address for a master.
        why: Reason for the log, in one line.
    """

    step: NodeStep
    master: tuple[str, int] = ("", 0)
    why: str = ""


def named_master(seen: TopologyObservation) -> tuple[str, int] | None:
    """Give the master that the Sentinels name; the highest configuration epoch counts."""
    if not seen.sentinels:
        return None
    return max(seen.sentinels.values(), key=lambda report: (report.config_epoch, report.master)).master


def decide_start(
    own: RedisNode, nodes: Sequence[RedisNode], seen: TopologyObservation, *, own_data: bool, waited_s: float
) -> Decision:
    """Decide in which role a server starts.

    Args:
        own: The starting node.
        nodes: All nodes; the first one becomes the master of a new set.
        seen: State of the other nodes.
        own_data: Whether the own disk holds the data set.
        waited_s: Seconds since the first observation.
    """
    named = named_master(seen)
    if named is None:
        return _start_unnamed(own, nodes, seen, own_data=own_data, waited_s=waited_s)
    if named != own.address:
        return Decision(NodeStep.REPLICA, named, "the Sentinels name another master")
    if own_data:
        return Decision(NodeStep.MASTER, own.address, "the Sentinels name this node, and its disk holds the data")
    if any(server.has_data for server in seen.servers.values()):
        if waited_s < PROMOTION_WAIT_S:
            return Decision(NodeStep.FAIL_OVER, why="this node was the master and has no data, a replica has")
        return Decision(NodeStep.MASTER, own.address, "no replica was promoted in time: starting empty")
    if len(seen.servers) == len(nodes) - 1 or waited_s >= SETTLE_S:
        return Decision(NodeStep.MASTER, own.address, "the Sentinels name this node, and no other has data")
    return Decision(NodeStep.WAIT, why="the Sentinels name this node; the other servers do not answer yet")


def _start_unnamed(
    own: RedisNode, nodes: Sequence[RedisNode], seen: TopologyObservation, *, own_data: bool, waited_s: float
) -> Decision:
    masters = [node for node, server in seen.servers.items() if server.role == "master"]
    if masters:
        best = max(masters, key=lambda node: (seen.servers[node].has_data, seen.servers[node].offset))
        return Decision(NodeStep.REPLICA, best.address, "no Sentinel answers; that server is a master")
    if waited_s < SETTLE_S:
        return Decision(NodeStep.WAIT, why="no Sentinel answers yet")
    followed = {server.master for server in seen.servers.values() if server.has_data and server.master[0]}
    if followed and own.address not in followed:
        return Decision(NodeStep.REPLICA, min(followed), "no Sentinel answers; other replicas follow that server")
    if followed and not own_data and waited_s < PROMOTION_WAIT_S:
        return Decision(NodeStep.WAIT, why="replicas of this node have data and it has none; waiting for a Sentinel")
    if own == nodes[0]:
        return Decision(NodeStep.MASTER, own.address, "no node knows a master and this is the first node")
    return Decision(NodeStep.REPLICA, nodes[0].address, "no node knows a master; the first node is it")


def decide_monitored(nodes: Sequence[RedisNode], seen: TopologyObservation, *, waited_s: float) -> Decision:
    """Decide which master a starting Sentinel watches; a Sentinel that begins with a replica finds its master later.

    Args:
        nodes: All nodes.
        seen: State of the other nodes, and under the own node the contents of this Sentinel's file.
        waited_s: Seconds since the first observation.
    """
    named = named_master(seen)
    if named is not None:
        return Decision(NodeStep.REPLICA, named, "other Sentinels or this one's own file name it")
    masters = [node for node, server in seen.servers.items() if server.role == "master"]
    if masters:
        best = max(masters, key=lambda node: (seen.servers[node].has_data, seen.servers[node].offset))
        return Decision(NodeStep.REPLICA, best.address, "that server is a master")
    if waited_s < SETTLE_S:
        return Decision(NodeStep.WAIT, why="no Sentinel and no master answers yet")
    followed = {server.master for server in seen.servers.values() if server.has_data and server.master[0]}
    if followed:
        return Decision(NodeStep.REPLICA, min(followed), "replicas with data follow it")
    return Decision(NodeStep.REPLICA, nodes[0].address, "no node knows a master; the first node is it")

"""The configuration files of a server and of a Sentinel, as text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sheetanchor.managed_redis.acl_users import sentinel_users
from sheetanchor.managed_redis.topology import RedisNode, SentinelReport

SOCKET: Final = "redis.sock"
"""The server's socket for the process that runs it, in the data folder."""

APPEND_FOLDER: Final = "appendonlydir"
USERS_FILE: Final = "users.acl"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the settings say about every node alike.

    Attributes:
        bind: Addresses to listen on.
        service: Name of the set.
        quorum: Sentinels that must agree that the master is down.
        min_replicas_to_write: Replicas without which the master takes no writes.
        min_replicas_max_lag_s: How long a replica may be silent and still count.
        maxmemory_bytes: Memory for data; 0 sets no limit.
        persistent: Whether the data folder outlives the pod, so that writing to it makes sense.
    """

    bind: str
    service: str
    quorum: int
    down_after_ms: int
    failover_timeout_ms: int
    min_replicas_to_write: int
    min_replicas_max_lag_s: int
    maxmemory_bytes: int
    persistent: bool


def server_config(
    own: RedisNode,
    master: tuple[str, int],
    passwords: Mapping[str, str],
    tuning: Tuning,
    folder: str,
    config_folder: str,
) -> str:
    """Write a server's configuration.

    Args:
        own: The node.
        master: Whom it follows; its own address if it is the master.
        passwords: By user.
        tuning: What is common to all nodes.
        folder: Its data folder.
        config_folder: Where its users are written down.
    """
    options: list[tuple[str, object]] = [
        ("bind", tuning.bind),
        ("port", own.port),
        ("protected-mode", "no"),  # every user has a password
        ("unixsocket", f"{folder}/{SOCKET}"),
        ("unixsocketperm", "700"),
        ("dir", folder),
        ("aclfile", f"{config_folder}/{USERS_FILE}"),
        ("masteruser", "replica"),
        ("masterauth", _quoted(passwords["replica"])),
        # Names stay when a pod comes back with another address.
        ("replica-announce-ip", own.host),
        ("replica-announce-port", own.port),
        # A master that was cut off from its replicas must not collect writes that will be thrown away.
        ("min-replicas-to-write", tuning.min_replicas_to_write),
        ("min-replicas-max-lag", tuning.min_replicas_max_lag_s),
        ("repl-diskless-sync", "yes"),
        ("repl-diskless-sync-delay", 0),
        ("repl-diskless-load", "on-empty-db"),
        # A replica that comes back within a minute need not copy everything.
        ("repl-backlog-size", "32mb"),
        # A ping in the middle of a hand-over makes the other replica copy everything from the new master.
        ("repl-ping-replica-period", 5),
        ("repl-timeout", 20),
        ("maxmemory", tuning.maxmemory_bytes),
        ("maxmemory-policy", "noeviction"),  # a hot key that vanished would be worse than a refused write
        ("lazyfree-lazy-server-del", "yes"),  # a swap renames over a large book
        ("lazyfree-lazy-user-del", "yes"),
        ("replica-lazy-flush", "yes"),
        ("tcp-keepalive", 15),
        ("timeout", 0),
        ("shutdown-timeout", 2),
        ("appendonly", "yes" if tuning.persistent else "no"),
        ("appendfsync", "everysec"),
        ("appenddirname", APPEND_FOLDER),
        ("save", '""'),
        ("loglevel", "notice"),
        ("daemonize", "no"),
    ]
    if master != own.address:
        options.append(("replicaof", f"{master[0]} {master[1]}"))
    return _text(f"{name} {value}" for name, value in options)


def sentinel_id(own: RedisNode) -> str:
    """Give a Sentinel an id that stays when its pod is replaced, so that the others do not count it twice."""
    return hashlib.sha1(f"{own.host}:{own.sentinel_port}".encode(), usedforsecurity=False).hexdigest()


def sentinel_config(
    own: RedisNode,
    nodes: Sequence[RedisNode],
    said: SentinelReport,
    passwords: Mapping[str, str],
    tuning: Tuning,
    folder: str,
) -> str:
    """Write a Sentinel's configuration.

    Args:
        own: The node.
        nodes: All nodes. They are named here, since a Sentinel that has only just started knows no replica to promote.
        said: The master to watch and the epoch of that knowledge.
        passwords: By user.
        tuning: What is common to all nodes.
        folder: Its folder; the Sentinel writes its own notes into this file.
    """
    name = tuning.service
    replicas = [node for node in nodes if node.address != said.master]
    others = [node for node in nodes if node != own]
    lines = [
        f"bind {tuning.bind}",
        f"port {own.sentinel_port}",
        "protected-mode no",
        f"dir {folder}",
        *sentinel_users(passwords),
        f"sentinel myid {sentinel_id(own)}",
        "sentinel resolve-hostnames yes",
        "sentinel announce-hostnames yes",
        f"sentinel announce-ip {own.host}",
        f"sentinel announce-port {own.sentinel_port}",
        f"sentinel monitor {name} {said.master[0]} {said.master[1]} {tuning.quorum}",
        f"sentinel down-after-milliseconds {name} {tuning.down_after_ms}",
        f"sentinel failover-timeout {name} {tuning.failover_timeout_ms}",
        f"sentinel parallel-syncs {name} 1",
        f"sentinel auth-user {name} sentinel",
        f"sentinel auth-pass {name} {_quoted(passwords['sentinel'])}",
        "sentinel sentinel-user sentinel",
        f"sentinel sentinel-pass {_quoted(passwords['sentinel'])}",
        f"sentinel config-epoch {name} {said.config_epoch}",
        f"sentinel leader-epoch {name} {said.config_epoch}",
        f"sentinel current-epoch {said.config_epoch}",
        *(f"sentinel known-replica {name} {node.host} {node.port}" for node in replicas),
        *(f"sentinel known-sentinel {name} {node.host} {node.sentinel_port} {sentinel_id(node)}" for node in others),
        "loglevel notice",
        "daemonize no",
    ]
    return _text(lines)


def sentinel_notes(said: SentinelReport, service: str) -> str:
    """Write down what a Sentinel knows, in its own words and without any password, for whoever starts in its place."""
    host, port = said.master
    return _text(
        [f"sentinel monitor {service} {host} {port} 1", f"sentinel config-epoch {service} {said.config_epoch}"]
    )


def read_sentinel_file(text: str, service: str) -> SentinelReport | None:
    """Read who the master is from what a Sentinel wrote down; None if it does not say."""
    master: tuple[str, int] | None = None
    epoch = 0
    for line in text.splitlines():
        match line.split():
            case ["sentinel", "monitor", name, host, port, _] if name == service and port.isdigit():
                master = (host, int(port))
            case ["sentinel", "config-epoch", name, number] if name == service and number.isdigit():
                epoch = int(number)
    return SentinelReport(master, epoch) if master else None


def _quoted(word: str) -> str:
    """Write a word so that the server reads back what it was, whatever quotes are in it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"

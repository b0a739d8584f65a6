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
    """Settings that all nodes have in common.

    Attributes:
        bind: Addresses to listen on.
        service: Name of the set of servers.
        quorum: Sentinels that must agree that the master is down.
        min_replicas_to_write: Replicas without which the master accepts no writes.
        min_replicas_max_lag_s: How long a replica may be silent and still count.
        maxmemory_bytes: Memory for data; 0 sets no limit.
        persistent: Whether the data folder outlives the pod, so that the data is written to it.
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
        master: Address of its master; its own address if it is the master.
        passwords: By user.
        tuning: Settings that all nodes have in common.
        folder: Its data folder.
        config_folder: Folder of its file of users.
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
        # Host names stay the same when a pod is replaced and gets another address.
        ("replica-announce-ip", own.host),
        ("replica-announce-port", own.port),
        # A master that was cut off from its replicas must not accept writes that a failover would discard.
        ("min-replicas-to-write", tuning.min_replicas_to_write),
        ("min-replicas-max-lag", tuning.min_replicas_max_lag_s),
        ("repl-diskless-sync", "yes"),
        ("repl-diskless-sync-delay", 0),
        ("repl-diskless-load", "on-empty-db"),
        # A replica that reconnects within a minute need not copy everything.
        ("repl-backlog-size", "32mb"),
        # A ping during a hand-over would make the other replica copy everything from the new master.
        ("repl-ping-replica-period", 5),
        ("repl-timeout", 20),
        ("maxmemory", tuning.maxmemory_bytes),
        ("maxmemory-policy", "noeviction"),  # an evicted hot key would be worse than a refused write
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
    report: SentinelReport,
    passwords: Mapping[str, str],
    tuning: Tuning,
    folder: str,
) -> str:
    """Write a Sentinel's configuration.

    Args:
        own: The node.
        nodes: All nodes. They are listed in the file, since a Sentinel that has just started knows no replica to
            promote.
        report: The master to watch and the configuration epoch of that knowledge.
        passwords: By user.
        tuning: Settings that all nodes have in common.
        folder: Its folder; the Sentinel itself writes to this file too.
    """
    name = tuning.service
    replicas = [node for node in nodes if node.address != report.master]
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
        f"sentinel monitor {name} {report.master[0]} {report.master[1]} {tuning.quorum}",
        f"sentinel down-after-milliseconds {name} {tuning.down_after_ms}",
        f"sentinel failover-timeout {name} {tuning.failover_timeout_ms}",
        f"sentinel parallel-syncs {name} 1",
        f"sentinel auth-user {name} sentinel",
        f"sentinel auth-pass {name} {_quoted(passwords['sentinel'])}",
        "sentinel sentinel-user sentinel",
        f"sentinel sentinel-pass {_quoted(passwords['sentinel'])}",
        f"sentinel config-epoch {name} {report.config_epoch}",
        f"sentinel leader-epoch {name} {report.config_epoch}",
        f"sentinel current-epoch {report.config_epoch}",
        *(f"sentinel known-replica {name} {node.host} {node.port}" for node in replicas),
        *(f"sentinel known-sentinel {name} {node.host} {node.sentinel_port} {sentinel_id(node)}" for node in others),
        "loglevel notice",
        "daemonize no",
    ]
    return _text(lines)


def sentinel_notes(report: SentinelReport, service: str) -> str:
    """Write what a Sentinel knows of the master, in its own format and without passwords, for the next one to start."""
    host, port = report.master
    return _text(
        [f"sentinel monitor {service} {host} {port} 1", f"sentinel config-epoch {service} {report.config_epoch}"]
    )


def read_sentinel_file(text: str, service: str) -> SentinelReport | None:
    """Read the master from a Sentinel's file or notes; None if they do not name one."""
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
    """Quote a word so that the server reads it back unchanged."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"

"""Which other nodes a Sentinel reaches: an observation by which the operator judges whether a zone is lost.

A Sentinel pings every server and Sentinel once a second from its own place, so its word is independent of any HTTP
request. In TILT, after its clock has jumped or it was paused, it does not trust itself, and neither others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis

_DOWN: Final = frozenset({"s_down", "o_down"})


@dataclass(frozen=True, slots=True)
class PeerReachability:
    """What a Sentinel knows of the nodes of its set.

    Attributes:
        tilt: Whether it says of itself that it cannot be relied on now.
        servers: By `host:port`, whether it reaches the server; None while it waits for an answer.
        sentinels: By `host:port`, the same of the other Sentinels.
    """

    tilt: bool = False
    servers: Mapping[str, bool | None] = field(default_factory=dict)
    sentinels: Mapping[str, bool | None] = field(default_factory=dict)

    def to_json(self, age_s: float) -> dict[str, Any]:
        """Render it for HTTP.

        Args:
            age_s: How long ago the Sentinel was asked.
        """
        return {
            "tilt": self.tilt,
            "age_ms": round(age_s * 1000),
            "servers": dict(self.servers),
            "sentinels": dict(self.sentinels),
        }


def parse_reachability(
    info: Mapping[str, Any], servers: Sequence[Mapping[str, str]], sentinels: Sequence[Mapping[str, str]]
) -> PeerReachability:
    """Put together what a Sentinel answers.

    Args:
        info: Its `INFO sentinel`.
        servers: Fields of the master and of each replica.
        sentinels: Fields of each other Sentinel.
    """
    return PeerReachability(str(info.get("sentinel_tilt", "0")) != "0", _reached(servers), _reached(sentinels))


def _reached(instances: Sequence[Mapping[str, str]]) -> dict[str, bool | None]:
    return {f"{one.get('ip', '').rstrip('.')}:{one.get('port', '')}": _is_reached(one) for one in instances}


def _is_reached(instance: Mapping[str, str]) -> bool | None:
    """Say whether an instance has answered the last ping.

    After a failover a Sentinel has a new list of servers and counts none of them as down, for as long as one is given
    to
    answer: that one does not count as down is no proof that it answers.
    """
    if _DOWN & set(instance.get("flags", "").split(",")):
        return False
    return True if instance.get("last-ping-sent") == "0" else None


async def ask_reachability(sentinel: Redis, service: str) -> PeerReachability:
    """Ask a Sentinel which nodes it reaches.

    Args:
        sentinel: Its client, logged in as `sentinel`.
        service: Name of the set.

    Raises:
        RedisError: redis-py's, if it does not answer.
        ValueError: If it answers nonsense.
    """
    execute: Callable[..., Awaitable[Any]] = sentinel.execute_command
    info = await sentinel.info("sentinel")
    master = await execute("SENTINEL", "MASTER", service)
    replicas = await execute("SENTINEL", "REPLICAS", service)
    others = await execute("SENTINEL", "SENTINELS", service)
    return parse_reachability(info, [_fields(master), *map(_fields, replicas)], list(map(_fields, others)))


def _fields(raw: Any) -> dict[str, str]:
    pairs = raw.items() if isinstance(raw, Mapping) else zip(raw[::2], raw[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

"""How a workload reaches Redis: URL, password, certificate authority, ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from sheetanchor.runtime.sentinel_url import is_sentinel_url, parse
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.names import (
    REDIS_PORT,
    SENTINEL_PORT,
    SENTINEL_SERVICE,
    Component,
    child_name,
)

REDIS_NODES: Final = 3


@dataclass(frozen=True, slots=True)
class SecretEntry:
    """One entry of a Secret."""

    name: str
    key: str


def redis_hosts(pipeline: Pipeline, defaults: Defaults) -> tuple[str, ...]:
    """Name the nodes of the managed Redis, as DNS knows them.

    The dot at the end makes the name fully qualified. The name of a pod that is being replaced does not resolve for a
    moment: without the dot it would be looked up in every search domain, which delays a client during a failover.
    """
    service = child_name(pipeline.name, Component.REDIS)
    domain = f"{service}.{pipeline.namespace}.svc.{defaults.cluster_domain}."
    return tuple(f"{service}-{number}.{domain}" for number in range(REDIS_NODES))


def redis_url(pipeline: Pipeline, user: Component, defaults: Defaults) -> str:
    """Give the URL of Redis for a component; it never holds a password."""
    external = pipeline.spec.redis.external
    if external is None:
        hosts = ",".join(f"{host}:{SENTINEL_PORT}" for host in redis_hosts(pipeline, defaults))
        return f"sentinel://{user}@{hosts}/{SENTINEL_SERVICE}"
    url = external.url
    if external.username is not None:
        scheme, _, rest = url.partition("://")
        url = f"{scheme}://{quote(external.username, safe='')}@{rest}"
    return url


def password_entry(pipeline: Pipeline, user: Component) -> SecretEntry | None:
    """Name the Secret entry that holds a component's Redis password; None if there is none."""
    external = pipeline.spec.redis.external
    if external is not None:
        given = external.password_secret
        return None if given is None else SecretEntry(given.name, given.key)
    managed = pipeline.managed_redis
    if managed is not None and managed.password_secret is not None:
        return SecretEntry(managed.password_secret.name, str(user))
    return SecretEntry(child_name(pipeline.name, Component.REDIS), str(user))


def external_ports(url: str) -> tuple[int, ...]:
    """Give the ports that a client of an external Redis connects to."""
    if is_sentinel_url(url):
        # The master's port is not in the URL of a Sentinel; the default port is assumed.
        return tuple(sorted({REDIS_PORT, *(port for _, port in parse(url).sentinels)}))
    return (urlsplit(url).port or REDIS_PORT,)

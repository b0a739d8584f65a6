"""URLs that name Sentinels instead of a Redis server: `sentinel://USER@h1:26379,h2:26379,h3:26379/SERVICE`.

Clients ask the Sentinels for the master. `sentinels://` is the same over TLS. User and password are the same for Redis
and the Sentinels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

SCHEMES: Final = ("sentinel", "sentinels")
SENTINEL_PORT: Final = 26379
SERVICE: Final = "sheetanchor"
"""Name of the set of servers when the URL has none."""

_URL: Final = re.compile(
    r"(?P<scheme>sentinels?)://(?:(?P<user>[^@/:]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/@?#]+)(?:/(?P<service>[^/?#]*))?/?"
)
_HOST: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")

EXPECTED: Final = "expected sentinel://USER@HOST:26379,HOST:26379,HOST:26379/SERVICE"


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """A parsed URL.

    Attributes:
        sentinels: Host and port of each Sentinel.
        service: Name under which the Sentinels know the set of servers.
        user: ACL user, "" for the server's default one.
        password: Its password, "" if it comes from a file.
        tls: Whether Sentinels and servers use TLS.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str = SERVICE
    user: str = ""
    password: str = ""
    tls: bool = False

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.sentinels)
        login = f"{quote(self.user, safe='')}@" if self.user else ""
        return f"{SCHEMES[self.tls]}://{login}{hosts}/{quote(self.service, safe='')}"


def is_sentinel_url(url: str) -> bool:
    """Say whether a URL names Sentinels."""
    return url.partition("://")[0] in SCHEMES


def parse(url: str) -> SentinelUrl:
    """Read a URL.

    Raises:
        ValueError: Says what was expected; never shows a password.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(EXPECTED)
    sentinels = tuple(map(_host, found["hosts"].split(",")))
    if len(set(sentinels)) != len(sentinels):
        raise ValueError(f"{EXPECTED}; a Sentinel is named twice")
    return SentinelUrl(
        sentinels=sentinels,
        service=unquote(found["service"] or "") or SERVICE,
        user=unquote(found["user"] or ""),
        password=unquote(found["password"] or ""),
        tls=found["scheme"] == "sentinels",
    )


def _host(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or SENTINEL_PORT) if found else 0
    if found is None or not 0 < port < 65_536:
        raise ValueError(f"{EXPECTED}; one of its hosts is not HOST:PORT")
    return found["six"] or found["name"], port

"""The one way to reach Redis: clients with their time-outs, retries, passwords and TLS, and which data set answers.

When Redis is gone every call raises `RedisUnavailable` within seconds; nothing is queued here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from sheetanchor import errors
from sheetanchor.runtime import redis_url, sentinel_url
from sheetanchor.store import sentinel_pool
from sheetanchor.store.redis_connection import packing_in_c, translate_errors

SOCKET_TIMEOUT_S: Final = 2.0
"""One prediction slot: an answer that takes longer comes too late for it."""

CONNECT_TIMEOUT_S: Final = 2.0
RETRIES: Final = 2
RETRY_BASE_S: Final = 0.02
RETRY_CAP_S: Final = 0.2
HEALTH_CHECK_INTERVAL_S: Final = 15
CONNECTIONS_MAX: Final = 32


def redis_client(
    url: str,
    password_file: Path | None = None,
    *,
    ca_file: Path | None = None,
    socket_timeout_s: float = SOCKET_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> Redis:
    """Make a client; it connects at its first command.

    Args:
        url: `redis://`, `rediss://`, `unix://`, or `sentinel://` for whichever server the Sentinels say is the master.
        password_file: File that holds the password; wins over one in the URL. It is that of the Sentinels too.
        ca_file: File with the certificate authority of a server that uses TLS; default the machine's authorities.
        socket_timeout_s: Seconds to wait for a reply before the connection is given up.
        connect_timeout_s: Seconds to wait for a connection.

    Raises:
        BadSettings: If the URL or a file cannot be used.
    """
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "client_name": "sheetanchor",
    }
    lasting: dict[str, Any] = {"health_check_interval": HEALTH_CHECK_INTERVAL_S, "max_connections": CONNECTIONS_MAX}
    password = _read_password(password_file)
    tls = _tls_options(url, ca_file)
    try:
        url = redis_url.check(url)
        if sentinel_url.is_sentinel_url(url):
            client = _sentinel_client(sentinel_url.parse(url), password, options | tls, lasting)
        else:
            client = Redis.from_url(url, retry=_retry(RETRIES), **options, **lasting, **tls)
            # A password in the URL would win if it were handed to `from_url` along with it.
            client.connection_pool.connection_kwargs.update(password)
    except ValueError as error:
        raise errors.BadSettings(f"redis_url: {error}") from error
    return packing_in_c(client)


def _retry(retries: int) -> Retry:
    return Retry(ExponentialWithJitterBackoff(cap=RETRY_CAP_S, base=RETRY_BASE_S), retries)


def _sentinel_client(
    url: sentinel_url.SentinelUrl, password: dict[str, Any], options: dict[str, Any], lasting: dict[str, Any]
) -> Redis:
    login = {"username": url.user or None, "password": url.password or None, **password}

    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}

    def make_sentinel(host: str, port: int) -> Redis:
        return client_of(host, port, ssl=url.tls, **login, **tls, timeout_s=sentinel_pool.ASK_TIMEOUT_S)

    connect_timeout_s = min(options["socket_connect_timeout"], sentinel_pool.CONNECT_TIMEOUT_S)
    own = options | {"socket_connect_timeout": connect_timeout_s}
    pool = sentinel_pool.master_pool(
        url.sentinels, url.service, make_sentinel, tls=url.tls, retry=_retry(RETRIES), **login, **own, **lasting
    )
    return Redis.from_pool(pool)


def client_of(host: str, port: int, *, timeout_s: float, **login: Any) -> Redis:
    """Make a client of one certain server or Sentinel that never tries twice.

    Args:
        host: Its name or address.
        port: Its port.
        timeout_s: Seconds for a connection and for an answer.
        login: User, password and TLS as redis-py takes them.
    """
    timeouts: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    return packing_in_c(Redis(host=host, port=port, retry=_retry(0), client_name="sheetanchor", **timeouts, **login))


def _read_password(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return {"password": path.read_text(encoding="utf-8").strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadSettings(f"redis_password_file: cannot read {path}: {error}") from error


def _tls_options(url: str, ca_file: Path | None) -> dict[str, Any]:
    if url.partition("://")[0] not in ("rediss", "sentinels"):
        if ca_file is None:
            return {}
        raise errors.BadSettings("redis_ca_file: expected none, since redis_url is not rediss:// or sentinels://")
    # Set explicitly: not every version of the client checks the host's name unless this is set.
    checked: dict[str, Any] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    if ca_file is None:
        return checked
    if not ca_file.is_file():
        raise errors.BadSettings(f"redis_ca_file: expected a readable file of certificates, not {str(ca_file)!r}")
    return checked | {"ssl_ca_certs": str(ca_file)}


async def check_connection(redis: Redis) -> None:
    """Make sure that Redis answers and is new enough.

    Raises:
        RedisUnavailable: If it does not answer just now.
        RedisRefused: If it wants another password, or lacks functions.
    """
    with translate_errors("PING"):
        await redis.ping()


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which data set a server holds; a change means that acknowledged writes may be gone.

    Attributes:
        replication_id: Changes when a replica is promoted and when a server starts empty.
        run_id: Changes whenever the server process starts.
    """

    replication_id: str
    run_id: str
    role: str

    def change_from(self, before: ServerIdentity) -> str:
        """Say what has changed, for a log."""
        if self.replication_id != before.replication_id:
            return "its replication id has changed: another server has become master, or this one has started empty"
        return "it has restarted, or has another role"


async def server_identity(redis: Redis) -> ServerIdentity:
    """Ask a server which data set it holds.

    Raises:
        RedisError: If it does not say.
    """
    with translate_errors("INFO"):
        replication = await redis.info("replication")
        server = await redis.info("server")
    return ServerIdentity(
        replication_id=str(replication.get("master_replid", "")),
        run_id=str(server.get("run_id", "")),
        role=str(replication.get("role", "")),
    )

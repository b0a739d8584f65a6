"""A server with TLS and a certificate of an authority of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServer
from sheetanchor.errors import BadSettings, RedisUnavailable
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import check_connection, redis_client

FOLDER = Path(__file__).parents[2] / "data" / "tls"
AUTHORITY = FOLDER / "ca.crt"


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def tls_port(redis_server: RedisServer) -> AsyncIterator[int]:
    """The port at which TLS ends before a real server, as it does before those of clouds."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(FOLDER / "server.crt", FOLDER / "server.key")
    pipes: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", redis_server.port)
        pipes.add(asyncio.create_task(_pipe(reader, to_server[1])))
        pipes.add(asyncio.create_task(_pipe(to_server[0], writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    yield int(server.sockets[0].getsockname()[1])
    server.close()
    for pipe in pipes:
        pipe.cancel()
    await asyncio.gather(*pipes, return_exceptions=True)


async def test_a_server_of_a_known_authority_is_reached(tls_port: int) -> None:
    """The setting `redis_ca_file` names the authority."""
    client = redis_client(f"rediss://localhost:{tls_port}/0", ca_file=AUTHORITY)

    await check_connection(client)
    assert (await HotState(client, "BTCUSDT").read()).incomplete

    await client.aclose()


@pytest.mark.parametrize(
    ("host", "authority"),
    [("localhost", None), ("127.0.0.1", AUTHORITY), ("localhost", FOLDER / "server.crt")],
    ids=["of an unknown authority", "of another name", "that is its own authority"],
)
async def test_a_server_that_cannot_be_known_is_not_trusted(tls_port: int, host: str, authority: Path | None) -> None:
    """Its certificate is of an unknown authority, or for another host."""
    client = redis_client(f"rediss://{host}:{tls_port}/0", ca_file=authority)

    with pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
        await check_connection(client)
    await client.aclose()


@pytest.mark.parametrize("query", ["ssl_cert_reqs=none", "ssl_check_hostname=False", "ssl_cert_reqs=none&db=0"])
async def test_no_url_switches_that_off(tls_port: int, query: str) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(BadSettings, match="expected no query"):
        redis_client(f"rediss://127.0.0.1:{tls_port}/0?{query}")


async def test_a_server_without_tls_is_told_as_that(redis_server: RedisServer) -> None:
    """Nothing is sent to it in clear."""
    client = redis_client(f"rediss://u:secret@localhost:{redis_server.port}/0", ca_file=AUTHORITY)

    with pytest.raises(RedisUnavailable) as error:
        await check_connection(client)
    await client.aclose()
    assert "secret" not in str(error.value)

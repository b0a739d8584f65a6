"""A replicated Redis as a cluster runs it: three servers and three Sentinels, each a process with its own folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis as sync_redis

from conftest import free_port_number, wait_until
from sheetanchor.runtime.settings import REDIS_USERS
from support.patience import PATIENCE_S, limit_s


class NodeRun:
    """`sheetanchor redis` for one server or one Sentinel; tests play the kubelet."""

    def __init__(self, members: RedisSet, index: int, *, sentinel: bool) -> None:
        self.members = members
        self.index = index
        self.sentinel = sentinel
        self.http_port = free_port_number()
        self.folder = members.folder / f"{'sentinel' if sentinel else 'server'}-{index}"
        self.folder.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, as a container would be."""
        command = [sys.executable, "-m", "sheetanchor", "redis", *(["--sentinel"] if self.sentinel else [])]
        command += [word for node in self.members.nodes for word in ("--nodes", node)]
        command += ["--node", self.members.nodes[self.index], "--bind", self.members.bind]
        command += ["--data-dir", str(self.folder), "--password-dir", str(self.members.password_dir)]
        command += ["--http-host", "127.0.0.1", "--http-port", str(self.http_port), *self.members.flags]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SHEETANCHOR_")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """End the process and its child at once, as a lost machine does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def terminate(self, within_s: float = 30) -> int:
        """Ask it to end and wait for that; gives the exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(limit_s(within_s))
        self.process = None
        return code

    def forget(self) -> None:
        """Lose what is on its disk, as a pod's folder is lost with the pod."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.name != "log":
                path.rmdir() if path.is_dir() else path.unlink()

    def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP server; status 0 when it is not there."""
        try:
            asked = urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=PATIENCE_S)
            with asked as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def ready(self) -> bool:
        """Whether a kubelet would send requests here."""
        return self.get("/health/ready")[0] == 200

    def log(self, lines: int = 30) -> str:
        """The end of what it has printed."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-lines:])


class RedisSet:
    """Three servers and three Sentinels on free ports of this machine.

    Args:
        folder: Where they write to.
        flags: Further flags of every node.
        bind: Where they listen; a proxy in front of them listens on localhost, and they on another address.
    """

    def __init__(self, folder: Path, *flags: str, bind: str = "127.0.0.1") -> None:
        self.folder = folder
        self.bind = bind
        self.flags = flags
        self.password_dir = folder / "passwords"
        self.password_dir.mkdir()
        # With characters that mean something in configuration files.
        self.passwords = {user: secrets.token_hex(12) + "\"'\\#" for user in REDIS_USERS}
        for user, password in self.passwords.items():
            (self.password_dir / user).write_text(password + "\n")
        self.nodes = [f"localhost:{free_port_number()}:{free_port_number()}" for _ in range(3)]
        self.servers = [NodeRun(self, index, sentinel=False) for index in range(3)]
        self.sentinels = [NodeRun(self, index, sentinel=True) for index in range(3)]

    @property
    def runs(self) -> list[NodeRun]:
        """All six."""
        return [*self.servers, *self.sentinels]

    def port(self, index: int) -> int:
        """Port of a server."""
        return int(self.nodes[index].split(":")[1])

    def sentinel_port(self, index: int) -> int:
        """Port of a Sentinel."""
        return int(self.nodes[index].split(":")[2])

    def login(self, user: str) -> dict[str, str]:
        """Give a user's name and password as redis-py takes them."""
        return {"username": user, "password": self.passwords[user]}

    def url(self, user: str) -> str:
        """Give the URL that a role uses."""
        hosts = ",".join(f"localhost:{self.sentinel_port(index)}" for index in range(3))
        return f"sentinel://{user}@{hosts}/sheetanchor"

    def password_file(self, user: str) -> Path:
        """Give the file with a user's password."""
        return self.password_dir / user

    def info(self, index: int) -> dict[str, Any]:
        """Ask a server how its replication stands; empty when it is not there."""
        timeouts: Any = {"socket_timeout": PATIENCE_S, "socket_connect_timeout": PATIENCE_S}
        client: Any = sync_redis.Redis(self.bind, self.port(index), **timeouts, **self.login("sentinel"))
        try:
            return dict(client.info())
        except sync_redis.RedisError:
            return {}
        finally:
            client.close()

    def keys(self, index: int) -> int:
        """Count the keys of a server."""
        return int(self.info(index).get("db0", {}).get("keys", 0))

    def masters(self) -> list[int]:
        """Name the servers that call themselves master."""
        return [index for index in range(3) if self.info(index).get("role") == "master"]

    def whole(self, master: int | None = None) -> bool:
        """Say whether there is one master with two replicas that follow it, and the Sentinels know one another."""
        masters = self.masters()
        if len(masters) != 1 or (master is not None and masters != [master]):
            return False
        if self.info(masters[0]).get("connected_slaves") != 2 or not all(run.ready for run in self.runs):
            return False
        bodies = [json.loads(run.get("/health")[1])["checks"]["sentinel"] for run in self.sentinels]
        return all(body["others"] == 2 and not body["master_down"] for body in bodies)

    def wait(self, condition: Any, within_s: float, what: str) -> None:
        """Wait for a condition; a failure shows the logs."""
        try:
            wait_until(condition, within_s=within_s, what=what)
        except AssertionError as error:
            logs = "\n\n".join(f"{run.folder.name}:\n{run.log()}" for run in self.runs)
            raise AssertionError(f"{error}\n{logs}") from None

    def start(self) -> None:
        """Start all six at once and wait until they form a set."""
        for run in self.runs:
            run.start()
        self.wait(self.whole, 40, "one master, two replicas, three Sentinels")

    def close(self) -> None:
        """End everything at once."""
        for run in self.runs:
            run.kill()


@contextlib.contextmanager
def redis_set(folder: Path, *flags: str) -> Iterator[RedisSet]:
    """Run a set until the block ends."""
    members = RedisSet(folder, *flags)
    try:
        members.start()
        yield members
    finally:
        members.close()

"""`sheetanchor local` as its user runs it: real processes, its own Redis and exchange, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_sync

from conftest import RedisServer, wait_until
from sheetanchor.contract import keys
from sheetanchor.local.redis_server import process_start
from support.patience import PATIENCE_S, limit_s
from support.pipeline import SHEETANCHOR, environment

pytestmark = pytest.mark.slow

SUMMARY_KEYS = [
    "slots",
    "predictions",
    "missed",
    "degraded",
    "gaps",
    "validations",
    "reanchors",
    "epoch",
    "latency_ms",
    "directional_accuracy",
    "baseline_accuracy",
    "decided",
]
ROLES = ["exchange", "infer/1", "infer/2", "ingest/a", "ingest/b", "process", "redis"]
BASES = [Path("/dev/shm"), Path("/tmp")]


class Local:
    """A running supervisor, what it prints, and the processes it has started."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.out, self.log = folder / "out", folder / "log"
        command = [*SHEETANCHOR, "local", "--http-port", "0", *flags]
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment(), stdout=out, stderr=log)
        self.pid = self.process.pid
        self.started = process_start(self.pid)
        self.family: set[psutil.Process] = set()

    def logged(self) -> list[dict[str, Any]]:
        """Log lines so far; a line that is being written is left out."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def lines(self) -> list[str]:
        """Lines on stdout."""
        return self.out.read_text().splitlines()

    def port(self) -> int:
        """Port of the status page; 0 while it is not known."""
        ports = [
            line["http_port"]
            for line in self.logged()
            if line.get("service") == "sheetanchor-local" and "http_port" in line
        ]
        return int(ports[0]) if ports else 0

    def status(self) -> dict[str, Any]:
        """What the status page draws."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}/api/status", timeout=PATIENCE_S) as answer:
            body: dict[str, Any] = json.loads(answer.read())
            return body

    def roles(self) -> dict[str, dict[str, Any]]:
        """Processes by name."""
        return {role["name"]: role for role in self.status()["roles"]}

    def wait(self, condition: Any, within_s: float, what: str) -> None:
        """Wait for a condition while the supervisor runs."""

        def looked_at() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log.read_text()[-3000:]}"
            with contextlib.suppress(psutil.Error):
                self.family |= set(psutil.Process(self.pid).children(recursive=True))
            return bool(condition())

        wait_until(looked_at, within_s=within_s, what=what)

    def wait_for_predictions(self, count: int, within_s: float = 60) -> None:
        """Wait until so many predictions are counted."""
        self.wait(self.port, 20, "the status page is up")
        self.wait(lambda: self.status()["summary"]["predictions"] >= count, within_s, f"{count} predictions")

    def wait_until_anchored(self, within_s: float = 40) -> None:
        """Wait until the state is anchored."""
        self.wait(lambda: self.status()["symbols"][0]["anchor"]["state"] == "anchored", within_s, "anchored")

    def end(self, number: signal.Signals = signal.SIGINT, within_s: float = 30) -> tuple[int, dict[str, Any]]:
        """Ask it to end; gives exit code and summary."""
        self.process.send_signal(number)
        return self.result(within_s)

    def result(self, within_s: float = 180) -> tuple[int, dict[str, Any]]:
        """Wait for its end; gives exit code and summary."""
        code = self.process.wait(limit_s(within_s))
        return code, json.loads(self.lines()[-1])

    def left(self) -> list[str]:
        """What it has left behind: processes and folders."""
        processes = [
            f"process {process.pid}" for process in self.family if process.is_running() and process.status() != "zombie"
        ]
        folders = [str(path) for base in BASES for path in base.glob(f"sheetanchor-{self.pid}-*")]
        return processes + folders

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def local(folder: Path, *flags: str) -> Iterator[Local]:
    """Run a supervisor until the block ends."""
    running = Local(folder, *flags)
    try:
        yield running
    finally:
        running.close()


def run(*flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a supervisor that is to end by itself soon."""
    command = [*SHEETANCHOR, "local", *flags]
    return subprocess.run(command, env=env or environment(), capture_output=True, text=True, timeout=120, check=False)


def test_runs_its_time_and_leaves_nothing(tmp_path: Path) -> None:
    """Twenty seconds are ten slots, none missed; the last line says so, and no process or folder remains."""
    with local(tmp_path, "--plain", "--for", "20") as running:
        running.wait_for_predictions(2)
        roles = running.roles()

        code, summary = running.result()

    assert (0, SUMMARY_KEYS) == (code, list(summary))
    assert (10, 10, 0, 0) == tuple(summary[name] for name in ("slots", "predictions", "missed", "gaps"))
    assert (1, 1, ["p50", "p99"]) == (summary["reanchors"], summary["epoch"], list(summary["latency_ms"]))
    assert ROLES == sorted(roles)
    assert [] == running.left()
    assert 11 == len(running.lines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_cleanly_when_asked(tmp_path: Path, number: signal.Signals) -> None:
    """Asked to end while anchored, it ends with 0, its summary last, and nothing left."""
    with local(tmp_path) as running:
        running.wait_for_predictions(2)
        running.wait_until_anchored()

        code, summary = running.end(number)

    assert (0, SUMMARY_KEYS) == (code, list(summary))
    assert [] == running.left()
    assert "Shutdown complete" in [line.get("message") for line in running.logged()]


def test_ends_cleanly_while_starting(tmp_path: Path) -> None:
    """Asked to end before anything is up, it still ends at once, cleanly, and says that nothing was anchored."""
    with local(tmp_path) as running:
        running.wait(running.port, 20, "the status page is up")

        code, summary = running.end()

    assert (1, 0) == (code, summary["slots"])
    assert [] == running.left()


def test_killed_roles_come_back_and_no_slot_is_missed(tmp_path: Path) -> None:
    """Each role is killed in turn: it is restarted, that is logged, and no slot is missed."""
    with local(tmp_path) as running:
        running.wait_for_predictions(2)
        running.wait_until_anchored()
        for name in ("infer/1", "ingest/a", "process", "infer/2", "ingest/b", "exchange"):
            before = running.roles()[name]
            os.kill(before["pid"], signal.SIGKILL)
            running.wait(
                lambda name=name, before=before: running.roles()[name]["pid"] not in (0, before["pid"]),
                10,
                f"{name} is back",
            )
            predictions = running.status()["summary"]["predictions"]
            running.wait_for_predictions(predictions + 2)
        running.wait_until_anchored()

        code, summary = running.end()

    deaths = [line["message"] for line in running.logged() if "is restarted" in line.get("message", "")]
    assert (0, 0) == (code, summary["missed"])
    assert 6 == len(deaths)
    assert [] == running.left()


def test_role_that_hangs_is_restarted(tmp_path: Path) -> None:
    """A processor that is there but does nothing any more is ended and started again; the state heals."""
    with local(tmp_path) as running:
        running.wait_for_predictions(2)
        running.wait_until_anchored()
        before = running.roles()["process"]
        os.kill(before["pid"], signal.SIGSTOP)

        running.wait(lambda: running.roles()["process"]["pid"] not in (0, before["pid"]), 40, "a new processor")
        predictions = running.status()["summary"]["predictions"]
        running.wait_for_predictions(predictions + 3)
        running.wait_until_anchored()
        code, summary = running.end()

    assert (0, 0) == (code, summary["missed"])
    assert [] == running.left()


def test_killed_redis_comes_back_and_the_state_is_rebuilt(tmp_path: Path) -> None:
    """The embedded server loses everything; it is restarted and the next rebuild heals the state."""
    with local(tmp_path) as running:
        running.wait_for_predictions(2)
        running.wait_until_anchored()
        reanchors = running.status()["summary"]["reanchors"]
        os.kill(running.roles()["redis"]["pid"], signal.SIGKILL)
        running.wait(lambda: running.roles()["redis"]["restarts"] == 1, 10, "redis is back")

        running.wait(lambda: running.status()["summary"]["reanchors"] > reanchors, 40, "a rebuild")
        running.wait_until_anchored()
        code, _ = running.end()

    assert 0 == code
    assert [] == running.left()


def test_killed_supervisor_leaves_no_process_and_its_folder_goes_at_the_next_start(tmp_path: Path) -> None:
    """The kernel ends the children of a supervisor that was killed; a folder is all that can remain, for a while."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with local(first) as running:
        running.wait_for_predictions(1)
        running.process.kill()
        running.process.wait()

        wait_until(lambda: not [left for left in running.left() if "process" in left], within_s=10, what="children end")
    assert 1 == len(running.left())

    with local(second) as following:
        following.wait(following.port, 20, "the status page is up")
        following.wait(lambda: running.left() == [], 10, "the old folder is gone")


class Exchange:
    """A simulated exchange that the pipeline does not start itself."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"127.0.0.1:{port}"
        with (folder / "exchange.log").open("wb") as log:
            command = [*SHEETANCHOR, "exchange", "--http-port", str(port), "--loop"]
            self.process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=log)
        wait_until(self.answers, within_s=20, what="the exchange answers")

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=1).close() is None
        return False

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--ws-url", f"ws://{self.url}", "--rest-url", f"http://{self.url}")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def test_other_peoples_redis_and_exchange_are_used_whatever_was_left(
    tmp_path: Path, redis_server: RedisServer, free_port: int
) -> None:
    """With frames, hot keys, lock and suspect state of an earlier market in Redis, it is anchored in a later epoch."""
    key = keys("BTCUSDT")
    redis = redis_sync.Redis.from_url(redis_server.url)
    redis.set(key.lock, "reanchor_BTCUSDT_1_dead", ex=300)
    old = {"epoch": 41, "term": 9, "writer": "dead:1", "beat_us": 1, "update_id": 10**14, "state": "suspect"}
    redis.hset(key.anchor, mapping={**old, "suspect_id": 10**14, "suspect_by": "9:41"})
    redis.hset(key.ob, mapping={"best_bid": "1", "update_id": 10**14, "epoch": 41})
    redis.set(key.book, b"not a book")
    redis.xadd("sbe:{BTCUSDT}:a", {"n": 1, "t": 1, "f": b"not a batch"})
    redis.sadd(key.lines, "a", "gone")
    redis.xadd(key.preds, {"slot": "1", "price_now": "1"})
    exchange = Exchange(tmp_path, free_port)
    try:
        with local(tmp_path, "--plain", "--for", "20", "--redis-url", redis_server.url, *exchange.flags) as running:
            running.wait_for_predictions(1)
            roles = running.roles()
            code, summary = running.result()
    finally:
        exchange.close()

    assert (0, 10, 0) == (code, summary["slots"], summary["missed"])
    assert summary["epoch"] >= 42
    assert [name for name in ROLES if name not in ("redis", "exchange")] == sorted(roles)
    assert [] == running.left()
    redis.close()


def test_end_without_an_anchor_is_a_failure(tmp_path: Path, free_port: int) -> None:
    """With an exchange that is not there the run ends with 1, and one line says why."""
    nobody = f"127.0.0.1:{free_port}"
    with local(tmp_path, "--for", "4", "--ws-url", f"ws://{nobody}", "--rest-url", f"http://{nobody}") as running:
        code, summary = running.result()

    assert (1, 0) == (code, summary["epoch"])
    assert "sheetanchor local: the final state is not anchored" in running.log.read_text().splitlines()[-1]
    assert [] == running.left()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--for", "soon"), "for"),
        (("--speed", "0"), "speed"),
        (("--symbol", "btcusdt"), "symbol"),
        (("--ws-url", "ws://127.0.0.1:1"), "rest_url"),
        (("--redis-url", "127.0.0.1:6379"), "redis_url"),
        (("--config", "/nonexistent.yaml"), "/nonexistent.yaml"),
        (("--fault", "earthquake", "--http-port", "0"), "earthquake"),
        (("--recording", "/nonexistent.gz", "--http-port", "0"), "/nonexistent.gz"),
    ],
)
def test_bad_settings_end_with_two_and_one_line(flags: tuple[str, ...], named: str) -> None:
    """One clear line names what is wrong, also where only a child can find out."""
    ended = run(*flags)

    reported = [line for line in ended.stderr.splitlines() if line.startswith("sheetanchor local:")]
    assert (2, 1) == (ended.returncode, len(reported))
    assert named in reported[0]
    assert "" == ended.stdout


def test_live_without_a_key_is_refused() -> None:
    """The real exchange needs a key; nothing is started without one."""
    env = {name: value for name, value in environment().items() if name != "BINANCE_API_KEY"}

    ended = run("--live", env=env)

    assert (2, True) == (ended.returncode, "BINANCE_API_KEY" in ended.stderr)


def test_taken_port_is_named(free_port: int) -> None:
    """If another program has the status page's port, the message names the flag to use."""
    with socket.create_server(("127.0.0.1", free_port)):
        ended = run("--http-port", str(free_port))

    assert (2, "") == (ended.returncode, ended.stdout)
    assert {True} == {part in ended.stderr for part in ("--http-port", str(free_port))}


def test_wrong_password_is_a_bad_setting(redis_server: RedisServer) -> None:
    """A Redis that refuses us ends the run with 2, and the password is not printed."""
    redis = redis_sync.Redis.from_url(redis_server.url)
    redis.config_set("requirepass", "right")

    ended = run("--http-port", "0", "--redis-url", redis_server.url.replace("//", "//:hunter2@"))

    assert (2, False) == (ended.returncode, "hunter2" in ended.stderr)
    redis.close()


def test_absent_redis_is_reported(free_port: int) -> None:
    """A Redis that does not answer ends the run with 1 and one line."""
    ended = run("--http-port", "0", "--redis-url", f"redis://127.0.0.1:{free_port}/0")

    assert 1 == ended.returncode
    assert str(free_port) in ended.stderr.splitlines()[-1]

"""A whole pipeline as its user runs it: real processes, a real Redis server, the local exchange over real sockets.

The exchange and Redis are started apart from the supervisor, so that a test can script faults and look at the hot state
while everything runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from conftest import RedisServer, free_port_number, wait_until
from sheetanchor.contract import Gap, Keys, Receipt, keys
from support.patience import PATIENCE_S, limit_s

SHEETANCHOR = [sys.executable, "-m", "sheetanchor"]


def request(
    url: str, body: dict[str, Any] | None = None, method: str | None = None, within_s: float = PATIENCE_S
) -> Any:
    """Ask a server for JSON; with a body it is a POST unless the method says otherwise."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(asked, timeout=within_s) as answer:
        return json.loads(answer.read())


def environment() -> dict[str, str]:
    """The environment of a user without any setting of ours, but with an API key."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHEETANCHOR_")}
    return {**clean, "BINANCE_API_KEY": "test-key"}


def answers(url: str) -> bool:
    """Say whether a server answers at all."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Ended:
    """What a supervisor left: its exit code, its JSON summary and its log."""

    code: int
    summary: dict[str, Any]
    log: str


class Pipeline:
    """A running `sheetanchor local` with the exchange and the Redis server it uses."""

    def __init__(self, folder: Path, exchange_flags: tuple[str, ...] = (), local_flags: tuple[str, ...] = ()) -> None:
        self.folder = folder
        (folder / "redis").mkdir()
        self.server = RedisServer(folder / "redis").start()
        self.redis: redis.Redis[bytes] = redis.Redis.from_url(self.server.url, decode_responses=False)
        self.keys: Keys = keys("BTCUSDT")
        port = free_port_number()
        self.exchange_url = f"http://127.0.0.1:{port}"
        self.exchange_log = (folder / "exchange.log").open("wb")
        self.exchange = subprocess.Popen(
            [*SHEETANCHOR, "exchange", "--http-port", str(port), "--loop", *exchange_flags],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=self.exchange_log,
        )
        self.page_port = free_port_number()
        self.out = (folder / "local.out").open("wb")
        self.log = (folder / "local.log").open("wb")
        command = [*SHEETANCHOR, "local", "--plain", "--http-port", str(self.page_port), "--redis-url", self.server.url]
        command += ["--ws-url", f"ws://127.0.0.1:{port}", "--rest-url", self.exchange_url, *local_flags]
        self.local = subprocess.Popen(command, env=environment(), stdout=self.out, stderr=self.log)

    # What is going on

    def anchor(self) -> dict[str, str]:
        """Read the anchor; empty before the first one."""
        return {k.decode(): v.decode() for k, v in self.redis.hgetall(self.keys.anchor).items()}

    @property
    def epoch(self) -> int:
        """The epoch of the hot state."""
        return int(self.anchor().get("epoch", "0"))

    @property
    def anchored(self) -> bool:
        """Whether the hot state is anchored."""
        return self.anchor().get("state") == "anchored"

    def entries(self, stream: str, after: str = "-") -> list[tuple[str, dict[str, str]]]:
        """Read a stream after an id."""
        start = after if after == "-" else f"({after}"
        return [
            (entry_id.decode(), {k.decode(): v.decode() for k, v in fields.items()})
            for entry_id, fields in self.redis.xrange(stream, min=start)
        ]

    def last_id(self, stream: str) -> str:
        """Id of the newest entry of a stream, or the beginning of time."""
        newest = self.redis.xrevrange(stream, count=1)
        return newest[0][0].decode() if newest else "0-0"

    def gaps(self, after: str = "-") -> list[Gap]:
        """Gap events after an id."""
        return [Gap.parse(fields) for _, fields in self.entries(self.keys.gaps, after)]

    def receipts(self, after: str = "-") -> list[Receipt]:
        """Receipts after an id."""
        return [Receipt.from_json(fields["receipt"]) for _, fields in self.entries(self.keys.receipts, after)]

    def predictions(self, after: str = "-") -> list[dict[str, str]]:
        """Committed predictions after an id."""
        return [fields for _, fields in self.entries(self.keys.preds, after)]

    def fault(self, **spec: Any) -> Any:
        """Script a fault at the exchange from now on."""
        return request(self.exchange_url + "/faults", spec)

    def end_fault(self, fault_id: int) -> None:
        """Take down a fault that has not ended yet."""
        request(f"{self.exchange_url}/faults/{fault_id}", method="DELETE")

    def wait(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        """Wait for a condition; fail early when the supervisor has ended."""

        def looked_at() -> bool:
            assert self.local.poll() is None, f"the supervisor ended with {self.local.returncode}: {self.tail()}"
            return condition()

        try:
            wait_until(looked_at, within_s=within_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\nanchor {self.anchor()}\ngaps {self.gaps()[-5:]}\n{self.tail()}") from None

    def tail(self, lines: int = 25) -> str:
        """The end of the supervisor's log."""
        return "\n".join((self.folder / "local.log").read_text(errors="replace").splitlines()[-lines:])

    # Its end

    def stop(self, within_s: float = 30) -> Ended:
        """Ask the supervisor to end and wait for it."""
        if self.local.poll() is None:
            self.local.send_signal(signal.SIGINT)
        code = self.local.wait(limit_s(within_s))
        lines = (self.folder / "local.out").read_text(errors="replace").strip().splitlines()
        return Ended(code, json.loads(lines[-1]) if lines else {}, (self.folder / "local.log").read_text())

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for process in (self.local, self.exchange):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.redis.close()
        self.server.stop()
        for stream in (self.out, self.log, self.exchange_log):
            stream.close()


@contextlib.contextmanager
def pipeline(exchange_flags: tuple[str, ...] = (), local_flags: tuple[str, ...] = ()) -> Iterator[Pipeline]:
    """Run a pipeline until the block ends; it is anchored and predicting when the block begins."""
    with tempfile.TemporaryDirectory(prefix="sheetanchor-test-") as folder:
        running = Pipeline(Path(folder), exchange_flags, local_flags)
        try:
            running.wait(lambda: running.exchange.poll() is None, 1, "the exchange has not ended at once")
            running.wait(lambda: running.anchored, 60, "the first anchor")
            running.wait(lambda: bool(running.predictions()), 20, "the first prediction")
            yield running
        finally:
            running.close()


def missing_slots(predictions: list[dict[str, str]]) -> list[int]:
    """Name the slots between the first and the last prediction that have none."""
    slots = {int(prediction["slot"]) for prediction in predictions}
    return sorted(set(range(min(slots), max(slots) + 1)) - slots) if slots else []


def quiet_until(running: Pipeline, seconds: float) -> None:
    """Let a pipeline run on for a while; it must stay up."""
    deadline = time.monotonic() + seconds
    running.wait(lambda: time.monotonic() >= deadline, seconds + 5, "time passes")

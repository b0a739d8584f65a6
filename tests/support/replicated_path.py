"""The whole hot path on a replicated Redis: exchange, two lines, a processor and two replicas of inference."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import free_port_number, server_binary, wait_until
from support.pipeline import SHEETANCHOR, answers, environment, request
from support.prober import starved_s
from support.redis_set_parts import RedisSet, redis_set

SYMBOL = "BTCUSDT"


class HotPath:
    """Exchange, two lines, a processor and two replicas as processes of this machine."""

    def __init__(self, folder: Path, members: RedisSet) -> None:
        self.folder = folder
        self.members = members
        self.processes: list[subprocess.Popen[bytes]] = []
        self.replicas = [free_port_number() for _ in range(2)]
        self.records: dict[int, dict[str, Any]] = {}

    def start(self) -> None:
        """Start everything and wait for the first sound prediction."""
        port = free_port_number()
        origin = f"127.0.0.1:{port}"
        self.role("exchange", "exchange", port, "--loop")
        wait_until(lambda: answers(f"http://{origin}/api/v3/time"), within_s=30, what="the exchange answers")
        for line in "ab":
            self.role(f"ingest-{line}", "ingest", 0, "--line", line, "--ws-url", f"ws://{origin}")
        self.role("process", "process", 0, "--rest-url", f"http://{origin}", "--self-reanchor-after-s", "1")
        for number, replica in enumerate(self.replicas):
            self.role(f"infer-{number}", "infer", replica)
        self.sound_for(2, "the first predictions")

    def role(self, name: str, role: str, port: int, *flags: str) -> None:
        """Start a role; port 0 is a free one."""
        command = [*SHEETANCHOR, role, "--http-host", "127.0.0.1", "--http-port", str(port), *flags]
        if role != "exchange":
            command += ["--redis-url", self.members.url(role)]
            command += ["--redis-password-file", str(self.members.password_file(role))]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(subprocess.Popen(command, env=environment(), stdout=log, stderr=log))

    def look(self) -> None:
        """Read over HTTP what the replicas predicted recently; a committed record wins."""
        for port in self.replicas:
            if answers(f"http://127.0.0.1:{port}/predictions/{SYMBOL}"):
                for record in request(f"http://127.0.0.1:{port}/predictions/{SYMBOL}?limit=20")["predictions"]:
                    if record["slot"] not in self.records or record["committed"]:
                        self.records[record["slot"]] = record

    def port_of(self, name: str) -> int:
        """Give the port that a role listens on, as its log says."""
        found = [json.loads(line) for line in (self.folder / f"{name}.log").read_text().splitlines() if line[:1] == "{"]
        return next(int(line["http_port"]) for line in found if "http_port" in line)

    def is_sound(self, slot: int) -> bool:
        """Say whether a slot was seen committed, and not degraded."""
        record = self.records.get(slot)
        return record is not None and record["committed"] and not record["degraded"]

    @property
    def last_slot(self) -> int:
        """Newest slot that was seen."""
        return max(self.records, default=0)

    def sound_for(self, slots: int, what: str, after: int = 0) -> None:
        """Wait until so many slots in a row are committed and not degraded."""

        def sound() -> bool:
            self.look()
            good = all(self.is_sound(self.last_slot - back) for back in range(slots))
            return good and self.last_slot - slots >= after

        self.members.wait(sound, 60, f"{what}; {list(self.records.values())[-3:]}")

    def starved_s(self) -> list[float]:
        """Give for how long each role has waited for a processor."""
        return [starved_s(str(process.pid)) for process in self.processes]

    def close(self) -> None:
        """End everything."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def hot_path(folder: Path, *options: str) -> Iterator[HotPath]:
    """Run a hot path on a replicated Redis of this machine; the options are those of its nodes."""
    with redis_set(folder, "--server", server_binary(), *options) as members:
        running = HotPath(folder, members)
        try:
            running.start()
            yield running
        finally:
            running.close()

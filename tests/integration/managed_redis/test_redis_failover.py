"""The whole hot path on a replicated Redis, each role as its own user: no slot is missed when the master goes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import free_port_number, server_binary, wait_until
from sheetanchor.contract import keys
from sheetanchor.store.redis_client import redis_client
from support.pipeline import SHEETANCHOR, answers, environment, request
from support.redis_set_parts import RedisSet, redis_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SYMBOL = "BTCUSDT"
PREDS = keys(SYMBOL).preds


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
        self._role("exchange", "exchange", port, "--loop")
        wait_until(lambda: answers(f"http://{origin}/api/v3/time"), within_s=30, what="the exchange answers")
        for line in "ab":
            self._role(f"ingest-{line}", "ingest", 0, "--line", line, "--ws-url", f"ws://{origin}")
        self._role("process", "process", 0, "--rest-url", f"http://{origin}", "--self-reanchor-after-s", "1")
        for number, replica in enumerate(self.replicas):
            self._role(f"infer-{number}", "infer", replica)
        self.sound_for(2, "the first predictions")

    def _role(self, name: str, role: str, port: int, *flags: str) -> None:
        command = [*SHEETANCHOR, role, "--http-host", "127.0.0.1", "--http-port", str(port), *flags]
        if role != "exchange":
            command += ["--redis-url", self.members.url(role)]
            command += ["--redis-password-file", str(self.members.password_file(role))]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(subprocess.Popen(command, env=environment(), stdout=log, stderr=log))

    def look(self) -> None:
        """Read over HTTP what the replicas predicted lately; a committed record wins."""
        for port in self.replicas:
            if answers(f"http://127.0.0.1:{port}/predictions/{SYMBOL}"):
                for record in request(f"http://127.0.0.1:{port}/predictions/{SYMBOL}?limit=20")["predictions"]:
                    if record["slot"] not in self.records or record["committed"]:
                        self.records[record["slot"]] = record

    @property
    def last_slot(self) -> int:
        """Newest slot that was seen."""
        return max(self.records, default=0)

    def sound_for(self, slots: int, what: str, after: int = 0) -> None:
        """Wait until so many slots in a row are committed and not degraded."""

        def sound() -> bool:
            self.look()
            latest = [self.records.get(self.last_slot - back) for back in range(slots)]
            good = all(record and record["committed"] and not record["degraded"] for record in latest)
            return good and self.last_slot - slots >= after

        self.members.wait(sound, 60, f"{what}; {list(self.records.values())[-3:]}")

    def close(self) -> None:
        """End everything."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def missing(slots: list[int]) -> list[int]:
    """Name the slots that are missing between the first and the last."""
    return sorted(set(range(min(slots), max(slots) + 1)) - set(slots))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[HotPath]:
    """A running hot path on a replicated Redis."""
    with redis_set(tmp_path, "--server", server_binary()) as members:
        running = HotPath(tmp_path, members)
        try:
            running.start()
            yield running
        finally:
            running.close()


async def test_no_slot_is_missed_when_the_master_goes(path: HotPath) -> None:
    """Asked to end, it hands over and every slot is committed; killed, every slot is answered over HTTP meanwhile."""
    members = path.members
    [first] = members.masters()
    began = path.last_slot

    members.servers[first].terminate()
    handed_over = path.last_slot
    path.sound_for(2, "sound predictions after the hand-over", after=handed_over + 1)
    uncommitted = [slot for slot, record in path.records.items() if slot > began and not record["committed"]]
    assert ([], []) == (missing(list(path.records)), uncommitted)

    members.servers[first].start()
    members.wait(members.whole, 40, "the set is whole again")
    [second] = members.masters()
    path.look()
    killed = path.last_slot
    members.servers[second].kill()
    path.sound_for(2, "sound predictions after the loss", after=killed + 2)

    assert second != first
    assert [] == missing(list(path.records))
    away = [record for slot, record in path.records.items() if slot > killed and not record["committed"]]
    assert all(record["degraded"] and record["reason"].startswith("redis: ") for record in away)
    client = redis_client(members.url("infer"), members.password_file("infer"))
    committed = [int(fields[b"slot"]) for _, fields in await client.xrange(PREDS)]
    await client.aclose()
    assert set(missing(committed)) <= {record["slot"] for record in away}

"""How long tests wait for what has to happen, and where they listen: whatever the machine and its other work."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 90.0
"""The least time that anything gets to happen: how long it takes says how busy the machine is."""

PATIENT: Final = {"socket_timeout_s": PATIENCE_S, "connect_timeout_s": PATIENCE_S}
"""For a test's own client of Redis: one that gives a slow answer up asks again, and what it asked for is done twice."""

TURN_S: Final = 0.02

FIRST_PORT: Final = 10_000


def limit_s(within_s: float) -> float:
    """Give the time to wait for a condition that an idle machine fulfils within a time."""
    return max(within_s, PATIENCE_S)


def patience() -> asyncio.Timeout:
    """Make a block fail that does not end at all."""
    return asyncio.timeout(PATIENCE_S)


@asynccontextmanager
async def awake_timeout(seconds: float | None) -> AsyncIterator[None]:
    """Do as `asyncio.timeout`, but count turns of the event loop: time for which this process stood still is none."""
    async with asyncio.timeout(None) as limit:

        async def count() -> None:
            for _ in range(round((seconds or 0) / TURN_S)):
                await asyncio.sleep(TURN_S)
            limit.reschedule(asyncio.get_running_loop().time())

        counting = asyncio.create_task(count()) if seconds is not None else None
        try:
            yield
        finally:
            if counting is not None:
                counting.cancel()


def _ports() -> Iterator[int]:
    """Give ports that no other worker of this run gives, and that no connection is given by the kernel.

    If a test lets the kernel choose a free port, closes it and has a program listen on it later, another process may
    have it by then; the kernel chooses from a range that begins above these.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (int(ephemeral[0]) - FIRST_PORT) // workers
    first = FIRST_PORT + worker * share
    # Another run on this machine begins elsewhere.
    at = random.SystemRandom().randrange(share)
    while True:
        yield first + at
        at = (at + 1) % share


_given = _ports()


def free_port_number() -> int:
    """Give a port that is not listened on, and that no other process is given before it is used."""
    for port in _given:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the ports go round")

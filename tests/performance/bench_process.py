"""Measure how long a frame takes to the hot keys: at the recorded rate, at 5,000 messages a second, and in bursts.

A real server and a real `sheetanchor process` on this machine. Frames of the shipped recording are appended as an
ingestor does it: at once when idle, else every five milliseconds. A frame's time runs from when it would have been
received until a reader that looks every millisecond finds its update in the hot keys. Prints a table.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import RedisServer
from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import pack_frames
from sheetanchor.recording import recording_file
from sheetanchor.store.frame_streams import LineWriter
from sheetanchor.store.redis_client import redis_client
from support.process_parts import KEYS, SYMBOL, Stage

FLUSH_S = 0.005
LOOK_S = 0.001
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """Frames and when each of them is received, in seconds from the start."""

    name: str
    frames: list[bytes]
    times_s: list[float]

    def batches(self) -> Iterator[tuple[float, int, int]]:
        """Give `(time to append, first frame, one past the last)` per batch: at once when idle."""
        at, free_s = 0, 0.0
        while at < len(self.frames):
            due_s = max(self.times_s[at], free_s)
            end = bisect_right(self.times_s, due_s, at)
            yield due_s, at, end
            at, free_s = end, due_s + FLUSH_S


def loads(recorded: recording_file.Recording) -> list[Load]:
    """The recording at its own pace, at 5,000 messages a second, and in bursts."""
    frames = [frame for _, frame in recorded.events]
    start_us = recorded.events[0][0]
    own_pace = [(at_us - start_us) / 1e6 for at_us, _ in recorded.events]
    count = bisect_left(own_pace, SECONDS)
    quick = [at / 5_000 for at in range(len(frames))]
    return [
        Load("recorded rate", frames[:count], own_pace[:count]),
        Load("5,000 messages/s", frames, quick),
        Load("11,000 messages/s for 100 ms of every second, 500 otherwise", frames[:16_000], bursts(16_000)),
    ]


def bursts(count: int) -> list[float]:
    """Give the times of messages that come 1,100 at once and 450 in the rest of each second."""
    second = [at / 11_000 for at in range(1_100)] + [0.1 + at / 500 for at in range(450)]
    return [at // len(second) + second[at % len(second)] for at in range(count)]


async def append(load: Load, stage: Stage, start_s: float) -> None:
    """Append every batch to both lines in its time."""
    writers = [LineWriter(stage.redis, SYMBOL, line) for line in "ab"]
    epoch_us = time.time_ns() // 1_000 - round((time.monotonic() - start_s) * 1e6)
    for flush_s, first, end in load.batches():
        await asyncio.sleep(start_s + flush_s - time.monotonic())
        batch = [(epoch_us + round(load.times_s[at] * 1e6), load.frames[at]) for at in range(first, end)]
        packed = pack_frames(batch)
        for writer in writers:
            await writer.append_packed(len(batch), batch[0][0], packed)


async def watch(stage: Stage, seen: list[tuple[float, int]]) -> None:
    """Note when which update is in the hot keys."""
    while True:
        update_id = int(await stage.redis.hget(KEYS.ob, "update_id") or 0)
        if not seen or update_id != seen[-1][1]:
            seen.append((time.monotonic(), update_id))
        await asyncio.sleep(LOOK_S)


def delays_ms(load: Load, start_s: float, seen: list[tuple[float, int]]) -> list[float]:
    """Give the time of every diff to the hot keys, sorted."""
    ids = [update_id for _, update_id in seen]
    delays = []
    for at_s, frame in zip(load.times_s, load.frames, strict=True):
        message = sbe.decode(frame)
        if isinstance(message, sbe.DepthDiff):
            found = bisect_left(ids, message.last_update_id)
            delays.append((seen[found][0] - start_s - at_s) * 1e3)
    return sorted(delays)


def cpu_s(pid: int) -> float:
    """Give the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(load: Load, first: sbe.DepthSnapshot, folder: Path) -> str:
    """Run one load on a server of its own and give its row."""
    server = RedisServer(folder).start()
    client = redis_client(server.url)
    stage = Stage(client, server.url, folder)
    try:
        market = Market(SYMBOL)
        sides = (list(first.bids), list(first.asks))
        market.load_snapshot(first.book_update_id, first.price_exponent, first.qty_exponent, *sides, 0)
        await stage.rebuild(market)
        processor = stage.start()
        await stage.has_writer()
        seen: list[tuple[float, int]] = []
        watcher = asyncio.create_task(watch(stage, seen))
        assert server.process is not None
        pids = (processor.process.pid, server.process.pid)
        start_s, before_s = time.monotonic(), [cpu_s(pid) for pid in pids]
        await append(load, stage, start_s)
        took_s = time.monotonic() - start_s
        shares = [(cpu_s(pid) - before) / took_s for pid, before in zip(pids, before_s, strict=True)]
        last = max(m.last_update_id for m in map(sbe.decode, load.frames) if isinstance(m, sbe.DepthDiff))
        await stage.holds(last)
        await asyncio.sleep(0.1)
        watcher.cancel()
        gaps = len(await stage.gaps())
        times = delays_ms(load, start_s, seen)
    finally:
        stage.end()
        await client.aclose()
        server.stop()
    p50, p95, p99 = (times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.95, 0.99))
    row = f"| {load.name} | {len(load.frames):,} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {times[-1]:.1f} "
    return row + f"| {shares[0]:.0%} | {shares[1]:.0%} | {gaps} |"


async def main() -> None:
    """Print one row per load."""
    recorded = recording_file.load(recording_file.default_path())
    print("| load, on each of two lines | frames | p50 ms | p95 ms | p99 ms | max ms | processor | server | gaps |")
    print("|---|---|---|---|---|---|---|---|---|")
    for load in loads(recorded):
        with tempfile.TemporaryDirectory() as folder:
            print(await measure(load, recorded.snapshot, Path(folder)), flush=True)


if __name__ == "__main__":
    uvloop.run(main())

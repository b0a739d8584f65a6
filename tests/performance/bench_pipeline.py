"""Run the whole pipeline on the shipped recording, at its own pace and under load, and say what it did.

The packed book in Redis is compared with the exchange's own book every few seconds, level by level, under load too; a
run in which none could be compared is not sound. Under load the exchange sends 5,000 messages a second on each line,
with bursts of 11,000 a second for 100 ms.
Prints a table; exits with 1 if something was lost or unsound, never because of a speed.

    python tests/performance/bench_pipeline.py [--seconds 300] [--load-seconds 60]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from sheetanchor._decoder import Market
from sheetanchor.contract import line_stream
from sheetanchor.local.dashboard.exposition import histograms, parse
from sheetanchor.recording.recording_file import mantissa
from support.pipeline import Pipeline, pipeline, request

FRAME_TO_HOT = "sheetanchor_frame_to_hot_seconds"
LOOK_S = 5.0
REPLAY_MS = 5_000


@dataclass
class Seen:
    """What was seen while a pipeline ran."""

    books_compared: int = 0
    books_different: int = 0
    memory_mb: list[float] = field(default_factory=list)
    cpu_s: float = 0.0


def levels_of(checkpoint: dict[str, Any], side: str) -> list[tuple[int, int]]:
    """The exchange's levels as mantissas."""
    return [(mantissa(price), mantissa(qty)) for price, qty in checkpoint[side]]


def compare_books(running: Pipeline, seen: Seen) -> None:
    """Take the exchange's book, bring it to where the stored one stands, and compare."""
    checkpoint = request(f"{running.exchange_url}/checkpoint?symbol=BTCUSDT")
    reference = Market("BTCUSDT")
    at = int(checkpoint["update_id"])
    reference.load_snapshot(at, -8, -8, levels_of(checkpoint, "bids"), levels_of(checkpoint, "asks"), 0)
    stored = Market("BTCUSDT")

    def is_past() -> bool:
        stored.load_book(running.redis.get(running.keys.book))
        return stored.update_id > at

    running.wait(is_past, 10, f"the stored book has passed {at}")
    seconds, _ = running.redis.time()
    for line in (0, 1):
        stream = line_stream("BTCUSDT", "ab"[line])
        for _, entry in running.redis.xrange(stream, min=seconds * 1000 - REPLAY_MS):
            reference.feed(line, entry[b"f"], 0, stored.update_id)
            if reference.update_id == stored.update_id:
                break
    seen.books_compared += 1
    seen.books_different += reference.update_id != stored.update_id or reference.levels() != stored.levels()


def processes(running: Pipeline) -> list[psutil.Process]:
    """The supervisor and all its children."""
    supervisor = psutil.Process(running.local.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def watch(running: Pipeline, seconds: float) -> Seen:
    """Observe for a while."""
    seen = Seen()
    begun = {one.pid: sum(one.cpu_times()[:2]) for one in processes(running)}
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        seen.memory_mb.append(sum(one.memory_info().rss for one in processes(running)) / 2**20)
        compare_books(running, seen)
        time.sleep(max(0.0, min(LOOK_S, left_s)))
    seen.cpu_s = sum(sum(one.cpu_times()[:2]) - begun.get(one.pid, 0.0) for one in processes(running))
    return seen


def scrape(running: Pipeline) -> dict[str, Any]:
    """Give the metrics pages of all roles, by name."""
    status = request(f"http://127.0.0.1:{running.page_port}/api/status")
    pages = {}
    for role in status["roles"]:
        if role["port"]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{role['port']}/metrics", timeout=5) as answer:
                    pages[role["name"]] = answer.read().decode()
            except OSError:
                continue  # the exchange has no metrics page
    return pages


def quantile(buckets: dict[float, float], share: float) -> float:
    """Give a quantile of a histogram in seconds, linear within its bucket."""
    total = buckets[float("inf")]
    below_bound, below_count = 0.0, 0.0
    for bound in sorted(buckets):
        if buckets[bound] >= share * total:
            if bound == float("inf"):
                return below_bound
            inside = max(buckets[bound] - below_count, 1e-9)
            return below_bound + (bound - below_bound) * (share * total - below_count) / inside
        below_bound, below_count = bound, buckets[bound]
    return below_bound


def shed(pages: dict[str, Any]) -> float:
    """Frames that any ingestor has dropped."""
    return sum(
        float(line.rpartition(" ")[2])
        for page in pages.values()
        for line in page.splitlines()
        if line.startswith("ingestor_frames_shed_total")
    )


def measure(name: str, seconds: float, exchange_flags: tuple[str, ...]) -> tuple[str, bool]:
    """Run one pipeline.

    Returns:
        A row of the table, and whether nothing was lost or unsound.
    """
    with pipeline(exchange_flags) as running:
        seen = watch(running, seconds)
        pages = scrape(running)
        ended = running.stop()
    hot = histograms(parse("\n".join(pages.values())))[FRAME_TO_HOT]
    frames = sum(
        float(line.rpartition(" ")[2])
        for page in pages.values()
        for line in page.splitlines()
        if line.startswith("sheetanchor_processor_frames_total")
    )
    summary = ended.summary
    latency = summary["latency_ms"]
    sound = (
        ended.code == 0
        and summary["missed"] == summary["gaps"] == summary["degraded"] == seen.books_different == 0
        and shed(pages) == 0
        and seen.books_compared > 0
    )
    half = len(seen.memory_mb) // 2
    row = (
        f"| {name} | {summary['slots']} | {summary['missed']} | {summary['gaps']} | {summary['validations']} | "
        f"{seen.books_compared - seen.books_different}/{seen.books_compared} | {frames / seconds:,.0f} | "
        f"{latency['p50']:.1f} | {latency['p99']:.1f} | {1000 * quantile(hot, 0.5):.1f} | "
        f"{1000 * quantile(hot, 0.95):.1f} | {seen.cpu_s / seconds:.2f} | "
        f"{seen.memory_mb[half]:.0f} → {seen.memory_mb[-1]:.0f} |"
    )
    print(json.dumps(summary), file=sys.stderr)
    return row, sound


def main() -> int:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--load-seconds", type=float, default=60.0)
    wanted = parser.parse_args()
    rows = [
        measure("recorded pace", wanted.seconds, ()),
        measure(
            "5,000 msg/s, bursts of 11,000",
            wanted.load_seconds,
            ("--rate", "5000", "--burst", "11000:100:5"),
        ),
    ]
    print(
        f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; everything on this machine\n"
    )
    print(
        "| load | slots | missed | gaps | validations | books equal | frames/s processed | latency p50 ms | p99 ms | "
        "frame to hot key p50 ms | p95 ms | cores | memory MiB half-way → end |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row, _ in rows:
        print(row)
    return 0 if all(sound for _, sound in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Measure re-anchors from start to receipt and print them as Markdown tables.

A local exchange serves the shipped recording at its own pace, one line is fed from it, and a processor keeps the hot
state live, so that every run has to fetch, catch up and swap under a writer. The command is measured as a user starts
it, interpreter included, and its phases are taken from the receipts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import RedisServer
from sheetanchor.store.redis_client import redis_client
from support.reanchor_parts import PHASES, SHEETANCHOR, ExchangeProcess, exchange_process, fed_line

RUNS = 30
DEPTHS = (100, 1000, 5000)


def percentile(values: list[float], share: float) -> float:
    """Give a percentile by the nearest rank."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def run_once(server: RedisServer, exchange: ExchangeProcess, depth: int) -> tuple[float, dict[str, Any]]:
    """Run the command and give its wall time in seconds and its receipt."""
    flags = ["--redis-url", server.url, "--rest-url", exchange.rest_url, "--depth-limit", str(depth)]
    started_s = time.perf_counter()
    done = subprocess.run(
        [*SHEETANCHOR, "reanchor", *flags, "--log-level", "error"], capture_output=True, check=True, timeout=60
    )
    return time.perf_counter() - started_s, json.loads(done.stdout)


async def measure(runs: int) -> None:
    """Run everything and print the tables."""
    with tempfile.TemporaryDirectory() as folder, exchange_process("--weight-limit", "100000000") as exchange:
        server = RedisServer(Path(folder)).start()
        client = redis_client(server.url)
        flags = ["--redis-url", server.url, "--rest-url", exchange.rest_url, "--http-host", "127.0.0.1"]
        process = await asyncio.create_subprocess_exec(
            *SHEETANCHOR, "process", *flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            async with fed_line(client, exchange.ws_url):
                await asyncio.sleep(6)
                results = {
                    depth: [await asyncio.to_thread(run_once, server, exchange, depth) for _ in range(runs)]
                    for depth in DEPTHS
                }
        finally:
            process.terminate()
            await process.wait()
            await client.aclose()
            server.stop()
    tell(results, runs)


def tell(results: dict[int, list[tuple[float, dict[str, Any]]]], runs: int) -> None:
    """Print what was measured."""
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {runs} runs for each depth, all on one machine\n"
    )
    print("| levels asked for | swapped | run p50 s | run p95 s | command p50 s | command p95 s |")
    print("|---:|---:|---:|---:|---:|---:|")
    for depth, measured in results.items():
        inside = [sum(receipt["phases"].values()) for _, receipt in measured]
        outside = [wall_s for wall_s, _ in measured]
        swapped = sum(receipt["result"] == "swapped" for _, receipt in measured)
        times = (percentile(values, share) for values in (inside, outside) for share in (0.5, 0.95))
        print(f"| {depth} | {swapped} of {runs} | " + " | ".join(f"{value:.3f}" for value in times) + " |")
    print("\n| phase | median ms |")
    print("|---|---:|")
    for phase in PHASES:
        values = [receipt["phases"].get(phase, 0.0) for _, receipt in results[DEPTHS[-1]]]
        print(f"| {phase} | {statistics.median(values) * 1000:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    asyncio.run(measure(parser.parse_args().runs))

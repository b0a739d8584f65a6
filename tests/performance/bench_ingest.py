"""Measure what one ingestor line costs: real exchange, real Redis server, real ingestor, each a process of its own.

    python tests/performance/bench_ingest.py [SECONDS]

For each message rate the table gives the ingestor's share of one core and how long a frame took from its receipt until
Redis had it. The last row is a line that the exchange also sends bursts to.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import RedisServer, free_port_number, wait_until

SHEETANCHOR = [sys.executable, "-m", "sheetanchor"]
LOADS: dict[str, list[str]] = {
    "as recorded": [],
    "1,000": ["--rate", "1000"],
    "5,000": ["--rate", "5000"],
    "5,000 with bursts of 11,000": ["--rate", "5000", "--burst", "11000:100:1"],
}


def get(url: str) -> str:
    """Fetch a page."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def answers(url: str) -> bool:
    """Say whether a page answers 200."""
    try:
        get(url)
    except OSError:
        return False
    return True


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a role while the block runs."""
    environment = {**os.environ, "BINANCE_API_KEY": "bench"}
    process = subprocess.Popen([*SHEETANCHOR, *command], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def samples(page: str) -> dict[str, float]:
    """Give the metrics of a page by name, labels summed up; buckets by `name<bound`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            bound = sample.labels.get("le", "")
            name = f"{sample.name}<{bound}" if bound else sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found


def percentile_ms(before: dict[str, float], after: dict[str, float], share: float) -> str:
    """Give the bucket that a share of the delays lies below."""
    name = "ingestor_append_delay_seconds"
    count = after[f"{name}_count"] - before[f"{name}_count"]
    bounds = [key for key in after if key.startswith(f"{name}_bucket<")]
    for key in sorted(bounds, key=lambda key: float(key.partition("<")[2])):
        if after[key] - before.get(key, 0.0) >= share * count:
            return f"≤ {1000 * float(key.partition('<')[2]):g}"
    return "?"


def measure(name: str, flags: list[str], seconds: float) -> str:
    """Run one load and give its row of the table."""
    exchange_port, port = free_port_number(), free_port_number()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisServer(folder).start()
        stack.callback(redis.stop)
        stack.enter_context(running("exchange", "--http-port", str(exchange_port), "--loop", *flags))
        wait_until(lambda: answers(f"http://127.0.0.1:{exchange_port}/api/v3/ping"), within_s=30, what="the exchange")
        line = ["ingest", "--ws-url", f"ws://127.0.0.1:{exchange_port}", "--redis-url", redis.url]
        ingest = stack.enter_context(running(*line, "--http-port", str(port), "--http-host", "127.0.0.1"))
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), within_s=30, what="the ingestor is healthy")
        time.sleep(2)
        page = f"http://127.0.0.1:{port}/metrics"
        process = psutil.Process(ingest.pid)
        before, cpu_before, began = samples(get(page)), process.cpu_times(), time.perf_counter()
        time.sleep(seconds)
        after, cpu_after, took = samples(get(page)), process.cpu_times(), time.perf_counter() - began
    cpu_s = sum(cpu_after[:2]) - sum(cpu_before[:2])
    messages = after["ingestor_sbe_messages_total"] - before["ingestor_sbe_messages_total"]
    entries = after["ingestor_kinesis_records_sent_total"] - before["ingestor_kinesis_records_sent_total"]
    delays = " | ".join(percentile_ms(before, after, share) for share in (0.5, 0.95, 0.99))
    each_us = 1e6 * cpu_s / messages if messages else 0.0
    share = f"{100 * cpu_s / took:.1f} %"
    return f"| {name} | {messages / took:,.0f} | {entries / took:,.0f} | {share} | {each_us:.1f} | {delays} |"


def machine() -> str:
    """Name the processor, its cores, and how busy they were before."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "this machine")
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Measure every load and print the table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    print(f"`python tests/performance/bench_ingest.py {seconds:g}` on {machine()}\n")
    print("| load | messages/s | entries/s | of one core | CPU µs a message | delay p50 ms | p95 ms | p99 ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, flags in LOADS.items():
        print(measure(name, flags, seconds), flush=True)


if __name__ == "__main__":
    main()

"""Re-anchors that send themselves a signal, each at another place; run as one process by the tests.

Usage: broken_reanchors.py REDIS_PORT REST_URL SIGNAL LOCK_TTL_S PLACE...

Forks a run per place, the n-th on database n. Prints `NUMBER begun PID`, `NUMBER stopped PID` and `NUMBER ended CODE`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from sheetanchor.binance.rest_client import RestClient
from sheetanchor.reanchor.phases import ReanchorRun
from sheetanchor.reanchor.receipts import RunOrder
from sheetanchor.store.redis_client import redis_client


async def run(redis_url: str, rest_url: str, signal_name: str, lock_ttl_s: int, place: str) -> int:
    async def hook(reached: str) -> None:
        if reached == place:
            os.kill(os.getpid(), signal.Signals[signal_name])

    redis = redis_client(redis_url)
    try:
        async with RestClient(rest_url, weight_per_minute=10**9) as exchange:
            order = RunOrder("BTCUSDT", reason="broken", depth_limit=100, lock_ttl_s=lock_ttl_s)
            return (await ReanchorRun(order, redis, exchange, hook).run(lambda _: None)).exit_code
    finally:
        await redis.aclose()


def main(port: str, rest_url: str, signal_name: str, lock_ttl_s: str, *places: str) -> None:
    numbers: dict[int, int] = {}
    for number, place in enumerate(places):
        pid = os.fork()
        if pid == 0:
            url = f"redis://127.0.0.1:{port}/{number}"
            os._exit(asyncio.run(run(url, rest_url, signal_name, int(lock_ttl_s), place)))
        numbers[pid] = number
        print(number, "begun", pid, flush=True)
    left = len(numbers)
    while left:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            print(numbers[pid], "stopped", pid, flush=True)
        else:
            print(numbers[pid], "ended", os.waitstatus_to_exitcode(status), flush=True)
            left -= 1


if __name__ == "__main__":
    main(*sys.argv[1:])

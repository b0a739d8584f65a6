"""A re-anchor that sends itself a signal at a given place; run as a process by the tests.

Usage: broken_reanchor.py REDIS_URL REST_URL PLACE SIGNAL LOCK_TTL_S
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from sheetanchor.contract import Receipt
from sheetanchor.reanchor import Order, Reanchor
from sheetanchor.rest import Exchange
from sheetanchor.transport import redis_client


async def main(redis_url: str, rest_url: str, place: str, signal_name: str, lock_ttl_s: int) -> int:
    async def hook(reached: str) -> None:
        if reached == place:
            os.kill(os.getpid(), signal.Signals[signal_name])

    def report(receipt: Receipt) -> None:
        print(receipt.to_json(), flush=True)

    redis = redis_client(redis_url)
    try:
        async with Exchange(rest_url, weight_per_minute=10**9) as exchange:
            order = Order("BTCUSDT", reason="broken", depth_limit=100, lock_ttl_s=lock_ttl_s)
            return (await Reanchor(order, redis, exchange, hook).run(report)).exit_code
    finally:
        await redis.aclose()


if __name__ == "__main__":
    redis_url, rest_url, place, signal_name, lock_ttl_s = sys.argv[1:]
    sys.exit(asyncio.run(main(redis_url, rest_url, place, signal_name, int(lock_ttl_s))))

"""What the tests of re-anchors share: an exchange process, a line that is fed from it, and a look at the hot keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from redis.asyncio import Redis

from conftest import free_port_number, wait_until
from sheetanchor.binance.rest_client import RestClient
from sheetanchor.contract import Receipt, keys
from sheetanchor.reanchor.phases import Hook, ReanchorRun
from sheetanchor.reanchor.receipts import RunOrder
from sheetanchor.runtime.reliability import Backoff, RetryPolicy
from sheetanchor.store.frame_streams import LineWriter
from support.patience import patience

SYMBOL = "BTCUSDT"
KEYS = keys(SYMBOL)
HOT_KEYS = (KEYS.ob, KEYS.book, KEYS.tr_1s, KEYS.tr_5s, KEYS.feat)
STAGING = (KEYS.ob_new, KEYS.book_new, KEYS.tr_1s_new, KEYS.tr_5s_new, KEYS.feat_new)
PHASES = ("lock", "fetch", "build", "catch_up", "stage", "validate", "swap", "verify")
PLACES = tuple(f"{when}:{phase}" for phase in PHASES for when in ("before", "after"))
SWAPPED_FROM = PLACES.index("after:swap")
QUICK = RetryPolicy(retries=3, backoff=Backoff(initial_s=0.02, max_s=0.1))
SHEETANCHOR = [sys.executable, "-m", "sheetanchor"]


class ExchangeProcess:
    """A `sheetanchor exchange` of its own, whose faults are scripted over HTTP."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port_number()
        self.rest_url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [*SHEETANCHOR, "exchange", "--http-port", str(self.port), "--loop", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def is_up() -> bool:
            assert self.process.poll() is None, "the exchange has ended"
            with contextlib.suppress(OSError):
                return bool(self.ask("/api/v3/ping") == {})
            return False

        wait_until(is_up, within_s=30, what="the exchange answers")
        self.up_since_s = time.monotonic()

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """Send a request and give the JSON of its answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.rest_url + path, data=data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read() or b"null")

    def fault(self, kind: str, **parameters: Any) -> int:
        """Script a fault; gives its id."""
        return int(self.ask("/faults", {"kind": kind, **parameters})["id"])

    async def until_it_has_a_past(self) -> None:
        """Wait until it can give a snapshot from well before now."""
        await asyncio.sleep(max(0.0, self.up_since_s + 3 - time.monotonic()))

    def applied(self, fault_id: int) -> int:
        """Say how often a fault has acted."""
        lists = self.ask("/faults")
        return next(int(one["applied"]) for found in lists.values() for one in found if one["id"] == fault_id)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@contextmanager
def exchange_process(*flags: str) -> Iterator[ExchangeProcess]:
    """A running exchange."""
    exchange = ExchangeProcess(*flags)
    try:
        yield exchange
    finally:
        exchange.stop()


@asynccontextmanager
async def fed_line(redis: Redis, ws_url: str, line: str = "a") -> AsyncIterator[None]:
    """Append what the exchange streams to a line, as an ingestor does, while the block runs."""
    writer = LineWriter(redis, SYMBOL, line)
    name = SYMBOL.lower()
    url = f"{ws_url}/stream?streams={name}@trade/{name}@bestBidAsk/{name}@depth"
    ready = asyncio.Event()

    async def feed() -> None:
        headers = {"X-MBX-APIKEY": "test-key", "User-Agent": f"test line={line}"}
        async with aiohttp.ClientSession(headers=headers) as session, session.ws_connect(url) as socket:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    await writer.append([(time.time_ns() // 1000, message.data)])
                    ready.set()

    task = asyncio.create_task(feed())
    try:
        async with patience():
            await ready.wait()
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def quick_exchange(rest_url: str, **options: Any) -> RestClient:
    """A client of the exchange that does not wait long between its tries."""
    return RestClient(rest_url, **{"retry_policy": QUICK, "weight_per_minute": 10**9, **options})


async def reanchor(redis: Redis, rest_url: str, hook: Hook | None = None, **order: Any) -> Receipt:
    """Run one re-anchor in this process and give its receipt."""
    async with quick_exchange(rest_url) as exchange:
        return await reanchor_with(redis, exchange, hook, **order)


async def reanchor_with(redis: Redis, exchange: RestClient, hook: Hook | None = None, **order: Any) -> Receipt:
    """Run one re-anchor with a given client of the exchange."""
    wanted = RunOrder(**{"symbol": SYMBOL, "timeout_s": 30.0, "depth_limit": 100, **order})
    run = ReanchorRun(wanted, redis, exchange, hook) if hook else ReanchorRun(wanted, redis, exchange)
    return await run.run(lambda _: None)


async def dump(redis: Redis) -> list[bytes | None]:
    """Give the hot keys byte by byte."""
    return [await redis.dump(key) for key in HOT_KEYS]


async def staging_left(redis: Redis) -> list[str]:
    """Name the staging keys that exist."""
    return [key for key in STAGING if await redis.exists(key)]


def breaking_hook(place: str, error: Exception) -> Hook:
    """Raise an error at a place of the sequence."""

    async def hook(reached: str) -> None:
        if reached == place:
            raise error

    return hook

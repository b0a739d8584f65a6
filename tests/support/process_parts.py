"""What the tests of processors share: a market that moves, lines that carry it, processors, and a rebuild by hand."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from redis.asyncio import Redis

from conftest import wait_until
from sheetanchor._decoder import Market
from sheetanchor.contract import Gap, keys, line_stream, pack_frames
from sheetanchor.sbe import BestBidAsk, DepthDiff, Trades, encode
from sheetanchor.store.frame_streams import LineWriter
from sheetanchor.store.hot_records import SwapReply, SwapStatus
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.patience import PATIENT, limit_s, patience

SYMBOL = "BTCUSDT"
KEYS = keys(SYMBOL)
PRICE = 60_000_00
"""Bids stand at or below this, asks above, in hundredths."""


OF_TIME = frozenset({"feed_late", "stream_missing", "time_gap", "trades_quiet"})
"""Rules that judge how long nothing has come: a test's market moves only when the test moves it, and how long that
takes is the machine's affair."""


def now_us() -> int:
    return time.time_ns() // 1_000


class Feed:
    """A market that moves: every call makes the next message of it."""

    def __init__(self, seed: int = 1) -> None:
        self.update_id = 1_000
        self.trade_id = 500
        self._random = random.Random(seed)
        self._head = {"symbol": SYMBOL, "price_exponent": -2, "qty_exponent": -2}

    def starting_market(self, cut_off: int = 0) -> Market:
        """The book that the next diff goes on from, of fifty levels a side."""
        market = Market(SYMBOL)
        bids = [(PRICE - at, 100 + at) for at in range(50)]
        asks = [(PRICE + 1 + at, 100 + at) for at in range(50)]
        market.load_snapshot(self.update_id, -2, -2, bids, asks, now_us(), cut_off)
        return market

    def diff(self, bids: tuple[tuple[int, int], ...] | None = None) -> bytes:
        """A change of three update ids and of a level on each side."""
        first, self.update_id = self.update_id + 1, self.update_id + 3
        deep, qty = self._random.randrange(40), self._random.randrange(1, 500)
        changed = ((PRICE - deep, qty),) if bids is None else bids
        ids = {"first_update_id": first, "last_update_id": self.update_id}
        return encode(
            DepthDiff(event_time_us=now_us(), bids=changed, asks=((PRICE + 1 + deep, qty),), **ids, **self._head)
        )

    def trade(self) -> bytes:
        """One trade."""
        self.trade_id += 1
        trade = (
            self.trade_id,
            PRICE + self._random.randrange(2),
            self._random.randrange(1, 90),
            self.trade_id % 3 == 0,
        )
        at_us = now_us()
        return encode(Trades(event_time_us=at_us, transact_time_us=at_us, trades=(trade,), **self._head))

    def best(self) -> bytes:
        """Best prices as of the last diff."""
        prices = {"bid_price": PRICE, "bid_qty": 7, "ask_price": PRICE + 1, "ask_qty": 8}
        return encode(BestBidAsk(event_time_us=now_us(), book_update_id=self.update_id, **prices, **self._head))

    def step(self) -> list[bytes]:
        """A bit of everything."""
        return [self.diff(), self.best(), self.trade()]


class Lines:
    """Lines a and b of a symbol."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._writers = {line: LineWriter(redis, SYMBOL, line) for line in "ab"}
        self.ids: dict[str, str] = {}
        self.carried: list[tuple[int, bytes]] = []

    async def carry(self, frames: list[bytes], lines: str = "ab") -> int:
        """Append a batch to lines; gives the stamp of its first entry in µs."""
        batch = [(now_us(), frame) for frame in frames]
        stamps = [await self._writers[line].append(batch) for line in lines]
        self.ids |= dict(zip(lines, stamps, strict=True))
        self.carried += batch
        return int(stamps[0].partition("-")[0]) * 1_000

    async def carry_at_once(self, frames: dict[str, list[bytes]]) -> int:
        """Append other frames to each line in one step of Redis; gives the stamp of the first entry in µs.

        What one line lacks the other has at the same moment: were the test to stop between two steps, that would be a
        gap. Both lines are known by then.
        """
        async with self._redis.pipeline(transaction=True) as step:
            for line, of_line in frames.items():
                batch = [(now_us(), frame) for frame in of_line]
                step.xadd(line_stream(SYMBOL, line), {"n": len(batch), "t": batch[0][0], "f": pack_frames(batch)})
                self.carried += batch
            stamps = [entry_id.decode() for entry_id in await step.execute()]
        self.ids |= dict(zip(frames, stamps, strict=True))
        return int(stamps[0].partition("-")[0]) * 1_000


@asynccontextmanager
async def moving(lines: Lines, feed: Feed, every_s: float = 0.02) -> AsyncIterator[None]:
    """Let the market move on both lines while the block runs."""

    done = asyncio.Event()

    async def move() -> None:
        while not done.is_set():
            await lines.carry(feed.step())
            await asyncio.sleep(every_s)

    task = asyncio.create_task(move())
    try:
        yield
    finally:
        done.set()  # not cancelled: a step that is cut short would be a missing range on both lines
        await task


class Processor:
    """A `sheetanchor process` that no other test knows of."""

    def __init__(self, redis_url: str, log: Path, *flags: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "sheetanchor", "process", "--redis-url", redis_url]
        command += ["--http-host", "127.0.0.1", "--self-reanchor-after-s", "0", *flags]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SHEETANCHOR_")}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged, without a line that it is just writing."""
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def said(self, text: str) -> bool:
        """Whether a log line contains a text."""
        return text in self._log.read_text()

    def get(self, path: str) -> bytes:
        """Ask its HTTP server."""
        wait_until(lambda: self.said('"http_port"'), within_s=20, what="it says where it listens")
        port = next(line["http_port"] for line in self.lines() if "http_port" in line)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:  # a body too, such as that of a failed check
            with error:
                return bytes(error.read())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """Let it stand still while the block runs, so that it meets all that the test does there at once."""
        self.signal(signal.SIGSTOP)
        try:
            await asyncio.to_thread(wait_until, self._stands, within_s=10, what="it stands still")
            yield
        finally:
            self.signal(signal.SIGCONT)

    def _stands(self) -> bool:
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def kill(self) -> None:
        """End it as a machine's loss does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; gives its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=60)


class Stage:
    """A Redis server, two lines, a moving market and any number of processors."""

    def __init__(self, redis: Redis, url: str, folder: Path) -> None:
        self.redis = redis
        self.url = url
        self.hot = HotState(redis, SYMBOL)
        self.feed = Feed()
        self.lines = Lines(redis)
        self._folder = folder
        self._running: list[Processor] = []

    def start(self, *flags: str) -> Processor:
        """Start a processor."""
        started = Processor(self.url, self._folder / f"processor{len(self._running)}.log", *flags)
        self._running.append(started)
        return started

    def end(self) -> None:
        """End whatever still runs."""
        for processor in self._running:
            if processor.process.poll() is None:
                processor.kill()

    async def rebuild(self, market: Market, epoch: int = 0, line_ids: dict[str, str] | None = None) -> None:
        """Swap a market in, as a re-anchor does."""
        reply = await self._swap(market, epoch, line_ids or {})
        assert reply.ok, reply

    async def rebuild_moving(self, newest: Callable[[], Market], epoch: int = 0) -> None:
        """Swap a market in that continues meanwhile: as a re-anchor does, again while the hot keys are ahead of it."""
        async with patience():
            while (reply := await self._swap(newest(), epoch, {})).status is SwapStatus.BEHIND:
                pass
        assert reply.ok, reply

    async def _swap(self, market: Market, epoch: int, line_ids: dict[str, str]) -> SwapReply:
        assert await self.hot.lock("test")
        staged = market.hot_state((await self.hot.read()).now_us)
        assert await self.hot.stage("test", *staged, market.pack_book(epoch + 1, line_ids))
        return await self.hot.swap("test", epoch, market.update_id, market.stamp_us, f"receipt-{epoch}")

    async def anchored(self, market: Market) -> None:
        """Anchor a market with its places on both lines, and let them go on.

        From a place a processor reads on however long its start takes; without one it begins some seconds before now.
        """
        await self.lines.carry([self.feed.best()])
        await self.rebuild(market, line_ids=dict(self.lines.ids))
        await self.lines.carry([self.feed.diff()])

    async def started(self, *flags: str) -> Processor:
        """Anchor the market where it stands, and wait until a processor writes it."""
        await self.anchored(self.feed.starting_market())
        processor = self.start(*flags)
        await self.follows()
        return processor

    async def follows(self, within_s: float = 30) -> None:
        """Wait until the hot keys hold the newest update, moving the market once."""
        await self.lines.carry(self.feed.step())
        await self.holds(self.feed.update_id, within_s)

    async def holds(self, update_id: int, within_s: float = 10) -> None:
        """Wait until the hot keys hold an update."""

        async def held() -> bool:
            return (await self.hot.read()).ob.get("update_id") == str(update_id)

        await until(held, within_s, f"update {update_id} in the hot keys")

    async def gaps(self) -> list[Gap]:
        """All gap events but those that say how long nothing has come."""
        return [gap for gap in await self.all_gaps() if gap.rule not in OF_TIME]

    async def rules(self) -> list[str]:
        """The rules of all gap events but those that say how long nothing has come."""
        return [gap.rule for gap in await self.gaps()]

    async def all_gaps(self) -> list[Gap]:
        """All gap events."""
        entries = await self.redis.xrange(KEYS.gaps)
        return [Gap.parse({name.decode(): value.decode() for name, value in fields.items()}) for _, fields in entries]

    async def told(self, rule: str, within_s: float = 10) -> Gap:
        """Wait for a gap event."""

        async def is_told() -> bool:
            return rule in [gap.rule for gap in await self.all_gaps()]

        await until(is_told, within_s, f"a gap event {rule}")
        return next(gap for gap in await self.all_gaps() if gap.rule == rule)

    async def is_state(self, state: str, within_s: float = 10) -> None:
        """Wait for a state."""

        async def reached() -> bool:
            return (await self.hot.anchor()).state == state

        await until(reached, within_s, f"state {state}")

    async def has_writer(self, other_than: str = "", within_s: float = 30) -> str:
        """Wait until another processor writes; gives its name."""

        async def taken() -> bool:
            return (await self.hot.anchor()).writer not in ("", other_than)

        await until(taken, within_s, "a writer")
        return (await self.hot.anchor()).writer


async def until(condition: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
    """Wait for a condition; fail with what was awaited."""
    deadline = time.monotonic() + limit_s(within_s)
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def staged(url: str, folder: Path) -> AsyncIterator[Stage]:
    """A stage on an empty server; whatever is started on it is ended."""
    client = redis_client(url, **PATIENT)
    with ended(Stage(client, url, folder)) as made:
        yield made
    await client.aclose()


@contextmanager
def ended(stage: Stage) -> Iterator[Stage]:
    """End a stage's processors whatever happens."""
    try:
        yield stage
    finally:
        stage.end()


async def said(processor: Processor, text: str, within_s: float = 10) -> None:
    """Wait for a log line."""
    await asyncio.to_thread(wait_until, lambda: processor.said(text), within_s=within_s, what=f"log line {text!r}")

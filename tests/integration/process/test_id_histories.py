"""Ids that begin again, in any order of resets, rebuilds, replays and takeovers: at most two rebuilds heal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import line_stream, pack_frames
from sheetanchor.policy.gap_rules import Thresholds
from sheetanchor.process.market.write_timer import Cadence
from sheetanchor.process.ownership.writer_election import WriteRole
from sheetanchor.process.symbol_processor import SymbolProcessor
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.patience import PATIENT, patience
from support.process_parts import OF_TIME
from support.reanchor_parts import KEYS, SYMBOL, reanchor
from support.venue import Venue, running_venue

STEP_S = 0.1
RUNS_MAX = 4
"""A run may fail while the lines and the snapshot do not join yet; it changes nothing then and is tried again."""


@dataclass
class World:
    """An exchange whose ids can begin again, and what it has sent."""

    venue: Venue
    update_id: int = 0
    trade_id: int = 0
    steps: int = 0
    bids: dict[int, int] = field(default_factory=lambda: {10_000 - at: 100 for at in range(60)})
    asks: dict[int, int] = field(default_factory=lambda: {10_001 + at: 100 for at in range(60)})
    traded: list[dict[str, Any]] = field(default_factory=list)
    cached: bool = False

    def begin(self, update_id: int, trade_id: int) -> None:
        self.update_id, self.trade_id, self.traded = update_id, trade_id, []

    def step(self, at_us: int) -> list[bytes]:
        """A diff, best prices that run ahead of the next one, and now and then a trade."""
        self.steps += 1
        first, self.update_id = self.update_id + 1, self.update_id + 3
        deep = self.steps % 50
        bid, ask = (10_000 - deep, 100 + self.steps % 7), (10_001 + deep, 100 + self.steps % 5)
        self.bids[bid[0]], self.asks[ask[0]] = bid[1], ask[1]
        head = (at_us, SYMBOL, -2, -2)
        best = (10_000, self.bids[10_000], 10_001, self.asks[10_001])
        messages: list[sbe.Message] = [
            sbe.DepthDiff(*head, first, self.update_id, (bid,), (ask,)),
            sbe.BestBidAsk(*head, self.update_id, *best),
        ]
        if self.steps % 3 == 0:
            self.trade_id += 1
            messages.append(sbe.Trades(*head, at_us, ((self.trade_id, 10_000, 50, True),)))
            trade = {"id": self.trade_id, "price": "100.00", "qty": "0.5", "time": at_us, "isBuyerMaker": True}
            self.traded = [*self.traded[-50:], trade]
        self._answer(at_us)
        return [sbe.encode(message) for message in messages]

    def _answer(self, at_us: int) -> None:
        def side(levels: dict[int, int], sign: int) -> list[list[str]]:
            best_first = sorted(levels, key=lambda price: sign * price)
            return [[f"{price / 100:.2f}", f"{levels[price] / 100:.2f}"] for price in best_first]

        quotes = {"bidPrice": "100.00", "askPrice": "100.01", "closeTime": at_us}
        depth = {"lastUpdateId": self.update_id, "bids": side(self.bids, -1), "asks": side(self.asks, 1)}
        self.venue.answers = {
            "depth": self.venue.answers["depth"] if self.cached else depth,
            "trades": list(self.traded),
            "klines": [],
            "ticker/24hr": {"lastPrice": "100.00" if self.traded else "0", **quotes},
        }

    def market(self, at_us: int) -> Market:
        market = Market(SYMBOL)
        market.load_snapshot(
            self.update_id, -2, -2, [(p, self.bids[p]) for p in sorted(self.bids, reverse=True)],
            [(p, self.asks[p]) for p in sorted(self.asks)], at_us,
        )  # fmt: skip
        return market


@dataclass(frozen=True)
class Segment:
    update_id: int
    trade_id: int
    steps: int


@dataclass(frozen=True)
class History:
    """What has happened.

    Attributes:
        stored: After how many segments a state was stored that is still there; 0 for none.
        bar: A rebuild has to reach this update id to resolve the gap; 0 for none.
        b_ends: Steps before the end at which line b ended; 0 if it is still running.
        takeover: Whether another writer takes over between the rebuilds.
    """

    before: tuple[Segment, ...]
    last: Segment
    stored: int
    bar: int
    b_ends: int
    takeover: bool


IDS = st.one_of(st.integers(1, 1_000), st.integers(1, 10**9))
SEGMENT = st.builds(Segment, IDS, IDS, st.integers(1, 80))
HISTORIES = st.builds(
    History,
    st.lists(SEGMENT, min_size=1, max_size=3).map(tuple),
    st.builds(Segment, IDS, IDS, st.integers(25, 60)),
    st.integers(0, 3),
    st.sampled_from([0, 10**9, 10**12]),
    st.sampled_from([0, 0, 5, 30, 70]),
    st.booleans(),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running server for all examples."""
    running = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield running
    running.stop()


async def append(redis: Redis, line: str, frames: list[bytes], at_us: int, entry_id: str = "*") -> str:
    fields: dict[Any, Any] = {"n": len(frames), "t": at_us, "f": pack_frames([(at_us, frame) for frame in frames])}
    added: Any = await redis.xadd(line_stream(SYMBOL, line), fields, id=entry_id)
    return str(added.decode())


async def fill(redis: Redis, world: World, history: History, cached_s: float = 0) -> None:
    """Let the past have happened, up to now; the exchange's book is from a cache for the last seconds of it."""
    segments = [*history.before, history.last]
    steps = sum(segment.steps for segment in segments)
    begun_ms = time.time_ns() // 1_000_000 - int(steps * STEP_S * 1_000)
    await redis.sadd(KEYS.lines, "a", "b")
    done, ids = 0, {"a": "0-0", "b": "0-0"}
    for number, segment in enumerate(segments, start=1):
        world.begin(segment.update_id, segment.trade_id)
        for _ in range(segment.steps):
            done += 1
            world.cached = (steps - done) * STEP_S < cached_s
            ms = begun_ms + int(done * STEP_S * 1_000)
            frames = world.step(ms * 1_000)
            for line in ("a", "b") if done <= steps - history.b_ends else ("a",):
                ids[line] = await append(redis, line, frames, ms * 1_000, f"{ms}-0")
        if number == min(history.stored, len(segments) - 1):
            await store(redis, world, ids, (begun_ms + int(done * STEP_S * 1_000)) * 1_000, history.bar)


async def store(redis: Redis, world: World, ids: dict[str, str], at_us: int, bar: int) -> None:
    """A state of this moment, written by a writer that is gone."""
    hot, market = HotState(redis, SYMBOL), world.market(at_us)
    assert await hot.lock("earlier")
    await hot.stage("earlier", *market.hot_state(at_us), market.pack_book(1, ids))
    assert (await hot.swap("earlier", 0, market.update_id, at_us, "earlier")).ok
    await hot.take(1, "gone", 0, "")
    if bar:
        await hot.suspect(1, "gone", 1, bar, "a hole in a history that has gone")
    await redis.hset(KEYS.anchor, "beat_us", str(at_us))


@asynccontextmanager
async def flowing(redis: Redis, world: World, lines: tuple[str, ...]) -> AsyncIterator[None]:
    """The present goes on."""

    async def flow() -> None:
        while True:
            at_us = time.time_ns() // 1_000
            frames = world.step(at_us)
            for line in lines:
                await append(redis, line, frames, at_us)
            await asyncio.sleep(STEP_S / 2)

    task = asyncio.create_task(flow())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def writing(server: RedisServer, name: str) -> AsyncIterator[SymbolProcessor]:
    """A processor's writer at work."""
    clients = redis_client(server.url), redis_client(server.url)
    stop = asyncio.Event()
    writer = SymbolProcessor(*clients, SYMBOL, name, Thresholds(), Cadence(10_000, 100_000))
    task = asyncio.create_task(writer.run(stop))
    try:
        yield writer
    finally:
        stop.set()
        await task
        for client in clients:
            await client.aclose()


async def rebuild(redis: Redis, venue: Venue) -> None:
    """Rebuild, as a coordinator does that tries again while runs fail."""
    told = []
    for _ in range(RUNS_MAX):
        receipt = await reanchor(redis, venue.url, depth_limit=5000)
        if receipt.result == "swapped":
            return
        told.append(receipt.message)
    raise AssertionError(told)


async def heals(server: RedisServer, history: History) -> None:
    redis = redis_client(server.url, **PATIENT)
    try:
        await redis.flushall()
        async with running_venue() as venue:
            world = World(venue)
            await fill(redis, world, history)
            lines = ("a",) if history.b_ends else ("a", "b")
            async with flowing(redis, world, lines):
                await two_rebuilds(server, redis, world, history)
    finally:
        await redis.aclose()


async def takes_over(processor: SymbolProcessor) -> None:
    """Wait until it writes: it leaves a writer a second that may only have lost its connection."""
    async with patience():
        while processor.role is not WriteRole.WRITER:
            await asyncio.sleep(0.01)


async def found(redis: Redis) -> list[tuple[bytes, bytes]]:
    """Give rule and reason of all gaps but those of time: the market stands still where this process does."""
    entries = await redis.xrange(KEYS.gaps)
    return [(of[b"rule"], of[b"reason"]) for _, of in entries if of[b"rule"].decode() not in OF_TIME]


async def two_rebuilds(server: RedisServer, redis: Redis, world: World, history: History) -> None:
    hot = HotState(redis, SYMBOL)
    async with contextlib.AsyncExitStack() as writers:
        await writers.enter_async_context(writing(server, "first"))
        await asyncio.sleep(0.3)
        for number in (1, 2):
            await rebuild(redis, world.venue)
            before = await found(redis)
            await asyncio.sleep(0.8)
            if number == 1 and history.takeover:
                await writers.aclose()
                await asyncio.sleep(1.1)
                second = await writers.enter_async_context(writing(server, "second"))
                await takes_over(second)
                await asyncio.sleep(0.8)
            anchor, read = await hot.anchor(), await hot.read()
            if anchor.state == "anchored":
                assert before == await found(redis)
                assert world.update_id - 60 <= int(read.ob["update_id"]) <= world.update_id
                assert int(read.ob["bba_id"]) <= world.update_id
                assert int(read.tr_5s["count"]) > 0
                return
    raise AssertionError(f"suspect after two rebuilds: {anchor}, {await redis.xrange(KEYS.gaps)}")


@pytest.mark.parametrize("age_s", [2, 8, 25, 40, 100])
async def test_a_cached_snapshot_is_led_up(server: RedisServer, age_s: int) -> None:
    """A book from a cache, as old as it may be, joins the frames that Redis holds and is led up to the present."""
    redis = redis_client(server.url, **PATIENT)
    await redis.flushall()
    async with running_venue() as venue:
        world = World(venue)
        await fill(redis, world, History((), Segment(1_000, 50, 1_200), 0, 0, 0, takeover=False), cached_s=age_s)
        old_id = venue.answers["depth"]["lastUpdateId"]
        async with flowing(redis, world, ("a", "b")):
            receipt = await reanchor(redis, venue.url, depth_limit=5000)
        ob = (await HotState(redis, SYMBOL).read()).ob
    await redis.aclose()

    assert ("swapped", old_id) == (receipt.result, receipt.snapshot_id), receipt.message
    assert world.update_id - 60 <= int(ob["update_id"]) <= world.update_id
    assert f"{world.bids[10_000] / 100:g}" == f"{float(ob['bid1_q']):g}"


@given(HISTORIES)
@settings(max_examples=12)
def test_any_history_of_ids_heals(server: RedisServer, history: History) -> None:
    """Whatever ids there were before, two rebuilds at most give a state that is anchored and stays so."""
    asyncio.run(heals(server, history))

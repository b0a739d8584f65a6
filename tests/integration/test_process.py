"""The processor as a process of its own, on a real server, fed from the shipped recording."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from conftest import RedisServer
from sheetanchor import recording, sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import Gap, keys, pack_frames
from sheetanchor.hot_state import Anchor, HotState
from sheetanchor.recording import Recording
from sheetanchor.transport import LineWriter, redis_client

pytestmark = pytest.mark.timeout(90)

SYMBOL = "BTCUSDT"
KEYS = keys(SYMBOL)
LINES = ("a", "b")


@pytest.fixture(scope="module")
def recorded() -> Recording:
    """The shipped recording."""
    return recording.load(recording.default_path())


class Bench:
    """A server, two lines that are fed by hand, and the processors that follow them."""

    def __init__(self, server: RedisServer, recorded: Recording) -> None:
        self.server = server
        self.recorded = recorded
        self.redis: Redis = redis_client(server.url)
        self.hot = HotState(self.redis, SYMBOL)
        self.writers = {line: LineWriter(self.redis, SYMBOL, line) for line in LINES}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.fed: list[bytes] = []
        self.logs: list[Any] = []

    def start(self, **settings: object) -> subprocess.Popen[bytes]:
        """Start a processor."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SHEETANCHOR_")}
        variables = {f"SHEETANCHOR_{name.upper()}": str(value) for name, value in settings.items()}
        environment = {**clean, "SHEETANCHOR_SELF_REANCHOR_AFTER_S": "0", **variables}
        log = (self.server.folder / f"process-{len(self.processes)}.log").open("wb")
        self.logs.append(log)
        command = [sys.executable, "-m", "sheetanchor", "process", "--redis-url", self.server.url]
        process = subprocess.Popen([*command, "--http-host", "127.0.0.1"], env=environment, stderr=log)
        self.processes.append(process)
        return process

    async def feed(self, frames: Iterable[bytes], lines: Iterable[str] = LINES) -> None:
        """Append frames to lines, a handful an entry."""
        batch = [(time.time_ns() // 1_000, frame) for frame in frames]
        self.fed += [frame for _, frame in batch]
        for at in range(0, len(batch), 20):
            for line in lines:
                await self.writers[line].append(batch[at : at + 20])

    def frames(self, begin: int, end: int) -> list[bytes]:
        """Frames of the recording."""
        return [frame for _, frame in self.recorded.events[begin:end]]

    def expected(self) -> Market:
        """A market that was given all that was fed, in one piece."""
        market = Market(SYMBOL)
        snapshot = self.recorded.snapshot
        levels = list(snapshot.bids), list(snapshot.asks)
        market.load_snapshot(snapshot.book_update_id, snapshot.price_exponent, snapshot.qty_exponent, *levels, 0)
        market.feed(0, pack_frames((0, frame) for frame in self.fed), 0)
        return market

    async def anchor_now(self) -> Anchor:
        """Rebuild by hand from what was fed so far, and wait until the writer has followed."""
        market = self.expected()
        anchor = await self.until(lambda found: found.writer != "", "a writer")
        seconds, _ = await self.redis.time()
        ob, tr_1s, tr_5s, feat = market.hot_state(seconds * 1_000_000)
        assert await self.hot.lock("test")
        book = market.pack_book(anchor.epoch + 1, {})
        assert await self.hot.stage("test", [*ob, "source", "rest"], tr_1s, tr_5s, feat, book)
        assert (await self.hot.swap("test", anchor.epoch, market.update_id, seconds * 1_000_000, "r")).ok
        epoch = anchor.epoch + 1
        return await self.until(lambda found: found.epoch == epoch and found.state == "anchored", "anchored")

    async def until(self, condition: Callable[[Anchor], bool], what: str, within_s: float = 10.0) -> Anchor:
        """Poll the anchor."""
        deadline = time.monotonic() + within_s
        while not condition(anchor := await self.hot.anchor()):
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}; {anchor}"
            await asyncio.sleep(0.02)
        return anchor

    async def gaps(self) -> list[Gap]:
        """All gap events."""
        entries = await self.redis.xrange(KEYS.gaps)
        return [Gap.parse({k.decode(): v.decode() for k, v in fields.items()}) for _, fields in entries]

    async def stored_market(self) -> Market:
        """The packed book as it is stored."""
        packed = await self.hot.book()
        assert packed is not None
        market = Market(SYMBOL)
        market.load_book(packed)
        return market

    async def book_at(self, update_id: int, within_s: float = 10.0) -> Market:
        """Wait until the stored book is that of an update."""
        deadline = time.monotonic() + within_s
        while (market := await self.stored_market()).update_id != update_id:
            assert time.monotonic() < deadline, f"book at {market.update_id}, expected {update_id}"
            await asyncio.sleep(0.05)
        return market

    async def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for log in self.logs:
            log.close()
        await self.redis.aclose()


@pytest.fixture
async def bench(redis_server: RedisServer, recorded: Recording) -> AsyncIterator[Bench]:
    """A bench without a processor yet."""
    made = Bench(redis_server, recorded)
    yield made
    await made.close()


@asynccontextmanager
async def anchored(bench: Bench, frames: int = 400, **settings: object) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A processor that has been anchored after some frames."""
    process = bench.start(**settings)
    await bench.feed(bench.frames(0, frames))
    await bench.anchor_now()
    yield process


def depth_positions(frames: list[bytes]) -> list[int]:
    """Where the diffs are."""
    return [at for at, frame in enumerate(frames) if isinstance(sbe.decode(frame), sbe.DepthDiff)]


def trade_positions(frames: list[bytes]) -> list[int]:
    """Where the trades are."""
    return [at for at, frame in enumerate(frames) if isinstance(sbe.decode(frame), sbe.Trades)]


async def test_the_hot_state_is_what_the_frames_say(bench: Bench) -> None:
    """After thousands of frames on two lines, book and top ten are those of an independent replay."""
    async with anchored(bench):
        await bench.feed(bench.frames(400, 6000))
        expected = bench.expected()

        await bench.until(lambda anchor: anchor.update_id == expected.update_id, "all frames are applied")
        stored = await bench.book_at(expected.update_id)
        read = await bench.hot.read()

    assert expected.levels() == stored.levels()
    best, _ = expected.top(1)
    assert "" == read.incomplete
    assert best[0][0] == round(float(read.ob["bid1_p"]) * 1e8)
    assert "sbe" == read.ob["source"]
    assert [] == await bench.gaps()


async def test_windows_are_empty_after_silence_and_their_keys_live_on(bench: Bench) -> None:
    """Trades leave the windows although no other comes; the keys' lives are renewed all the same."""
    async with anchored(bench):
        await bench.feed(bench.frames(400, 1500))
        await asyncio.sleep(6)

        read = await bench.hot.read()
        lives = [await bench.redis.ttl(key) for key in (KEYS.ob, KEYS.book, KEYS.tr_1s, KEYS.tr_5s, KEYS.feat)]

    assert ("0", "0") == (read.tr_1s["count"], read.tr_5s["count"])
    assert [-1, -1] == lives[:2]
    assert all(295 <= life <= 300 for life in lives[2:4])
    assert 115 <= lives[4] <= 120


async def test_what_one_line_loses_the_other_has(bench: Bench) -> None:
    """Losses on one line only, trades and diffs alike, are no gap."""
    async with anchored(bench):
        frames = bench.frames(400, 1400)
        lost = {*depth_positions(frames)[5:9], *trade_positions(frames)[3:6]}
        for begin in range(0, len(frames), 20):
            part = range(begin, min(begin + 20, len(frames)))
            await bench.feed([frames[at] for at in part if at not in lost], ["a"])
            await bench.feed([frames[at] for at in part], ["b"])

        await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "all frames are applied")

    assert [] == await bench.gaps()


@pytest.mark.parametrize("stream", ["depth", "trade"])
async def test_what_no_line_has_is_a_gap_that_a_rebuild_heals(bench: Bench, stream: str) -> None:
    """Suspect and one event at once; `book` stays what it was; the next epoch is followed without anybody saying so."""
    async with anchored(bench):
        await bench.feed(bench.frames(400, 800))
        await bench.book_at(bench.expected().update_id)
        before = await bench.hot.book()
        frames = bench.frames(800, 1400)
        lost = (depth_positions(frames) if stream == "depth" else trade_positions(frames))[4]
        await bench.feed([frame for at, frame in enumerate(frames) if at != lost])

        suspect = await bench.until(lambda anchor: anchor.state == "suspect", "suspect", within_s=3)
        await asyncio.sleep(1.5)
        book_while_suspect = await bench.hot.book()
        gaps = await bench.gaps()
        bench.fed = bench.frames(0, 1400)
        await bench.anchor_now()
        await bench.feed(bench.frames(1400, 1500))
        healed = await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "follows again")

    assert f"Sequence gap detected: {stream}" in suspect.reason
    assert before == book_while_suspect
    assert [("sequence_gap", "immediate_reanchor", 1)] == [(gap.rule, gap.action, gap.epoch) for gap in gaps]
    assert ("anchored", 2) == (healed.state, healed.epoch)


async def test_a_killed_processor_comes_back_to_the_same_book(bench: Bench) -> None:
    """A restart loads the stored book and replays the lines; what came meanwhile is in it."""
    async with anchored(bench) as process:
        await bench.feed(bench.frames(400, 1500))
        await bench.book_at(bench.expected().update_id)
        process.kill()
        process.wait()
        await bench.feed(bench.frames(1500, 2500))
        bench.start()

        expected = bench.expected()
        again = await bench.until(lambda anchor: anchor.update_id == expected.update_id, "caught up")
        stored = await bench.book_at(expected.update_id)

    assert expected.levels() == stored.levels()
    assert (2, 1, "anchored") == (again.term, again.epoch, again.state)
    assert [] == await bench.gaps()


async def test_a_warm_processor_takes_over_without_a_step_back(bench: Bench) -> None:
    """Within two seconds of the writer's last beat another writes, and no update id goes back."""
    async with anchored(bench) as first:
        bench.start()
        await bench.feed(bench.frames(400, 1000))
        await asyncio.sleep(1.5)  # the second one has started and follows
        writer = (await bench.hot.anchor()).writer
        first.kill()
        died_s = time.monotonic()
        ids = []
        for at in range(1000, 2000, 50):
            await bench.feed(bench.frames(at, at + 50))
            ids.append((await bench.hot.anchor()).update_id)
            await asyncio.sleep(0.1)
        taken = await bench.until(lambda anchor: anchor.writer != writer, "another writer")

        await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "caught up")

    assert 2 == taken.term
    assert sorted(ids) == ids
    assert time.monotonic() - died_s < 10
    assert [] == await bench.gaps()


async def test_a_stopped_writer_cannot_write_when_it_wakes(bench: Bench) -> None:
    """Stopped past its beat and then continued, the old writer is fenced off and follows warm."""
    async with anchored(bench) as first:
        await bench.feed(bench.frames(400, 800))
        await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "applied")
        first.send_signal(signal.SIGSTOP)
        bench.start()
        taken = await bench.until(lambda anchor: anchor.term == 2, "taken over")
        await bench.feed(bench.frames(800, 1600))
        first.send_signal(signal.SIGCONT)

        await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "applied by the new writer")
        await asyncio.sleep(1.5)
        after = await bench.hot.anchor()

    assert (taken.writer, 2) == (after.writer, after.term)
    assert first.poll() is None
    assert [] == await bench.gaps()


async def test_frames_that_repeat_count_once(bench: Bench) -> None:
    """Redelivery changes neither book nor windows."""
    async with anchored(bench):
        frames = bench.frames(400, 900)
        await bench.feed(frames)
        once = bench.expected()
        await bench.until(lambda anchor: anchor.update_id == once.update_id, "applied")
        first = await bench.hot.read()
        await bench.feed(frames)
        bench.fed = bench.frames(0, 900)
        await asyncio.sleep(0.3)

        second = await bench.hot.read()

    assert int(second.tr_5s["count"]) <= int(first.tr_5s["count"])
    assert once.update_id == int(second.ob["update_id"])


async def test_poison_does_not_stop_the_stream(bench: Bench) -> None:
    """Garbage frames and a broken entry are passed over; what follows is applied."""
    async with anchored(bench):
        await bench.writers["a"].append([(0, b"\x00" * 40), (0, b"")])
        await bench.writers["a"].append_packed(1, 0, b"\xff\xff")
        await bench.feed(bench.frames(400, 900))

        await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "applied")

    assert [] == await bench.gaps()


async def test_an_exchange_whose_ids_went_back_is_not_taken_for_fresh(bench: Bench) -> None:
    """State of an earlier run, frames of a new one with lower ids: suspect soon, and never a fresh stamp before."""
    async with anchored(bench, frames=3000):
        await asyncio.sleep(1)  # the replay after the rebuild is over
        before = await bench.hot.anchor()
        bench.fed = []
        for at in range(0, 1500, 50):
            await bench.feed(bench.frames(at, at + 50))
            await asyncio.sleep(0.1)

        suspect = await bench.until(lambda anchor: anchor.state == "suspect", "suspect", within_s=6)

    assert before.stamp_us == suspect.stamp_us
    assert ["sequence_reset"] == [gap.rule for gap in await bench.gaps()]


async def test_an_emptied_redis_is_noticed_and_its_epoch_does_not_fall(bench: Bench) -> None:
    """A server that restarts empty: the writer takes again, says what it knew, and asks for a rebuild."""
    async with anchored(bench):
        await bench.feed(bench.frames(400, 800))
        await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "applied")
        bench.server.stop()
        bench.server.start()

        back = await bench.until(lambda anchor: anchor.epoch == 1, "its epoch is back", within_s=15)

    assert "suspect" == back.state
    assert back.term >= 2
    assert "redis_failover" in [gap.rule for gap in await bench.gaps()]


async def test_a_stopped_redis_is_waited_for(bench: Bench) -> None:
    """Four seconds without an answer: the processor goes on where it was, no restart, no gap."""
    async with anchored(bench) as process:
        await bench.feed(bench.frames(400, 800))
        await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "applied")
        assert bench.server.process is not None
        bench.server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(4)
        bench.server.process.send_signal(signal.SIGCONT)
        await bench.feed(bench.frames(800, 1200))

        again = await bench.until(lambda anchor: anchor.update_id == bench.expected().update_id, "goes on", within_s=15)

    assert (None, "anchored", 1) == (process.poll(), again.state, again.epoch)


async def test_sigterm_writes_the_book_and_ends_with_zero(bench: Bench) -> None:
    """The last book is that of the last frame."""
    async with anchored(bench, book_interval_s=60) as process:
        await bench.feed(bench.frames(400, 1000))
        expected = bench.expected()
        await bench.until(lambda anchor: anchor.update_id == expected.update_id, "applied")

        process.terminate()
        code = process.wait(timeout=10)
        stored = await bench.stored_market()

    assert 0 == code
    assert expected.update_id == stored.update_id


async def test_a_wrong_password_is_one_clear_line(tmp_path: Path, recorded: Recording) -> None:
    """Exit code 1, and the line says what Redis said."""
    folder = tmp_path / "locked"
    folder.mkdir()
    server = RedisServer(folder, "--requirepass", "right").start()
    command = [sys.executable, "-m", "sheetanchor", "process", "--http-host", "127.0.0.1"]
    url = server.url.replace("redis://", "redis://:wrong@")
    try:
        ended = await asyncio.to_thread(
            subprocess.run, [*command, "--redis-url", url], capture_output=True, text=True, timeout=30, check=False
        )
    finally:
        server.stop()

    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("sheetanchor process:")]
    assert 1 == ended.returncode
    assert "password" in line.lower()
    assert "wrong@" not in ended.stderr


async def test_nobody_starts_a_rebuild_so_the_processor_does(bench: Bench) -> None:
    """Without a coordinator the same program runs as a child; here it fails for want of an exchange, and is told."""
    bench.start(self_reanchor_after_s=1, rest_url="http://127.0.0.1:9")
    await bench.feed(bench.frames(0, 100))

    deadline = time.monotonic() + 20
    while not (receipts := await bench.redis.xrange(KEYS.receipts)):
        assert time.monotonic() < deadline, "no receipt"
        await asyncio.sleep(0.1)

    assert b'"result":"failed"' in receipts[0][1][b"receipt"]

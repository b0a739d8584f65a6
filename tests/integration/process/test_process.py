"""The processor as its user runs it: real processes, a real Redis server, frames on two lines."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServer
from sheetanchor._decoder import Market
from sheetanchor.contract import line_stream, pack_frames
from sheetanchor.recording import recording_file
from sheetanchor.store.hot_state import ensure_library
from support.process_parts import KEYS, SYMBOL, Processor, Stage, moving, now_us, said, staged, until
from support.reanchor_parts import exchange_process, fed_line
from support.reference_market import Market as ReferenceMarket

pytestmark = pytest.mark.slow


@pytest.fixture
async def stage(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty server, and whatever is started on it is ended."""
    async with staged(redis_server.url, tmp_path) as made:
        yield made


# What it writes


SET_BY_WRITER = {"epoch", "source"}
WINDOW_US = 4_500_000
"""Trades are shown for five seconds, less what a write may take."""

BY_ORDER_OF_ARRIVAL = {"ret_1s", "ret_5s"}
"""Past mid prices are those that were known at their time: a message that came late by the other line is none."""


def pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def without(fields: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name not in names}


@pytest.fixture(scope="module")
def recorded() -> recording_file.Recording:
    """The market that ships with the package."""
    return recording_file.load(recording_file.default_path())


@pytest.mark.parametrize("lost", [0, 4], ids=["whole lines", "lossy lines"])
async def test_hot_keys_equal_an_independent_recomputation(
    stage: Stage, recorded: recording_file.Recording, lost: int
) -> None:
    """A recorded market on two lines, each with what the other lost: every field as in the reference market."""
    first = recorded.snapshot
    market, twin = Market(SYMBOL), ReferenceMarket(SYMBOL)
    for made in (market, twin):
        levels = (list(first.bids), list(first.asks))
        made.load_snapshot(first.book_update_id, first.price_exponent, first.qty_exponent, *levels, 0)
    frames = [frame for _, frame in recorded.events[:2_000]]
    await stage.rebuild(market)
    await stage.lines.carry(frames[:1])
    processor = stage.start()
    await stage.has_writer()
    chance = random.Random(4)

    for start in range(0, len(frames), 20):
        batch = frames[start : start + 20]
        out = chance.sample(range(20), 2 * lost)
        on_a = [frame for at, frame in enumerate(batch) if at not in out[:lost]]
        on_b = [frame for at, frame in enumerate(batch) if at not in out[lost:]]
        stamp_us = await stage.lines.carry_at_once({"a": on_a, "b": on_b + batch[:3]})
        twin.feed(0, pack_frames([(0, frame) for frame in batch]), stamp_us)
    await stage.holds(twin.update_id)
    read = await stage.hot.read()

    ignored = SET_BY_WRITER | (BY_ORDER_OF_ARRIVAL if lost else set())
    written = [without(fields, ignored) for fields in (read.ob, read.tr_1s, read.tr_5s, read.feat)]
    moments = (twin.hot_state(read.now_us - ago_us) for ago_us in range(0, 2_000_000, 500))
    assert any(written == [without(pairs(flat), ignored) for flat in expected] for expected in moments)
    # Played at another pace than recorded, event times run ahead of arrival: rules of time may apply, no other.
    rules = {gap.rule for gap in await stage.gaps()} - {"clock_jump"}
    assert ("1", "sbe", set()) == (read.ob["epoch"], read.ob["source"], rules)
    assert 0 == processor.stop()


async def test_keys_live_as_long_as_they_should(stage: Stage) -> None:
    """Book for ever, trades 300 s, features 120 s; renewed by every write."""
    await stage.started()

    ttls = [await stage.redis.ttl(key) for key in (KEYS.ob, KEYS.tr_1s, KEYS.tr_5s, KEYS.feat)]

    assert -1 == ttls[0]
    assert 295 <= ttls[1] <= 300
    assert 295 <= ttls[2] <= 300
    assert 115 <= ttls[3] <= 120


async def test_windows_run_empty_in_silence(stage: Stage) -> None:
    """Old trades leave the windows although no new one comes; the silence is reported, and only requests a check."""
    await stage.started()
    await stage.lines.carry([stage.feed.trade()])

    async def is_empty() -> bool:
        return (await stage.hot.read()).tr_5s["count"] == "0"

    await until(is_empty, 8, "an empty window")
    gap = await stage.told("time_gap")
    assert ("scheduled_reanchor", "anchored") == (gap.action, (await stage.hot.anchor()).state)


async def test_redelivered_frames_do_not_count_twice(stage: Stage) -> None:
    """The same trades again, on either line: the same statistics."""
    await stage.started()

    async def is_empty() -> bool:
        return (await stage.hot.read()).tr_5s["count"] == "0"

    while True:
        began_us, first = now_us(), stage.feed.trade_id
        trades = [stage.feed.trade() for _ in range(20)]
        await stage.lines.carry([*trades, stage.feed.diff()])
        await stage.holds(stage.feed.update_id)
        await stage.lines.carry(trades, "b")
        await stage.lines.carry(trades, "a")
        await stage.lines.carry([stage.feed.trade(), stage.feed.diff()])
        await stage.holds(stage.feed.update_id)
        read = await stage.hot.read()
        if read.now_us - began_us < WINDOW_US:
            break
        await until(is_empty, 8, "a window that this was too slow for")

    count = int(read.tr_5s["count"])
    assert stage.feed.trade_id - first == 21
    assert 21 <= count <= 22  # that of the start may still be among them


async def test_poison_is_counted_and_passed(stage: Stage) -> None:
    """Garbage, a broken envelope and another symbol's frame between good ones: the good ones are all there."""
    processor = await stage.started()
    good = [stage.feed.diff() for _ in range(4)]

    await stage.lines.carry([good[0], b"\x00garbage", good[1][:30], good[1], good[2].replace(b"BTC", b"ETH"), good[2]])
    for line in "ab":
        await stage.redis.xadd(line_stream(SYMBOL, line), {"n": 1, "t": 1, "f": b"\xff\xff\xff\x7f"})
    await stage.lines.carry([good[3]])

    await stage.holds(stage.feed.update_id)
    assert [] == await stage.gaps()
    await said(processor, "frames left out: foreign_symbol")
    metrics = processor.get("/metrics").decode()
    for kind in ("envelope", "truncated", "foreign_symbol"):
        assert f'processor_decode_errors_total{{kind="{kind}",symbol="BTCUSDT"}} 2.0' in metrics


# Gaps


async def test_what_one_line_loses_is_no_gap(stage: Stage) -> None:
    """Each line loses every fifth message, never the same one."""
    await stage.started()

    for step in range(100):
        frames = stage.feed.step()
        on_a, on_b = frames[1:] if step % 5 == 0 else frames, frames[:-1] if step % 5 == 2 else frames
        await stage.lines.carry_at_once({"a": on_a, "b": on_b})

    await stage.holds(stage.feed.update_id)
    assert ([], "anchored") == (await stage.gaps(), (await stage.hot.anchor()).state)


async def test_what_both_lines_lose_is_a_gap_that_a_rebuild_heals(stage: Stage) -> None:
    """Suspect at once, one event, the book goes on meanwhile; anchored again by a swap, without another event."""
    await stage.started()
    for _ in range(3):
        stage.feed.diff()

    stamp_us = await stage.lines.carry([stage.feed.diff()])
    gap = await stage.told("sequence_gap")
    await stage.follows()
    suspect = await stage.hot.read()
    await stage.rebuild(stage.feed.starting_market(), epoch=1)
    await stage.follows()

    assert ("high", "immediate_reanchor", "process", 1) == (gap.severity, gap.action, gap.source, gap.epoch)
    assert "depth 1006 → 1016" in gap.reason
    assert gap.at_us >= stamp_us
    assert "suspect" == suspect.anchor["state"]
    healed = await stage.hot.anchor()
    assert ("anchored", 2, ["sequence_gap"]) == (healed.state, healed.epoch, await stage.rules())


async def test_a_hole_waits_for_the_slower_line(stage: Stage) -> None:
    """What comes by the other line within 200 ms is no gap; what does not come is one after that time."""
    await stage.started()
    late, soon = stage.feed.diff(), stage.feed.diff()
    # At once, as a pause of this test beyond the 200 ms would be a gap; how long is waited unit tests know.
    await stage.lines.carry_at_once({"a": [soon], "b": [late, soon]})
    await stage.holds(stage.feed.update_id)
    assert [] == await stage.gaps()

    stage.feed.diff()
    stamp_us = await stage.lines.carry([stage.feed.diff()], "a")

    gap = await stage.told("sequence_gap")
    assert gap.at_us - stamp_us >= 200_000


async def test_a_lost_trade_is_a_gap(stage: Stage) -> None:
    """Trade ids are consecutive; a quiet trade stream has nothing to lose."""
    await stage.started()
    stage.feed.trade()

    await stage.lines.carry([stage.feed.trade()])

    assert "trade 501 → 503" in (await stage.told("sequence_gap")).reason


async def test_a_crossed_book_is_doubted(stage: Stage) -> None:
    """No id is missing, but the best bid is above the best ask: something is wrong nevertheless."""
    await stage.started()

    await stage.lines.carry([stage.feed.diff(bids=((60_000_10, 5),))])

    await stage.told("book_crossed")
    await stage.is_state("suspect")


async def test_a_suppressed_rule_says_nothing(stage: Stage) -> None:
    """The book continues after the missing range."""
    await stage.started("--suppress-rules", "sequence_gap")
    stage.feed.diff()

    await stage.follows()

    assert ([], "anchored") == (await stage.gaps(), (await stage.hot.anchor()).state)


# Starts and ends


async def test_a_restart_goes_on_where_the_killed_one_was(stage: Stage) -> None:
    """SIGKILL, messages meanwhile, a new process: the same book as the reference market's, no gap."""
    twin = ReferenceMarket(SYMBOL)
    start = stage.feed.starting_market()
    twin.load_snapshot(1_000, -2, -2, *start.levels(), 0)
    killed = await stage.started()
    async with moving(stage.lines, stage.feed):
        await asyncio.sleep(1.5)
        killed.kill()
        await asyncio.sleep(0.5)
        before = await stage.hot.anchor()

        stage.start()  # while the market moves: how long a start takes is no silence of it
        writer = await stage.has_writer(other_than=before.writer)
    await stage.follows()

    twin.feed(0, pack_frames(stage.lines.carried), 1)
    packed = await stage.redis.get(KEYS.book)
    loaded = Market(SYMBOL)
    assert packed is not None

    async def book_is_written() -> bool:
        loaded.load_book(await stage.redis.get(KEYS.book) or b"")
        return loaded.update_id == stage.feed.update_id

    await until(book_is_written, 5, "the book of the newest update")
    assert twin.levels() == loaded.levels()
    anchor = await stage.hot.anchor()
    assert (writer, before.term + 1, "anchored", []) == (
        anchor.writer,
        anchor.term,
        anchor.state,
        await stage.gaps(),
    )


async def test_a_warm_processor_takes_over(stage: Stage) -> None:
    """The writer is killed while the market moves: another writes on; no id goes back, no gap."""
    killed = await stage.started()
    writer = await stage.has_writer()
    seen: list[int] = []

    async def watch() -> None:
        while True:
            read = await stage.hot.read()
            seen.append(int(read.ob["update_id"]))
            await asyncio.sleep(0.01)

    async with moving(stage.lines, stage.feed):
        warm = stage.start()
        await said(warm, "loaded epoch 1", within_s=30)
        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0.5)
        killed.kill()
        await stage.has_writer(other_than=writer)
        taken_at = int((await stage.hot.read()).ob["update_id"])
        await until(lambda: _true(seen[-1] > taken_at), 10, "the book goes on")
        watcher.cancel()

    assert sorted(seen) == seen
    assert ("anchored", set()) == ((await stage.hot.anchor()).state, {*await stage.rules()})


async def _true(value: bool) -> bool:
    return value


async def test_a_paused_writer_changes_nothing_when_it_wakes(stage: Stage) -> None:
    """SIGSTOP, a takeover, SIGCONT: fenced and warm from its first write on."""
    paused = await stage.started()
    writer = await stage.has_writer()

    async with moving(stage.lines, stage.feed):
        warm = stage.start()  # while the market moves: how long a start takes is no silence of it
        await said(warm, "loaded epoch 1", within_s=30)
        paused.signal(signal.SIGSTOP)
        successor = await stage.has_writer(other_than=writer, within_s=5)
        await asyncio.sleep(1)
        paused.signal(signal.SIGCONT)
        await said(paused, "no longer the writer")
        await asyncio.sleep(0.5)

    await stage.follows()
    anchor = await stage.hot.anchor()
    assert (successor, "anchored", []) == (anchor.writer, anchor.state, await stage.gaps())


async def test_a_pause_of_the_only_processor_is_no_silence(stage: Stage) -> None:
    """The lines went on meanwhile: who was asleep cannot say that they were silent."""
    paused = await stage.started()

    async with moving(stage.lines, stage.feed):
        paused.signal(signal.SIGSTOP)
        await asyncio.sleep(6)
        paused.signal(signal.SIGCONT)
        await asyncio.sleep(0.5)

    await stage.follows()
    assert ([], "anchored") == (await stage.gaps(), (await stage.hot.anchor()).state)


async def test_a_new_epoch_is_loaded(stage: Stage) -> None:
    """A swap needs no message: the next write is refused, the book loaded, and the lines go on from it."""
    await stage.started()
    bids, asks = stage.feed.starting_market().levels()

    def corrected() -> Market:
        market = Market(SYMBOL)
        market.load_snapshot(stage.feed.update_id, -2, -2, [*bids, (59_000_00, 4_321)], asks, 0)
        return market

    async with moving(stage.lines, stage.feed):
        await stage.rebuild_moving(corrected, epoch=1)
        await asyncio.sleep(0.5)
    await stage.follows()

    loaded = Market(SYMBOL)

    async def book_is_written() -> bool:
        epoch, _ = loaded.load_book(await stage.redis.get(KEYS.book) or b"")
        return (epoch, loaded.update_id) == (2, stage.feed.update_id)

    await until(book_is_written, 5, "the book of the newest update")
    assert (59_000_00, 4_321) in loaded.levels()[0]
    assert ([], "anchored") == (await stage.gaps(), (await stage.hot.anchor()).state)


async def test_a_trimmed_line_is_an_ordinary_gap(stage: Stage) -> None:
    """What went by while no processor ran, and is gone from the streams, is missing: suspect, one event."""
    first = await stage.started()
    assert 0 == first.stop()
    for _ in range(10):
        await stage.lines.carry([stage.feed.diff()])
    for line in "ab":
        await stage.redis.xtrim(line_stream(SYMBOL, line), maxlen=2, approximate=False)

    stage.start()

    await stage.told("sequence_gap", within_s=30)
    await stage.is_state("suspect")
    assert ["sequence_gap"] == await stage.rules()


async def test_a_damaged_book_is_doubted_and_healed(stage: Stage) -> None:
    """A start does not trust what fails its checksum; the rebuild is loaded."""
    first = await stage.started()
    assert 0 == first.stop()
    book = bytearray(await stage.redis.get(KEYS.book) or b"")
    book[len(book) // 2] ^= 1
    await stage.redis.set(KEYS.book, bytes(book))

    stage.start()
    gap = await stage.told("book_unreadable", within_s=30)
    suspect = await stage.hot.anchor()
    await stage.rebuild(stage.feed.starting_market(), epoch=1)
    await stage.follows()

    assert ("damaged" in gap.reason, "suspect") == (True, suspect.state)
    assert ("anchored", ["book_unreadable"]) == ((await stage.hot.anchor()).state, await stage.rules())


async def test_what_others_write_over_the_hot_keys_gives_way(stage: Stage) -> None:
    """Keys of another type are written again; over an epoch that is not a number the memory is restated."""
    processor = await stage.started()
    async with processor.asleep():  # it writes ten times a second: what others have written would be gone at the read
        await stage.redis.ping()  # what it had sent before is executed
        await stage.redis.set(KEYS.ob, "junk")
        await stage.redis.delete(KEYS.tr_1s)
        await stage.redis.rpush(KEYS.tr_1s, "junk")
        damaged = await stage.hot.read()

    async def is_whole() -> bool:
        read = await stage.hot.read()
        return not read.incomplete and read.ob["update_id"] == str(stage.feed.update_id)

    await until(is_whole, 5, "whole hot keys")
    async with moving(stage.lines, stage.feed):  # a memory of a market that has stood still is not restated
        async with processor.asleep():
            await stage.lines.carry(stage.feed.step())
            await stage.redis.hset(KEYS.anchor, "epoch", "junk")
        await stage.told("redis_failover")

    assert ({}, {}) == (damaged.ob, damaged.tr_1s)
    assert "ob: WRONGTYPE" in damaged.incomplete
    assert ("anchored", 2) == ((await stage.hot.anchor()).state, (await stage.hot.anchor()).epoch)
    assert processor.process.poll() is None


async def test_the_last_thing_written_is_the_book(stage: Stage) -> None:
    """SIGTERM: exit code 0, the book at the newest update, and a last line that says so."""
    processor = await stage.started("--book-interval-s", "60")
    for _ in range(20):
        await stage.follows()

    code = processor.stop()

    loaded = Market(SYMBOL)
    loaded.load_book(await stage.redis.get(KEYS.book) or b"")
    assert (0, stage.feed.update_id) == (code, loaded.update_id)
    assert "Shutdown complete" == processor.lines()[-1]["message"]


# Health and first anchor


async def test_health_says_what_it_watches(stage: Stage) -> None:
    """The gap detector's state, the anchor's, and the lines' age."""
    processor = await stage.started("--health-check-interval-seconds", "1")

    async def is_healthy() -> bool:
        await stage.follows()
        return json.loads(await asyncio.to_thread(processor.get, "/health"))["status"] == "healthy"

    await until(is_healthy, 10, "healthy")
    body = json.loads(processor.get("/health"))

    detector = body["components"]["gap_detector"]
    assert ("monitoring", 0) == (detector["status"], detector["gaps_detected_today"])
    assert 1_000 < detector["last_sequence_id"] <= stage.feed.update_id
    assert "anchored" == body["checks"]["anchor"]["symbols"][SYMBOL]["state"]
    assert "redis://" not in json.dumps(body)


async def test_without_an_anchor_it_waits(stage: Stage) -> None:
    """Nothing is anchored: it takes write ownership, sends heartbeats, and writes no hot key."""
    stage.start()
    await stage.has_writer()
    await stage.lines.carry(stage.feed.step())
    before = await stage.hot.anchor()

    async def beats() -> bool:
        return (await stage.hot.anchor()).heartbeat_us > before.heartbeat_us

    await until(beats, 5, "a sign of life")
    assert ("suspect", 0) == ((await stage.hot.anchor()).state, await stage.redis.exists(KEYS.ob))


async def test_nobody_comes_so_it_anchors_by_itself(stage: Stage) -> None:
    """Without a coordinator it runs the re-anchor as a child once the time is over, with the rights it should have."""
    document = (Path(__file__).parents[3] / "docs" / "hot-state.md").read_text("utf-8")
    [user] = [line.split() for line in document.splitlines() if line.startswith("user process ")]
    await stage.redis.execute_command("ACL", "SETUSER", *user[1:])
    await ensure_library(stage.redis)  # the user may not; a managed node does it
    stage.url = stage.url.replace("://", "://process:secret@")
    with exchange_process() as exchange:
        async with fed_line(stage.redis, exchange.ws_url):
            stage.start("--self-reanchor-after-s", "1", "--rest-url", exchange.rest_url)
            await stage.is_state("anchored", within_s=60)

            async def is_followed() -> bool:
                read = await stage.hot.read()
                return read.ob.get("source") == "sbe" and not read.incomplete

            await until(is_followed, 10, "the processor writes the new epoch")
    assert (1, set()) == ((await stage.hot.anchor()).epoch, {*await stage.rules()})


RECEIPTS = """
import sys, time, redis
client = redis.Redis.from_url(sys.argv[1])
while True:
    client.xadd(sys.argv[2], {"receipt": "{}"})
    time.sleep(0.4)
"""


async def test_where_somebody_takes_care_it_does_not_interfere(stage: Stage, free_port: int) -> None:
    """Receipts of failed runs show a coordinator at work; when they stop it runs its own, and outlives its failure."""
    waiting = stage.start("--self-reanchor-after-s", "5", "--rest-url", f"http://127.0.0.1:{free_port}")
    await stage.has_writer()

    # Left by a process of its own, so that however slow the test is, none comes too late.
    leaving = await asyncio.create_subprocess_exec(sys.executable, "-c", RECEIPTS, stage.url, KEYS.receipts)
    try:
        for _ in range(16):
            await asyncio.sleep(0.4)
            assert not waiting.said("running it here")
        assert leaving.returncode is None
    finally:
        leaving.kill()
        await leaving.wait()

    await said(waiting, "running it here")
    await said(waiting, "the re-anchor failed with exit code 3", within_s=60)
    assert ("", None) == (await stage.hot.lock_holder(), waiting.process.poll())


def test_an_unknown_rule_is_a_bad_setting(redis_url: str, tmp_path: Path) -> None:
    """One line that names the setting, the value and what was expected; exit code 2."""
    processor = Processor(redis_url, tmp_path / "log", "--suppress-rules", "sequence_gpa")

    code = processor.process.wait(timeout=60)

    assert 2 == code
    assert processor.said("suppress_rules = sequence_gpa: expected some of")

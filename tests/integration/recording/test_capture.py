"""Recording what flows through a real Redis: each message once, in order, ready to be played and learnt from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis.asyncio import Redis

from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import keys, line_stream, pack_frames, unpack_frames
from sheetanchor.errors import BadRecording, BadSettings, RedisRefused
from sheetanchor.ml.dataset import rows
from sheetanchor.recording import capture, recording_file
from sheetanchor.recording.capture import missing_range_in, run
from sheetanchor.recording.recording_file import Recording
from sheetanchor.runtime.settings import CaptureSettings
from sheetanchor.store.frame_streams import LineWriter
from sheetanchor.store.redis_client import redis_client
from support.bad_entries import BROKEN_FRAMES, spoil, spoil_lines
from support.patience import PATIENT

SYMBOL = "BTCUSDT"
BATCH = 40
READ_S = 0.1
"""The most that counts of a read: so many are made whatever else takes time."""


@pytest.fixture(autouse=True)
def _time_of_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time of a recording be that of its reads: for as long as this process stands still it reads nothing."""
    shown_s, looked_s = 0.0, time.monotonic()

    def monotonic() -> float:
        nonlocal shown_s, looked_s
        now_s = time.monotonic()
        shown_s, looked_s = shown_s + min(now_s - looked_s, READ_S), now_s
        return shown_s

    monkeypatch.setattr(capture, "time", SimpleNamespace(**{**vars(time), "monotonic": monotonic}))


@pytest.fixture(scope="module")
def market() -> Recording:
    """Twenty seconds of the recording that ships."""
    whole = recording_file.load(recording_file.default_path())
    end_us = whole.snapshot_us + 20_000_000
    return replace(whole, events=[event for event in whole.events if event[0] <= end_us])


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = redis_client(redis_url, **PATIENT)
    yield client
    await client.aclose()


async def stored_book(redis: Redis, market: Recording, ids: dict[str, str]) -> None:
    """Put a packed book into Redis as a processor does."""
    snapshot = market.snapshot
    made = Market(SYMBOL)
    made.load_snapshot(snapshot.book_update_id, -8, -8, list(snapshot.bids), list(snapshot.asks), market.snapshot_us)
    await redis.set(keys(SYMBOL).book, made.pack_book(1, ids))


async def feed(redis: Redis, events: list[tuple[int, bytes]], *lines: str) -> None:
    """Append frames to several lines, as ingestors of the same feed do."""
    writers = [LineWriter(redis, SYMBOL, line) for line in lines]
    for start in range(0, len(events), BATCH):
        for writer in writers:
            await writer.append(events[start : start + BATCH])


async def captured(redis_url: str, path: Path, seconds: float) -> Recording:
    settings = CaptureSettings(redis_url=redis_url, symbol=[SYMBOL], out=path, seconds=seconds)
    assert 0 == await run(settings)
    return recording_file.load(path)


async def test_what_two_lines_carry_is_recorded_once(
    redis: Redis, redis_url: str, market: Recording, tmp_path: Path
) -> None:
    """The file holds the starting book and every message once; replayed it gives the same rows as the market."""
    await stored_book(redis, market, {})
    await feed(redis, market.events, "a", "b")

    found = await captured(redis_url, tmp_path / "capture.frames.gz", 1.0)

    assert market.snapshot.bids == found.snapshot.bids
    assert market.snapshot.book_update_id == found.snapshot.book_update_id
    assert sorted(market.events) == sorted(found.events)
    assert "" == missing_range_in(found)
    times = [found.snapshot_us, *(at_us for at_us, _ in found.events)]
    assert times == sorted(times)
    same_clock = replace(found, snapshot=market.snapshot, snapshot_us=market.snapshot_us, events=found.events)
    assert [row.mid for row in rows(market)] == [row.mid for row in rows(same_clock)]


async def test_what_one_line_lost_the_other_brings(
    redis: Redis, redis_url: str, market: Recording, tmp_path: Path
) -> None:
    """A line that drops frames costs nothing as long as another one has them."""
    await stored_book(redis, market, {})
    depth = [event for event in market.events if isinstance(sbe.decode(event[1]), sbe.DepthDiff)]
    for start in range(0, len(depth), BATCH):
        part = depth[start : start + BATCH]
        await feed(redis, part[: BATCH // 2], "a")
        await feed(redis, part, "b")

    found = await captured(redis_url, tmp_path / "capture.frames", 1.0)

    assert [frame for _, frame in depth] == [frame for _, frame in found.events]


async def test_recording_goes_on_while_frames_come(
    redis: Redis, redis_url: str, market: Recording, tmp_path: Path
) -> None:
    """Frames that are appended after the start are in the file; those before the stored book's place are not."""
    writer = LineWriter(redis, SYMBOL, "a")
    before, after = market.events[:400], market.events[400:800]
    place = await writer.append(before)
    made = Market(SYMBOL)
    snapshot = market.snapshot
    made.load_snapshot(snapshot.book_update_id, -8, -8, list(snapshot.bids), list(snapshot.asks), market.snapshot_us)
    made.feed(0, pack_frames(before), market.snapshot_us)
    await redis.set(keys(SYMBOL).book, made.pack_book(1, {"a": place}))

    recorder = asyncio.create_task(captured(redis_url, tmp_path / "capture.frames.gz", 1.5))
    await asyncio.sleep(0.3)  # well into the time that is recorded
    await feed(redis, after, "a")
    found = await recorder

    assert made.update_id == found.snapshot.book_update_id
    assert sorted(after) == sorted(found.events)


async def test_a_missing_range_is_reported(
    redis: Redis, redis_url: str, market: Recording, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What no line had is missing from the file too, and the log says which id."""
    await stored_book(redis, market, {})
    diffs = [at for at, (_, frame) in enumerate(market.events) if isinstance(sbe.decode(frame), sbe.DepthDiff)]
    lost = diffs[50]
    await feed(redis, [event for at, event in enumerate(market.events) if at != lost], "a")

    await captured(redis_url, tmp_path / "capture.frames.gz", 1.0)

    message = sbe.decode(market.events[lost][1])
    assert isinstance(message, sbe.DepthDiff)
    assert "messages are missing: update" in caplog.text


async def test_bad_frames_and_other_symbols_are_left_out(
    redis: Redis, redis_url: str, market: Recording, tmp_path: Path
) -> None:
    """The raw streams may hold anything; the file holds only what can be played."""
    await stored_book(redis, market, {})
    part = market.events[:100]
    foreign = sbe.encode(replace(sbe.decode(part[0][1]), symbol="ETHUSDT"))
    await feed(redis, [(1, b"garbage"), (2, foreign), *part], "a")

    found = await captured(redis_url, tmp_path / "capture.frames.gz", 0.8)

    assert sorted(part) == sorted(found.events)


async def test_whatever_ingestors_write_stops_no_recording(
    redis: Redis, redis_url: str, market: Recording, tmp_path: Path
) -> None:
    """Malformed entries and lines that are none are left out; what follows is recorded."""
    await stored_book(redis, market, {})
    await spoil_lines(redis, SYMBOL)
    await spoil(redis, SYMBOL, "a")
    for packed in BROKEN_FRAMES.values():
        await redis.xadd(line_stream(SYMBOL, "a"), {"n": 1, "t": 1, "f": packed})
    await feed(redis, market.events[:100], "a")

    found = await captured(redis_url, tmp_path / "capture.frames.gz", 0.8)

    assert sorted(market.events[:100]) == sorted(found.events)


async def test_the_file_holds_what_was_received(
    redis: Redis, redis_url: str, market: Recording, tmp_path: Path
) -> None:
    """Unreadable frames, empty ones and top-20 snapshots are in the file to the letter, each once although two lines
    carry them, and as often as one line brought them; what plays it passes over them."""
    await stored_book(redis, market, {})
    head = {"symbol": SYMBOL, "price_exponent": -8, "qty_exponent": -8}
    empty = sbe.encode(sbe.Trades(event_time_us=1, transact_time_us=1, trades=(), **head))
    top = sbe.encode(sbe.DepthSnapshot(event_time_us=2, book_update_id=5, bids=((1, 1),), asks=((2, 1),), **head))
    odd = [(1, b"garbage"), (2, empty), (3, top), (4, b"garbage"), (5, market.events[0][1][:-1])]
    part = market.events[:60]
    await feed(redis, [*odd, *part], "a", "b")
    path = tmp_path / "capture.frames"

    found = await captured(redis_url, path, 0.8)

    held = [frame for _, frame in unpack_frames(path.read_bytes())]
    assert sorted([frame for _, frame in [*odd, *part]]) == sorted(held[1:])
    assert sorted(part) == sorted(found.events)


@pytest.mark.parametrize(
    ("book", "expected"), [(None, "there is no stored book"), (b"not a book", "the stored book is damaged")]
)
async def test_without_a_sound_book_nothing_is_recorded(
    redis: Redis, redis_url: str, tmp_path: Path, book: bytes | None, expected: str
) -> None:
    """A recording has to begin with a book; one line says what is wrong, and no file is left."""
    if book is not None:
        await redis.set(keys(SYMBOL).book, book)

    with pytest.raises(RedisRefused, match=expected):
        await captured(redis_url, tmp_path / "capture.frames", 0.5)
    assert not (tmp_path / "capture.frames").exists()


async def test_silence_is_no_recording(redis: Redis, redis_url: str, market: Recording, tmp_path: Path) -> None:
    """A book without a single frame after it is an error and not written: nothing could be played."""
    await stored_book(redis, market, {})

    with pytest.raises(BadRecording, match="no frame came in"):
        await captured(redis_url, tmp_path / "capture.frames", 0.3)
    assert not (tmp_path / "capture.frames").exists()


async def test_settings_are_checked_first(tmp_path: Path) -> None:
    """One symbol a file, and a folder that exists: checked before anything is recorded."""
    with pytest.raises(BadSettings, match="expected one symbol"):
        await run(CaptureSettings(symbol=["BTCUSDT", "ETHUSDT"], out=tmp_path / "x.frames"))
    with pytest.raises(BadSettings, match="expected a file in a folder that exists"):
        await run(CaptureSettings(out=tmp_path / "none" / "x.frames"))

"""`sheetanchor capture`: record the raw frames that flow through Redis to a file.

The file begins with the stored book, followed by every later frame, each once although two lines carry it.
`sheetanchor train` uses it for training and `sheetanchor exchange` plays it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from sheetanchor import sbe
from sheetanchor._decoder import Market, validate_frame
from sheetanchor.contract import pack_frames, unpack_frames
from sheetanchor.errors import BadRecording, BadSettings, RedisRefused
from sheetanchor.recording.recording_file import Recording, save
from sheetanchor.runtime.settings import CaptureSettings
from sheetanchor.runtime.stop_signals import stop_event
from sheetanchor.sbe import DecodeError, DepthSnapshot
from sheetanchor.store.frame_streams import LineReader
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client

log = logging.getLogger(__name__)

BLOCK_MS: Final = 200
PROGRESS_S: Final = 10.0


@dataclass(slots=True)
class Collected:
    """Messages by kind and id, each once, whichever line brings it and however late.

    A line may be ahead of another and have lost a message that the other still brings, so they are sorted at the end.

    Args:
        depth_id: Last update id of the starting book; diffs up to it are left out.
        skipped: Entries that could not be split into frames.
    """

    symbol: str
    depth_id: int
    skipped: int = 0
    _found: dict[int, dict[int, tuple[int, bytes]]] = field(default_factory=dict)
    _others: dict[bytes, dict[str, list[int]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._found.values())) + len(self._others)

    def add(self, received_us: int, frame: bytes, line: str = "") -> None:
        """Add a frame; only another symbol's is left out.

        A frame that cannot be decoded, or has no id, is identified by its content: it is kept as often as the line that
        brought it most often did.
        """
        try:
            template, symbol, _, _, last_id, count = validate_frame(frame)
        except DecodeError:
            template, symbol, last_id, count = sbe.DEPTH_SNAPSHOT_TEMPLATE, self.symbol, 0, 0
        if symbol != self.symbol:
            return
        if template == sbe.DEPTH_SNAPSHOT_TEMPLATE or (template == sbe.TRADES_TEMPLATE and count == 0):
            self._others.setdefault(frame, {}).setdefault(line, []).append(received_us)
            return
        if template == sbe.DEPTH_DIFF_TEMPLATE and last_id <= self.depth_id:
            return
        of_kind = self._found.setdefault(template, {})
        known = of_kind.get(last_id)
        if known is None or received_us < known[0]:
            of_kind[last_id] = (received_us, frame)

    def events(self) -> list[tuple[int, bytes]]:
        """Give the frames by time of receipt; within a kind the order of ids comes first."""
        kinds = []
        for of_kind in self._found.values():
            latest_us, ordered = 0, []
            for _, (received_us, frame) in sorted(of_kind.items()):
                latest_us = max(latest_us, received_us)
                ordered.append((latest_us, frame))
            kinds.append(ordered)
        for frame, lines in self._others.items():
            times = sorted(lines.values(), key=lambda brought: len(brought))[-1]
            kinds.append([(received_us, frame) for received_us in sorted(times)])
        return list(heapq.merge(*kinds, key=itemgetter(0)))


async def begin(redis: Redis, symbol: str) -> tuple[Recording, dict[str, str]]:
    """Read the stored book as the start of a recording.

    Returns:
        The recording without events, and the id after which to read each line.

    Raises:
        RedisRefused: There is no usable book to begin with.
    """
    packed = await HotState(redis, symbol).book()
    if packed is None:
        raise RedisRefused(f"{symbol}: there is no stored book to begin a recording with; is the pipeline anchored?")
    market = Market(symbol)
    try:
        _, ids = market.load_book(packed)
    except ValueError as error:
        raise RedisRefused(f"{symbol}: the stored book is damaged: {error}") from error
    bids, asks = market.levels()
    now_us = time.time_ns() // 1_000
    snapshot = DepthSnapshot(
        event_time_us=max(0, market.event_us),
        symbol=symbol,
        price_exponent=market.price_exponent,
        qty_exponent=market.qty_exponent,
        book_update_id=market.update_id,
        bids=tuple(bids),
        asks=tuple(asks),
    )
    return Recording(symbol, snapshot, now_us, []), ids


async def follow(redis: Redis, recording: Recording, ids: dict[str, str], seconds: float, stop: asyncio.Event) -> None:
    """Add every frame after the starting book until the time is over."""
    reader = LineReader(redis, recording.symbol)
    await reader.discover()
    reader.seek(ids)
    collected = Collected(recording.symbol, recording.snapshot.book_update_id)
    started = logged_s = time.monotonic()
    while not stop.is_set() and time.monotonic() - started < seconds:
        for batch in await reader.read(BLOCK_MS, now_us=time.monotonic_ns() // 1_000):
            try:
                frames = list(unpack_frames(batch.frames))
            except ValueError as error:
                collected.skipped += 1
                if collected.skipped == 1:
                    log.warning(
                        "entry %s of line %s cannot be read and is left out: %s", batch.entry_id, batch.line, error
                    )
                continue
            for received_us, frame in frames:
                collected.add(received_us, frame, batch.line)
        if time.monotonic() - logged_s >= PROGRESS_S:
            logged_s = time.monotonic()
            log.info("%s: %d frames in %.0f s", recording.symbol, len(collected), logged_s - started)
    recording.events.extend(collected.events())


def missing_range_in(recording: Recording) -> str:
    """Say which messages are missing from a recording because no line had them; "" if none are."""
    snapshot = recording.snapshot
    market = Market(recording.symbol)
    market.load_snapshot(
        snapshot.book_update_id,
        snapshot.price_exponent,
        snapshot.qty_exponent,
        list(snapshot.bids),
        list(snapshot.asks),
        recording.snapshot_us,
    )
    market.feed(0, pack_frames(recording.events), recording.snapshot_us)
    for name, found in (("update", market.depth_gap), ("trade", market.trade_gap)):
        if found is not None:
            return f"{name} {found[0]} is missing, {found[1]} follows"
    return ""


async def run(settings: CaptureSettings) -> int:
    """Record one symbol for the given time, or until SIGINT; then write the file.

    Raises:
        BadRecording: There was nothing to record.
        BadSettings: The settings name several symbols or a file that cannot be written.
        RedisRefused: There is no usable book to begin with.
    """
    if len(settings.symbol) != 1:
        raise BadSettings(f"symbol = {', '.join(settings.symbol)}: expected one symbol, a file holds one market")
    if not Path(settings.out).parent.is_dir():
        raise BadSettings(f"out = {str(settings.out)!r}: expected a file in a folder that exists")
    stop = stop_event()
    redis = redis_client(settings.redis_url, settings.redis_password_file, ca_file=settings.redis_ca_file)
    try:
        recording, ids = await begin(redis, settings.symbol[0])
        await follow(redis, recording, ids, settings.seconds, stop)
    finally:
        await redis.aclose()
    if not recording.events:
        raise BadRecording(f"{recording.symbol}: no frame came in {settings.seconds:g} s; is an ingestor running?")
    # The book was stored a little before the recording began, and the lines are read from there.
    recording = replace(recording, snapshot_us=min(recording.snapshot_us, recording.events[0][0]))
    try:
        save(recording, settings.out)
    except OSError as error:
        raise BadSettings(f"out = {str(settings.out)!r}: {error.strerror}") from error
    log.info("%s: %d frames written to %s", recording.symbol, len(recording.events), settings.out)
    if missing := missing_range_in(recording):
        log.warning("%s: messages are missing: %s; training uses nothing after that", recording.symbol, missing)
    return 0

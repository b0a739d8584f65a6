"""`sheetanchor capture`: record the raw frames that flow through Redis to a file.

The file begins with the stored book and goes on with every frame after it, each once although two lines carry it.
`sheetanchor train` learns from it and `sheetanchor exchange` plays it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from sheetanchor._decoder import Market, validate_frame
from sheetanchor.contract import pack_frames, unpack_frames
from sheetanchor.errors import BadSettings, RedisRefused
from sheetanchor.hot_state import HotState
from sheetanchor.recording import Recording, save
from sheetanchor.sbe import DecodeError, DepthSnapshot
from sheetanchor.settings import CaptureSettings
from sheetanchor.transport import LineReader, redis_client

log = logging.getLogger(__name__)

BLOCK_MS: Final = 200
PROGRESS_S: Final = 10.0


@dataclass(slots=True)
class Once:
    """Lets each message through once, whichever line brings it first.

    Args:
        depth_id: Update id that the starting book ends at; diffs up to it are left out.
    """

    depth_id: int
    _last: dict[int, int] = field(default_factory=dict)

    def admits(self, frame: bytes, symbol: str) -> bool:
        """Say whether a frame is new; one that cannot be read or is another symbol's is not wanted at all."""
        try:
            template, found, _, _, last_id, count = validate_frame(frame)
        except DecodeError:
            return False
        if found != symbol or count == 0 or template == 10002:
            return False
        last = self._last.get(template, self.depth_id if template == 10003 else -1)
        if last_id <= last:
            return False
        self._last[template] = last_id
        return True


async def begin(redis: Redis, symbol: str) -> tuple[Recording, dict[str, str]]:
    """Take the stored book as the start of a recording.

    Returns:
        The recording without events, and where to read on, per line.

    Raises:
        RedisRefused: If there is no sound book to begin with.
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
    once = Once(recording.snapshot.book_update_id)
    started = told = time.monotonic()
    while not stop.is_set() and time.monotonic() - started < seconds:
        for batch in await reader.read(BLOCK_MS, now_us=time.monotonic_ns() // 1_000):
            for received_us, frame in unpack_frames(batch.frames):
                if once.admits(frame, recording.symbol):
                    # The order of ids is what counts; the lines' receive times may differ by milliseconds.
                    last_us = recording.events[-1][0] if recording.events else 0
                    recording.events.append((max(received_us, last_us), frame))
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            log.info("%s: %d frames in %.0f s", recording.symbol, len(recording.events), told - started)


def hole_in(recording: Recording) -> str:
    """Say what is missing from a recording because no line had it; "" if nothing is."""
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
    for name, hole in (("update", market.depth_hole), ("trade", market.trade_hole)):
        if hole is not None:
            return f"{name} {hole[0]} is missing, {hole[1]} follows"
    return ""


async def run(settings: CaptureSettings) -> int:
    """Record one symbol for the time that was asked for, or until SIGINT; then write the file.

    Raises:
        BadSettings: If the settings name several symbols or a file that cannot be written.
        RedisRefused: If there is nothing to begin with.
    """
    if len(settings.symbol) != 1:
        raise BadSettings(f"symbol = {', '.join(settings.symbol)}: expected one symbol, a file holds one market")
    if not Path(settings.out).parent.is_dir():
        raise BadSettings(f"out = {str(settings.out)!r}: expected a file in a folder that exists")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    redis = redis_client(settings.redis_url, settings.redis_password_file)
    try:
        recording, ids = await begin(redis, settings.symbol[0])
        await follow(redis, recording, ids, settings.seconds, stop)
    finally:
        await redis.aclose()
    try:
        save(recording, settings.out)
    except OSError as error:
        raise BadSettings(f"out = {str(settings.out)!r}: {error.strerror}") from error
    log.info("%s: %d frames written to %s", recording.symbol, len(recording.events), settings.out)
    if hole := hole_in(recording):
        log.warning("%s: the recording has a hole: %s; training stops there", recording.symbol, hole)
    return 0

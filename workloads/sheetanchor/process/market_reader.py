"""Reads the lines of one symbol into its market, and reads them again from further back where that is needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from redis.asyncio import Redis

from sheetanchor._decoder import Market
from sheetanchor.process.book_loader import rewind
from sheetanchor.process.market.frame_delays import FrameDelays
from sheetanchor.process.market.market_follower import Follower
from sheetanchor.process.processor_metrics import left_out
from sheetanchor.runtime import metrics
from sheetanchor.store import id_continuity
from sheetanchor.store.frame_streams import Batch, LineReader

log = logging.getLogger(__name__)

READ_COUNT: Final = 256
"""Entries per line and read: at one entry every 5 ms, more than a second's worth."""

REPLAY_US: Final = 10_000_000
"""Windows reach back five seconds; twice that covers what a line may lag."""

FAILOVER_REWIND_US: Final = 30_000_000
"""Twice what ingestors append again after a failover."""


def monotonic_us() -> int:
    """Give this process' monotonic clock in µs."""
    return time.monotonic_ns() // 1_000


class MarketReader:
    """Reads one symbol's lines.

    Args:
        redis: Client that may be used beside a read.
        reading: Client whose connection may block in reads.
        symbol: Trading pair.
        follower: Where entries go.
        on_mark: Called with line and replication id of an entry that ends what the line appends again, and the moment.
    """

    def __init__(
        self, redis: Redis, reading: Redis, symbol: str, follower: Follower, on_mark: Callable[[str, str, int], None]
    ) -> None:
        self.delays = FrameDelays()
        self._redis = redis
        self._symbol = symbol
        self._follower = follower
        self._on_mark = on_mark
        self._lines = LineReader(reading, symbol)
        self._skipped = self._skipped_before = 0

    @property
    def positions(self) -> dict[str, str]:
        """Per line the last stream id that was read."""
        return self._lines.ids

    @property
    def faults(self) -> int:
        """What the market may lack although no rule has found it, counted since it was loaded.

        Missing ranges that were passed, frames that were dropped and entries that were skipped.
        """
        skipped = self._skipped + self._lines.skipped - self._skipped_before
        return skipped + self._follower.detector.passed + left_out(self._follower.market.counters())

    async def read(self, block_ms: int, *, writes: bool) -> tuple[int, bool]:
        """Read what is next on every line.

        Args:
            block_ms: Longest time to wait for an entry.
            writes: Whether this process writes what it reads.

        Returns:
            When it was asked for, and whether there was anything.

        Raises:
            RedisError: If Redis does not answer.
        """
        asked_us, skipped = monotonic_us(), self._lines.skipped
        batches = await self._lines.read(block_ms, READ_COUNT, now_us=asked_us)
        counts: dict[str, int] = {}
        got_us = monotonic_us()
        for batch in batches:
            counts[batch.line] = counts.get(batch.line, 0) + 1
            self._take(batch, got_us, writes=writes)
        # A line that gave as many entries as were asked for has more: one of them may fill a missing range.
        skipped = self._lines.skipped - skipped
        complete = all(count + skipped < READ_COUNT for count in counts.values())
        self._follower.read(asked_us, self._lines.ids.keys(), complete=complete)
        if complete:
            self.delays.keeps_up(self._now_us())
        return asked_us, bool(batches)

    def _take(self, batch: Batch, got_us: int, *, writes: bool) -> None:
        try:
            frames = self._follower.take(batch, got_us)
        except ValueError as error:
            metrics.DECODE_ERRORS.labels(self._symbol, "envelope").inc()
            log.error("%s: entry %s of line %s skipped: %s", self._symbol, batch.entry_id, batch.line, error)
            self._skipped += 1
            return
        if batch.again:
            self._on_mark(batch.line, batch.again, got_us)
        metrics.FRAMES_PROCESSED.labels(self._symbol, batch.line).inc(frames)
        self.delays.take(batch, writes=writes)

    async def go_to(self, market: Market, positions: Mapping[str, str]) -> None:
        """Read on from where a loaded market ends or from ten seconds ago, whichever is earlier.

        Raises:
            RedisError: If Redis does not answer.
        """
        await self._rewind(positions, REPLAY_US)
        await id_continuity.leave_out(self._redis, self._lines, market, positions)
        self._skipped, self._skipped_before = 0, self._lines.skipped

    async def go_back(self) -> None:
        """Read again what a failover may have moved: entries may have gone or have other ids, and some come again.

        Raises:
            RedisError: If Redis does not answer.
        """
        positions = self._lines.ids
        await self._rewind({}, FAILOVER_REWIND_US)
        await id_continuity.leave_out(self._redis, self._lines, self._follower.market, positions)

    async def _rewind(self, positions: Mapping[str, str], back_us: int) -> None:
        await rewind(self._lines, self._symbol, positions, self._now_us() - back_us)
        self._follower.rewound()
        self.delays.replay()

    def _now_us(self) -> int:
        """Redis' clock."""
        return self._follower.clock.now_us(monotonic_us())

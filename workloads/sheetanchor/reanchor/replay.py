"""Brings a market that was built from a snapshot up to the present, with the lines' raw frames."""

from __future__ import annotations

import asyncio
import logging
import math
import struct
import time
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final

from redis.asyncio import Redis

from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import unpack_frames
from sheetanchor.errors import ExchangeError
from sheetanchor.store import id_continuity
from sheetanchor.store.frame_streams import Batch, LineReader

log = logging.getLogger(__name__)

SILENCE_S: Final = 2.0
"""Lines without frames for this long are not waited for: in a moving market diffs come ten times a second."""

MISSING_WAIT_S: Final = 0.3
"""How long a range may be missing before a newer snapshot is fetched; a little longer than a slower line is given."""

READ_COUNT: Final = 512
READ_BLOCK_MS: Final = 20
LINES_MAX: Final = 15

_TEMPLATE = struct.Struct("<2xH")


class Reached(Enum):
    """The result of catching up with the lines."""

    LIVE = "caught up with the lines"
    SILENT = "the lines deliver no frames: only the snapshot counts"
    ABSENT = "there is no line: only the snapshot counts"
    MISSING_RANGE = "the lines begin after the snapshot, or messages are missing after it"


@dataclass(slots=True)
class Traded:
    """Lowest and highest price of the trades in the lines."""

    low: float = math.inf
    high: float = -math.inf

    def note(self, batch: Batch) -> None:
        """Add the trades of one stream entry; other messages and damaged frames are handled elsewhere."""
        for _, frame in unpack_frames(batch.frames):
            if len(frame) < _TEMPLATE.size or _TEMPLATE.unpack_from(frame)[0] != sbe.TRADES_TEMPLATE:
                continue
            try:
                trades = sbe.decode(frame)
            except sbe.DecodeError:
                continue
            if isinstance(trades, sbe.Trades):
                prices = [price * 10.0**trades.price_exponent for _, price, _, _ in trades.trades]
                self.low = min([self.low, *prices])
                self.high = max([self.high, *prices])


class Replay:
    """Feeds the lines of a symbol into a market.

    Args:
        redis: Redis with the lines.
        market: Market to feed, built from a snapshot.
        asked_us: Redis' clock when the snapshot was requested.
        wait_s: Longest wait for the lines to reach the snapshot.
        known_us: The exchange's time of the newest trade in the snapshot, or of the snapshot if it has none.
    """

    def __init__(self, redis: Redis, market: Market, asked_us: int, wait_s: float, known_us: int) -> None:
        self.market = market
        self.traded = Traded()
        self._redis = redis
        self._snapshot_id = market.update_id
        self._known = market.trade_id, known_us
        self._reader = LineReader(redis, market.symbol)
        self._begun = self._drained = False
        self._missing_s: float | None = None
        self._asked_us = asked_us
        self._wait_s = wait_s
        self._numbers: dict[str, int] = {}
        self._newest_us = 0

    @property
    def line_ids(self) -> dict[str, str]:
        """Give the stream id per line up to which the market has everything."""
        return self._reader.ids

    @property
    def _has_reached(self) -> bool:
        """Whether some diff reached the snapshot or went beyond it."""
        return self.market.last_seen_update_id >= self._snapshot_id

    @property
    def _has_missing_range(self) -> bool:
        return self.market.depth_gap is not None or self.market.trade_gap is not None

    async def _begin(self) -> bool:
        """Find the entry of each line to read from; false if there is no line.

        That is where the line joins the snapshot, but not before its ids were restarted: ids from before that would be
        a missing range that no message fills.
        """
        lines = await self._reader.discover()
        if self._begun or not lines:
            return bool(lines)
        symbol = self.market.symbol
        lead = await id_continuity.lead_ms(self._redis, symbol, lines, self._asked_us, self._snapshot_id)
        self._reader.seek_time(self._asked_us // 1_000 - lead)
        marks = await id_continuity.scan(self._redis, symbol, self._reader.ids)
        is_overtaken = id_continuity.overtaken(marks)
        gone = id_continuity.begin_after(marks, lambda line, mark: is_overtaken(line, mark) or self._is_restarted(mark))
        for line, entry_id in gone.items():
            log.warning(
                "the ids of %s on line %s were restarted: it is read from after entry %s", symbol, line, entry_id
            )
        self._reader.seek(gone)
        self._begun = True
        return True

    def _is_restarted(self, mark: id_continuity.Mark) -> bool:
        """Whether a trade is older than the request but has a larger id than the exchange has reached."""
        trade_id, trade_us = self._known
        return mark.stamp_us < self._asked_us and mark.trade_id > trade_id and mark.trade_us < trade_us

    async def catch_up(self, *, forgive_trades: bool = False) -> Reached:
        """Read all frames of the lines, and wait until they have passed the snapshot.

        Args:
            forgive_trades: Skip trades that neither the snapshot nor a line has; the windows lack them for five
                seconds, the book is not affected.

        Raises:
            ExchangeError: The lines bring frames but do not reach the snapshot in time.
            RedisError: Redis does not answer.
        """
        if not await self._begin():
            return Reached.ABSENT
        started_s = heard_s = time.monotonic()
        self._missing_s = None
        while True:
            idle = self._has_reached and not self._has_missing_range
            something = await self._step(0 if idle else READ_BLOCK_MS)
            now_s = time.monotonic()
            if something:
                heard_s = now_s
            if self._has_missing_range:
                if self._is_final(now_s, forgive_trades=forgive_trades):
                    return Reached.MISSING_RANGE
                continue
            self._missing_s = None
            if self._has_reached and not something:
                return Reached.LIVE
            if not self._has_reached and now_s - heard_s > SILENCE_S:
                return Reached.SILENT
            if now_s - started_s > self._wait_s:
                return self._on_timeout()

    def _is_final(self, now_s: float, *, forgive_trades: bool) -> bool:
        """Say whether a range has been missing for too long; missing trades are skipped before that, if allowed."""
        if not self._drained:
            return False  # unread entries may still fill it
        if self._missing_s is None:
            self._missing_s = now_s
        if forgive_trades and self.market.trade_gap is not None and now_s - self._missing_s > MISSING_WAIT_S / 2:
            self.market.skip_trade_gap()
        return now_s - self._missing_s > MISSING_WAIT_S

    def _on_timeout(self) -> Reached:
        if self._has_reached:
            return Reached.LIVE  # entries came faster than they could be read; the swap checks whether that matters
        raise ExchangeError(
            f"the lines have reached update {self.market.last_seen_update_id} and not the snapshot's "
            f"{self._snapshot_id} within {self._wait_s:g} s: are ws_url and rest_url of the same exchange?"
        )

    async def reach(self, update_id: int) -> bool:
        """Stop exactly at an update; false if the lines do not reach it in time or no message ends at it."""
        started_s = time.monotonic()
        while self.market.update_id < update_id and time.monotonic() - started_s < self._wait_s:
            if not await self._begin():
                break
            await self._step(READ_BLOCK_MS, update_id)
        return self.market.update_id == update_id

    async def _step(self, block_ms: int, stop_at: int = 0) -> bool:
        """Read and feed the next entries of every line; false if there were none."""
        batches = await self._reader.read(block_ms, READ_COUNT, now_us=int(time.monotonic() * 1e6))
        counts = Counter(batch.line for batch in batches)
        self._drained = max(counts.values(), default=0) < READ_COUNT
        for batch in batches:
            if stop_at and self.market.update_id >= stop_at:
                break
            self._feed(batch, stop_at)
        if batches:
            await asyncio.sleep(0)  # allow a cancellation between two long reads
        return bool(batches)

    def _feed(self, batch: Batch, stop_at: int) -> None:
        number = self._numbers.setdefault(batch.line, len(self._numbers) % LINES_MAX)
        self._newest_us = max(self._newest_us, batch.stamp_us)
        try:
            self.market.feed(number, batch.frames, batch.stamp_us, stop_at)
            self.traded.note(batch)
        except ValueError as error:
            log.warning("line %s: entry %s is left out, it cannot be read: %s", batch.line, batch.entry_id, error)

"""Bringing a market that was built from a snapshot up to the present, from the lines' raw frames."""

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
"""Lines that bring nothing for this long are not waited for: diffs come ten times a second while anything moves."""

HOLE_WAIT_S: Final = 0.3
"""How long a hole may stay open before a newer snapshot is fetched; a little over what a slower line is given."""

READ_COUNT: Final = 512
READ_BLOCK_MS: Final = 20
LINES_MAX: Final = 15

_TEMPLATE = struct.Struct("<2xH")


class Reached(Enum):
    """How far the lines led."""

    LIVE = "caught up with the lines"
    SILENT = "the lines are silent: the snapshot stands alone"
    ABSENT = "there is no line: the snapshot stands alone"
    HOLE = "the lines begin beyond the snapshot or have a hole after it"


@dataclass(slots=True)
class Traded:
    """Lowest and highest price of the trades that the lines brought."""

    low: float = math.inf
    high: float = -math.inf

    def note(self, batch: Batch) -> None:
        """Take the trades of one stream entry; what is no trade, or no frame at all, is for others to judge."""
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
        redis: Where the lines are.
        market: Market to feed, built from a snapshot.
        asked_us: Redis' clock when the snapshot was asked for.
        wait_s: Longest wait for the lines to reach the snapshot.
        known_us: The exchange's time of the newest trade that the snapshot tells, or of the snapshot if it tells none.
    """

    def __init__(self, redis: Redis, market: Market, asked_us: int, wait_s: float, known_us: int) -> None:
        self.market = market
        self.traded = Traded()
        self._redis = redis
        self._snapshot_id = market.update_id
        self._known = market.trade_id, known_us
        self._reader = LineReader(redis, market.symbol)
        self._begun = self._drained = False
        self._hole_s: float | None = None
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
        """Whether some diff led up to the snapshot or beyond it."""
        return self.market.last_seen_update_id >= self._snapshot_id

    @property
    def _has_hole(self) -> bool:
        return self.market.depth_hole is not None or self.market.trade_hole is not None

    async def _begin(self) -> bool:
        """Find out where each line is to be read from; false if there is no line.

        That is where it joins the snapshot, but not before its ids began again: what stands before that would be a hole
        which nothing fills.
        """
        lines = await self._reader.discover()
        if self._begun or not lines:
            return bool(lines)
        symbol = self.market.symbol
        lead = await id_continuity.lead_ms(self._redis, symbol, lines, self._asked_us, self._snapshot_id)
        self._reader.seek_time(self._asked_us // 1_000 - lead)
        marks = await id_continuity.scan(self._redis, symbol, self._reader.ids)
        is_overtaken = id_continuity.overtaken(marks)
        gone = id_continuity.begin_after(marks, lambda line, mark: is_overtaken(line, mark) or self._is_untold(mark))
        for line, entry_id in gone.items():
            log.warning("the ids of %s on line %s have begun again: it is read after %s", symbol, line, entry_id)
        self._reader.seek(gone)
        self._begun = True
        return True

    def _is_untold(self, mark: id_continuity.Mark) -> bool:
        """A trade from before the question whose id the exchange has not come to yet, though its time is over."""
        trade_id, trade_us = self._known
        return mark.stamp_us < self._asked_us and mark.trade_id > trade_id and mark.trade_us < trade_us

    async def catch_up(self, *, forgive_trades: bool = False) -> Reached:
        """Read everything that the lines hold, and wait until they have come past the snapshot.

        Args:
            forgive_trades: Pass over trades that neither the snapshot nor a line has brought; the windows lack them for
                five seconds, the book is none the worse.

        Raises:
            ExchangeError: The lines flow but do not come near the snapshot in time.
            RedisError: Redis does not answer.
        """
        if not await self._begin():
            return Reached.ABSENT
        started_s = heard_s = time.monotonic()
        self._hole_s = None
        while True:
            idle = self._has_reached and not self._has_hole
            something = await self._step(0 if idle else READ_BLOCK_MS)
            now_s = time.monotonic()
            if something:
                heard_s = now_s
            if self._has_hole:
                if self._is_final(now_s, forgive_trades=forgive_trades):
                    return Reached.HOLE
                continue
            self._hole_s = None
            if self._has_reached and not something:
                return Reached.LIVE
            if not self._has_reached and now_s - heard_s > SILENCE_S:
                return Reached.SILENT
            if now_s - started_s > self._wait_s:
                return self._gave_up()

    def _is_final(self, now_s: float, *, forgive_trades: bool) -> bool:
        """Say whether a hole has been open for too long; one of trades is passed over before, if that is forgiven."""
        if not self._drained:
            return False  # what fills it may stand among the entries that are still unread
        if self._hole_s is None:
            self._hole_s = now_s
        if forgive_trades and self.market.trade_hole is not None and now_s - self._hole_s > HOLE_WAIT_S / 2:
            self.market.skip_trade_hole()
        return now_s - self._hole_s > HOLE_WAIT_S

    def _gave_up(self) -> Reached:
        if self._has_reached:
            return Reached.LIVE  # entries came faster than one wait could read them; the swap says if that matters
        raise ExchangeError(
            f"the lines have come to update {self.market.last_seen_update_id} and not to the snapshot's "
            f"{self._snapshot_id} within {self._wait_s:g} s: are they of the same exchange?"
        )

    async def reach(self, update_id: int) -> bool:
        """Stop exactly at an update; false if the lines do not lead there in time or do not stop there."""
        started_s = time.monotonic()
        while self.market.update_id < update_id and time.monotonic() - started_s < self._wait_s:
            if not await self._begin():
                break
            await self._step(READ_BLOCK_MS, update_id)
        return self.market.update_id == update_id

    async def _step(self, block_ms: int, stop_at: int = 0) -> bool:
        """Read and feed what is next on every line; say whether there was anything."""
        batches = await self._reader.read(block_ms, READ_COUNT, now_us=int(time.monotonic() * 1e6))
        counts = Counter(batch.line for batch in batches)
        self._drained = max(counts.values(), default=0) < READ_COUNT
        for batch in batches:
            if stop_at and self.market.update_id >= stop_at:
                break
            self._feed(batch, stop_at)
        if batches:
            await asyncio.sleep(0)  # let a cancellation in between two long reads
        return bool(batches)

    def _feed(self, batch: Batch, stop_at: int) -> None:
        number = self._numbers.setdefault(batch.line, len(self._numbers) % LINES_MAX)
        self._newest_us = max(self._newest_us, batch.stamp_us)
        try:
            self.market.feed(number, batch.frames, batch.stamp_us, stop_at)
            self.traded.note(batch)
        except ValueError as error:
            log.warning("line %s: entry %s left out: %s", batch.line, batch.entry_id, error)

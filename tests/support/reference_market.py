"""The market once more, in plain Python: dicts and sorting where the native one has arrays and searches.

It has the same face as `sheetanchor._decoder.Market`, so that every test can run on both.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise

from sheetanchor import sbe
from sheetanchor.contract import STREAM_TYPES
from support import reference_pack
from support import reference_windows as windows
from support.reference import COUNTERS, decode
from support.reference_windows import (
    PRICE_MAX,
    Agreement,
    Facts,
    FeedClock,
    NewestMessage,
    Past,
    decimal,
    fits,
    flat,
    levels_of,
    missing_range,
    scaled,
)

ID_LIMIT = 2**62
TIME_LIMIT_US = 2**52
HISTORY_US = 120_000_000
REACH_AHEAD_US = 10_000_000

Pair = tuple[int, int]


@dataclass(slots=True)
class Waiting:
    """What lies beyond a missing range, with the stamp of its first arrival and the lines that brought it."""

    content: sbe.DepthDiff | Past
    stamp_us: int
    lines: int


class BadValue(Exception):
    """A sound frame whose values cannot be used."""


@dataclass
class Market(Facts):
    """One symbol's market, as `sheetanchor._decoder.Market`."""

    symbol: str
    price_exponent: int = 0
    qty_exponent: int = 0
    has_book: bool = False
    update_id: int = 0
    last_seen_update_id: int = 0
    bba_id: int = -1
    trade_id: int = -1
    clock: FeedClock = field(default_factory=FeedClock)
    undoubted_trade_id: int = -1
    book_event_us: int = -1
    refill_bba_id: int = -1
    forgotten_id: int = -1
    bids: dict[int, int] = field(default_factory=dict)
    asks: dict[int, int] = field(default_factory=dict)
    cut_off: int = 0
    bid_edge: int = 0
    ask_edge: int = 0
    bba: tuple[Pair, Pair] = ((0, 0), (0, 0))
    trades: list[Past] = field(default_factory=list)
    mids: list[Pair] = field(default_factory=list)
    pending_diffs: dict[int, Waiting] = field(default_factory=dict)
    pending_trades: dict[int, Waiting] = field(default_factory=dict)
    pending_levels: int = 0
    overflow_lines: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    lines: int = 0
    entry_stamp_us: int = 0
    stop_at: int = -1
    agreement: Agreement = field(default_factory=Agreement)
    streams: dict[str, NewestMessage] = field(default_factory=lambda: {name: NewestMessage() for name in STREAM_TYPES})

    # --- feeding

    def feed(self, line: int, batch: bytes, stamp_us: int, stop_at_update_id: int = 0) -> int:
        if not 0 <= line <= 15 or not 0 <= stamp_us < TIME_LIMIT_US:
            raise ValueError("line or stamp_us")
        frames = []
        at = 0
        while at < len(batch):
            if len(batch) - at < 12:
                raise ValueError(f"offset {at}")
            (length,) = struct.unpack_from("<I", batch, at)
            at += 12
            if length > len(batch) - at:
                raise ValueError(f"offset {at}")
            frames.append(batch[at : at + length])
            at += length
        self.lines, self.entry_stamp_us = 1 << line, stamp_us
        self.stop_at = stop_at_update_id if stop_at_update_id > 0 else -1
        self.drain_diffs()
        consumed = 0
        for frame in frames:
            before = self.update_id
            self.take_frame(frame)
            consumed += 1
            if self.update_id == self.stop_at and self.update_id != before:
                break
        self.stop_at = -1
        return consumed

    def take_frame(self, frame: bytes) -> None:
        self.counts["frames"] += 1
        try:
            message = decode(frame)
        except sbe.DecodeError as error:
            self.counts[f"decode_error.{error.kind}"] += 1
            return
        self.counts["trailing_bytes"] += message.trailing_bytes > 0
        if message.symbol != self.symbol:
            self.counts["foreign_symbol"] += 1
            return
        try:
            self.require(0 <= message.event_time_us < TIME_LIMIT_US)
            self.dispatch(message)
        except BadValue:
            self.counts["bad_value"] += 1

    def dispatch(self, message: sbe.Message) -> None:
        if isinstance(message, sbe.Trades):
            self.take_trades(message)
        elif isinstance(message, sbe.BestBidAsk):
            self.take_best(message)
        elif isinstance(message, sbe.DepthSnapshot):
            self.take_depth20(message)
        else:
            self.take_diff(message)

    @staticmethod
    def require(holds: bool) -> None:
        if not holds:
            raise BadValue

    @property
    def event_us(self) -> int:
        return self.clock.event_us

    @property
    def stamp_us(self) -> int:
        return self.clock.stamp_us

    def note_event(self, time_us: int, stream: str, *, is_news: bool) -> None:
        back = is_news and self.streams[stream].goes_back(time_us, self.event_us)
        before_us = self.clock.at(self.entry_stamp_us)
        if set_by_us := self.clock.note(time_us, self.entry_stamp_us, is_news=is_news, goes_back=back):
            self.follow_clock(before_us, before_us + set_by_us)
        if len(self.clock.doubted) == 1:
            self.undoubted_trade_id = self.trade_id

    def follow_clock(self, from_us: int, to_us: int) -> None:
        reach_us, by_us = 0, to_us - from_us
        for trade in self.trades:
            trade.time_us += by_us if trade.id <= self.undoubted_trade_id else 0
            reach_us = trade.reach_us = max(reach_us, min(trade.time_us, to_us + REACH_AHEAD_US))
        self.mids = [(time_us + by_us, total) for time_us, total in self.mids]
        if self.book_event_us >= 0:
            self.book_event_us += by_us
        for waiting in self.pending_diffs.values():
            assert isinstance(waiting.content, sbe.DepthDiff)
            waiting.content = replace(
                waiting.content, event_time_us=windows.moved(waiting.content.event_time_us, from_us, to_us)
            )
        for waiting in self.pending_trades.values():
            assert isinstance(waiting.content, Past)
            waiting.content.time_us = windows.moved(waiting.content.time_us, from_us, to_us)

    # --- exponents

    def adopt(self, price_exponent: int, qty_exponent: int) -> Pair:
        """Bring the market to the finer exponents; answer what the newcomer's mantissas are multiplied by."""
        if (price_exponent, qty_exponent) == (self.price_exponent, self.qty_exponent):
            return 1, 1
        self.require(abs(price_exponent) <= 18 and abs(qty_exponent) <= 18)
        if not self.has_book and self.bba_id < 0 and self.trade_id < 0:
            self.price_exponent, self.qty_exponent = price_exponent, qty_exponent
            return 1, 1
        price_to, qty_to = min(price_exponent, self.price_exponent), min(qty_exponent, self.qty_exponent)
        shifts = (
            self.price_exponent - price_to,
            self.qty_exponent - qty_to,
            price_exponent - price_to,
            qty_exponent - qty_to,
        )
        self.require(max(shifts) <= 18)
        if shifts[0] or shifts[1]:
            self.rescale(10 ** shifts[0], 10 ** shifts[1])
        self.price_exponent, self.qty_exponent = price_to, qty_to
        return 10 ** shifts[2], 10 ** shifts[3]

    def held_pairs(self) -> list[Pair]:
        pairs = [*self.bids.items(), *self.asks.items()]
        if self.bba_id >= 0:
            pairs += self.bba
        for waiting in self.pending_diffs.values():
            assert isinstance(waiting.content, sbe.DepthDiff)
            pairs += [*waiting.content.bids, *waiting.content.asks]
        for waiting in self.pending_trades.values():
            assert isinstance(waiting.content, Past)
            pairs.append((waiting.content.price, waiting.content.qty))
        return pairs + [(t.price, t.qty) for t in self.trades]

    def rescale(self, price_factor: int, qty_factor: int) -> None:
        for price, qty in self.held_pairs():
            self.require(fits(price * price_factor, qty * qty_factor))
        self.require(max(self.bid_edge, self.ask_edge) * price_factor <= PRICE_MAX)
        for _, total in self.mids:
            self.require(total * price_factor <= 2 * PRICE_MAX)

        def finer(levels: tuple[Pair, ...]) -> tuple[Pair, ...]:
            return tuple((p * price_factor, q * qty_factor) for p, q in levels)

        self.bids, self.asks = dict(finer(tuple(self.bids.items()))), dict(finer(tuple(self.asks.items())))
        if self.bba_id >= 0:
            bid, ask = finer(self.bba)
            self.bba = bid, ask
        for waiting in self.pending_diffs.values():
            diff = waiting.content
            assert isinstance(diff, sbe.DepthDiff)
            waiting.content = replace(diff, bids=finer(diff.bids), asks=finer(diff.asks))
        pending = [waiting.content for waiting in self.pending_trades.values()]
        for trade in [*self.trades, *pending]:
            assert isinstance(trade, Past)
            trade.price *= price_factor
            trade.qty *= qty_factor
        self.bid_edge, self.ask_edge = self.bid_edge * price_factor, self.ask_edge * price_factor
        self.mids = [(time_us, total * price_factor) for time_us, total in self.mids]

    def converted(self, levels: tuple[Pair, ...], factors: Pair) -> tuple[Pair, ...]:
        out = []
        for price, qty in levels:
            self.require(price > 0 and qty >= 0 and fits(price * factors[0], qty * factors[1]))
            out.append((price * factors[0], qty * factors[1]))
        return tuple(out)

    def converted_best(self, side: Pair, factors: Pair) -> Pair:
        self.require(side == (0, 0) or side[1] > 0)
        return side if side == (0, 0) else self.converted((side,), factors)[0]

    # --- trades

    def take_trades(self, message: sbe.Trades) -> None:
        factors = self.adopt(message.price_exponent, message.qty_exponent)
        self.require(0 <= message.transact_time_us < TIME_LIMIT_US)
        at_us = message.transact_time_us
        trades = [self.past(trade, (price, qty), factors, at_us, maker) for trade, price, qty, maker in message.trades]
        is_news = max((t.id for t in trades), default=-1) > max(self.trade_id, self.streams["trade"].id)
        self.note_event(message.event_time_us, "trade", is_news=is_news)
        self.clock.odd += is_news and abs(at_us - self.clock.at(self.entry_stamp_us)) > 2_000_000
        if trades:
            newest = max(trade.id for trade in trades), message.event_time_us
            self.streams["trade"].note(*newest, self.entry_stamp_us, self.lines)
        for trade in trades:
            self.take_trade(trade)

    def past(self, trade_id: int, level: Pair, factors: Pair, time_us: int, maker: bool) -> Past:
        self.require(0 <= trade_id < ID_LIMIT and level[1] > 0)
        return Past(trade_id, *self.converted((level,), factors)[0], time_us, maker)

    def take_trade(self, trade: Past) -> None:
        if self.trade_id < 0 or trade.id == self.trade_id + 1:
            self.apply_trade(trade)
            self.drain_trades()
        elif trade.id <= self.trade_id:
            known = any(other.id == trade.id for other in self.trades)
            old = trade.id <= self.forgotten_id or trade.time_us < self.event_us - HISTORY_US
            if known or old:
                self.counts["trades_duplicate"] += 1
            else:
                self.counts["trades_late"] += 1
                self.place(trade)
        elif trade.id in self.pending_trades:
            self.pending_trades[trade.id].lines |= self.lines
            self.counts["trades_duplicate"] += 1
        elif len(self.pending_trades) < 65536:
            self.pending_trades[trade.id] = Waiting(trade, self.entry_stamp_us, self.lines)
        else:
            self.counts["pending_overflow"] += 1

    def apply_trade(self, trade: Past) -> None:
        self.trade_id = trade.id
        self.place(trade)
        self.counts["trades_applied"] += 1

    def place(self, trade: Past) -> None:
        """Put a trade in its place; what reaches back to no later time than it may be forgotten."""
        trade.reach_us = min(trade.time_us, self.event_us + REACH_AHEAD_US) if self.event_us >= 0 else trade.time_us
        self.trades.append(trade)
        self.trades.sort(key=lambda t: t.id)
        for before, after in pairwise(self.trades):
            after.reach_us = max(before.reach_us, after.reach_us)
        while self.trades and self.trades[0].reach_us < self.event_us - HISTORY_US:
            self.forgotten_id = self.trades.pop(0).id

    def drain_trades(self) -> None:
        while self.trade_id + 1 in self.pending_trades:
            trade = self.pending_trades.pop(self.trade_id + 1).content
            assert isinstance(trade, Past)
            self.apply_trade(trade)

    # --- best bid and ask

    def take_best(self, message: sbe.BestBidAsk) -> None:
        factors = self.adopt(message.price_exponent, message.qty_exponent)
        self.require(0 <= message.book_update_id < ID_LIMIT)
        bid, ask = (self.converted_best(side, factors) for side in windows.best_sides(message))
        self.note_event(message.event_time_us, "bestBidAsk", is_news=message.book_update_id > self.bba_id)
        self.streams["bestBidAsk"].note(message.book_update_id, message.event_time_us, self.entry_stamp_us, self.lines)
        if message.book_update_id <= self.bba_id:
            self.counts["bba_stale"] += 1
            time_us = message.event_time_us
            newer = time_us <= self.event_us and (not self.mids or time_us > self.mids[-1][0])
            if message.book_update_id <= self.refill_bba_id and newer and bid[1] and ask[1]:
                self.note_sum(time_us, bid[0] + ask[0])
            return
        date_us = self.clock.date(message.event_time_us, self.entry_stamp_us)
        self.bba_id, self.bba = message.book_update_id, (bid, ask)
        self.agreement.begin()
        self.check_best()
        self.counts["bba_applied"] += 1
        if self.bba_id > self.update_id:
            self.book_event_us = max(self.book_event_us, date_us)
        self.note_mid(date_us)

    def best(self) -> tuple[Pair, Pair] | None:
        if self.bba_id >= 0 and (not self.has_book or self.bba_id > self.update_id):
            return self.bba if self.bba[0][1] and self.bba[1][1] else None
        bids, asks = self.top(1)
        return (bids[0], asks[0]) if self.has_book and bids and asks else None

    def note_mid(self, time_us: int) -> None:
        best = self.best()
        if best and time_us >= 0:
            self.note_sum(time_us, best[0][0] + best[1][0])

    def note_sum(self, time_us: int, total: int) -> None:
        if self.mids and self.mids[-1][1] == total:
            return
        if self.mids and time_us <= self.mids[-1][0]:
            self.mids[-1] = self.mids[-1][0], total
            return
        self.mids.append((time_us, total))
        while len(self.mids) > 1 and self.mids[1][0] <= self.event_us - 5_000_000:
            self.mids.pop(0)

    def check_best(self) -> None:
        if self.has_book and 0 <= self.bba_id <= self.update_id:
            self.agreement.check(self.bids, self.asks, self.bba)

    # --- depth

    def take_depth20(self, message: sbe.DepthSnapshot) -> None:
        factors = self.adopt(message.price_exponent, message.qty_exponent)
        sides = self.converted(message.bids, factors), self.converted(message.asks, factors)
        self.note_event(message.event_time_us, "depth", is_news=False)
        if not self.has_book or message.book_update_id != self.update_id:
            self.counts["depth20_ignored"] += 1
            return
        self.counts["depth20_checked"] += 1
        for own, shown in zip(self.levels(), sides, strict=True):
            whole = len(shown) < 20
            if own[: len(own) if whole else len(shown)] != list(shown):
                self.counts["depth20_mismatches"] += 1
                return

    def take_diff(self, message: sbe.DepthDiff) -> None:
        first, last = message.first_update_id, message.last_update_id
        self.require(0 <= first <= last < ID_LIMIT)
        if self.has_book and last <= self.update_id:
            self.note_event(message.event_time_us, "depth", is_news=False)
            self.streams["depth"].note(last, message.event_time_us, self.entry_stamp_us, self.lines)
            self.counts["diffs_duplicate"] += 1
            return
        factors = self.adopt(message.price_exponent, message.qty_exponent)
        bids, asks = self.converted(message.bids, factors), self.converted(message.asks, factors)
        self.note_event(message.event_time_us, "depth", is_news=last > self.last_seen_update_id)
        self.streams["depth"].note(last, message.event_time_us, self.entry_stamp_us, self.lines)
        date_us = self.clock.date(message.event_time_us, self.entry_stamp_us)
        diff = replace(message, bids=bids, asks=asks, event_time_us=date_us)
        self.last_seen_update_id = max(self.last_seen_update_id, last)
        if not self.has_book:
            self.counts["diffs_before_book"] += 1
        elif first <= self.update_id + 1:
            self.apply_diff(diff)
            if last != self.stop_at:
                self.drain_diffs()
        else:
            self.hold_diff(diff)

    def apply_diff(self, diff: sbe.DepthDiff) -> None:
        for side, changes in ((self.bids, diff.bids), (self.asks, diff.asks)):
            for price, qty in changes:
                if qty:
                    side[price] = qty
                else:
                    side.pop(price, None)
        self.update_id = diff.last_update_id
        self.check_best()
        self.counts["diffs_applied"] += 1
        self.book_event_us = max(self.book_event_us, diff.event_time_us)
        self.note_mid(diff.event_time_us)

    def hold_diff(self, diff: sbe.DepthDiff) -> None:
        waiting = self.pending_diffs.get(diff.first_update_id)
        if waiting is not None:
            assert isinstance(waiting.content, sbe.DepthDiff)
            waiting.lines |= self.lines
            if diff.last_update_id <= waiting.content.last_update_id:
                self.counts["diffs_duplicate"] += 1
                return
        levels = self.pending_levels + levels_of(diff) - (levels_of(waiting.content) if waiting else 0)
        if (waiting is None and len(self.pending_diffs) >= 4096) or levels > 2**20:
            self.counts["pending_overflow"] += 1
            self.overflow_lines |= self.lines
            return
        self.pending_levels = levels
        if waiting is not None:
            waiting.content = diff
        else:
            self.pending_diffs[diff.first_update_id] = Waiting(diff, self.entry_stamp_us, self.lines)

    def drain_diffs(self) -> None:
        while self.pending_diffs and min(self.pending_diffs) <= self.update_id + 1:
            diff = self.pending_diffs.pop(min(self.pending_diffs)).content
            assert isinstance(diff, sbe.DepthDiff)
            self.pending_levels -= levels_of(diff)
            if diff.last_update_id > self.update_id:
                self.apply_diff(diff)
                if self.update_id == self.stop_at:
                    break
        if not self.pending_diffs:
            self.overflow_lines = 0

    # --- missing ranges

    @property
    def depth_gap(self) -> tuple[int, int, int, int] | None:
        if not self.pending_diffs or min(self.pending_diffs) <= self.update_id + 1:
            return None
        return missing_range(self.update_id, self.pending_diffs, self.overflow_lines)

    @property
    def trade_gap(self) -> tuple[int, int, int, int] | None:
        return missing_range(self.trade_id, self.pending_trades, 0) if self.pending_trades else None

    def skip_depth_gap(self) -> None:
        if self.pending_diffs:
            self.update_id = max(self.update_id, min(self.pending_diffs) - 1)
            self.drain_diffs()

    def skip_trade_gap(self) -> None:
        if self.pending_trades:
            self.trade_id = min(self.pending_trades) - 1
            self.drain_trades()

    def load_snapshot(
        self,
        last_update_id: int,
        price_exponent: int,
        qty_exponent: int,
        bids: list[Pair],
        asks: list[Pair],
        stamp_us: int,
        cut_off: int = 0,
    ) -> None:
        try:
            self.require(0 <= last_update_id < ID_LIMIT and 0 <= stamp_us < TIME_LIMIT_US)
            factors = self.adopt(price_exponent, qty_exponent)
            self.require(all(all(dict(side).values()) and len(dict(side)) == len(side) for side in (bids, asks)))
            new_bids, new_asks = self.converted(tuple(bids), factors), self.converted(tuple(asks), factors)
        except BadValue:
            raise ValueError("snapshot") from None
        self.bids, self.asks = dict(new_bids), dict(new_asks)
        self.cut_off = cut_off
        self.bid_edge = min(self.bids) if 0 < cut_off <= len(bids) else 0
        self.ask_edge = max(self.asks) if 0 < cut_off <= len(asks) else 0
        self.has_book, self.update_id = True, last_update_id
        self.pending_diffs.clear()
        self.pending_levels = self.overflow_lines = 0
        if self.event_us < 0:
            self.clock = FeedClock(-1, stamp_us)
        self.book_event_us = max(self.book_event_us, self.event_us)
        self.note_mid(self.book_event_us)

    def seed_trades(
        self, trades: list[tuple[int, int, int, int, bool]], price_exponent: int, qty_exponent: int
    ) -> None:
        seeds = []
        try:
            factors = self.adopt(price_exponent, qty_exponent)
            for trade_id, price, qty, time_us, maker in trades:
                self.require(0 <= time_us < TIME_LIMIT_US)
                seeds.append(self.past(trade_id, (price, qty), factors, time_us, maker))
        except BadValue:
            raise ValueError("trades") from None
        self.lines, self.entry_stamp_us = 0, self.stamp_us
        for trade in sorted(seeds, key=lambda t: t.id):
            self.take_trade(trade)

    def pack_book(self, epoch: int, line_ids: dict[str, str]) -> bytes:
        return reference_pack.pack(self, epoch, line_ids)

    def load_book(self, blob: bytes) -> tuple[int, dict[str, str]]:
        fresh = Market(self.symbol, has_book=True, counts=self.counts)
        loaded = reference_pack.load(fresh, blob)
        self.__dict__.update(fresh.__dict__)
        return loaded

    def levels(self) -> tuple[list[Pair], list[Pair]]:
        return sorted(self.bids.items(), reverse=True), sorted(self.asks.items())

    def top(self, depth: int) -> tuple[list[Pair], list[Pair]]:
        bids, asks = self.levels()
        return bids[:depth], asks[:depth]

    @property
    def mid(self) -> float | None:
        best = self.best()
        return scaled(best[0][0] + best[1][0], self.price_exponent) / 2 if best else None

    def volume_between(self, start_event_us: int, end_event_us: int) -> float:
        inside = [t.qty for t in self.trades if start_event_us < t.time_us <= end_event_us]
        return scaled(sum(inside), self.qty_exponent)

    def mid_return(self, end_us: int, back_us: int) -> float:
        best = self.best()
        then = [total for time_us, total in self.mids if time_us <= end_us - back_us]
        if not then:
            then = [2 * t.price for t in self.trades if t.time_us <= end_us - back_us]
        if not best or not then:
            return 0.0
        return float(best[0][0] + best[1][0]) / float(then[-1]) - 1

    def hot_state(self, now_us: int) -> tuple[list[str], list[str], list[str], list[str]]:
        best = self.best()
        if not 0 <= now_us < TIME_LIMIT_US:
            raise ValueError("now_us")
        if not self.has_book or not self.bids or not self.asks or not best:
            raise ValueError("Empty order book data")
        end_us = now_us if self.event_us < 0 else self.clock.at(now_us)
        ob = self.book_fields(best)
        one = windows.window_fields(windows.window(self.trades, end_us, 1_000_000), 1, *self.scale())
        newest = windows.window(self.trades, end_us, 5_000_000)
        five = windows.window_fields(newest, 5, *self.scale())
        volume = sum(t.qty for t in newest)
        balance = sum(-t.qty if t.is_buyer_maker else t.qty for t in newest)
        feat = {
            "ret_1s": repr(self.mid_return(end_us, 1_000_000)),
            "ret_5s": repr(self.mid_return(end_us, 5_000_000)),
            "vol_imbalance": repr(float(balance) / float(volume) if volume else 0.0),
            "spread_bp": ob["spread_bp"],
            "ob_imbalance": ob["ob_imbalance"],
            "trade_intensity": five["trade_intensity"],
            "ts": str(end_us // 1_000_000),
        }
        return flat(ob), flat(one), flat(five), flat(feat)

    def scale(self) -> tuple[int, int, float | None]:
        return self.price_exponent, self.qty_exponent, self.mid

    def book_fields(self, best: tuple[Pair, Pair]) -> dict[str, str]:
        (bid, _), (ask, _) = best
        out = {
            "best_bid": decimal(bid, self.price_exponent),
            "best_ask": decimal(ask, self.price_exponent),
            "spread": repr(scaled(ask - bid, self.price_exponent)),
            "spread_bp": repr(float(ask - bid) / float(bid) * 10000),
        }
        bids, asks = self.top(10)
        for name, side in (("bid", bids), ("ask", asks)):
            for rank, (price, qty) in enumerate(side, 1):
                out[f"{name}{rank}_p"] = decimal(price, self.price_exponent)
                out[f"{name}{rank}_q"] = decimal(qty, self.qty_exponent)
        bid_value, ask_value = (sum(price * qty for price, qty in side) for side in (bids, asks))
        exponent = self.price_exponent + self.qty_exponent
        return out | {
            "bid_value_sum": repr(scaled(bid_value, exponent)),
            "ask_value_sum": repr(scaled(ask_value, exponent)),
            "ob_imbalance": repr(float(bid_value - ask_value) / float(bid_value + ask_value)),
            "ts_us": str(self.stamp_us if self.book_event_us < 0 else self.book_event_us),
            "update_id": str(self.update_id),
            "last_update_id": str(self.update_id),
            "bba_id": str(max(self.bba_id, 0)),
        }

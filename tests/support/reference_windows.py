"""Windows of the plain Python market: scaling, the trades of a window and the fields they give."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sheetanchor import sbe

PRICE_MAX = 2**61
QTY_MAX = 2**63 - 1
PRODUCT_MAX = 2**119 - 1


@dataclass(slots=True)
class NewestMessage:
    """The newest message of a stream by id."""

    count: int = 0
    id: int = -1
    event_us: int = -1
    stamp_us: int = 0
    line_stamps: list[int] = field(default_factory=lambda: [0] * 16)
    set_back: bool = False

    def goes_back(self, time_us: int, clock_us: int) -> bool:
        """Whether a message with a new id shows that the clock was set back."""
        if self.event_us >= 0 and time_us < self.event_us - 1_000_000:
            self.set_back = True
        elif time_us >= clock_us - 1_000_000:
            self.set_back = False
        return self.set_back

    def note(self, newest_id: int, event_us: int, stamp_us: int, lines: int) -> None:
        for line in range(16):
            if lines >> line & 1:
                self.line_stamps[line] = stamp_us
        if newest_id > self.id:
            self.count += 1
            self.id, self.event_us, self.stamp_us = newest_id, event_us, stamp_us

    def as_tuple(self) -> tuple[int, int, int, int, list[int]]:
        return self.count, self.id, self.event_us, self.stamp_us, list(self.line_stamps)


@dataclass(slots=True)
class Agreement:
    """How many best prices the book has come to agree with, each looked at once."""

    count: int = 0
    checked: bool = False

    def begin(self) -> None:
        self.checked = False

    def check(self, bids: dict[int, int], asks: dict[int, int], told: tuple[tuple[int, int], tuple[int, int]]) -> None:
        if bids and asks and not self.checked:
            self.checked = True
            self.count += (max(bids), min(asks)) == (told[0][0], told[1][0])


def missing(trades: list[Past], end_us: int, span_us: int) -> int:
    """Ids that a window lacks between its first trade and the newest."""
    seen = []
    for trade in reversed(trades):
        if end_us - trade.reach_us > span_us:
            break
        seen.append(trade)
    inside = {trade.id for trade in seen if -1_000_000 <= end_us - trade.time_us <= span_us}
    newest = {trade.id for trade in trades[-1:] if trade.time_us - end_us > 1_000_000}
    ids = inside | newest
    if not ids:
        return 0
    first = min(ids)
    for trade in seen:
        odd = max(trade.time_us - end_us, trade.reach_us - trade.time_us) > 1_000_000
        if odd and trade.id == first - 1:
            first = trade.id
    held = {trade.id for trade in trades}
    before = min(held) < first and first - 1 not in held
    return max(ids) - first + 1 - len(inside) + before


def scaled(mantissa: int, exponent: int) -> float:
    """Value of a mantissa, rounded as the native side rounds: once to a double, once by the power of ten."""
    power = float(f"1e{abs(exponent)}")
    return float(mantissa) / power if exponent < 0 else float(mantissa) * power


def decimal(mantissa: int, exponent: int) -> str:
    """All digits of a value, none added."""
    if exponent >= 0:
        return str(mantissa * 10**exponent)
    sign = "-" if mantissa < 0 else ""
    whole, part = divmod(abs(mantissa), 10**-exponent)
    return f"{sign}{whole}.{part:0{-exponent}d}"


@dataclass(slots=True)
class Past:
    """A trade in the history."""

    id: int
    price: int
    qty: int
    time_us: int
    is_buyer_maker: bool
    reach_us: int = 0


def moved(time_us: int, from_us: int, to_us: int) -> int:
    """A time dated by a clock that was set, if it is nearer to the old reading."""
    return time_us + to_us - from_us if abs(time_us - to_us) > abs(time_us - from_us) else time_us


@dataclass(slots=True)
class FeedClock:
    """The newest event time that is believed and when its frame came; see `decoder/feed_clock.hpp` for why."""

    event_us: int = -1
    stamp_us: int = 0
    mark: tuple[int, int] = (0, 0)
    lead_us: int = 0
    sets: int = 0
    odd: int = 0
    keeps_pace: bool = False
    doubted: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mark = self.event_us, self.stamp_us
        self.lead_us = self.event_us - self.stamp_us

    def at(self, now_us: int) -> int:
        return self.event_us + max(0, now_us - self.stamp_us)

    def date(self, event_us: int, stamp_us: int) -> int:
        behind_us = 1_000_000 if self.keeps_pace else 10_000_000
        return event_us if 0 <= self.event_us - event_us <= behind_us else self.at(stamp_us)

    def begin(self, event_us: int, stamp_us: int) -> None:
        self.event_us, self.stamp_us = self.mark = event_us, stamp_us
        self.keeps_pace, self.doubted = False, []
        self.lead_us = event_us - stamp_us

    def note(self, event_us: int, stamp_us: int, *, is_news: bool, goes_back: bool) -> int:
        if self.event_us < 0:
            self.begin(event_us, stamp_us)
            return 0
        if event_us <= self.event_us:
            return self.note_older(event_us, stamp_us, is_news, goes_back)
        catches_up = self.keeps_pace and event_us - stamp_us <= self.lead_us + 1_000_000
        shown_us = self.event_us + stamp_us - self.stamp_us if self.keeps_pace else self.at(stamp_us)
        if event_us - shown_us > (1_000_000 if self.keeps_pace else 150_000_000) and not catches_up:
            return self.doubt(event_us, stamp_us, 1_000_000) if is_news else 0
        self.doubted = []
        self.event_us, self.stamp_us = event_us, stamp_us
        self.lead_us = max(self.lead_us, event_us - stamp_us)
        passed_us = event_us - self.mark[0]
        if passed_us >= 2_000_000:
            self.keeps_pace = abs(passed_us - (stamp_us - self.mark[1])) <= 1_000_000
            self.mark = event_us, stamp_us
        return 0

    def note_older(self, event_us: int, stamp_us: int, is_news: bool, goes_back: bool) -> int:
        behind_us = self.event_us - event_us
        if is_news and goes_back:
            return self.doubt(event_us, stamp_us, 1_000_000)
        if behind_us <= (1_000_000 if self.keeps_pace else 10_000_000):
            self.doubted = []
        elif is_news and behind_us > 10_000_000:
            return self.doubt(event_us, stamp_us, 5_000_000)
        elif is_news and self.doubted and stamp_us - self.doubted[-1][1] > 10_000_000:
            self.doubted = []
        return 0

    def doubt(self, event_us: int, stamp_us: int, for_us: int) -> int:
        if self.doubted and abs(event_us - stamp_us - self.doubted[0][0] + self.doubted[0][1]) > 10_000_000:
            self.doubted = []
        self.doubted.append((event_us, stamp_us))
        first_event_us, first_stamp_us = self.doubted[0]
        lasts = max(event_us - first_event_us, stamp_us - first_stamp_us) >= for_us
        if len(self.doubted) < 4 or not lasts:
            return 0
        set_by_us = event_us - self.at(stamp_us)
        self.sets += set_by_us != 0
        self.begin(event_us, stamp_us)
        return set_by_us


def window(trades: list[Past], end_us: int, window_us: int) -> list[Past]:
    """The trades that belong to a window, by time."""
    inside = [trade for trade in trades if -1_000_000 <= end_us - trade.time_us <= window_us]
    return sorted(inside, key=lambda trade: trade.time_us)


def window_fields(
    inside: list[Past], window_s: int, price_exponent: int, qty_exponent: int, mid: float | None
) -> dict[str, str]:
    """The fields of one `tr:` hash."""
    count = len(inside)
    volume = scaled(sum(t.qty for t in inside), qty_exponent)
    bought = sum(t.qty for t in inside if not t.is_buyer_maker)
    sold = sum(t.qty for t in inside if t.is_buyer_maker)
    notional = scaled(sum(t.price * t.qty for t in inside), price_exponent + qty_exponent)
    vwap = notional / volume if volume > 0 else 0.0
    gaps = [b.time_us - a.time_us for a, b in pairwise(inside)]
    mean = variance = 0.0
    if gaps:
        n = len(gaps)
        mean = float(sum(gaps)) / n / 1e6
        variance = float(sum(g * g for g in gaps) * n - sum(gaps) ** 2) / float(n * n) / 1e12
    return {
        "count": str(count),
        "vol": repr(volume),
        "volume": repr(volume),
        "signed_vol": repr(scaled(bought - sold, qty_exponent)),
        "signed_volume": repr(scaled(bought - sold, qty_exponent)),
        "notional": repr(notional),
        "buy_volume": repr(scaled(bought, qty_exponent)),
        "sell_volume": repr(scaled(sold, qty_exponent)),
        "vwap": repr(vwap),
        "vwap_minus_mid": repr(vwap - mid if count and mid is not None else 0.0),
        "trade_intensity": repr(count / window_s),
        "avg_trade_size": repr(volume / count if count else 0.0),
        "interarr_mean": repr(mean),
        "interarr_var": repr(variance),
        "last_ts_us": str(inside[-1].time_us if inside else 0),
    }


def best_sides(message: sbe.BestBidAsk) -> tuple[tuple[int, int], tuple[int, int]]:
    return (message.bid_price, message.bid_qty), (message.ask_price, message.ask_qty)


def missing_range(at: int, pending: dict[int, Any], lines: int) -> tuple[int, int, int, int]:
    for waiting in pending.values():
        lines |= waiting.lines
    return at + 1, min(pending), min(waiting.stamp_us for waiting in pending.values()), lines


def flat(fields: dict[str, str]) -> list[str]:
    return [text for pair in fields.items() for text in pair]


def fits(price: int, qty: int) -> bool:
    return price <= PRICE_MAX and qty <= QTY_MAX and price * qty <= PRODUCT_MAX


def levels_of(diff: sbe.DepthDiff | Past) -> int:
    return len(diff.bids) + len(diff.asks) if isinstance(diff, sbe.DepthDiff) else 0


class Facts:
    """What a market says of its streams, beside what it holds."""

    streams: dict[str, NewestMessage]
    agreement: Agreement
    clock: FeedClock
    trades: list[Past]
    bba_id: int
    bba: tuple[tuple[int, int], tuple[int, int]]
    bids: dict[int, int]
    asks: dict[int, int]
    bid_edge: int
    ask_edge: int
    counts: dict[str, int]
    price_exponent: int

    def top(self, depth: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        raise NotImplementedError

    def missing_trades(self, now_us: int, span_us: int) -> int:
        return missing(self.trades, self.clock.at(now_us), span_us)

    @property
    def clock_steps(self) -> int:
        return self.clock.sets

    @property
    def misdated_trades(self) -> int:
        return self.clock.odd

    @property
    def clock_untrusted(self) -> bool:
        return bool(self.clock.doubted)

    @property
    def best_confirmed(self) -> int:
        return self.agreement.count

    def newest_messages(self) -> dict[str, tuple[int, int, int, int, list[int]]]:
        return {name: message.as_tuple() for name, message in self.streams.items()}

    @property
    def quoted_best(self) -> tuple[int, int] | None:
        return (self.bba[0][0], self.bba[1][0]) if self.bba_id >= 0 else None

    def known_levels(self, depth: int) -> int:
        bids, asks = self.top(depth)
        known_bids = sum(price >= self.bid_edge for price, _ in bids) if self.bid_edge else depth
        known_asks = sum(price <= self.ask_edge for price, _ in asks) if self.ask_edge else depth
        return min(known_bids, known_asks)

    @property
    def crossed(self) -> bool:
        return bool(self.bids and self.asks) and max(self.bids) >= min(self.asks)

    @property
    def last_trade_price(self) -> float | None:
        return scaled(self.trades[-1].price, self.price_exponent) if self.trades else None

    def counters(self) -> dict[str, int]:
        return dict(self.counts)

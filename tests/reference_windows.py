"""Windows of the plain Python market: scaling, the trades of a window and the fields they give."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sheetanchor import sbe

MANTISSA_MAX = 2**61
PRODUCT_MAX = 2**107 - 1


@dataclass(slots=True)
class Pulse:
    """The newest message of a stream by id."""

    count: int = 0
    id: int = -1
    event_us: int = -1
    stamp_us: int = 0
    line_stamps: list[int] = field(default_factory=lambda: [0] * 16)

    def note(self, newest_id: int, event_us: int, stamp_us: int, lines: int) -> None:
        for line in range(16):
            if lines >> line & 1:
                self.line_stamps[line] = stamp_us
        if newest_id > self.id:
            self.count += 1
            self.id, self.event_us, self.stamp_us = newest_id, event_us, stamp_us

    def as_tuple(self) -> tuple[int, int, int, int, list[int]]:
        return self.count, self.id, self.event_us, self.stamp_us, list(self.line_stamps)


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


def window(trades: list[Past], end_us: int, window_us: int) -> list[Past]:
    """The newest trades back to the first that is too old."""
    inside: list[Past] = []
    for trade in reversed(trades):
        if end_us - trade.time_us > window_us:
            break
        inside.append(trade)
    return inside[::-1]


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


def hole(at: int, pending: dict[int, Any], lines: int) -> tuple[int, int, int, int]:
    for waiting in pending.values():
        lines |= waiting.lines
    return at + 1, min(pending), min(waiting.stamp_us for waiting in pending.values()), lines


def flat(fields: dict[str, str]) -> list[str]:
    return [text for pair in fields.items() for text in pair]


def fits(price: int, qty: int) -> bool:
    return price <= MANTISSA_MAX and qty <= MANTISSA_MAX and price * qty <= PRODUCT_MAX


def levels_of(diff: sbe.DepthDiff | Past) -> int:
    return len(diff.bids) + len(diff.asks) if isinstance(diff, sbe.DepthDiff) else 0

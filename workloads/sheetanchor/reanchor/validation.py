"""The checks that a rebuilt state has to pass before it may become the hot state, and the comparison of two books.

Pure: every check takes values and gives a list of failures as texts, empty when it passes.

One module, since a rebuilt state passes all of these checks or none: the list is read as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Final

from sheetanchor.policy.gap_rules import HOT_LEVELS

Fields = Mapping[str, str]
Levels = Sequence[tuple[int, int]]
"""`(price, quantity)` mantissas, best first."""

SPREAD_TOLERANCE: Final = 0.01
"""Largest difference, in quote currency, between the spread and the distance of the best prices."""

PRICE_TOLERANCE: Final = 0.02
"""Largest relative distance of the book's mid from last trades, kline and ticker, which were requested at the same time
but may be seconds apart; twice the jump that counts as a price discontinuity."""

LEVELS_MIN: Final = HOT_LEVELS
"""Levels a side of the hot state. A side that the snapshot truncated must have them; one that it gave entirely may have
fewer, as the market does."""

SPREAD_UNUSUAL: Final = 0.02
"""Relative spread above which a receipt mentions it."""

TICKS: Final = 2
"""Ticks by which prices of one moment may differ, however large a tick is: at a price of three ticks it is a third."""

TICKER: Final = "ticker"
LAST_TRADES: Final = "last trades"
KLINE: Final = "kline"

COMPARED_LEVELS: Final = 100
"""Levels a side that must agree when a live book is compared: ten times what features read, and well inside what a
snapshot of the default depth knows."""

RELATIVE_ERROR: Final = 1e-9
"""Decimal text to binary numbers and back, with some room."""

DIFFERENCES_MAX: Final = 5
"""Differences that are listed; the others are counted."""

REQUIRED_OB: Final = ("best_bid", "best_ask", "spread", "bid1_p", "ask1_p", "update_id")
REQUIRED_TRADES: Final = ("count", "vol", "signed_vol", "vwap", "vwap_minus_mid", "interarr_mean", "interarr_var")
ZERO_WHEN_QUIET: Final = (
    "vol",
    "volume",
    "signed_vol",
    "signed_volume",
    "notional",
    "buy_volume",
    "sell_volume",
    "vwap",
    "vwap_minus_mid",
    "trade_intensity",
    "avg_trade_size",
    "interarr_mean",
    "interarr_var",
)
REQUIRED_FEATURES: Final = (
    "ret_1s",
    "ret_5s",
    "vol_imbalance",
    "spread_bp",
    "ob_imbalance",
    "trade_intensity",
    "ts",
)
IMBALANCES: Final = ("vol_imbalance", "ob_imbalance")


@dataclass(frozen=True, slots=True)
class References:
    """Other prices of the exchange at about the same time.

    Attributes:
        prices: Name of a source, such as `kline`, to its lowest and highest price. Ranges, since a single outlier must
            not make a correct book fail.
        trade_price_min: Lowest price of the trades that may be in the windows; None if there are none.
        trade_price_max: Highest such price.
        old: Prices that are too old to be compared with a book: quotes move without trades.
        quoted: The ticker's best prices, which are as new as the book itself.
    """

    prices: Mapping[str, tuple[float, float]]
    trade_price_min: float | None = None
    trade_price_max: float | None = None
    old: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    quoted: bool = False

    @property
    def estimate(self) -> float | None:
        """Give the current price from the exchange's answers, never from an old hot state; None if unknown."""
        known = [(low + high) / 2 for low, high in self.prices.values() if _is_range(low, high)]
        return median(known) if known else None


def _is_range(low: float, high: float) -> bool:
    return 0 < low <= high < math.inf


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hot state to check.

    Attributes:
        bids: All known levels as mantissas, best first.
        asks: As `bids`.
    """

    ob: Fields
    tr_1s: Fields
    tr_5s: Fields
    feat: Fields
    bids: Levels
    asks: Levels


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the checks.

    Attributes:
        price_deviation_max: Largest relative distance of the best bid from the price estimate.
        price_tolerance: Largest relative distance of the mid from each reference.
        bids_min: Least bids.
        asks_min: Least asks.
    """

    price_deviation_max: float = 0.1
    price_tolerance: float = PRICE_TOLERANCE
    bids_min: int = 1
    asks_min: int = 1


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Result of all checks: names of those passed, failures as texts, and warnings about a valid but unusual state."""

    passed: tuple[str, ...]
    failures: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Say whether every check passed."""
        return not self.failures


def validate(candidate: Candidate, references: References, limits: Limits) -> ValidationResult:
    """Run every check on a rebuilt state."""
    low, high = references.trade_price_min, references.trade_price_max
    far, warnings = judge_prices(candidate.ob, references, limits.price_tolerance)
    results = {
        "order_book": (
            "Order book",
            check_order_book(candidate.ob, estimate_for(candidate.ob, references, limits), limits.price_deviation_max),
        ),
        "levels": ("Order book", check_levels(candidate.bids, candidate.asks, limits.bids_min, limits.asks_min)),
        "trades_1s": ("Trade statistics", check_trade_window(candidate.tr_1s, low, high)),
        "trades_5s": ("Trade statistics", check_trade_window(candidate.tr_5s, low, high)),
        "windows": ("Trade statistics", check_windows(candidate.tr_1s, candidate.tr_5s)),
        "features": ("Feature vector", check_features(candidate.feat)),
        "consistency": ("Data consistency", check_consistency(candidate.ob, candidate.feat)),
        "prices": ("Data consistency", far),
    }
    passed = tuple(name for name, (_, failures) in results.items() if not failures)
    failures = tuple(f"{group} validation failed: {failure}" for group, found in results.values() for failure in found)
    return ValidationResult(passed, failures, (*warnings, *unusual(candidate)))


def quotes_agree(ob: Fields, references: References, tolerance: float) -> bool:
    """Say whether the exchange's own best prices, an answer beside the book's, agree with the book."""
    quotes = {TICKER: references.prices[TICKER]} if references.quoted and TICKER in references.prices else {}
    return bool(quotes) and not check_prices(ob, quotes, tolerance)


def estimate_for(ob: Fields, references: References, limits: Limits) -> float | None:
    """Give the price that the best bid has to be near; None where the exchange's own quotes agree with the book."""
    return None if quotes_agree(ob, references, limits.price_tolerance) else references.estimate


def judge_prices(ob: Fields, references: References, tolerance: float) -> tuple[list[str], list[str]]:
    """Compare a book with every other price of the exchange.

    Quotes move without trades: where the exchange's own quotes agree with the book, distant trades are only a warning.
    A candle that is far from the trades as well contradicts the exchange itself.

    Returns:
        Failures and warnings.
    """
    far = {source: check_prices(ob, {source: price}, tolerance) for source, price in references.prices.items()}
    old = {source: check_prices(ob, {source: price}, tolerance) for source, price in references.old.items()}
    warnings = [f"{words} (old)" for found in old.values() for words in found]
    if not references.prices:
        return ["the exchange gives no other price to compare the book with"], warnings
    forgiven: set[str] = set()
    if quotes_agree(ob, references, tolerance):
        forgiven = {LAST_TRADES} if not far.get(LAST_TRADES) else {LAST_TRADES, KLINE}
    failures = [words for source, found in far.items() if source not in forgiven for words in found]
    return failures, warnings + [words for source in sorted(forgiven) for words in far.get(source, [])]


def unusual(candidate: Candidate) -> list[str]:
    """Give warnings about a market that is valid but unusual."""
    bid, ask = number(candidate.ob.get("best_bid")), number(candidate.ob.get("best_ask"))
    found = [
        f"{side}: {len(levels)} levels in all"
        for side, levels in (("bids", candidate.bids), ("asks", candidate.asks))
        if 0 < len(levels) < HOT_LEVELS
    ]
    if bid > 0 and (ask - bid) / bid >= SPREAD_UNUSUAL:
        found.append(f"spread of {(ask - bid) / bid:.1%}")
    return found


def number(text: str | None) -> float:
    """Read a number; anything else gives NaN, so that every comparison with it fails."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def check_numbers(fields: Fields, required: Sequence[str]) -> list[str]:
    """Check that every required field exists and is a finite number."""
    failures = [f"Missing required field: {name}" for name in required if name not in fields]
    present = (name for name in required if name in fields)
    bad = [name for name in present if not math.isfinite(number(fields[name]))]
    return failures + [f"{name} = {fields[name]!r}: expected a finite number" for name in bad]


def check_order_book(ob: Fields, estimate: float | None, deviation_max: float) -> list[str]:
    """Check that best prices are positive, not crossed, consistent with the spread and near the estimated price."""
    failures = check_numbers(ob, REQUIRED_OB)
    if failures:
        return failures
    bid, ask, spread = number(ob["best_bid"]), number(ob["best_ask"]), number(ob["spread"])
    if not (bid > 0 and ask > 0):
        failures.append("Invalid prices: bid/ask must be positive")
    if not ask > bid:
        failures.append("Invalid spread: ask must be greater than bid")
    if not abs((ask - bid) - spread) <= SPREAD_TOLERANCE:
        failures.append("Spread calculation mismatch")
    if estimate is not None and not abs(bid - estimate) / estimate <= deviation_max:
        failures.append(
            f"Price deviation too large from current estimate: best_bid {bid:g}, estimate {estimate:g}, "
            f"at most {deviation_max:.0%}"
        )
    return failures + _check_hot_levels(ob, "bid", falling=True) + _check_hot_levels(ob, "ask", falling=False)


def _check_hot_levels(ob: Fields, side: str, *, falling: bool) -> list[str]:
    """Check that the hash's levels are numbers above zero, with consecutive ranks, in strict order."""
    ranks = [rank for rank in range(1, 11) if f"{side}{rank}_p" in ob]
    if ranks != list(range(1, len(ranks) + 1)):
        return [f"{side} levels: expected consecutive ranks, found {ranks}"]
    prices = [number(ob[f"{side}{rank}_p"]) for rank in ranks]
    quantities = [number(ob.get(f"{side}{rank}_q")) for rank in ranks]
    if not all(value > 0 and math.isfinite(value) for value in (*prices, *quantities)):
        return [f"{side} levels: expected prices and quantities above 0"]
    steps = pairwise(prices)
    if not all(first > second if falling else first < second for first, second in steps):
        return [f"{side} levels: expected strictly {'falling' if falling else 'rising'} prices, found {prices}"]
    return []


def check_levels(bids: Levels, asks: Levels, bids_min: int, asks_min: int | None = None) -> list[str]:
    """Check that both sides of the full book have enough levels, are strictly ordered, and do not cross.

    Args:
        bids: Best first.
        asks: Best first.
        bids_min: Least bids.
        asks_min: Least asks; None for as many.
    """
    failures = []
    least_asks = bids_min if asks_min is None else asks_min
    for side, levels, sign, least in (("bids", bids, -1, bids_min), ("asks", asks, 1, least_asks)):
        if len(levels) < least:
            failures.append(f"{side}: expected at least {least} levels, found {len(levels)}")
        if any(price <= 0 or qty <= 0 for price, qty in levels):
            failures.append(f"{side}: expected prices and quantities above 0")
        out_of_order = next(
            (at for at in range(1, len(levels)) if sign * levels[at][0] <= sign * levels[at - 1][0]), None
        )
        if out_of_order is not None:
            failures.append(f"{side}: expected strictly ordered prices, found level {out_of_order} out of order")
    if bids and asks and bids[0][0] >= asks[0][0]:
        failures.append(f"book is crossed: best bid {bids[0][0]}, best ask {asks[0][0]} (mantissas)")
    return failures


def check_trade_window(window: Fields, price_min: float | None, price_max: float | None) -> list[str]:
    """Check that a trade window is finite and consistent; one without trades is valid and all zero."""
    failures = check_numbers(window, REQUIRED_TRADES)
    if failures:
        return failures
    count, volume = number(window["count"]), number(window["vol"])
    if count < 0 or count != int(count):
        failures.append(f"count = {window['count']}: expected a whole number of at least 0")
    if count == 0:
        loud = [name for name in ZERO_WHEN_QUIET if name in window and number(window[name]) != 0]
        return failures + [f"{name} = {window[name]}: expected 0 in a window without trades" for name in loud]
    if not volume > 0:
        failures.append(f"vol = {window['vol']}: expected above 0 with {count:g} trades")
    if not abs(number(window["signed_vol"])) <= volume * (1 + RELATIVE_ERROR):
        failures.append(f"signed_vol = {window['signed_vol']}: expected at most vol = {window['vol']} either way")
    for name in ("interarr_mean", "interarr_var"):
        if number(window[name]) < 0:
            failures.append(f"{name} = {window[name]}: expected at least 0")
    vwap = number(window["vwap"])
    low = price_min if price_min is not None else vwap
    high = price_max if price_max is not None else vwap
    if not low * (1 - RELATIVE_ERROR) <= vwap <= high * (1 + RELATIVE_ERROR):
        failures.append(f"vwap = {window['vwap']}: expected within the traded prices {low:g} to {high:g}")
    return failures


def check_windows(tr_1s: Fields, tr_5s: Fields) -> list[str]:
    """Check that the short window is contained in the long one."""
    failures = []
    for name in ("count", "vol"):
        short, long = number(tr_1s.get(name)), number(tr_5s.get(name))
        if not short <= long * (1 + RELATIVE_ERROR):
            failures.append(f"{name} of 1 s = {tr_1s.get(name)}: expected at most that of 5 s = {tr_5s.get(name)}")
    return failures


def check_features(feat: Fields) -> list[str]:
    """Check that features are finite, and imbalances within -1 and 1."""
    failures = check_numbers(feat, REQUIRED_FEATURES)
    for name in IMBALANCES:
        if name in feat and abs(number(feat[name])) > 1 + RELATIVE_ERROR:
            failures.append(f"{name} = {feat[name]}: expected within -1 and 1")
    return failures


def check_consistency(ob: Fields, feat: Fields) -> list[str]:
    """Check that features that repeat a value of the book agree with it."""
    failures = []
    for name in ("spread_bp", "ob_imbalance"):
        book, feature = number(ob.get(name)), number(feat.get(name))
        if not math.isclose(book, feature, rel_tol=RELATIVE_ERROR, abs_tol=RELATIVE_ERROR):
            failures.append(f"{name}: expected the same in ob and feat, found {ob.get(name)} and {feat.get(name)}")
    return failures


def check_prices(ob: Fields, prices: Mapping[str, tuple[float, float]], tolerance: float) -> list[str]:
    """Check that the book is near every other price of the exchange: some price from best bid to best ask is."""
    bid, ask = number(ob.get("best_bid")), number(ob.get("best_ask"))
    mid, ticks = (bid + ask) / 2, TICKS * _tick(ob)
    failures = []
    for source, (low, high) in prices.items():
        shown = f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}"
        if not _is_range(low, high):
            failures.append(f"{source} = {shown}: expected prices above 0")
        elif not (bid <= high + max(high * tolerance, ticks) and ask >= low - max(low * tolerance, ticks)):
            failures.append(f"mid {mid:.10g} is more than {tolerance:.0%} from {source} {shown}")
    return failures


def _tick(ob: Fields) -> float:
    """Give the smallest step between prices in the hash."""
    sides = ([number(ob.get(f"{side}{rank}_p")) for rank in range(1, HOT_LEVELS + 1)] for side in ("bid", "ask"))
    steps = [abs(first - second) for prices in sides for first, second in pairwise(prices)]
    return min((step for step in steps if step > 0), default=0.0)


def _up_to(levels: Levels, edge: int, *, falling: bool) -> Levels:
    if not edge:
        return levels
    return [level for level in levels if (level[0] >= edge if falling else level[0] <= edge)]


def book_differences(
    live: tuple[Levels, Levels],
    fresh: tuple[Levels, Levels],
    depth: int = COMPARED_LEVELS,
    edges: tuple[int, int] = (0, 0),
) -> list[str]:
    """Name the levels in which two books of the same update id differ, best first.

    Args:
        live: Bids and asks of the pipeline, as mantissas at the same exponents as `fresh`.
        fresh: Bids and asks of the exchange.
        depth: Levels a side to compare.
        edges: Last bid and ask price up to which both are complete, as mantissas; 0 for a side that both have entirely.
    """
    differences = []
    for side, held, stated, edge in (("bid", live[0], fresh[0], edges[0]), ("ask", live[1], fresh[1], edges[1])):
        expected = _up_to(stated[:depth], edge, falling=side == "bid")
        # The live book may have more levels after the snapshot's last one, but not between its levels.
        found = _up_to(held, edge, falling=side == "bid")[: min(depth, len(expected))]
        pairs = enumerate(zip(found, expected, strict=False), start=1)
        differences += [
            f"{side} {rank}: expected {theirs[0]} x {theirs[1]}, found {ours[0]} x {ours[1]} (mantissas)"
            for rank, (ours, theirs) in pairs
            if ours != theirs
        ]
        if len(found) < len(expected):
            differences.append(f"{side}s: expected {len(expected)} levels, found {len(found)}")
    more = len(differences) - DIFFERENCES_MAX
    return differences if more <= 0 else [*differences[:DIFFERENCES_MAX], f"{more} more differences"]

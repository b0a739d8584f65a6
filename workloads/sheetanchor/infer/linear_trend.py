"""A straight line through the last prices: the prediction when no model can be used. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sheetanchor.contract import HORIZON_MS

TREND_SPAN_US: Final = 20_000_000
"""Twice the horizon: enough points for a line, and none so old that the line lags behind the price."""

TREND_POINTS_MIN: Final = 3
TREND_POINTS_MAX: Final = 16


def linear_return(points: Sequence[tuple[int, float]], now_us: int) -> float | None:
    """Continue the least-squares line through recent prices to the horizon.

    Args:
        points: `(time in µs, price)` in order of time.
        now_us: The time to predict from, on the same clock.

    Returns:
        The relative change over the horizon; None when there are too few recent points.
    """
    recent = [(at_us, price) for at_us, price in points if 0 <= now_us - at_us <= TREND_SPAN_US]
    if len(recent) < TREND_POINTS_MIN:
        return None
    times = [(at_us - now_us) / 1e6 for at_us, _ in recent]
    prices = [price for _, price in recent]
    mean_time, mean_price = sum(times) / len(times), sum(prices) / len(prices)
    spread = sum((time - mean_time) ** 2 for time in times)
    if spread <= 0 or prices[-1] <= 0:
        return None
    slope = sum((time - mean_time) * (price - mean_price) for time, price in zip(times, prices, strict=True)) / spread
    return slope * (HORIZON_MS / 1000) / prices[-1]

"""The accuracy of predictions: the price ten seconds later, and how often the direction was right. Pure.

The result of slot `s` is `price_now` of slot `s + 5`, which is read exactly ten seconds later. Where that slot was
missed, or either price was in doubt, there is no result. A prediction is *decided* when it had a direction and the
price moved: a flat prediction, or a price that is the same after ten seconds, is neither a hit nor a miss. Directional
accuracy is hits among decided ones; before the first decided one it is None, not 0.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from sheetanchor.contract import HORIZON_SLOTS, SLOT_MS

Direction = Literal["up", "down", "flat"]

SLOTS_1H: Final = 3_600_000 // SLOT_MS
SLOTS_24H: Final = 24 * SLOTS_1H

ACCURACY_DROP_MAX: Final = 0.2
"""An accuracy this far below the one in training raises an alert."""

DECIDED_MIN: Final = 100
"""With fewer decided predictions the 95 % interval of an accuracy is wider than ±0.1: too wide for an alert."""


def direction_of(change: float) -> Direction:
    """Give the direction of a return or a difference of prices; exactly 0 is flat."""
    if change > 0:
        return "up"
    return "down" if change < 0 else "flat"


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """The result of one prediction.

    Attributes:
        price: Price ten seconds after the slot.
        actual_return: Its relative change since the slot.
        hit: Whether the direction was right; None when the prediction or the price was flat.
    """

    slot: int
    price: float
    actual_return: float
    direction: Direction
    hit: bool | None


def score(slot: int, predicted: Direction, price_now: float, price_later: float) -> PredictionResult:
    """Compare a predicted direction with the price's.

    Args:
        slot: The prediction's slot.
        predicted: The predicted direction.
        price_now: Price at the slot, above 0.
        price_later: Price ten seconds later.
    """
    actual = direction_of(price_later - price_now)
    decided = predicted != "flat" and actual != "flat"
    return PredictionResult(
        slot, price_later, price_later / price_now - 1, actual, predicted == actual if decided else None
    )


class RollingAccuracy:
    """Share of hits among the decided predictions of a window of slots.

    Args:
        window_slots: Length of the window, which also bounds the memory.
    """

    def __init__(self, window_slots: int) -> None:
        self._window_slots = window_slots
        self._results: deque[tuple[int, bool]] = deque(maxlen=window_slots)
        self._hits = 0

    def add(self, slot: int, hit: bool) -> None:
        """Add a decided prediction; slots come in rising order."""
        if len(self._results) == self._results.maxlen:
            self._hits -= self._results[0][1]
        self._results.append((slot, hit))
        self._hits += hit
        self.advance(slot)

    def advance(self, slot: int) -> None:
        """Drop results before the window that ends at a slot."""
        while self._results and self._results[0][0] <= slot - self._window_slots:
            self._hits -= self._results.popleft()[1]

    @property
    def decided(self) -> int:
        """How many decided predictions the window holds."""
        return len(self._results)

    @property
    def value(self) -> float | None:
        """The accuracy; None when nothing was decided."""
        return self._hits / len(self._results) if self._results else None


class AccuracyTracker:
    """Scores one symbol's predictions as their results become known, over the last hour and the last day.

    The last hour is also kept by model: errors of an earlier model, or of the trend, say nothing about the present one.
    """

    def __init__(self) -> None:
        self.last_1h = RollingAccuracy(SLOTS_1H)
        self.last_24h = RollingAccuracy(SLOTS_24H)
        self._by_model: dict[str, RollingAccuracy] = {}
        self._open: dict[int, tuple[Direction, float, str]] = {}
        self._latest = -1

    def of_model(self, model: str) -> RollingAccuracy:
        """Give the last hour's accuracy of one model."""
        return self._by_model.get(model) or RollingAccuracy(SLOTS_1H)

    def add(self, slot: int, predicted: Direction, price: float | None, model: str = "") -> PredictionResult | None:
        """Add a slot's prediction and give the result that its price decides.

        Args:
            slot: Its slot; one that is not newer than those before is ignored.
            predicted: Its direction.
            price: The price it was made at; None when there is none or it is in doubt.
            model: The model that made it, "" if none did.

        Returns:
            The result of the prediction made ten seconds earlier, if there was one.
        """
        if slot <= self._latest:
            return None
        self._latest = slot
        earlier = self._open.get(slot - HORIZON_SLOTS)
        self._open = {s: known for s, known in self._open.items() if s > slot - HORIZON_SLOTS}
        result = None
        if price is not None and math.isfinite(price) and price > 0:
            self._open[slot] = (predicted, price, model)
            if earlier is not None:
                result = score(slot - HORIZON_SLOTS, *earlier[:2], price)
        if result is not None and result.hit is not None and earlier is not None:
            by_model = self._by_model.setdefault(earlier[2], RollingAccuracy(SLOTS_1H))
            for window in (self.last_1h, self.last_24h, by_model):
                window.add(result.slot, result.hit)
        for window in (self.last_1h, self.last_24h, *self._by_model.values()):
            window.advance(slot)
        self._by_model = {name: window for name, window in self._by_model.items() if window.decided}
        return result


def has_degraded(accuracy: RollingAccuracy, baseline: float | None) -> bool:
    """Say whether a model is clearly less accurate than in training.

    Args:
        accuracy: Its rolling accuracy.
        baseline: Directional accuracy recorded with the model; None when none was recorded.
    """
    value = accuracy.value
    if baseline is None or value is None or accuracy.decided < DECIDED_MIN:
        return False
    return value < baseline * (1 - ACCURACY_DROP_MAX)

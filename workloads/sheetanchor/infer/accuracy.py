"""How predictions came out: what the price was ten seconds later, and how often the direction was right. Pure.

The outcome of slot `s` is `price_now` of slot `s + 5`, which is read exactly ten seconds later. Where that slot was
missed, or either price was in doubt, there is no outcome. A prediction is *decided* when it named a direction and the
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
"""An accuracy this share below what the model reached in training is worth a person's attention."""

DECIDED_MIN: Final = 100
"""Fewer decided predictions than this say nothing: the 95 % interval of an accuracy is then wider than ±0.1."""


def direction_of(change: float) -> Direction:
    """Give the direction of a return or a difference of prices; exactly 0 is flat."""
    if change > 0:
        return "up"
    return "down" if change < 0 else "flat"


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """What came of one prediction.

    Attributes:
        price: Price ten seconds after the slot.
        actual_return: Its relative change since the slot.
        hit: Whether the direction came true; None when the prediction or the price was flat.
    """

    slot: int
    price: float
    actual_return: float
    direction: Direction
    hit: bool | None


def score(slot: int, predicted: Direction, price_now: float, price_later: float) -> PredictionResult:
    """Compare a predicted direction with what happened.

    Args:
        slot: The prediction's slot.
        predicted: What it said.
        price_now: Price at the slot, above 0.
        price_later: Price ten seconds later.
    """
    actual = direction_of(price_later - price_now)
    decided = predicted != "flat" and actual != "flat"
    return PredictionResult(
        slot, price_later, price_later / price_now - 1, actual, predicted == actual if decided else None
    )


class RollingAccuracy:
    """Hits among the decided predictions of the last so many slots.

    Args:
        window_slots: Length of the window; never more than this many results are kept.
    """

    def __init__(self, window_slots: int) -> None:
        self._window_slots = window_slots
        self._results: deque[tuple[int, bool]] = deque(maxlen=window_slots)
        self._hits = 0

    def add(self, slot: int, hit: bool) -> None:
        """Take in a decided prediction; slots come in rising order."""
        if len(self._results) == self._results.maxlen:
            self._hits -= self._results[0][1]
        self._results.append((slot, hit))
        self._hits += hit
        self.advance(slot)

    def advance(self, slot: int) -> None:
        """Forget what lies before the window that ends at a slot."""
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
    """Scores one symbol's predictions as their outcomes become known, over the last hour and the last day.

    The last hour is also kept by model: what an earlier one or the trend got wrong says nothing about the present one.
    """

    def __init__(self) -> None:
        self.last_1h = RollingAccuracy(SLOTS_1H)
        self.last_24h = RollingAccuracy(SLOTS_24H)
        self._by_model: dict[str, RollingAccuracy] = {}
        self._open: dict[int, tuple[Direction, float, str]] = {}
        self._latest = -1

    def of_model(self, model: str) -> RollingAccuracy:
        """Give the last hour's accuracy of one model, whenever within it it served."""
        return self._by_model.get(model) or RollingAccuracy(SLOTS_1H)

    def add(self, slot: int, predicted: Direction, price: float | None, model: str = "") -> PredictionResult | None:
        """Take in a slot's prediction and give the outcome that its price decides.

        Args:
            slot: Its slot; one that is not newer than those before is ignored.
            predicted: Its direction.
            price: The price it was made at; None when there is none or it is in doubt.
            model: The model that said so, "" if none did.

        Returns:
            The outcome of the prediction made ten seconds earlier, if there was one.
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
    """Say whether a model does clearly worse than it did in training.

    Args:
        accuracy: Its rolling accuracy.
        baseline: Directional accuracy recorded with the model; None when none was recorded.
    """
    value = accuracy.value
    if baseline is None or value is None or accuracy.decided < DECIDED_MIN:
        return False
    return value < baseline * (1 - ACCURACY_DROP_MAX)

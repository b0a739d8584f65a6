"""Counts of a local run: slots, predictions, gaps, re-anchors, as readable in Redis.

Everything is counted from the first committed slot on. A slot is missed when by its end no prediction for it, degraded
or not, was readable in the stream; one that was committed later counts as missed, so that slots are always
predictions plus missed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sheetanchor.contract import HORIZON_SLOTS, SLOT_MS, Gap, Receipt, slot_of, slot_start_us, stream_id_order
from sheetanchor.infer import accuracy, prediction

HISTORY_SLOTS: Final = 450
"""Fifteen minutes of predictions for chart and table, as long as the raw frames are kept."""

EVENTS_KEPT: Final = 20
"""Gaps and receipts that are kept to be shown; the streams in Redis hold more."""

LATENCIES_MAX: Final = 500_000
"""More than eleven days of slots; percentiles of longer runs are those of the last eleven days."""

WORDS: Final[dict[int, accuracy.Direction]] = {1: "up", -1: "down", 0: "flat"}
SIGNS: Final = {word: sign for sign, word in WORDS.items()}

VALIDATION_ACTION: Final = "validation_reanchor"
REQUEST_RULE: Final = "request"


@dataclass(frozen=True, slots=True)
class ShownPrediction:
    """One entry of the stream of predictions, with its result once that is known.

    Attributes:
        committed_us: When it became readable, by Redis' clock.
        direction: 1 up, -1 down, 0 flat.
        latency_ms: From the slot's time to the commit.
        price_is_sound: Whether results may be computed with the price: nothing about the state was in doubt.
        outcome_price: Price ten seconds after the slot; None while unknown.
        hit: Whether the direction was right; None while unknown, or when prediction or price was flat.
    """

    slot: int
    committed_us: int
    price_now: float | None
    predicted_price: float | None
    direction: int
    confidence: float
    mode: str
    degraded: bool
    reason: str
    latency_ms: float
    epoch: int
    price_is_sound: bool = True
    outcome_price: float | None = None
    hit: bool | None = None

    @classmethod
    def parse(cls, entry_id: str, fields: Mapping[str, str]) -> ShownPrediction:
        """Read a stream entry.

        Raises:
            KeyError: If the slot is missing.
            ValueError: If a number is not one.
        """
        said = prediction.Prediction.parse(fields)
        return cls(
            slot=said.slot,
            committed_us=stream_id_order(entry_id)[0] * 1_000,
            price_now=_finite(said.price_now),
            predicted_price=_finite(said.predicted_price),
            direction=SIGNS[said.direction],
            confidence=_finite(said.confidence) or 0.0,
            mode=said.mode,
            degraded=said.degraded,
            reason=said.reason,
            latency_ms=_finite(said.latency_ms) or 0.0,
            epoch=said.epoch,
            price_is_sound=_finite(said.sound_price) is not None,
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def judge(earlier: ShownPrediction, later: ShownPrediction) -> ShownPrediction:
    """Give a prediction with its result by the price ten seconds later; none where either price is in doubt."""
    before, after = earlier.price_now, later.price_now
    if before is None or after is None or not (earlier.price_is_sound and later.price_is_sound):
        return earlier
    outcome = accuracy.score(earlier.slot, WORDS[earlier.direction], before, after)
    return replace(earlier, outcome_price=outcome.price, hit=outcome.hit)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Give the nearest-rank percentile of unsorted values, None of none.

    Args:
        values: Any order.
        share: Between 0 and 1, for instance 0.99.
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Tally:
    """The count of one symbol.

    Args:
        symbol: Trading pair.
    """

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.first_slot: int | None = None
        self.end_us: int | None = None
        self.predictions = 0
        self.degraded = 0
        self.gaps = 0
        self.validations = 0
        self.reanchors = 0
        self.hits = 0
        self.judged = 0
        self.rises = 0
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES_MAX)
        self.history: dict[int, ShownPrediction] = {}
        self.recent_gaps: deque[Gap] = deque(maxlen=EVENTS_KEPT)
        self.recent_receipts: deque[Receipt] = deque(maxlen=EVENTS_KEPT)
        self._latest_slot = -1

    def add_prediction(self, made: ShownPrediction) -> bool:
        """Count one entry of the stream; false if it does not count (too late, already counted, after the end)."""
        slot = made.slot
        if made.committed_us >= slot_start_us(slot + 1) or slot in self.history:
            return False
        if self.first_slot is not None and slot < self.first_slot:
            return False
        if self.end_us is not None and slot_start_us(slot) >= self.end_us:
            return False
        if self.first_slot is None:
            self.first_slot = slot
        self.predictions += 1
        self.degraded += made.degraded
        self.latencies_ms.append(made.latency_ms)
        self._latest_slot = max(self._latest_slot, slot)
        self.history[slot] = made
        self._judge_earlier(made)
        while len(self.history) > HISTORY_SLOTS:
            del self.history[min(self.history)]
        return True

    def _judge_earlier(self, later: ShownPrediction) -> None:
        earlier = self.history.get(later.slot - HORIZON_SLOTS)
        if earlier is None or earlier.outcome_price is not None:
            return
        judged = judge(earlier, later)
        self.history[earlier.slot] = judged
        if judged.hit is not None:
            self.judged += 1
            self.hits += judged.hit
            self.rises += (judged.outcome_price or 0.0) > (judged.price_now or 0.0)

    def add_gap(self, gap: Gap) -> None:
        """Count a gap event; a manual request is shown but not counted."""
        self.recent_gaps.append(gap)
        if self.first_slot is None or gap.at_us < slot_start_us(self.first_slot) or gap.rule == REQUEST_RULE:
            return
        if gap.action == VALIDATION_ACTION:
            self.validations += 1
        else:
            self.gaps += 1

    def add_receipt(self, receipt: Receipt) -> None:
        """Count a rebuild that was swapped in; the first anchor counts even if it came before the first slot."""
        self.recent_receipts.append(receipt)
        self.reanchors += receipt.result == "swapped"

    def slots(self, now_us: int) -> int:
        """Count the slots that have ended or have their prediction already."""
        if self.first_slot is None:
            return 0
        ended = slot_of(now_us if self.end_us is None else min(now_us, self.end_us)) - 1
        return max(ended, self._latest_slot) - self.first_slot + 1

    def missed(self, now_us: int) -> int:
        """Count the slots that ended without a prediction."""
        return self.slots(now_us) - self.predictions

    def missed_slots(self, now_us: int) -> list[int]:
        """Name the missed slots within the history that is kept."""
        if self.first_slot is None:
            return []
        last = self.first_slot + self.slots(now_us) - 1
        return [
            slot for slot in range(max(self.first_slot, last - HISTORY_SLOTS + 1), last + 1) if slot not in self.history
        ]

    @property
    def directional_accuracy(self) -> float | None:
        """Share of right directions; None before the first is known."""
        return self.hits / self.judged if self.judged else None

    @property
    def baseline_hits(self) -> int:
        """Hits that always predicting the more frequent direction would have had."""
        return max(self.rises, self.judged - self.rises)


def end_after(first_slots: Sequence[int], seconds: float) -> int:
    """Give the time some seconds after the first committed slot, in µs; of several symbols the last to begin counts."""
    return slot_start_us(max(first_slots)) + round(seconds * 1_000_000)


def summary(tallies: Sequence[Tally], epochs: Sequence[int], now_us: int) -> dict[str, Any]:
    """Build the summary of a run; several symbols are added up.

    Args:
        tallies: One per symbol.
        epochs: Epoch of each symbol; the highest is given.
        now_us: Redis' clock.
    """
    latencies = [latency for tally in tallies for latency in tally.latencies_ms]
    judged = sum(tally.judged for tally in tallies)
    return {
        "slots": sum(tally.slots(now_us) for tally in tallies),
        "predictions": sum(tally.predictions for tally in tallies),
        "missed": sum(tally.missed(now_us) for tally in tallies),
        "degraded": sum(tally.degraded for tally in tallies),
        "gaps": sum(tally.gaps for tally in tallies),
        "validations": sum(tally.validations for tally in tallies),
        "reanchors": sum(tally.reanchors for tally in tallies),
        "epoch": max(epochs, default=0),
        "latency_ms": {"p50": percentile(latencies, 0.5), "p99": percentile(latencies, 0.99)},
        "directional_accuracy": _share(sum(tally.hits for tally in tallies), judged),
        "baseline_accuracy": _share(sum(tally.baseline_hits for tally in tallies), judged),
        "decided": judged,
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def slot_time_text(slot: int) -> str:
    """Give the UTC time of a slot as HH:MM:SS."""
    second = slot * SLOT_MS // 1_000 % 86_400
    return f"{second // 3_600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"

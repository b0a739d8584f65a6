"""Reads the numbers that are shown from the metrics pages of the roles."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from sheetanchor.local.dashboard.status import StageLatency

APPEND_DELAY: Final = "ingestor_append_delay_seconds"
FRAME_TO_HOT: Final = "sheetanchor_frame_to_hot_seconds"
STAGE_DURATION: Final = "sheetanchor_inference_stage_seconds"
CONNECTED: Final = "ingestor_sbe_connection_status"
MESSAGES: Final = "ingestor_sbe_messages_total"

WANTED: Final = (f"{APPEND_DELAY}_bucket", f"{FRAME_TO_HOT}_bucket", f"{STAGE_DURATION}_bucket", CONNECTED, MESSAGES)
WINDOW_SCRAPES: Final = 31
"""A minute of scrapes every two seconds."""

INFERENCE_STAGES: Final = ("read", "features", "model", "commit")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Sample = tuple[str, Mapping[str, str], float]
Buckets = dict[float, float]
"""Upper bound in seconds to the number of observations up to it."""


def parse(text: str, wanted: Iterable[str] = WANTED) -> list[Sample]:
    """Read samples of some names, as (name, labels, value); malformed lines are left out.

    Args:
        text: Prometheus text format.
        wanted: Names of the samples to read.
    """
    names = tuple(wanted)
    samples: list[Sample] = []
    for line in text.splitlines():
        if not line.startswith(names):
            continue
        head, _, value = line.rpartition(" ")
        name, _, labels = head.partition("{")
        if name not in names:
            continue
        try:
            samples.append((name, dict(_LABEL.findall(labels)), float(value)))
        except ValueError:
            continue
    return samples


def histograms(samples: Iterable[Sample]) -> dict[str, Buckets]:
    """Add up histograms by the stage that they show: of inference by its label, of the others by the metric's name."""
    added: dict[str, Buckets] = {}
    for name, labels, value in samples:
        if not name.endswith("_bucket"):
            continue
        key = labels.get("stage", "") or name.removesuffix("_bucket")
        bound = float(labels.get("le", "inf").replace("+Inf", "inf"))
        buckets = added.setdefault(key, {})
        buckets[bound] = buckets.get(bound, 0.0) + value
    return added


def difference(later: Buckets, earlier: Buckets) -> Buckets:
    """Give the observations between two scrapes; all of the later one if a process was restarted in between."""
    if any(later.get(bound, 0.0) < count for bound, count in earlier.items()):
        return later
    return {bound: count - earlier.get(bound, 0.0) for bound, count in later.items()}


def quantile_ms(buckets: Buckets, share: float) -> float | None:
    """Estimate a quantile in milliseconds, evenly within a bucket; None without observations.

    A quantile beyond the last bound is given as that bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank = share * total
    below, below_count = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return below * 1_000
            inside = buckets[bound] - below_count
            part = (rank - below_count) / inside if inside else 1.0
            return (below + (bound - below) * part) * 1_000
        below, below_count = bound, buckets[bound]
    return None


class LatencyWindow:
    """Latencies of the last minute by stage, from cumulative histograms."""

    def __init__(self) -> None:
        self._scrapes: deque[dict[str, Buckets]] = deque(maxlen=WINDOW_SCRAPES)

    def add(self, scrape: dict[str, Buckets]) -> None:
        """Add a scrape of all roles."""
        self._scrapes.append(scrape)

    def stages(self) -> list[StageLatency]:
        """Give the stages in the order in which data passes them."""
        if not self._scrapes:
            return []
        titles = {APPEND_DELAY: "receive to Redis", FRAME_TO_HOT: "frame to hot keys"}
        titles |= {name: f"infer: {name}" for name in INFERENCE_STAGES}
        first, last = self._scrapes[0], self._scrapes[-1]
        return [
            _stage(title, difference(last[key], first.get(key, {}) if len(self._scrapes) > 1 else {}))
            for key, title in titles.items()
            if key in last
        ]


def _stage(title: str, buckets: Buckets) -> StageLatency:
    count = int(max(buckets.values(), default=0))
    p50, p95, p99 = (quantile_ms(buckets, share) for share in (0.5, 0.95, 0.99))
    return StageLatency(title, p50, p95, p99, count)

"""The state of a symbol as the processors report it, and Redis' clock, by which all times are compared. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor.contract import STALE_AFTER_US
from sheetanchor.policy.reanchor_scheduler import Seen
from sheetanchor_operator.observation import PodResponse, symbols_in, whole_number
from sheetanchor_operator.reanchors.runs import SECOND_US


@dataclass(frozen=True, slots=True)
class SymbolObservation:
    """The state of a symbol as one processor reports it: the active one, else the one of the highest term.

    Attributes:
        known: Whether a processor has reported it.
        now_us: Redis' clock when it answered.
    """

    known: bool = False
    state: str = "unknown"
    epoch: int = 0
    fresh: bool = False
    lock_holder: str = ""
    suspect_since_us: int = 0
    now_us: int = 0

    def seen(self, lock_held: bool) -> Seen:
        """Give the observation as the scheduler takes it; an unknown symbol counts as suspect."""
        since_us = self.suspect_since_us if self.state == "suspect" else 0
        state = self.state if self.known else "suspect"
        return Seen(state, self.epoch, self.fresh, lock_held, since_us)


UNKNOWN: Final = SymbolObservation()


CLOCK_AHEAD_MAX_US: Final = 24 * 3600 * SECOND_US
"""A report that puts Redis' clock further from ours than this is ignored: it is more likely wrong than the clocks."""


def redis_ahead_us(observations: Iterable[SymbolObservation], now_us: int) -> int:
    """Give how far Redis' clock is ahead of this process'; 0 while no processor reports it.

    Receipts, gaps and doubts are stamped by Redis' clock, so times compared with them have to be by it too.

    Args:
        observations: Reports of the processors.
        now_us: This process' clock when they were received.
    """
    newest_us = max((observation.now_us for observation in observations), default=0)
    ahead_us = newest_us - now_us if newest_us else 0
    return ahead_us if abs(ahead_us) <= CLOCK_AHEAD_MAX_US else 0


Rank = tuple[bool, int, int]


def symbol_observations(states: Mapping[str, PodResponse]) -> dict[str, SymbolObservation]:
    """Read the processors' answers: of each symbol the active one's counts, of two the one with the higher term.

    An answer that cannot be read is ignored: another program may listen where a processor did.
    """
    best: dict[str, tuple[Rank, SymbolObservation]] = {}
    for _, answer in sorted(states.items()):
        for symbol, report in symbols_in(answer).items():
            ranked = _observation_in(report)
            if ranked is not None and (symbol not in best or ranked[0] > best[symbol][0]):
                best[symbol] = ranked
    return {symbol: observation for symbol, (_, observation) in best.items()}


def _observation_in(report: Any) -> tuple[Rank, SymbolObservation] | None:
    if not isinstance(report, Mapping) or report.get("state") not in ("anchored", "suspect"):
        return None
    numbers = [whole_number(report.get(name) or 0) for name in ("epoch", "term", "suspect_since_us", "now_us")]
    age_ms, holder = report.get("event_age_ms"), report.get("lock_holder")
    if None in numbers:
        return None
    epoch, term, since_us, now_us = (number or 0 for number in numbers)
    if not isinstance(age_ms, int | float | None) or not isinstance(holder, str | None):
        return None
    observation = SymbolObservation(
        known=True,
        state=report["state"],
        epoch=epoch,
        fresh=age_ms is not None and age_ms * 1_000 < STALE_AFTER_US,
        lock_holder=holder or ("?" if report.get("lock_held") else ""),
        suspect_since_us=since_us,
        now_us=now_us,
    )
    return (bool(report.get("active")), term, now_us), observation

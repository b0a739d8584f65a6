"""What a run knows from the receipts of earlier ones, though each lives in a process of its own. Pure.

The breaker of the exchange is one over all runs: what fails in a run adds to what failed in those before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sheetanchor.contract import Call, Receipt
from sheetanchor.runtime.reliability import CircuitState


@dataclass(frozen=True, slots=True)
class Breaker:
    """Where the breaker of an exchange stands between two runs.

    Attributes:
        failures: Failures in a row.
        until_us: When an open breaker lets a probe through, by Redis' clock.
    """

    state: CircuitState
    failures: int
    until_us: int


def failed_endpoints(calls: Iterable[Call]) -> int:
    """Count the endpoints whose last request failed in a way that speaks against the exchange."""
    last = {endpoint: status for endpoint, status, _ in calls}
    return sum(_is_failure(status) for status in last.values())


def _is_failure(status: str) -> bool:
    return not status.isdecimal() or int(status) >= 500


def breaker_of(receipts: Sequence[Receipt], exchange: str, threshold: int, open_us: int, now_us: int) -> Breaker:
    """Say where the breaker stands.

    Args:
        receipts: Of earlier runs, newest first.
        exchange: Origin of the exchange.
        threshold: Failures in a row that open it.
        open_us: How long it stays open after the last of them.
        now_us: Redis' clock, by which the receipts are stamped.
    """
    failures, last_us = 0, 0
    for receipt in receipts:
        if receipt.exchange != exchange or not receipt.calls:
            continue  # asked somebody else, or nobody
        failed = failed_endpoints(receipt.calls)
        if not failed:
            break
        failures += failed
        last_us = max(last_us, receipt.finished_at_us)
    if failures < threshold:
        return Breaker(CircuitState.CLOSED, failures, 0)
    until_us = min(last_us, now_us) + open_us
    return Breaker(CircuitState.OPEN if now_us < until_us else CircuitState.HALF_OPEN, failures, until_us)


def weight_of(receipts: Sequence[Receipt], exchange: str) -> tuple[int, int]:
    """Give the request weight that the newest run had left, and when; -1 where no run has told it."""
    for receipt in receipts:
        if receipt.exchange == exchange and receipt.weight_remaining >= 0:
            return receipt.weight_remaining, receipt.finished_at_us
    return -1, 0

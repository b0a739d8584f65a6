"""What a run takes from the receipts of earlier ones, since each runs in a process of its own. Pure.

The circuit breaker of the exchange counts over all runs: failures of a run add to those of the runs before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sheetanchor.contract import Call, Receipt
from sheetanchor.runtime.reliability import CircuitState


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state of the breaker of an exchange between two runs.

    Attributes:
        failures: Failures in a row.
        until_us: When an open breaker lets a probe through, by Redis' clock.
    """

    state: CircuitState
    failures: int
    until_us: int


def failed_endpoints(calls: Iterable[Call]) -> int:
    """Count the endpoints whose last request failed in a way that counts as a failure of the exchange."""
    last = {endpoint: status for endpoint, status, _ in calls}
    return sum(_is_failure(status) for status in last.values())


def _is_failure(status: str) -> bool:
    return not status.isdecimal() or int(status) >= 500


def breaker_of(receipts: Sequence[Receipt], exchange: str, threshold: int, open_us: int, now_us: int) -> Breaker:
    """Compute the state of the breaker.

    Args:
        receipts: Receipts of earlier runs, newest first.
        exchange: Origin of the exchange.
        threshold: Failures in a row that open it.
        open_us: How long it stays open after the last of them.
        now_us: Redis' clock, by which the receipts are stamped.
    """
    failures, last_us = 0, 0
    for receipt in receipts:
        if receipt.exchange != exchange or not receipt.calls:
            continue  # used another exchange, or sent no request
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
    """Give the request weight that the newest run had left, and when; -1 where no receipt has it."""
    for receipt in receipts:
        if receipt.exchange == exchange and receipt.weight_remaining >= 0:
            return receipt.weight_remaining, receipt.finished_at_us
    return -1, 0

"""What a run knows from the receipts of earlier ones: the breaker is one over all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.contract import Call, Receipt
from sheetanchor.reanchor.recall import breaker_of, failed_endpoints, weight_of
from sheetanchor.runtime.reliability import CircuitBreaker, CircuitState

URL = "http://x"
SECOND = 1_000_000
GOOD: Call = ("/api/v3/depth", "200", 0.1)
BAD: tuple[Call, ...] = (("/api/v3/depth", "503", 0.1), ("/api/v3/trades", "timeout", 10.0))


def receipt(at_s: float, *calls: Call, exchange: str = URL, weight: int = -1) -> Receipt:
    at_us = int(at_s * SECOND)
    return Receipt(
        "r", "BTCUSDT", "", "", "failed", at_us, at_us, 0, 0, 0, 0, 3, "", exchange=exchange, calls=calls,
        weight_remaining=weight,
    )  # fmt: skip


def state(receipts: list[Receipt], now_s: float) -> tuple[CircuitState, int]:
    found = breaker_of(receipts, URL, 5, 60 * SECOND, int(now_s * SECOND))
    return found.state, found.failures


def test_failures_add_up_over_runs() -> None:
    """Two endpoints failed in each run: the third run opens it, a minute after the last it may be probed."""
    runs = [receipt(at_s, *BAD) for at_s in (30, 20, 10)]

    assert (CircuitState.CLOSED, 4) == state(runs[1:], 31)
    assert (CircuitState.OPEN, 6) == state(runs, 31)
    assert (CircuitState.OPEN, 6) == state(runs, 89.9)
    assert (CircuitState.HALF_OPEN, 6) == state(runs, 90)


def test_one_good_run_closes_it() -> None:
    """A run whose requests finally succeeded resets the count of failures, also if some were retried."""
    recovered = receipt(25, BAD[0], GOOD)

    assert (CircuitState.CLOSED, 2) == state([receipt(30, *BAD), recovered, *[receipt(10, *BAD)] * 5], 31)


def test_refusals_and_others_say_nothing() -> None:
    """Runs that sent no request, or to another exchange, neither open nor close it; a refusal is no failure."""
    others = [receipt(29), receipt(28, GOOD, exchange="http://y")]

    assert (CircuitState.OPEN, 6) == state([*others, *[receipt(20, *BAD)] * 3], 31)
    assert 0 == failed_endpoints([("/api/v3/depth", "429", 0.1), ("/api/v3/trades", "403", 0.1)])


def test_weight_is_the_newest_that_was_reported() -> None:
    """Runs that sent no requests report no weight."""
    assert (700, 20 * SECOND) == weight_of([receipt(30), receipt(20, GOOD, weight=700)], URL)
    assert (-1, 0) == weight_of([receipt(20, GOOD, exchange="http://y", weight=700)], URL)


@given(st.lists(st.sampled_from(["good", "bad", "nothing"]), max_size=30), st.integers(5, 50))
def test_it_stands_as_one_that_had_seen_all(ends: list[str], threshold: int) -> None:
    """Over many processes it is open exactly when one process that had seen every failure in a row would have it so."""
    receipts: list[Receipt] = []
    failures = 0
    for at_s, end in enumerate(ends):
        receipts.insert(0, receipt(at_s, *{"good": (GOOD,), "bad": BAD, "nothing": ()}[end]))
        failures = {"good": 0, "bad": failures + 2, "nothing": failures}[end]

    found = breaker_of(receipts, URL, threshold, 60 * SECOND, len(ends) * SECOND)

    assert failures == found.failures
    assert (failures >= threshold) == (found.state is CircuitState.OPEN)


def test_what_is_recalled_needs_one_more_failure() -> None:
    """A breaker that knows of earlier failures is not open by them alone."""
    breaker = CircuitBreaker("rest", 5)
    breaker.recall(100)

    assert (4, CircuitState.CLOSED) == (breaker.failure_count, breaker.state)

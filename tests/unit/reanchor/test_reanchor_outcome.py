"""The result and exit code for each error of a re-anchor, and the receipt that contains them."""

from __future__ import annotations

import asyncio

import pytest

from sheetanchor.contract import Receipt
from sheetanchor.errors import (
    CircuitOpen,
    ExchangeRefused,
    LockHeld,
    RateLimited,
    RedisOutOfMemory,
    RedisUnavailable,
    Superseded,
    Unresponsive,
    ValidationFailed,
)
from sheetanchor.reanchor.outcome import Outcome, outcome_of, worst
from sheetanchor.reanchor.receipts import RunOrder, RunProgress, receipt_of
from sheetanchor.venue import EndpointCalls


@pytest.mark.parametrize(
    ("error", "phase", "expected"),
    [
        (ExchangeRefused("GET x answered 400"), "fetch", (3, "failed", "Data collection failed: GET x answered 400")),
        (Unresponsive("GET x"), "fetch", (3, "failed", "Data collection timeout - REST APIs unresponsive: GET x")),
        (CircuitOpen("rest is left alone"), "fetch", (3, "failed", "Data collection failed: rest is left alone")),
        (ExchangeRefused("hole"), "catch_up", (3, "failed", "hole")),
        (ValidationFailed("crossed"), "validate", (4, "failed", "crossed")),
        (RedisUnavailable("gone"), "stage", (5, "failed", "gone")),
        (RedisOutOfMemory("full"), "swap", (5, "failed", "full")),
        (LockHeld("held"), "lock", (6, "lock_held", "held")),
        (Superseded("overtaken"), "swap", (7, "superseded", "overtaken")),
        (TimeoutError(), "fetch", (3, "failed", "not done within 9 s; the time was up during fetch")),
        (TimeoutError(), "stage", (5, "failed", "not done within 9 s; the time was up during stage")),
        (asyncio.CancelledError(), "build", (143, "failed", "stopped during build")),
        (RuntimeError("odd"), "build", (1, "failed", "RuntimeError: odd")),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, phase: str, expected: tuple[int, str, str]) -> None:
    """Each error has one exit code, one result and one line."""
    outcome = outcome_of(error, phase, 9.0, 0)

    assert expected == (outcome.exit_code, outcome.result, outcome.message)


def test_rate_limit_is_remembered() -> None:
    """A Retry-After becomes the time before which no run may send requests."""
    outcome = outcome_of(RateLimited("429", retry_after_s=7), "fetch", 9.0, 1_000_000)

    assert 8_000_000 == outcome.retry_at_us


def test_worst_exit_code_of_several_runs() -> None:
    """A failure outweighs a run that stepped aside, which outweighs success."""
    assert 0 == worst([0, 0])
    assert 6 == worst([0, 6, 7])
    assert 3 == worst([6, 3, 0])
    assert 1 == worst([5, 1])
    assert 0 == worst([])


def test_receipt_survives_json() -> None:
    """What is written to Redis and stdout is read back as it was."""
    progress = RunProgress(
        "reanchor_BTCUSDT_1_ab", 5, "http://x", epoch_before=3, phases={"lock": 0.1}, notes=["a note"]
    )
    order = RunOrder("BTCUSDT", reason="why", trigger="sequence_gap", request_id="r")

    asked = EndpointCalls([("/api/v3/depth", "503", 0.25), ("/api/v3/trades", "timeout", 10.0)], retries=3)
    receipt = receipt_of(order, progress, Outcome("failed", 3, "no"), 9, asked)

    assert receipt == Receipt.from_json(receipt.to_json())
    assert (3, "REANCHOR_FAILED", 2) == (receipt.retries, receipt.alert, len(receipt.calls))
    assert (3, 3, "no; a note", "r") == (
        receipt.epoch_before,
        receipt.epoch_after,
        receipt.message,
        receipt.request_id,
    )

"""How a run ended: its result, its exit code and its message. Pure."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from sheetanchor.contract import (
    EXIT_EXCHANGE,
    EXIT_FAILED,
    EXIT_LOCK_HELD,
    EXIT_REDIS,
    EXIT_STOPPED,
    EXIT_SUPERSEDED,
    EXIT_VALIDATION,
)
from sheetanchor.errors import (
    CircuitOpen,
    ExchangeError,
    LockHeld,
    RateLimited,
    RedisError,
    Superseded,
    Unresponsive,
    ValidationFailed,
)

ALERT_FAILED: Final = "REANCHOR_FAILED"
"""Code of the alert about a failed run, as dashboards of such pipelines expect it."""

WORST_LAST: Final = (
    0,
    EXIT_SUPERSEDED,
    EXIT_LOCK_HELD,
    EXIT_STOPPED,
    EXIT_VALIDATION,
    EXIT_EXCHANGE,
    EXIT_REDIS,
)

PHASE_EXITS: Final = {"fetch": EXIT_EXCHANGE, "catch_up": EXIT_EXCHANGE, "compare": EXIT_EXCHANGE}
"""What a phase waits for when the time is up; every other phase waits for Redis."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        result: As in the receipt.
        retry_at_us: When requests to the exchange are allowed again; 0 for at once.
    """

    result: str
    exit_code: int
    message: str
    retry_at_us: int = 0


def outcome_of(error: BaseException, phase: str, timeout_s: float, now_us: int) -> Outcome:
    """Give the outcome that an error means for the caller of the run."""
    text = str(error)
    if isinstance(error, asyncio.CancelledError):
        return Outcome("failed", EXIT_STOPPED, f"stopped during {phase}")
    if isinstance(error, LockHeld):
        return Outcome("lock_held", EXIT_LOCK_HELD, text)
    if isinstance(error, Superseded):
        return Outcome("superseded", EXIT_SUPERSEDED, text)
    if isinstance(error, ValidationFailed):
        return Outcome("failed", EXIT_VALIDATION, text)
    if isinstance(error, (ExchangeError, CircuitOpen)):
        wait_s = error.retry_after_s if isinstance(error, (RateLimited, CircuitOpen)) else 0.0
        retry_at_us = now_us + int(wait_s * 1e6) if wait_s else 0
        return Outcome("failed", EXIT_EXCHANGE, _collection(error, phase), retry_at_us)
    if isinstance(error, RedisError):
        return Outcome("failed", EXIT_REDIS, text)
    if isinstance(error, TimeoutError):
        message = f"not done within {timeout_s:g} s; the time was up during {phase}"
        return Outcome("failed", PHASE_EXITS.get(phase, EXIT_REDIS), message)
    return Outcome("failed", EXIT_FAILED, f"{type(error).__name__}: {text}")


def _collection(error: Exception, phase: str) -> str:
    if isinstance(error, Unresponsive):
        return f"Data collection timeout - REST APIs unresponsive: {error}"
    return f"Data collection failed: {error}" if phase == "fetch" else str(error)


def worst(exit_codes: list[int]) -> int:
    """Choose the exit code of a process with several runs."""
    return max(
        exit_codes, key=lambda code: WORST_LAST.index(code) if code in WORST_LAST else len(WORST_LAST), default=0
    )

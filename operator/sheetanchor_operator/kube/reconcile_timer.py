"""The time of a reconcile: when it stops sending writes that can wait, and what it waited for. Time is an argument."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

BEGIN_WITHIN_S: Final = 0.5
"""A reconcile that is older than this leaves writes that can wait to the next one, so that other pipelines get a
turn."""

AT_LEAST: Final = 8
"""So many are sent whatever the time, at once: a reconcile on a slow machine would otherwise never finish any."""

LONG_S: Final = 1.0
"""A reconcile that takes longer is logged, with what it waited for."""


@dataclass(slots=True)
class ReconcileTimer:
    """The time of one reconcile.

    Attributes:
        begun_s: When it began, by a monotonic clock.
        starved_s: How long it was ready to run and got no CPU.
    """

    begun_s: float
    starved_s: float = 0.0
    _begun: int = 0
    _longest: tuple[float, str] = (0.0, "")

    def may_begin(self, now_s: float, *, can_wait: bool = True, at_least: int = AT_LEAST) -> bool:
        """Say whether one more request may be sent, and count it if so.

        Args:
            now_s: The time.
            can_wait: Whether it can wait for the next reconcile; what cannot is always sent.
            at_least: So many are sent whatever the time; 1 for those that are sent one after another.
        """
        if can_wait and self._begun >= at_least and now_s - self.begun_s >= BEGIN_WITHIN_S:
            return False
        self._begun += 1
        return True

    def answered(self, what: str, took_s: float) -> None:
        """Note how long a request to the API server took, answered or not."""
        self._longest = max(self._longest, (took_s, what))

    def message(self, now_s: float) -> str:
        """Say why the reconcile took long; "" if it did not."""
        took_s, (longest_s, what) = now_s - self.begun_s, self._longest
        if took_s <= LONG_S:
            return ""
        waited = f"its longest wait for the API server was {longest_s:.3f} s: {what}" if what else "it sent no request"
        return f"this reconcile took {took_s:.3f} s; for {self.starved_s:.3f} s it got no CPU; {waited}"


CURRENT_TIMER: Final[ContextVar[ReconcileTimer | None]] = ContextVar("LOOK", default=None)
"""The reconcile that a request to the API server is part of; None for requests outside of reconciles."""

"""One of two installations of the operator manages a pipeline, also if one stops, returns or is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.apply.installation_claim import (
    RENEW_CLAIM_US,
    TAKE_OVER_AFTER_S,
    ObservedClaim,
    decide,
    observe_claim,
)

NOW_US = 1_790_000_000_000_000
OWN, OTHER = "trading/sheetanchor", "market/sheetanchor"


def claim(name: str, age_us: int = 0, since_s: float = 0.0) -> ObservedClaim:
    return ObservedClaim(name, text_of(NOW_US - age_us) if name else "", since_s)


@pytest.mark.parametrize(
    ("wanted", "known", "now_s", "expected"),
    [
        ("", claim(""), 0.0, "claim"),
        ("", claim(OWN), 0.0, "act"),
        ("", claim(OWN, RENEW_CLAIM_US), 0.0, "claim"),
        ("", claim(OWN, -RENEW_CLAIM_US), 0.0, "claim"),
        ("", claim(OTHER), 0.0, "keep-off"),
        ("", claim(OTHER, 86_400_000_000), 0.0, "keep-off"),
        ("", claim(OTHER), TAKE_OVER_AFTER_S, "keep-off"),
        ("", claim(OTHER), TAKE_OVER_AFTER_S + 1, "claim"),
        (OWN, claim(OTHER), 0.0, "claim"),
        (OWN, claim(OWN), 0.0, "act"),
        (OTHER, claim(OWN), 0.0, "keep-off"),
        (OTHER, claim(""), 0.0, "keep-off"),
        (OTHER, claim(OTHER), 10 * TAKE_OVER_AFTER_S, "keep-off"),
    ],
)
def test_who_acts(wanted: str, known: ObservedClaim, now_s: float, expected: str) -> None:
    """A renewed claim counts, whatever its clock says; the annotation counts at once and permanently."""
    assert expected == decide(OWN, wanted, known, NOW_US, now_s)


@dataclass
class Installation:
    """One that looks every ten seconds while it is up, with a clock of its own."""

    name: str
    clock_off_us: int
    known: ObservedClaim | None = None
    acted_s: list[int] = field(default_factory=list)

    def look(self, status: dict[str, Any], second: int) -> None:
        self.known = observe_claim(self.known, status, float(second))
        now_us = NOW_US + second * 1_000_000 + self.clock_off_us
        decision = decide(self.name, "", self.known, now_us, float(second))
        if decision == "claim":
            status["operator"] = {"name": self.name, "seenAt": text_of(now_us)}
        if decision != "keep-off":
            self.acted_s.append(second)


@given(
    offs=st.tuples(*[st.integers(-86_400, 86_400).map(lambda one: one * 1_000_000)] * 2),
    downs=st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 3_600), st.integers(10, 1_200)), max_size=6),
)
def test_never_two_and_never_nobody_for_long(offs: tuple[int, int], downs: list[tuple[int, int, int]]) -> None:
    """With installations that stop and return, and clocks a day apart, one acts at a time, and one again in time."""
    both = [Installation(OWN, offs[0]), Installation(OTHER, offs[1])]
    status: dict[str, Any] = {}
    for second in range(0, 6_000, 10):
        for number, one in enumerate(both):
            if not any(which == number and begin <= second < begin + length for which, begin, length in downs):
                one.look(status, second)
            else:
                one.known = None  # a new process remembers nothing
    first, second_ = (set(one.acted_s) for one in both)
    for moment in first & second_:
        # Not at a take-over either: an installation that returns observes the other one's claim before it acts.
        raise AssertionError(f"both act at {moment}")
    assert max(first | second_) >= 6_000 - TAKE_OVER_AFTER_S - 20

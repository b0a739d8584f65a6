"""A refused write is reported again but not sent again, and is not kept for ever."""

from __future__ import annotations

import pytest

from sheetanchor_operator.controller.refusals import REFUSED_AGAIN_S, Refusals
from sheetanchor_operator.observation import Refusal

BTC = ("markets", "btc")
BTC_2 = ("markets", "btc-2")
PLACE = ("Job", "btc-1")
QUOTA = Refusal(*PLACE, 403, "exceeded quota")


@pytest.mark.parametrize(
    ("after_s", "digest", "stands"),
    [
        (0.0, "one", True),
        (REFUSED_AGAIN_S - 0.1, "one", True),
        (REFUSED_AGAIN_S, "one", False),
        (0.0, "changed", False),
    ],
)
def test_it_stands_for_a_while_and_for_the_same_manifest(after_s: float, digest: str, stands: bool) -> None:
    """The quota may have been raised meanwhile, and another manifest may be accepted."""
    refusals = Refusals()
    assert QUOTA == refusals.add(BTC, PLACE, "one", QUOTA, 100.0)
    assert (QUOTA if stands else None) == refusals.of(BTC, PLACE, digest, 100.0 + after_s)


def test_each_pipeline_has_its_own() -> None:
    """The name of one may begin as that of another."""
    refusals = Refusals()
    for key in (BTC, BTC_2):
        refusals.add(key, PLACE, "one", QUOTA, 100.0)
    refusals.forget(BTC)
    assert refusals.of(BTC, PLACE, "one", 100.0) is None
    assert QUOTA == refusals.of(BTC_2, PLACE, "one", 100.0)


def test_what_nobody_asks_for_again_is_dropped() -> None:
    """Names of ReAnchors are new each time: memory would grow with each one that is refused."""
    refusals = Refusals()
    for number in range(1_000):
        refusals.add(BTC, ("ReAnchor", f"btc-{number}"), "one", QUOTA, number * 1.0)
    assert REFUSED_AGAIN_S == len(refusals._active[BTC])

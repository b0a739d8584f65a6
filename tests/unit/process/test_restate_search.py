"""Restating in every order of events, in a model: with all fences nothing wrong is ever left standing as anchored."""

from __future__ import annotations

import pytest

from support.restate_search import FENCES, fault

OBSERVERS = ("observer",)

LEFT_OUT = {
    "all of them": (tuple(FENCES), ()),
    "all of them, and nobody but processors doubts": (tuple(FENCES), OBSERVERS),
    "an observer says its doubt once": (("obskeep",), ()),
    "a doubt is over with the next restatement": (("obsroot",), ()),
    "a processor says its doubt once, and restates what was suspect": (("sawA", "keep"), ()),
    "the same, and nobody but processors doubts": (("sawA", "keep"), OBSERVERS),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_without_a_fence_a_wrong_state_stands(what: str) -> None:
    """The search finds the way to it, so it would find one with all fences too."""
    left_out, without = LEFT_OUT[what]

    assert () != fault(set(FENCES) - set(left_out), budget=4, states_max=20_000, without=without)


@pytest.mark.parametrize("without", [(), OBSERVERS], ids=["observers too", "processors only"])
def test_with_all_fences_none_stands(without: tuple[str, ...]) -> None:
    """Two processors, two failovers, and three missing ranges, suspect states, crashes or rebuilds in any order."""
    assert () == fault(FENCES, budget=3, states_max=60_000, without=without)

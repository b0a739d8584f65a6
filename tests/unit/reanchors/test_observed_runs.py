"""Reading runs and processors' answers, also with invalid values."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor_operator.observation import PodResponse
from sheetanchor_operator.reanchors.runs import ATTEMPT_ANNOTATION, read_reanchor, runs_of
from sheetanchor_operator.reanchors.symbol_observation import symbol_observations
from support.reanchor_world import BEGIN_US, SYMBOL, World

SOUND = {"state": "anchored", "epoch": 3, "term": 2, "active": True, "event_age_ms": 12, "now_us": 7}
NONSENSE: list[Any] = [
    None,
    [],
    {"symbols": None},
    {"symbols": ["x"]},
    {"symbols": "x"},
    {"symbols": {SYMBOL: None}},
    {"symbols": {SYMBOL: ["anchored"]}},
    {"symbols": {SYMBOL: {**SOUND, "state": ["anchored"]}}},
    *({"symbols": {SYMBOL: {**SOUND, name: "x"}}} for name in ("epoch", "term", "suspect_since_us", "now_us")),
    {"symbols": {SYMBOL: {**SOUND, "epoch": 1.5}}},
    {"symbols": {SYMBOL: {**SOUND, "term": -1}}},
    {"symbols": {SYMBOL: {**SOUND, "suspect_since_us": 10**30}}},
    {"symbols": {SYMBOL: {**SOUND, "event_age_ms": "x"}}},
    {"symbols": {SYMBOL: {**SOUND, "lock_holder": {"a": 1}}}},
]


@pytest.mark.parametrize("body", NONSENSE, ids=str)
def test_what_cannot_be_read_is_no_answer(body: Any) -> None:
    """It neither raises nor outranks the answer of another processor."""
    assert {} == symbol_observations({"a": PodResponse(body)})

    other = PodResponse({"symbols": {SYMBOL: {**SOUND, "active": False, "term": 1}}})
    sight = symbol_observations({"a": PodResponse(body), "b": other})[SYMBOL]

    assert ("anchored", 3, True) == (sight.state, sight.epoch, sight.fresh)


def test_what_a_processor_leaves_out_is_zero() -> None:
    """A state that was never written has no epoch, and an event that never came no age."""
    sight = symbol_observations({"a": PodResponse({"symbols": {SYMBOL: {"state": "suspect"}}})})[SYMBOL]

    assert (0, False, "", 0) == (sight.epoch, sight.fresh, sight.lock_holder, sight.suspect_since_us)


@pytest.mark.parametrize(
    ("job", "note", "expected"),
    [
        ("one-2", "3", 3),
        ("one-2", "x", 2),
        ("one-2", "-1", 2),
        ("one-2", "9" * 5000, 2),
        ("one-2", "", 2),
        ("one", "x", 1),
    ],
)
def test_the_number_of_a_run_is_read_from_its_name_if_need_be(job: str, note: str, expected: int) -> None:
    """A changed annotation does not prevent it."""
    world = World()
    world.add("one")
    owner = {"kind": "ReAnchor", "uid": "uid-one"}
    metadata = {"name": job, "annotations": {ATTEMPT_ANNOTATION: note}, "ownerReferences": [owner]}

    (run,) = runs_of(read_reanchor(world.reanchors["one"]), [{"metadata": metadata}], [], BEGIN_US)

    assert expected == run.attempt

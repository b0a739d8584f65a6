"""Stages of a plan share values only: none changes what it was given, and each can be asked alone."""

from __future__ import annotations

import pytest

from sheetanchor_operator.api.pipeline import parse
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.reanchors.situation import WRITES_MAX, Changes, Situation, situation_of
from sheetanchor_operator.reanchors.stages.bound_queue import QUEUE_MAX, bound_queue
from sheetanchor_operator.reanchors.stages.create_requests import create_requests
from sheetanchor_operator.reanchors.stages.merged import answer_merged
from sheetanchor_operator.reanchors.stages.record_runs import record_runs
from sheetanchor_operator.reanchors.stages.retention import adopt, expire
from sheetanchor_operator.reanchors.stages.start_runs import skip_unknown_symbols, start_runs
from sheetanchor_operator.reanchors.symbol_observation import UNKNOWN
from support.reanchor_world import BEGIN_US, SYMBOL, World

STAGES = {
    "bound_queue": bound_queue,
    "record_runs": record_runs,
    "answer_merged": answer_merged,
    "create_requests": create_requests,
    "start_runs": lambda before: start_runs(before, SYMBOL, UNKNOWN),
    "skip_unknown_symbols": skip_unknown_symbols,
    "expire": expire,
    "adopt": lambda before: adopt(before, ()),
}


def situation(world: World, value: str = "") -> Situation:
    metadata = {"name": "btc", "namespace": "trading", "uid": "uid-btc", "generation": 1}
    metadata["annotations"] = {"sheetanchor.dev/reanchor": value} if value else {}
    body = {"metadata": metadata, "spec": {"symbols": [SYMBOL], **world.spec}}
    observed = Observed(now_us=BEGIN_US, reanchors=tuple(world.reanchors.values()))
    return situation_of(parse(body), observed, Defaults(image="example.com/sheetanchor:1"))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_changes_nothing_that_it_was_given(name: str) -> None:
    world = World()
    for number in range(QUEUE_MAX + 5):
        world.add(f"btc-{number}", SYMBOL if number % 2 else "ETHUSDT")
    before = situation(world, "rebuild")
    known, first = dict(before.known), STAGES[name](before)

    assert known == before.known
    assert WRITES_MAX == before.writes_left
    assert first == STAGES[name](before)


def test_the_next_stage_sees_what_the_one_before_has_written() -> None:
    world = World()
    world.add("btc-1", "ETHUSDT")
    now = situation(world)
    acknowledged = record_runs(now)
    now = now.after(acknowledged)
    skipped = skip_unknown_symbols(now)

    assert {"btc-1": {"phase": "Pending"}} == acknowledged.statuses
    assert "Skipped" == now.after(skipped).known["btc-1"].phase
    assert "Pending" == now.known["btc-1"].phase


def test_stages_share_one_budget_of_writes() -> None:
    """What one stage has used, the next one does not have."""
    world = World()
    for number in range(WRITES_MAX):
        world.add(f"btc-{number}")
    now = situation(world)
    spent: Changes = record_runs(now)

    assert 0 == spent.writes_left
    assert () == adopt(now.after(spent), ()).names
    assert (BEGIN_US,) == adopt(now.after(spent), ()).wakes[:1]

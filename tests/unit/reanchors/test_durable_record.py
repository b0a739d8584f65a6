"""What outlives the objects: ids of requests with their answers for a day, and how re-anchors have ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor_operator.api.pipeline_status import PipelineStatus
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from sheetanchor_operator.metrics import REGISTRY
from sheetanchor_operator.reanchors.durable_record import REQUESTS_MAX, RUNS_MAX
from support.reanchor_world import SECOND, SYMBOL, World

HOUR = 3600.0
KEEP_ONE = {"reanchor": {"history": {"successful": 1, "failed": 1}, "rebuildsPerHour": 600, "cooldownSeconds": 0}}


def next_run(world: World, name: str, **fields: Any) -> None:
    """Ask, and have the run end."""
    world.add(name, trigger="manual", **fields)
    world.settle()
    (job,) = world.at_work()
    world.ends(job, seconds=1)
    world.settle()
    world.passes(20)
    world.settle()


@pytest.mark.parametrize("hours", [0.1, 3, 23.5])
def test_an_id_counts_once_in_a_day_whatever_history_keeps(hours: float) -> None:
    """Its object is long deleted: the second request gets the first one's answer, and nothing runs."""
    world = World(spec=KEEP_ONE)
    next_run(world, "first", requestID="deploy-7")
    answer = world.of("first") if "first" in world.reanchors else {}
    for number in range(4):
        next_run(world, f"other-{number}")
    assert "first" not in world.reanchors
    world.now_us += round(hours * HOUR * SECOND) - 120 * SECOND
    runs = len(world.started)

    world.add("second", trigger="manual", requestID="deploy-7")
    world.settle()

    status = world.of("second")
    assert (runs, [], "Succeeded", "repeated") == (
        len(world.started),
        world.at_work(),
        status["phase"],
        status["result"],
    )
    assert ("first", 1, 2) == (status["answeredBy"], status["epochBefore"], status["epochAfter"])
    assert "request deploy-7 was made before, as first: it is swapped" == status["message"]
    assert answer.get("epochAfter", 2) == status["epochAfter"]


def test_after_a_day_and_for_another_symbol_it_is_a_new_request() -> None:
    """The window is 24 hours from the first, which repeating does not prolong."""
    world = World(spec={**KEEP_ONE, "symbols": [SYMBOL, "ETHUSDT"]})
    next_run(world, "first", requestID="r")
    world.passes(20 * HOUR)
    world.add("again", trigger="manual", requestID="r")
    world.add("eth", symbol="ETHUSDT", trigger="manual", requestID="r")
    world.settle()
    assert ("repeated", ["eth-1"]) == (world.of("again")["result"], world.at_work())
    world.ends("eth-1")
    world.settle()
    world.passes(5 * HOUR)

    world.add("next-day", trigger="manual", requestID="r")
    world.settle()

    assert ["next-day-1"] == world.at_work()


def test_a_second_one_waits_for_the_first_ones_end() -> None:
    """While the first runs the second is neither run nor answered; then it has the same end."""
    world = World()
    world.add("one", requestID="r", trigger="manual")
    world.settle()
    world.add("two", requestID="r", trigger="manual", force=True)
    world.settle()
    assert ("Pending", "one") == (world.of("two")["phase"], world.of("two")["answeredBy"])

    world.ends("one-1")
    world.settle()

    assert ("Succeeded", "Succeeded", 1) == (world.of("one")["phase"], world.of("two")["phase"], len(world.started))


def test_what_failed_is_answered_alike_and_what_was_skipped_is_asked_anew() -> None:
    """A failure is an answer; a request that was passed over without a run has had none."""
    world = World(spec={"suspend": True})
    world.add("skipped", requestID="s", trigger="manual")
    world.settle()
    world.spec = {}
    world.passes(1)
    world.add("asked-anew", requestID="s", trigger="manual")
    world.settle()
    assert ("Skipped", ["asked-anew-1"]) == (world.of("skipped")["phase"], world.at_work())
    world.ends("asked-anew-1")
    world.settle()
    world.passes(60)
    world.add("dry", requestID="d", dryRun=True, trigger="manual")
    world.settle()
    world.ends("dry-1", result="failed", message="the exchange answered 500")
    world.settle()

    world.add("dry-again", requestID="d", dryRun=True, trigger="manual")
    world.settle()

    status = world.of("dry-again")
    assert ("Failed", "failed") == (status["phase"], status["result"])
    assert "as dry: the exchange answered 500" in status["message"]


def test_memory_of_requests_is_bounded() -> None:
    """The newest ids are kept, and entries of another version cause no error."""
    world = World()
    old = [
        {"key": f"{n:032x}", "name": "x", "madeMicros": world.now_us - n, "phase": "Failed"}
        for n in range(REQUESTS_MAX)
    ]
    world.status["reanchorRequests"] = [*old, "odd", {"key": "no time"}, {"madeMicros": "soon"}]

    made = world.look()
    assert REQUESTS_MAX == len(made.requests or ())
    next_run(world, "new", requestID="r")

    entries = world.status["reanchorRequests"]
    assert (REQUESTS_MAX, "new") == (len(entries), entries[-1]["name"])
    assert len(json.dumps(entries)) < 200_000
    PipelineStatus.model_validate({"reanchorRequests": entries, "reanchorRuns": world.status["reanchorRuns"]})


def rate(world: World) -> float | None:
    """Give what the gauge shows."""
    pipeline_metrics, key = PipelineMetrics(), ("rates", "btc")
    pipeline_metrics.take(key, {"phase": "Running", **world.status}, list(world.reanchors.values()), announced=False)
    shown = REGISTRY.get_sample_value("reanchor_success_rate", {"namespace": "rates", "name": "btc"})
    pipeline_metrics.forget(key)
    return shown


def play(world: World, outcomes: list[bool]) -> None:
    """Have re-anchors end, each with a run of its own; a forced dry request would be none."""
    for number, good in enumerate(outcomes):
        world.add(f"r{number}", trigger="manual", force=True)
        world.settle()
        while world.of(f"r{number}")["phase"] not in ("Succeeded", "Failed"):
            for job in world.at_work():
                world.ends(job, seconds=1, result="swapped" if good else "failed")
            world.now_us = max(world.now_us, world.settle().wake_at_us or 0)
        world.passes(16)
        world.settle()


def test_success_rate_is_that_of_the_day() -> None:
    """Nineteen good and one bad are 0.95, though history keeps two of them; what did not run is left out."""
    world = World(spec=KEEP_ONE)
    play(world, [number != 7 for number in range(20)])
    world.add("merged-1", trigger="manual")
    world.add("merged-2", trigger="manual")
    world.settle()
    world.ends(world.at_work()[0])
    world.settle()
    world.add("skipped", epoch=1)
    world.add("dry", dryRun=True, trigger="manual")
    world.settle()
    for job in world.at_work():
        world.ends(job, result="failed")
    world.settle()

    assert len(world.reanchors) < 10
    assert 20 / 21 == rate(world)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.lists(st.integers(0, 3), max_size=12))
def test_each_end_counts_once_whoever_dies_when(outcomes: list[bool], crashes: list[int]) -> None:
    """Reconciles that are cut short after any action, and repeated, count each ended run exactly once."""
    world = World(spec=KEEP_ONE)
    for number, good in enumerate(outcomes):
        play_one(world, f"r{number}", good, crashes)

    runs = world.status["reanchorRuns"]
    assert (outcomes.count(True), outcomes.count(False)) == (len(runs["succeededMicros"]), len(runs["failedMicros"]))
    assert rate(world) == outcomes.count(True) / len(outcomes)


def play_one(world: World, name: str, good: bool, crashes: list[int]) -> None:
    world.add(name, trigger="manual", force=True)
    world.settle()
    while world.of(name)["phase"] not in ("Succeeded", "Failed"):
        for job in world.at_work():
            world.ends(job, seconds=1, result="swapped" if good else "failed")
        if crashes:
            world.step(actions=crashes.pop())
        world.now_us = max(world.now_us, world.settle().wake_at_us or 0)
    world.passes(16)
    world.settle()


def test_the_window_moves_on_and_is_bounded() -> None:
    """What is a day old is gone, and of a thousand and more the newest are kept."""
    world = World(spec=KEEP_ONE)
    day_us = 24 * 3600 * SECOND
    world.status["reanchorRuns"] = {
        "succeededMicros": [world.now_us - day_us - 1, *(world.now_us - n for n in range(RUNS_MAX + 5))],
        "failedMicros": [world.now_us - day_us - 5, "odd", None],
    }

    world.settle()

    runs = world.status["reanchorRuns"]
    assert (RUNS_MAX, []) == (len(runs["succeededMicros"]), runs["failedMicros"])
    assert min(runs["succeededMicros"]) == world.now_us - RUNS_MAX + 1


def test_two_that_end_at_the_same_moment_are_two() -> None:
    """A run without receipt ends at a whole second; others may too."""
    symbols = [SYMBOL, "ETHUSDT", "SOLUSDT"]
    world = World(spec={"symbols": symbols, "reanchor": {"backoffSeconds": 1}})
    for number, symbol in enumerate(symbols):
        world.suspect(symbol)
        world.add(f"s{number}", symbol=symbol)
    world.settle()
    for job in world.at_work():
        world.dies(job, 0)

    world.settle()

    assert 1 == len({world.of(f"s{number}")["finishedAt"] for number in range(3)})
    assert 3 == len(world.status["reanchorRuns"]["succeededMicros"])

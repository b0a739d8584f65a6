"""A flood of requests has a bounded cost, and every run that sends requests to the exchange counts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from sheetanchor_operator.metrics import REGISTRY
from sheetanchor_operator.names import Reason
from sheetanchor_operator.reanchors.situation import WRITES_MAX
from sheetanchor_operator.reanchors.stages.bound_queue import QUEUE_MAX
from sheetanchor_operator.reanchors.stages.record_runs import HELD_MAX
from support.reanchor_world import BEGIN_US, SECOND, SYMBOL, World, args_of

FLOOD = 6_000
LOOK_S_MAX = 1.0


def flood(world: World, count: int = FLOOD, **spec: Any) -> None:
    """Create so many requests, as a processor that was broken into may."""
    for number in range(count):
        body = {"pipeline": "btc", "symbol": SYMBOL, "reason": "x", "trigger": "sequence_gap", **spec}
        body = {**body, "atMicros": world.now_us + number}
        metadata = {"name": f"flood-{number:05}", "uid": f"uid-{number}", "generation": 1}
        metadata["creationTimestamp"] = "2027-01-15T08:00:00Z"
        world.reanchors[metadata["name"]] = {"kind": "ReAnchor", "metadata": metadata, "spec": body}


@pytest.mark.parametrize("spec", [{}, {"requestID": "the same"}, {"dryRun": True}, {"symbol": "NONE"}])
def test_a_flood_is_planned_in_no_time_and_worn_down(spec: dict[str, Any]) -> None:
    """Every reconcile takes less than a second, sends few requests that can wait, and the next follows at once."""
    world = World(spec={"reanchor": {"rebuildsPerHour": 1}})
    world.status["symbols"] = [{"name": SYMBOL, "rebuiltMicros": [world.now_us - SECOND]}]
    flood(world, **spec)

    for _ in range(3):
        begun_s = time.process_time()
        made = world.step()
        took_s = time.process_time() - begun_s

        assert took_s < 4 * LOOK_S_MAX  # with writing it all down in this world; alone it is a fraction
        assert len(made.patch) + len(made.adopt) + len(made.delete) <= 2 * WRITES_MAX + QUEUE_MAX
        assert len(made.events) <= 2 * QUEUE_MAX + 2
        assert made.wake_at_us == world.now_us


def test_planning_grows_with_the_number_not_with_its_square() -> None:
    """Four times as many requests take about four times as long."""

    def plan_s(count: int) -> float:
        world = World(spec={"reanchor": {"rebuildsPerHour": 1}})
        flood(world, count, requestID="the same")
        took = []
        for _ in range(3):
            begun_s = time.process_time()
            world.look()
            took.append(time.process_time() - begun_s)
        return min(took)

    small, large = plan_s(1_500), plan_s(FLOOD)

    assert large < LOOK_S_MAX
    assert large < 8 * small


def test_the_first_requests_are_handled_and_the_rest_is_reported() -> None:
    """A hundred wait; the others are skipped with a message, but never a request that a user forces."""
    world = World(spec={"reanchor": {"rebuildsPerHour": 1}})
    world.status["symbols"] = [{"name": SYMBOL, "rebuiltMicros": [world.now_us - SECOND]}]
    flood(world, QUEUE_MAX + 30)
    world.now_us += SECOND
    world.add("insists", trigger="manual", force=True)

    world.settle()

    assert ["insists-1"] == world.at_work()
    skipped = [name for name in world.reanchors if world.of(name).get("phase") == "Skipped"]
    assert [f"flood-{number:05}" for number in range(QUEUE_MAX - 1, QUEUE_MAX + 30)] == sorted(skipped)
    assert {"more than 100 requests wait: this one is skipped; request it again when fewer wait"} == {
        world.of(name)["message"] for name in skipped
    }
    world.ends("insists-1")
    world.settle()
    assert 1 == len(world.started)


def test_a_state_in_doubt_is_rebuilt_whatever_floods() -> None:
    """The flood's first ones lead to one run, which answers them all."""
    world = World()
    world.suspect()
    flood(world, 500)

    world.settle()
    assert 1 == len(world.started)
    world.ends(world.at_work()[0])
    world.settle()

    assert {"Succeeded", "Skipped"} == {world.of(name)["phase"] for name in world.reanchors}


# What counts against the budget


def budget(world: World, name: str, **fields: Any) -> bool:
    """Make a request; return whether a run starts, and end that run."""
    world.add(name, **fields)
    world.settle()
    jobs = world.at_work()
    for job in jobs:
        world.ends(job, seconds=1, result="dry_run" if fields.get("dryRun") else "validated")
    world.settle()
    world.passes(90)
    return bool(jobs)


@pytest.mark.parametrize(
    "fields",
    [{"dryRun": True, "trigger": "manual"}, {"action": "validation_reanchor", "trigger": "volume_anomaly"}],
    ids=["dry runs", "validations"],
)
def test_what_swaps_nothing_costs_budget_too(fields: dict[str, Any]) -> None:
    """It uses as much request weight as a rebuild: the fourth within the hour waits; its message has the time."""
    world = World(spec={"reanchor": {"rebuildsPerHour": 3, "history": {"successful": 1}}})

    ran = [budget(world, f"n{number}", **fields) for number in range(5)]

    assert [True, True, True, False, False] == ran
    waiting = [world.of(name) for name in world.reanchors if world.of(name)["phase"] == "Pending"]
    assert 2 == len(waiting)
    assert {"waits: the budget of 3 rebuilds an hour is used up"} == {one["message"] for one in waiting}
    world.now_us = micros_of(waiting[0]["nextAttemptAt"])
    world.settle()
    assert 1 == len(world.at_work())


def test_dry_runs_take_from_rebuilds_and_a_person_may_insist() -> None:
    """The budget is one; only what is forced does not wait for it."""
    world = World(spec={"reanchor": {"rebuildsPerHour": 2, "cooldownSeconds": 0}})
    assert budget(world, "a", dryRun=True, trigger="manual")
    assert budget(world, "b", dryRun=True, trigger="manual")

    made = world.settle()
    world.add("rebuild", trigger="manual")
    made = world.settle()
    assert ([], Reason.BUDGET_USED_UP) == (world.at_work(), made.symbols[SYMBOL].throttled)

    assert budget(world, "c", dryRun=True, force=True, trigger="manual")


@pytest.mark.parametrize("count", [1, 4])
def test_doubts_past_the_budget_are_bounded_for_the_pipeline(count: int) -> None:
    """Processors that call every state suspect all the time get one rebuild a minute in all, not one each."""
    symbols = [f"S{number}USDT" for number in range(count)]
    world = World(spec={"symbols": symbols, "reanchor": {"rebuildsPerHour": 1, "cooldownSeconds": 0}})
    end_us = BEGIN_US + 3600 * SECOND
    while world.now_us < end_us:
        for symbol in symbols:
            world.suspect(symbol, world.now_us - 5 * SECOND)
        world.settle()
        for job in world.at_work():
            world.ends(job, seconds=0.1)
        world.settle()
        world.passes(10)

    past = len(world.started) - count
    assert 40 <= past <= 60
    assert {symbol: True for symbol in symbols} == {
        symbol: any(symbol.lower() in job for _, job in world.started[-2 * count :]) for symbol in symbols
    }


# A lock that another run holds


def failures() -> float:
    labels = {"namespace": "default", "name": "btc", "mechanism": "reanchor", "result": "failure"}
    return REGISTRY.get_sample_value("recovery_attempts_total", labels) or 0.0


def test_a_held_lock_is_no_failure() -> None:
    """Counters, Events, tries and delays follow the shared rules: another run is at work, nothing has failed."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    for number in range(1, 8):
        world.ends(f"one-{number}", result="lock_held")
        made = world.settle()
        assert (Reason.LOCK_HELD, "Pending") == (made.symbols[SYMBOL].throttled, world.of("one")["phase"])
        while not world.at_work():
            world.now_us = max(world.now_us, world.settle().wake_at_us or 0)
    world.ends("one-8")
    world.settle()

    assert ("Succeeded", 8, 7) == tuple(world.of("one")[name] for name in ("phase", "attempts", "attemptsHeld"))
    assert "ReanchorFailed" not in world.reasons
    before = failures()
    pipeline_metrics = PipelineMetrics()
    for change in world.changes:
        pipeline_metrics.changed(*change)
    assert before == failures()
    assert ([], 1) == (
        world.status["reanchorRuns"]["failedMicros"],
        len(world.status["reanchorRuns"]["succeededMicros"]),
    )


def test_a_real_failure_after_a_held_lock_has_all_its_tries() -> None:
    """Five runs that fail end it; those that found another one at work are not among them."""
    world = World()
    world.add("one", trigger="manual")
    world.settle()
    results = ["lock_held", "failed", "failed", "lock_held", "failed", "failed", "failed"]
    for number, result in enumerate(results, 1):
        assert "Failed" != world.of("one")["phase"]
        world.ends(f"one-{number}", result=result)
        world.now_us = max(world.now_us, world.settle().wake_at_us or 0)
        world.settle()

    assert ("Failed", 7, 2) == tuple(world.of("one")[name] for name in ("phase", "attempts", "attemptsHeld"))
    assert 5 == world.reasons.count("ReanchorFailed")


@pytest.mark.parametrize("fields", [{"trigger": "manual", "force": True}, {"trigger": "manual", "dryRun": True}])
def test_a_lock_that_is_always_held_is_not_waited_for_for_ever(fields: dict[str, Any]) -> None:
    """Neither is it asked for without a pause: delays grow, and after some minutes it is skipped."""
    world = World()
    world.add("one", **fields)
    world.settle()
    while world.of("one")["phase"] != "Skipped":
        for job in world.at_work():
            world.ends(job, result="lock_held", seconds=1)
        world.now_us = max(world.now_us, world.settle().wake_at_us or 0)
        world.settle()

    assert HELD_MAX == len(world.started)
    assert world.now_us - BEGIN_US > 300 * SECOND


# The arguments of a Job


@pytest.mark.parametrize("reason", ["$(HOME)", "$$(HOME)", "costs 5$", "$", "$$", "a $(A)$(B) c"])
def test_what_users_write_is_shown_unchanged(reason: str) -> None:
    """Kubernetes puts variables into arguments; what is expanded by its rules is the reason again."""
    world = World()
    world.suspect()
    world.add("one", reason=reason)
    world.settle()

    reported = next(arg for arg in args_of(world, "one-1") if arg.startswith("--reason="))
    assert f"--reason={reason}" == expanded(reported, {"HOME": "/tmp", "A": "1"})


def expanded(text: str, variables: dict[str, str]) -> str:
    """Expand as the kubelet does: `$$` is one sign, `$(NAME)` a value, what is not known stays."""
    done, at = "", 0
    while at < len(text):
        rest = text[at:]
        name = rest[2 : rest.index(")")] if rest.startswith("$(") and ")" in rest else ""
        if rest.startswith("$$"):
            done, at = done + "$", at + 2
        elif name:
            done, at = done + variables.get(name, f"$({name})"), at + len(name) + 3
        else:
            done, at = done + text[at], at + 1
    return done


# An annotation that was replaced


def test_values_that_were_seen_are_all_acted_upon() -> None:
    """Of three values that followed each other before a reconcile, each is acted upon exactly once."""
    world = World(annotations={"sheetanchor.dev/reanchor": "third"}, overwritten=("first", "second", "second"))

    world.settle()
    world.overwritten = ("first",)
    world.settle()

    assert {"first", "second", "third"} == {body["spec"]["requestID"] for body in world.reanchors.values()}
    assert 3 == len(world.reanchors)
    assert "third" == world.status["lastReanchorRequest"]

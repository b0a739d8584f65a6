"""The operator's decisions about re-anchors, on objects kept by the rules of a cluster."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.api.timestamps import micros_of, text_of
from sheetanchor_operator.names import Reason
from support.reanchor_world import BEGIN_US, SECOND, SYMBOL, World, args_of


def test_gap_becomes_job_and_receipt_becomes_status() -> None:
    """A request that a processor has made is run at once, and what its receipt says is written down."""
    world = World()
    world.suspect()
    world.add("btc-btcusdt-1", epoch=1)

    world.settle()
    world.ends("btc-btcusdt-1-1", seconds=2.5)
    world.settle()

    status = world.of("btc-btcusdt-1")
    assert ("Succeeded", "swapped", 1) == (status["phase"], status["result"], status["attempts"])
    assert (1, 2, 7, 9) == (status["epochBefore"], status["epochAfter"], status["snapshotID"], status["updateID"])
    assert [{"name": "lock", "seconds": 0.001}, {"name": "swap", "seconds": 0.002}] == status["phases"]
    assert ["book"] == status["checks"]
    assert "Complete" == status["conditions"][0]["type"]
    assert ["GapFound", "ReanchorStarted", "ReanchorSucceeded"] == world.reasons


def test_nothing_to_do_is_nothing_done() -> None:
    """A second reconcile of the same objects changes nothing."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()

    made = world.look()

    assert ((), (), (), (), ()) == (made.create, made.start, made.patch, made.delete, made.events)


def test_what_is_seen_is_left_as_it_is() -> None:
    """A plan changes nothing by being made: the same sight gives the same plan."""
    world = World()
    world.suspect()
    world.add("one")
    before = json.dumps([world.reanchors, world.jobs, world.pods])

    first, second = world.look(), world.look()

    assert first == second
    assert before == json.dumps([world.reanchors, world.jobs, world.pods])


def test_job_says_what_to_do() -> None:
    """The Job's arguments carry the request; its pod is restricted and has no token of the API."""
    world = World(spec={"podMetadata": {"labels": {"team": "markets"}, "annotations": {"example.com/logs": "json"}}})
    world.suspect()
    world.add("one", reason="--looks like a flag")
    world.settle()

    job = world.jobs["one-1"]
    carried, pod = (job["spec"]["template"][part] for part in ("metadata", "spec"))

    assert "--reason=--looks like a flag" in args_of(world, "one-1")
    assert "--request-id=uid-one-1" in args_of(world, "one-1")
    assert "--receipt-file=/dev/termination-log" in args_of(world, "one-1")
    assert (0, 150, 600) == tuple(
        job["spec"][name] for name in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
    )
    assert ("Never", False, "btc-reanchor") == (
        pod["restartPolicy"],
        pod["automountServiceAccountToken"],
        pod["serviceAccountName"],
    )
    assert {"team": "markets", **job["metadata"]["labels"]} == carried["labels"]
    assert {"example.com/logs": "json"} == carried["annotations"]
    assert [("ReAnchor", "uid-one")] == [(o["kind"], o["uid"]) for o in job["metadata"]["ownerReferences"]]


def test_requests_coalesce() -> None:
    """Ten requests in a second lead to one run, and all end with it."""
    world = World()
    world.suspect()
    for number in range(10):
        world.add(f"gap-{number}")
        world.now_us += SECOND // 10

    world.settle()
    assert ["gap-0-1"] == world.at_work()
    world.ends("gap-0-1")
    world.settle()

    assert 1 == len(world.started)
    assert {"Succeeded"} == {world.of(name)["phase"] for name in world.reanchors}
    assert {"gap-0"} == {world.of(f"gap-{number}")["answeredBy"] for number in range(1, 10)}
    assert "coalesced" == world.of("gap-5")["result"]


def test_what_comes_during_a_run_leads_to_one_more_at_most() -> None:
    """Whatever is asked for while a run is in progress is answered by a single second run."""
    world = World()
    world.suspect()
    world.add("first", epoch=1)
    world.settle()
    world.passes(1)
    world.add("old-doubt", epoch=1)
    world.ends("first-1")
    world.add("new-doubt", epoch=2)
    world.suspect()
    world.settle()

    (second,) = world.at_work()
    world.ends(second)
    world.settle()

    assert 2 == len(world.started)
    assert {"Succeeded"} == {world.of(name)["phase"] for name in world.reanchors}


def test_doubt_that_a_run_has_settled_is_skipped() -> None:
    """A gap of the state that the run has replaced needs no other run."""
    world = World()
    world.suspect()
    world.add("first", epoch=1)
    world.settle()
    world.passes(1)
    world.add("old-doubt", epoch=1)
    world.settle()
    assert "Pending" == world.of("old-doubt")["phase"]
    world.ends("first-1")

    world.settle()

    assert ("Skipped", 1) == (world.of("old-doubt")["phase"], len(world.started))


def test_request_that_changes_nothing_is_skipped_with_the_reason() -> None:
    """A gap of an older epoch needs no run if the state is sound."""
    world = World()
    world.anchored(epoch=5)
    world.add("late", epoch=4)

    world.settle()

    assert ("Skipped", "skipped") == (world.of("late")["phase"], world.of("late")["result"])
    assert "epoch 4, has been rebuilt since" in world.of("late")["message"]
    assert [] == world.started


def test_cooldown_holds_up_a_sound_state_and_says_so() -> None:
    """A second rebuild of a sound state waits ten seconds after the first, visibly."""
    world = World()
    world.add("one")
    world.settle()
    world.ends("one-1")
    world.settle()
    world.passes(1)
    world.add("two", trigger="manual")

    made = world.settle()
    facts = made.symbols[SYMBOL]

    assert (Reason.COOLDOWN, ("two",)) == (facts.throttled, facts.pending)
    assert "cooling down" in world.of("two")["message"]
    assert made.wake_at_us is not None
    world.now_us = made.wake_at_us
    world.settle()
    assert ["two-1"] == world.at_work()


def test_force_waits_for_nothing() -> None:
    """What a person insists on starts during the cool-down, and while re-anchoring is disabled."""
    world = World(spec={"reanchor": {"enabled": False}, "processor": {"selfReanchorAfterSeconds": 0}})
    world.add("soft", trigger="manual")
    world.add("hard", trigger="manual", force=True)

    world.settle()

    assert ["hard-1"] == world.at_work()
    assert "disabled" in world.of("soft")["message"]


def test_failed_run_is_tried_again_with_backoff_and_given_up() -> None:
    """Five tries with growing pauses, then Failed with the reason; a sound state stays as it is."""
    world = World(spec={"reanchor": {"backoffSeconds": 2}})
    world.add("one", trigger="manual")
    world.settle()

    for attempt in range(1, 6):
        world.ends(f"one-{attempt}", result="failed", message="the exchange answered 500")
        made = world.settle()
        status = world.of("one")
        assert (attempt, 3) == (status["attempts"], status["exitCode"])
        if attempt < 5:
            assert "the exchange answered 500" in status["message"]
            assert ("Pending", Reason.BACKING_OFF) == (status["phase"], made.symbols[SYMBOL].throttled)
            pause_us = micros_of(status["nextAttemptAt"]) - micros_of(status["finishedAt"])
            assert 0.8 <= pause_us / SECOND / 2**attempt <= 1.2
            world.now_us = made.wake_at_us or 0
            world.settle()

    assert ("Failed", "failed") == (world.of("one")["phase"], world.of("one")["result"])
    assert 5 == len(world.started)
    assert [4, 5] == [world.reasons.count(reason) for reason in ("ReanchorRetried", "ReanchorFailed")]


def test_failed_rebuild_of_a_doubted_state_is_never_given_up() -> None:
    """When a request has failed for good the operator asks again, no sooner than the backoff allows."""
    world = World(spec={"reanchor": {"backoffMaxSeconds": 30, "history": {"failed": 0}}})
    world.suspect()
    for _ in range(250):
        made = world.settle()
        for job in world.at_work():
            world.ends(job, result="failed")
        if not world.at_work():
            world.now_us = max(world.now_us + SECOND // 10, made.wake_at_us or 0)

    starts = [at_us for at_us, _ in world.started]

    assert 7 <= len(starts)
    assert {"Failed", "Pending"} >= {world.of(name).get("phase", "Pending") for name in world.reanchors}
    assert min(b - a for a, b in pairwise(starts[5:])) > 20 * SECOND


def test_doubt_that_waits_for_the_backoff_says_so() -> None:
    """Between a request that has failed for good and the operator's own the pipeline shows what is waited for."""
    world = World()
    world.suspect()
    world.add("one")
    for attempt in range(1, 6):
        while not world.at_work():
            world.now_us = max(world.now_us, world.settle().wake_at_us or 0)
        world.ends(f"one-{attempt}", result="failed")
        made = world.settle()

    facts = made.symbols[SYMBOL]
    assert ("Failed", (), Reason.BACKING_OFF) == (world.of("one")["phase"], facts.pending, facts.throttled)
    assert world.now_us < facts.next_us


def test_exchange_that_says_when_is_heeded() -> None:
    """A retry does not begin before the time that the exchange has named."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    asked_us = BEGIN_US + 300 * SECOND
    world.ends("one-1", result="failed", message="429: Retry-After 300 s", retry_at_us=asked_us)

    made = world.settle()

    assert asked_us == micros_of(world.of("one")["nextAttemptAt"])
    assert (Reason.EXCHANGE_LIMIT, asked_us) == (made.symbols[SYMBOL].throttled, made.symbols[SYMBOL].next_us)


def test_lock_of_a_dead_run_is_given_back_by_the_next() -> None:
    """A killed run leaves its lock; the next run gets the id of the owner whose lock it may take."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.says(lock_holder="reanchor_BTCUSDT_1_ab:uid-one-1", lock_held=True)
    world.dies("one-1", 137)

    made = world.settle()
    world.now_us = made.wake_at_us or 0
    world.settle()

    assert "--unlock-for=uid-one-1" in args_of(world, "one-2")


def test_lock_of_another_is_waited_for() -> None:
    """While a run that is not ours holds the lock none is started."""
    world = World()
    world.suspect()
    world.says(lock_holder="reanchor_BTCUSDT_1_ab:process-77", lock_held=True)
    world.add("one")

    made = world.settle()
    assert ([], Reason.LOCK_HELD) == (world.started, made.symbols[SYMBOL].throttled)
    world.says(lock_holder="", lock_held=False)
    world.settle()

    assert ["one-1"] == world.at_work()


@pytest.mark.parametrize(
    ("kill", "reported"),
    [
        (
            lambda w: w.dies("one-1", 137, reason="OOMKilled"),
            "ran out of memory and was killed: raise spec.reanchor.resources",
        ),
        (lambda w: w.dies("one-1", 137), "the run was killed; it wrote no receipt"),
        (lambda w: w.dies("one-1", 2, "x\nsheetanchor reanchor: symbol = 'x': bad"), "settings are wrong: sheetanchor"),
        (lambda w: w.fails("one-1", "DeadlineExceeded"), "the Job exceeded its deadline"),
        (
            lambda w: w.fails("one-1", "BackoffLimitExceeded", "has reached"),
            "its pod was deleted, or its node was lost",
        ),
        (
            lambda w: w.pods["one-1"].update(status={"phase": "Failed", "reason": "Evicted", "message": "low memory"}),
            "the pod was terminated: Evicted: low memory",
        ),
        (lambda w: w.jobs.clear(), "the run's Job no longer exists"),
    ],
)
def test_dead_job_is_a_failure_with_a_clear_message(kill: Any, reported: str) -> None:
    """However a Job ends, its ReAnchor's status shows it, and the request is tried again."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.passes(20)

    kill(world)
    world.step()

    assert reported in world.of("one")["message"]
    assert ("Pending", 1) == (world.of("one")["phase"], world.of("one")["attempts"])


def test_pod_that_cannot_start_is_reported_while_it_waits() -> None:
    """A missing image shows in the request long before the Job's deadline, and after it."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    world.pods["one-1"]["status"]["containerStatuses"] = [{"state": {"waiting": waiting}}]

    world.settle()
    assert "the pod cannot start: ImagePullBackOff: no such image" == world.of("one")["message"]
    world.passes(150)
    world.fails("one-1", "DeadlineExceeded")
    world.step()

    assert "last seen: the pod cannot start: ImagePullBackOff" in world.of("one")["message"]


def test_lost_receipt_of_a_good_run_is_waited_for() -> None:
    """A Job that is complete while its pod's end has not been seen is not judged at once."""
    world = World()
    world.add("one")
    world.settle()
    world.pods.clear()
    at = text_of(world.now_us)
    world.jobs["one-1"]["status"] = {
        "completionTime": at,
        "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": at}],
    }
    world.pods["one-1"] = {"metadata": {"name": "x", "labels": {}}, "status": {"phase": "Pending"}}

    world.settle()
    assert "Running" == world.of("one")["phase"]
    world.passes(11)
    world.settle()

    assert ("Succeeded", "the run succeeded; its receipt was lost with its pod") == (
        world.of("one")["phase"],
        world.of("one")["message"],
    )


def test_dry_run_is_tried_once_and_counts_for_nothing() -> None:
    """A dry run neither answers other requests nor begins a cool-down."""
    world = World()
    world.add("dry", dryRun=True, trigger="manual")
    world.add("real", trigger="manual")
    world.settle()
    assert ["real-1"] == world.at_work()
    world.ends("real-1")
    world.settle()

    assert ["dry-1"] == world.at_work()
    world.ends("dry-1", result="failed")
    world.settle()

    assert ("Failed", 1) == (world.of("dry")["phase"], world.of("dry")["attempts"])
    assert (2, ()) == (len(world.started), world.look().symbols[SYMBOL].pending)


def test_superseded_run_is_skipped() -> None:
    """A run that found the state rebuilt by others asks for nothing more."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.anchored(epoch=2)
    world.ends("one-1", result="superseded")

    world.settle()

    assert ("Skipped", "superseded") == (world.of("one")["phase"], world.of("one")["result"])
    assert 1 == len(world.started)


def test_same_request_id_counts_once() -> None:
    """Two objects of the same request id are one request."""
    world = World()
    world.add("one", requestID="r", trigger="manual")
    world.add("two", requestID="r", trigger="manual")

    world.settle()

    assert "request r was made before, as one" == world.of("two")["message"]


def test_validation_only_compares() -> None:
    """A request for a comparison is run as one, and an anchored state stays."""
    world = World()
    world.add("one", action="validation_reanchor", trigger="volume_anomaly")

    world.settle()
    world.ends("one-1", result="validated")
    world.settle()

    assert "--validate-only" in args_of(world, "one-1")
    assert ("Succeeded", "validated") == (world.of("one")["phase"], world.of("one")["result"])


def test_symbols_are_independent() -> None:
    """Each symbol has its own run at the same time."""
    world = World(spec={"symbols": [SYMBOL, "ETHUSDT"]})
    for symbol in (SYMBOL, "ETHUSDT"):
        world.suspect(symbol)
        world.add(f"gap-{symbol.lower()}", symbol=symbol)

    world.settle()

    assert ["gap-btcusdt-1", "gap-ethusdt-1"] == sorted(world.at_work())


def test_jobs_are_found_by_what_asked_for_them() -> None:
    """A Job and its pod carry pipeline, symbol, ReAnchor and trigger as labels, whatever the trigger's length."""
    world = World()
    world.add("one", trigger="sequence_gap")
    world.settle()
    world.ends("one-1")
    world.passes(60)
    world.settle()
    world.add("two", trigger="x" * 62 + "_y")
    world.settle()

    one, two = (world.jobs[name]["metadata"]["labels"] for name in ("one-1", "two-1"))
    assert ("btc", "one", "sequence_gap") == tuple(
        one[f"sheetanchor.dev/{name}"] for name in ("pipeline", "reanchor", "trigger")
    )
    assert "x" * 62 == two["sheetanchor.dev/trigger"]
    assert two == world.jobs["two-1"]["spec"]["template"]["metadata"]["labels"]


def test_symbols_share_the_budget() -> None:
    """Rebuilds of one symbol use up the budget of the others, unless those are suspect."""
    world = World(spec={"symbols": [SYMBOL, "ETHUSDT"], "reanchor": {"rebuildsPerHour": 2, "cooldownSeconds": 0}})
    for name in ("one", "two"):
        world.add(name)
        world.settle()
        world.ends(f"{name}-1")
        world.settle()
        world.passes(60)
    world.add("three", symbol="ETHUSDT")

    facts = world.settle().symbols["ETHUSDT"]

    assert ([], Reason.BUDGET_USED_UP) == (world.at_work(), facts.throttled)
    world.suspect("ETHUSDT")
    world.passes(5)
    world.settle()
    assert ["three-1"] == world.at_work()


def test_processor_that_lags_behind_a_swap_starts_nothing() -> None:
    """An answer from before the swap must not lead to a second run."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    before = dict(world.states[SYMBOL])
    world.ends("one-1")
    world.states[SYMBOL] = before

    world.settle()
    world.passes(2)
    world.settle()

    assert 1 == len(world.started)


@given(st.integers(-3_600, 3_600))
def test_a_skewed_clock_changes_no_decision(ahead_s: int) -> None:
    """However far Redis' clock is from the operator's, what it has stamped leads to the same runs at the same times."""
    histories = []
    for skew_us in (0, ahead_s * SECOND):
        world = World(redis_ahead_us=skew_us)
        world.add("gap", atMicros=world.now_us + skew_us)
        world.suspect(since_us=world.now_us + skew_us)
        world.settle()
        world.passes(3)
        for job in world.at_work():
            world.ends(job, result="failed", seconds=2, retry_at_us=world.now_us + skew_us + 20 * SECOND)
        for _ in range(30):
            world.passes(1)
            world.step()
        histories.append([at_us - BEGIN_US for at_us, _ in world.started])

    assert histories[0] == histories[1]
    assert 2 == len(histories[0])

"""The operator's decisions about re-anchors, on objects kept by the rules of a cluster."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reanchor_world import BEGIN_US, SECOND, SYMBOL, World
from sheetanchor_operator.moments import micros_of, text_of
from sheetanchor_operator.names import Reason


def args_of(world: World, job: str) -> list[str]:
    container = world.jobs[job]["spec"]["template"]["spec"]["containers"][0]
    return list(container["args"])


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
    """A second look at the same things changes nothing."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()

    made = world.look()

    assert ((), (), (), (), ()) == (made.create, made.start, made.patch, made.delete, made.events)


def test_job_says_what_to_do() -> None:
    """The Job's arguments carry the request; its pod is restricted and has no token of the API."""
    world = World()
    world.suspect()
    world.add("one", reason="--looks like a flag")
    world.settle()

    job = world.jobs["one-1"]
    pod = job["spec"]["template"]["spec"]

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
    """A doubt about an older epoch of a sound state needs no run."""
    world = World()
    world.anchored(epoch=5)
    world.add("late", epoch=4)

    world.settle()

    assert ("Skipped", "skipped") == (world.of("late")["phase"], world.of("late")["result"])
    assert "epoch 4, has been rebuilt since" in world.of("late")["message"]
    assert [] == world.started


def test_annotation_is_acted_on_once() -> None:
    """The same value is one request, also when its object has been forgotten; another value is another."""
    world = World(annotations={"sheetanchor.dev/reanchor": "monday"})
    world.settle()
    (name,) = world.reanchors
    world.ends(f"{name}-1")
    world.settle()
    world._delete(name)

    world.passes(100)
    world.settle()
    assert (1, {}) == (len(world.started), world.reanchors)
    world.annotations["sheetanchor.dev/reanchor"] = "tuesday"
    world.settle()

    assert 2 == len(world.started)
    assert "tuesday" == world.status["lastReanchorRequest"]


def test_annotation_may_be_json() -> None:
    """A JSON value names symbol, reason and who asks; a dry run is passed on."""
    value = {"id": "7", "symbol": "ETHUSDT", "reason": "drill", "by": "ann", "dryRun": True}
    world = World(spec={"symbols": [SYMBOL, "ETHUSDT"]}, annotations={"sheetanchor.dev/reanchor": json.dumps(value)})

    world.settle()

    ((name, body),) = world.reanchors.items()
    assert ("ETHUSDT", "drill", "ann", True) == tuple(
        body["spec"][field] for field in ("symbol", "reason", "requestedBy", "dryRun")
    )
    assert "--dry-run" in args_of(world, f"{name}-1")
    assert "7" == world.status["lastReanchorRequest"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('{"symbol": "DOGEUSDT"}', "symbol = 'DOGEUSDT': expected one of BTCUSDT"),
        ('{"id": 1, "dry": true}', "unknown entry 'dry'"),
        ('{"force": "yes"}', "force = 'yes': expected true or false"),
        ("{broken", "is not a JSON object"),
    ],
)
def test_annotation_that_is_not_understood_is_told_once(value: str, told: str) -> None:
    """A mistake in the annotation is an Event, not a run, and is not told again."""
    world = World(annotations={"sheetanchor.dev/reanchor": value})

    first, second = world.step(), world.step()

    assert [told in event.message for event in first.events] == [True]
    assert ((), {}) == (second.events, world.reanchors)


def test_first_anchor_is_asked_for_by_nobody_else() -> None:
    """Where there is no state yet the operator asks itself, once."""
    world = World()
    world.says(state="suspect", epoch=0, suspect_since_us=0)

    world.settle()

    ((name, body),) = world.reanchors.items()
    assert ("start", "emergency_reanchor") == (body["spec"]["trigger"], body["spec"]["action"])
    assert name.startswith("btc-btcusdt-o0-")
    assert [f"{name}-1"] == world.at_work()


def test_state_in_doubt_is_rebuilt_although_nobody_asks() -> None:
    """After half a second of grace a suspect state gets its rebuild."""
    world = World()
    world.suspect()

    early = world.step()
    world.passes(0.6)
    world.settle()

    assert ((), world.now_us - SECOND // 10) == (early.create, early.wake_at_us)
    assert 1 == len(world.started)


def test_state_that_nobody_knows_is_left_alone() -> None:
    """Without an answer of a processor nothing is asked for, but what others ask for is done."""
    world = World(answering=False)
    world.settle()
    assert [] == world.started

    world.add("asked")
    world.settle()

    assert ["asked-1"] == world.at_work()


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
    """What a person insists on starts during the cool-down, and while re-anchoring is switched off."""
    world = World(spec={"reanchor": {"enabled": False}, "processor": {"selfReanchorAfterSeconds": 0}})
    world.add("soft", trigger="manual")
    world.add("hard", trigger="manual", force=True)

    world.settle()

    assert ["hard-1"] == world.at_work()
    assert "switched off" in world.of("soft")["message"]


def test_budget_is_remembered_beyond_the_history() -> None:
    """Rebuilds count for an hour although their objects are deleted."""
    world = World(spec={"reanchor": {"rebuildsPerHour": 3, "cooldownSeconds": 0, "history": {"successful": 1}}})
    for number in range(3):
        world.add(f"gap-{number}", trigger="manual")
        world.settle()
        world.ends(f"gap-{number}-1")
        world.settle()
        world.passes(60)
        world.settle()
    world.add("more", trigger="manual")

    facts = world.settle().symbols[SYMBOL]

    assert ["gap-2", "more"] == sorted(world.reanchors)
    assert (Reason.BUDGET_USED_UP, 3) == (facts.throttled, len(facts.rebuilt_us))
    assert world.started[0][0] + 3600 * SECOND < facts.next_us < world.started[0][0] + 3605 * SECOND


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
    """A run that was killed leaves its lock; the next one is told whose it may take away."""
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


def test_lock_of_somebody_else_is_waited_for() -> None:
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
    ("kill", "told"),
    [
        (lambda w: w.dies("one-1", 137, reason="OOMKilled"), "want of memory: raise spec.reanchor.resources"),
        (lambda w: w.dies("one-1", 137), "the run was killed; it left no receipt"),
        (lambda w: w.dies("one-1", 2, "x\nsheetanchor reanchor: symbol = 'x': bad"), "settings are wrong: sheetanchor"),
        (lambda w: w.fails("one-1", "DeadlineExceeded"), "the Job ran into its deadline"),
        (lambda w: w.fails("one-1", "BackoffLimitExceeded", "has reached"), "its pod is gone, with its node"),
        (
            lambda w: w.pods["one-1"].update(status={"phase": "Failed", "reason": "Evicted", "message": "low memory"}),
            "the pod was ended from outside: Evicted: low memory",
        ),
        (lambda w: w.jobs.clear(), "the run's Job has vanished"),
    ],
)
def test_dead_job_is_a_failure_with_a_clear_message(kill: Any, told: str) -> None:
    """However a Job dies, the request says so and is tried again."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.passes(20)

    kill(world)
    world.step()

    assert told in world.of("one")["message"]
    assert ("Pending", 1) == (world.of("one")["phase"], world.of("one")["attempts"])


def test_pod_that_cannot_start_is_told_while_it_waits() -> None:
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


def test_schedule_makes_up_for_one_missed_time() -> None:
    """After three missed times there is one request, and none again for the same time."""
    world = World(spec={"reanchor": {"schedule": "*/10 * * * *", "history": {"successful": 0}}})
    world.passes(1900)
    world.settle()
    ((name, body),) = world.reanchors.items()

    world.passes(70)
    world.settle()
    world.ends(f"{name}-1")
    for _ in range(5):
        world.passes(30)
        world.settle()

    assert ("schedule", "scheduled_reanchor") == (body["spec"]["trigger"], body["spec"]["action"])
    assert 1 == len(world.started)
    assert {name} == set(world.reanchors)
    world.passes(600)
    world.settle()
    world.passes(2)
    world.settle()
    assert 2 == len(world.started)


def test_schedule_begins_with_the_pipeline() -> None:
    """A time before the pipeline's creation is none of its; the next one wakes the operator."""
    world = World(spec={"reanchor": {"schedule": "0 0 1 1 *"}})

    made = world.settle()

    assert {} == world.reanchors
    assert made.wake_at_us is not None
    assert made.wake_at_us > world.now_us


def test_history_forgets_the_oldest_but_never_the_last_success() -> None:
    """Finished objects beyond the limits go, oldest first."""
    world = World(spec={"reanchor": {"cooldownSeconds": 0, "history": {"successful": 2, "failed": 1}}})
    for number in range(5):
        world.add(f"gap-{number}", trigger="manual")
        world.settle()
        world.ends(f"gap-{number}-1")
        world.settle()
        world.passes(30)

    world.settle()

    assert ["gap-3", "gap-4"] == sorted(world.reanchors)


def test_validation_only_compares() -> None:
    """A request for a comparison is run as one, and an anchored state stays."""
    world = World()
    world.add("one", action="validation_reanchor", trigger="volume_anomaly")

    world.settle()
    world.ends("one-1", result="validated")
    world.settle()

    assert "--validate-only" in args_of(world, "one-1")
    assert ("Succeeded", "validated") == (world.of("one")["phase"], world.of("one")["result"])


def test_pause_leaves_everything_as_it_is_but_the_results() -> None:
    """While paused nothing starts, and a run that is over is still written down."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.annotations["sheetanchor.dev/paused"] = "true"
    world.add("two", trigger="manual")
    world.ends("one-1")

    world.settle()

    assert ("Succeeded", "Pending") == (world.of("one")["phase"], world.of("two")["phase"])
    assert 1 == len(world.started)


def test_suspended_pipeline_skips_requests() -> None:
    """Whoever asks a suspended pipeline hears that it is."""
    world = World(spec={"suspend": True})
    world.add("one", trigger="manual")

    world.settle()

    assert "the pipeline is suspended" == world.of("one")["message"]


def test_foreign_symbol_is_refused() -> None:
    """A request for a symbol that the pipeline does not have says so."""
    world = World()
    world.add("one", symbol="DOGEUSDT")

    world.settle()

    assert "symbol DOGEUSDT is none of the pipeline's: BTCUSDT" == world.of("one")["message"]


def test_symbols_are_independent() -> None:
    """Each symbol has its own run at the same time."""
    world = World(spec={"symbols": [SYMBOL, "ETHUSDT"]})
    for symbol in (SYMBOL, "ETHUSDT"):
        world.suspect(symbol)
        world.add(f"gap-{symbol.lower()}", symbol=symbol)

    world.settle()

    assert ["gap-btcusdt-1", "gap-ethusdt-1"] == sorted(world.at_work())


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


def test_object_without_owner_is_adopted() -> None:
    """What a person has created belongs to the pipeline from then on."""
    world = World()
    world.add("one")

    made = world.step()

    assert ("one",) == made.adopt


def test_last_reanchor_is_the_newest_that_has_begun() -> None:
    """The pipeline's status tells of the newest run, and keeps it when its object is gone."""
    world = World()
    world.add("one", reason="a hole")
    world.settle()
    running = dict(world.status["lastReanchor"])
    world.ends("one-1")
    world.settle()
    world.reanchors.clear()
    world.settle()

    last = world.status["lastReanchor"]
    assert ("one", "a hole", "sequence_gap", "swapped", 2) == tuple(
        last[field] for field in ("name", "reason", "trigger", "result", "epoch")
    )
    assert "finishedAt" not in running


_MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("gap"), st.integers(0, 3)),
        st.tuples(st.just("suspect"), st.just(0)),
        st.tuples(st.just("end"), st.sampled_from(["swapped", "failed", "superseded", "lock_held"])),
        st.tuples(st.just("kill"), st.just(0)),
        st.tuples(st.just("pass"), st.integers(0, 40)),
        st.tuples(st.just("dry"), st.just(0)),
        st.tuples(st.just("annotate"), st.integers(0, 3)),
    ),
    max_size=25,
)


def play(moves: list[tuple[str, Any]], crashes: list[int]) -> World:
    """Play moves on a world; after each the operator acts, at first cut short as often as there are crashes."""
    world = World(spec={"reanchor": {"history": {"successful": 2, "failed": 1}}})
    left = list(crashes)
    for number, (move, value) in enumerate(moves):
        if move == "gap":
            world.add(f"gap-{number}", epoch=value, trigger="sequence_gap" if value else "manual", force=value == 3)
        elif move == "suspect":
            world.suspect()
        elif move in ("end", "kill"):
            for job in world.at_work():
                world.ends(job, result=value) if move == "end" else world.dies(job, 137)
        elif move == "pass":
            world.passes(value)
        elif move == "dry":
            world.add(f"dry-{number}", dryRun=True, trigger="manual")
        else:
            world.annotations["sheetanchor.dev/reanchor"] = f"value {value}"
        if left:
            world.step(actions=left.pop(0))
        world.settle()
        assert len(world.at_work()) <= 1
    return world


@settings(max_examples=2500, deadline=None)
@given(_MOVES, st.lists(st.integers(0, 4), max_size=25))
def test_crashes_in_between_change_nothing(moves: list[tuple[str, Any]], crashes: list[int]) -> None:
    """An operator that dies after any of its actions leaves its successor to start the same runs at the same times."""
    undisturbed = play(moves, [])

    disturbed = play(moves, crashes)

    assert undisturbed.started == disturbed.started
    assert stands(undisturbed) == stands(disturbed)


def stands(world: World) -> dict[str, tuple[Any, ...]]:
    """How each request stands, without the words for people."""
    names = ("phase", "result", "attempts", "answeredBy", "startedAt", "finishedAt", "exitCode", "epochAfter")
    return {name: tuple(world.of(name).get(field) for field in names) for name in world.reanchors}

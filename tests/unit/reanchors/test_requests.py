"""Which re-anchors the operator requests itself, and which it deletes."""

from __future__ import annotations

import json

import pytest

from sheetanchor.policy.reanchor_object import digest, object_name
from sheetanchor_operator.names import Reason
from support.reanchor_world import SECOND, SYMBOL, World, args_of


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
    assert "7" == body["spec"]["requestID"]
    assert "7 ETHUSDT" == world.status["lastReanchorRequest"]


def test_one_id_for_two_symbols_is_two_requests() -> None:
    """What is asked for another symbol is not taken for what was asked before; the same again is."""
    world = World(spec={"symbols": [SYMBOL, "ETHUSDT"]})
    for symbol in (SYMBOL, "ETHUSDT", "ETHUSDT"):
        world.annotations["sheetanchor.dev/reanchor"] = json.dumps({"id": "X", "symbol": symbol})
        world.settle()

    asked = [(body["spec"]["symbol"], body["spec"]["requestID"]) for body in world.reanchors.values()]
    assert [(SYMBOL, "X"), ("ETHUSDT", "X")] == asked
    assert {object_name("btc", symbol, f"a{digest('X', symbol)}") for symbol, _ in asked} == set(world.reanchors)


@pytest.mark.parametrize(
    ("value", "reported"),
    [
        ('{"symbol": "DOGEUSDT"}', "symbol = 'DOGEUSDT': expected one of BTCUSDT"),
        ('{"id": 1, "dry": true}', "unknown entry 'dry'"),
        ('{"force": "yes"}', "force = 'yes': expected true or false"),
        ("{broken", "is not a JSON object"),
        ('{"id": "\\ud800"}', "is not a JSON object"),
        ('{"id": "1", "reason": "\\udfff"}', "is not a JSON object"),
        ('{"a":' * 20_000, "is not a JSON object"),
        ('{"id": ' + "[" * 20_000 + "]" * 20_000 + "}", "is not a JSON object"),
        ('{"id": ' + "9" * 5_000 + "}", "is not a JSON object"),
        ('{"id": {"deep": []}}', "id is a list or an object: expected text"),
        ('{"symbol": ["BTCUSDT"]}', "symbol is a list or an object: expected text"),
        ('{"dryRun": "' + "y" * 5_000 + '"}', "y…: expected true or false"),
    ],
    ids=lambda text: text[:40],
)
def test_annotation_that_is_not_understood_is_reported_once(value: str, reported: str) -> None:
    """An invalid annotation causes an Event, not a run, and the Event is not repeated."""
    world = World(annotations={"sheetanchor.dev/reanchor": value})

    first, second = world.step(), world.step()

    assert [reported in event.message for event in first.events] == [True]
    assert ((), {}) == (second.events, world.reanchors)


def test_first_anchor_is_asked_for_by_nobody_else() -> None:
    """If there is no state yet, the operator itself makes a request, once."""
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
    """Without an answer of a processor the operator makes no request, but carries out those of others."""
    world = World(answering=False)
    made = world.settle()
    assert ([], None) == (world.started, made.wake_at_us)

    world.add("asked")
    world.settle()

    assert ["asked-1"] == world.at_work()


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
    """The message of a request for a suspended pipeline says that it is suspended."""
    world = World(spec={"suspend": True})
    world.add("one", trigger="manual")

    world.settle()

    assert "the pipeline is suspended" == world.of("one")["message"]


def test_foreign_symbol_is_refused() -> None:
    """A request for a symbol that the pipeline does not have says so."""
    world = World()
    world.add("one", symbol="DOGEUSDT")

    world.settle()

    assert "the pipeline has no symbol DOGEUSDT: it has BTCUSDT" == world.of("one")["message"]


def test_object_without_owner_is_adopted() -> None:
    """What a person has created belongs to the pipeline from then on."""
    world = World()
    world.add("one")

    made = world.step()

    assert ("one",) == made.adopt


def test_last_reanchor_is_the_newest_that_has_begun() -> None:
    """The pipeline's status describes the newest run, also after its object is deleted."""
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

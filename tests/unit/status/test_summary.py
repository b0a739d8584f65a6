"""A pipeline's status: what is said of it, what to do, and that nothing is written twice."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.pipeline_status import PipelineStatus
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import Component, Condition, EventReason, Phase, Reason
from sheetanchor_operator.observation import Observed, PodResponse
from sheetanchor_operator.reanchors.plan import ReanchorPlan, SymbolFacts
from sheetanchor_operator.status.summary import condition_of, refused_status, status_of, transitions
from support.pipeline_parts import (
    NOW_US,
    OWN_EXCHANGE,
    ZONES,
    crashed,
    judged,
    message,
    one_of,
    pipeline,
    pod,
    predicts,
    rendered,
    sound,
    stands,
    told,
    waiting,
    with_pods,
)

SECOND = 1_000_000
EXTERNAL = {"redis": {"external": {"url": "redis://cache:6379/0", "passwordSecret": {"name": "cache"}}}}
WAS_SOUND = {"lastPredictionAt": text_of(NOW_US - 60 * SECOND)}


def test_a_sound_pipeline_is_running() -> None:
    """Everything that `kubectl get pp` shows, and every condition once."""
    status = judged(sound())

    assert ("Running", "11/11", "zone-a", 3, 2, "mlp@12345678") == tuple(
        status[name] for name in ("phase", "ready", "activeZone", "epoch", "term", "model")
    )
    assert list(Condition) == [one["type"] for one in status["conditions"]]
    expected = {
        Condition.READY: ("True", "AsExpected"),
        Condition.ANCHORED: ("True", "Anchored"),
        Condition.INGESTION_HEALTHY: ("True", "AsExpected"),
        Condition.REDIS_HEALTHY: ("True", "AsExpected"),
        Condition.INFERENCE_READY: ("True", "AsExpected"),
        Condition.REANCHOR_IN_PROGRESS: ("False", "Idle"),
        Condition.REANCHOR_THROTTLED: ("False", "NotThrottled"),
        Condition.PAUSED: ("False", "NotPaused"),
        Condition.TOPOLOGY_SATISFIED: ("Unknown", "SingleZone"),
        Condition.FAILOVER_IN_PROGRESS: ("False", "Idle"),
    }
    assert expected == {kind: told(status, kind) for kind in Condition}
    assert {3} == {one["observedGeneration"] for one in status["conditions"]}
    pods_of = {row["name"]: row["pods"] for row in status["zones"] if row["ready"]}
    assert dict(zip(ZONES, (4, 4, 1), strict=True)) == pods_of
    assert "sheetanchor.dev/pipeline=btc,app.kubernetes.io/component=infer" == status["inference"]["selector"]


def test_the_status_is_what_its_schema_says() -> None:
    """Whatever is written has been declared, so that the API server drops nothing."""
    for status in (judged(sound()), judged(Observed(NOW_US)), refused_status({"metadata": {}}, "x", NOW_US)):
        assert PipelineStatus.model_validate(status)
        assert status == json.loads(json.dumps(status))


def test_the_same_sight_gives_the_same_status() -> None:
    """A second reconcile of an unchanged pipeline, a second later, has nothing to write."""
    first = judged(sound())

    second = judged(sound(now_us=NOW_US + SECOND), status=first)

    assert first == second


def test_the_age_of_predictions_is_written_every_fifteen_seconds() -> None:
    """A sound pipeline is not written with every slot; the column is off by that at most."""
    first = judged(sound())
    times = []
    for after_s in (2, 14, 16):
        newer = predicts(ts=NOW_US + after_s * SECOND - SECOND)
        seen = sound(now_us=NOW_US + after_s * SECOND, predictions={("p", "BTCUSDT"): newer})
        times.append(judged(seen, status=first)["lastPredictionAt"])

    assert times[:2] == [first["lastPredictionAt"]] * 2
    assert times[2] == text_of(NOW_US + 15 * SECOND)


def test_only_sound_predictions_count_for_the_age() -> None:
    """A degraded or old one leaves the time of the last sound one."""
    for worse in (predicts(degraded=True, reason="suspect: gap"), predicts(ts=NOW_US - 60 * SECOND), PodResponse()):
        status = judged(sound(predictions={("p", "BTCUSDT"): worse}), status=WAS_SOUND)
        assert WAS_SOUND["lastPredictionAt"] == status["lastPredictionAt"]


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    """A new reason alone is no transition."""
    first = judged(with_pods(without=Component.INFER))
    later = with_pods(pod(Component.INFER, ready=False, **waiting("ErrImagePull")), without=Component.INFER)
    second = judged(replace(later, now_us=NOW_US + 5 * SECOND), status=first)
    third = judged(sound(now_us=NOW_US + 9 * SECOND), status=second)

    times = [condition_of(one, Condition.READY) for one in (first, second, third)]
    assert [text_of(NOW_US), text_of(NOW_US), text_of(NOW_US + 9 * SECOND)] == [
        one["lastTransitionTime"] for one in times if one
    ]


@pytest.mark.parametrize(
    ("spec", "annotations", "phase", "reason"),
    [
        ({"suspend": True}, {}, Phase.SUSPENDED, Reason.SUSPENDED),
        ({"maintenance": {"enabled": True, "reason": "new disks"}}, {}, Phase.MAINTENANCE, Reason.MAINTENANCE),
        ({}, {"sheetanchor.dev/paused": "true"}, Phase.PAUSED, Reason.PAUSED),
    ],
)
def test_what_is_wanted_is_no_trouble(
    spec: dict[str, Any], annotations: dict[str, str], phase: Phase, reason: Reason
) -> None:
    """Suspension, maintenance and a pause have phases of their own, and say why."""
    status = judged(sound(), spec, annotations=annotations)

    assert phase == status["phase"]
    assert ("True", reason) == told(status, Condition.PAUSED)
    if not annotations:
        assert ("False", reason) == told(status, Condition.READY)
        assert {"replicas": 0, "ready": 0} == status["processor"]


def test_a_new_pipeline_is_pending_until_it_predicts() -> None:
    """Without any problem it is only starting."""
    status = judged(Observed(NOW_US, zones=ZONES))

    assert ("Pending", "0/11") == (status["phase"], status["ready"])
    assert ("False", "Starting") == told(status, Condition.READY)
    assert ("Unknown", "Unknown") == told(status, Condition.ANCHORED)


def test_a_lost_line_degrades_but_predictions_stay_sound() -> None:
    """The others carry the whole feed: Ready holds, and the zone is named."""
    lines = [pod(Component.INGEST, zone=zone, ready=zone != "zone-b") for zone in ZONES]

    status = judged(with_pods(*lines, without=Component.INGEST), status=WAS_SOUND)

    assert ("Degraded", "10/11") == (status["phase"], status["ready"])
    assert "True" == told(status, Condition.READY)[0]
    assert ("False", "LineLost") == told(status, Condition.INGESTION_HEALTHY)
    assert "zone-b" in message(status, Condition.INGESTION_HEALTHY)


def health(**checks: dict[str, Any]) -> dict[str, PodResponse]:
    return {"btc-ingest-zone-a-0": PodResponse({"checks": checks})}


def test_why_no_line_receives_is_asked_of_the_ingestors() -> None:
    """The exchange, or Redis."""
    none = with_pods(without=Component.INGEST)
    refused = {"sbe_websocket": {"status": "disconnected", "message": "401 invalid key"}}
    waits = {"kinesis_producer": {"status": "waiting"}}

    by_exchange = judged(replace(none, health=health(**refused)), {"exchange": OWN_EXCHANGE})
    by_redis = judged(replace(none, health=health(**waits)))

    assert ("False", "ExchangeUnreachable") == told(by_exchange, Condition.INGESTION_HEALTHY)
    assert "ws://exchange:8090: 401 invalid key" in message(by_exchange, Condition.INGESTION_HEALTHY)
    assert ("False", "RedisUnreachable") == told(by_redis, Condition.INGESTION_HEALTHY)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (stands(state="suspect", reason="depth: expected 5, found 9"), ("False", "Suspect")),
        (stands(state="suspect", epoch=0, term=0), ("False", "AwaitingFirstAnchor")),
        (stands(state="unknown"), ("Unknown", "Unknown")),
        (PodResponse(None, "timed out"), ("Unknown", "Unknown")),
    ],
)
def test_the_anchor_is_what_processors_say(answer: PodResponse, expected: tuple[str, str]) -> None:
    """Suspect with the reason; unknown if no processor reports it."""
    status = judged(sound(states={"btc-process-0": answer}), status=WAS_SOUND)

    assert expected == told(status, Condition.ANCHORED)
    assert "False" == told(status, Condition.READY)[0]
    assert "Degraded" == status["phase"]


def test_of_two_processors_the_one_with_the_higher_term_is_believed() -> None:
    """One that was cut off may think for a moment that it still writes."""
    states = {
        "btc-process-0": stands(term=2, state="suspect", epoch=3),
        "btc-process-1": stands(term=3, epoch=4),
    }

    status = judged(sound(states=states))

    assert ("anchored", 4, 3) == tuple(status["symbols"][0][name] for name in ("state", "epoch", "term"))
    assert "zone-b" == status["activeZone"]


def test_the_term_never_goes_back() -> None:
    """The largest observed term is kept, whichever processors answer later."""
    before = {"term": 9, "epoch": 5, "symbols": [{"name": "BTCUSDT", "state": "anchored", "epoch": 5, "term": 9}]}

    lower = judged(sound(), status=before)
    silent = judged(sound(states={}), status=before)

    assert (9, 9) == (lower["term"], silent["term"])
    assert (5, 9) == tuple(silent["symbols"][0][name] for name in ("epoch", "term"))
    assert 5 == silent["epoch"]


def test_an_external_redis_is_judged_by_the_processors() -> None:
    """Reached, not reached with what to check, or not known yet."""
    seen = sound(secrets={"binance-api-key": frozenset({"api-key"}), "cache": frozenset({"password"})})

    reached = judged(seen, EXTERNAL)
    cut = judged(replace(seen, states={"btc-process-0": stands(state="unknown", connected=False)}), EXTERNAL)
    crashing = with_pods(
        pod(Component.PROCESS, ready=False, **crashed(1, "Redis refused: WRONGPASS", name="process")),
        without=Component.PROCESS,
    )
    refused = judged(replace(crashing, states={}, secrets=seen.secrets), EXTERNAL)
    silent = judged(replace(seen, states={}), EXTERNAL)

    assert ("True", "External") == told(reached, Condition.REDIS_HEALTHY)
    assert ("False", "RedisUnreachable") == told(cut, Condition.REDIS_HEALTHY)
    assert ("False", "RedisUnreachable") == told(cut, Condition.READY)
    assert "redis://cache:6379/0" in message(cut)
    assert ("False", "RedisUnreachable") == told(refused, Condition.REDIS_HEALTHY)
    assert "WRONGPASS" in message(refused, Condition.REDIS_HEALTHY)
    assert "Unknown" == told(silent, Condition.REDIS_HEALTHY)[0]
    assert {"replicas": 0, "ready": 0} == reached["redis"]


@pytest.mark.parametrize(
    ("ready", "connected", "expected"),
    [
        (3, True, ("True", "AsExpected")),
        (2, True, ("True", "PodsNotReady")),
        (1, True, ("False", "PodsNotReady")),
        (3, False, ("False", "NoMaster")),
        (0, None, ("False", "PodsNotReady")),
    ],
)
def test_the_managed_redis_needs_a_majority_and_a_master(
    ready: int, connected: bool | None, expected: tuple[str, str]
) -> None:
    """Two of three nodes serve; a master that cannot be reached does not."""
    nodes = [pod(Component.REDIS, number, ready=number < ready) for number in range(3)]
    states = {} if connected is None else {"btc-process-0": stands(connected=connected)}
    seen = replace(with_pods(*nodes, without=Component.REDIS), states=states)

    assert expected == told(judged(seen, status=WAS_SOUND), Condition.REDIS_HEALTHY)


def test_the_master_is_the_node_that_says_so_and_is_followed() -> None:
    """A master that was cut off still calls itself master for a moment, but has no replicas."""

    def node(role: str, replicas: int = 0) -> PodResponse:
        return PodResponse({"checks": {"server": {"role": role, "replicas": replicas}}})

    said = {"btc-redis-0": node("master"), "btc-redis-1": node("master", 1), "btc-redis-2": node("slave")}

    assert "btc-redis-1" == judged(sound(health=said))["redis"]["master"]
    assert "master" not in judged(sound())["redis"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (predicts(degraded=True, reason="suspect: depth: expected 5; old: 6 s"), "PredictionsDegraded"),
        (predicts(ts=NOW_US - 30 * SECOND), "NoPredictions"),
        (PodResponse(None, "refused"), "NoPredictions"),
    ],
)
def test_predictions_are_judged_by_what_a_reader_gets(answer: PodResponse, expected: str) -> None:
    """Degraded with their kinds of reasons, old, or none."""
    status = judged(sound(predictions={("btc-infer-0", "BTCUSDT"): answer}), status=WAS_SOUND)

    assert ("False", expected) == told(status, Condition.INFERENCE_READY)
    assert ("False", expected) == told(status, Condition.READY)
    assert not any(character.isdigit() for character in message(status, Condition.INFERENCE_READY))


def test_of_two_replicas_a_sound_answer_counts() -> None:
    """A replica without a model does not degrade what another one serves."""
    answers = {("a", "BTCUSDT"): predicts(), ("b", "BTCUSDT"): predicts(degraded=True, reason="no model")}

    assert ("True", "AsExpected") == told(judged(sound(predictions=answers)), Condition.INFERENCE_READY)


def test_a_roll_out_is_reported_and_nothing_is_wrong() -> None:
    """Ready holds while new pods come up."""
    deployment = one_of(rendered(), "Deployment", "btc-infer")
    deployment = {**deployment, "metadata": {**deployment["metadata"], "generation": 2}}
    states = [
        ({"observedGeneration": 1, "updatedReplicas": 3, "replicas": 3}, "RollingOut"),
        ({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 4}, "RollingOut"),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3}, "AsExpected"),
    ]
    for live, expected in states:
        seen = sound(children={("Deployment", "btc-infer"): {**deployment, "status": live}})
        assert ("True", expected) == told(judged(seen), Condition.READY)
        assert "Running" == judged(seen)["phase"]


def test_a_redis_node_that_is_replaced_on_purpose_is_no_degradation() -> None:
    """While the set's revisions differ the pipeline is running; the same sight without a roll-out is degraded."""
    nodes = [pod(Component.REDIS, number, ready=number < 2) for number in range(3)]
    seen = with_pods(*nodes, without=Component.REDIS)
    redis = one_of(rendered(), "StatefulSet", "btc-redis")
    rolls = {**redis, "status": {"currentRevision": "1", "updateRevision": "2"}}
    rests = {**redis, "status": {"currentRevision": "2", "updateRevision": "2"}}

    during = judged(replace(seen, children={("StatefulSet", "btc-redis"): rolls}))
    after = judged(replace(seen, children={("StatefulSet", "btc-redis"): rests}))

    assert ("Running", "Degraded") == (during["phase"], after["phase"])
    assert ("True", "RollingOut") == told(during, Condition.READY)


def test_a_roll_out_that_does_not_come_further_is_reported() -> None:
    """Old pods go on: predictions flow, and the pipeline is degraded."""
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    live = {**one_of(rendered(), "Deployment", "btc-infer"), "status": {"conditions": [stuck]}}

    status = judged(sound(children={("Deployment", "btc-infer"): live}))

    assert ("Degraded", ("True", "PodsNotReady")) == (status["phase"], told(status, Condition.READY))
    assert "rollout status deploy/btc-infer" in message(status)


def test_reanchors_are_reported_as_the_plan_has_them() -> None:
    """Running, waiting and why, and the newest one."""
    running = ReanchorPlan(
        symbols={"BTCUSDT": SymbolFacts(running="btc-x")}, last_reanchor={"name": "btc-x"}, last_request="7"
    )
    wait = SymbolFacts(pending=("btc-y",), throttled=Reason.COOLDOWN, message="the last rebuild has just ended")
    waiting_plan = ReanchorPlan(symbols={"BTCUSDT": wait})
    off = ReanchorPlan(symbols={"BTCUSDT": SymbolFacts(pending=("btc-y",))})
    disabled = {"reanchor": {"enabled": False}, "processor": {"selfReanchorAfterSeconds": 0}}

    first = judged(sound(), plan=running)
    second = judged(sound(), plan=waiting_plan, status=first)
    third = judged(sound(), disabled, plan=off)

    assert ("True", "ReanchorRunning") == told(first, Condition.REANCHOR_IN_PROGRESS)
    assert ({"name": "btc-x"}, "7") == (first["lastReanchor"], first["lastReanchorRequest"])
    assert ("False", "ReanchorPending") == told(second, Condition.REANCHOR_IN_PROGRESS)
    assert ("True", "Cooldown") == told(second, Condition.REANCHOR_THROTTLED)
    assert "the last rebuild has just ended" in message(second, Condition.REANCHOR_THROTTLED)
    assert ({"name": "btc-x"}, "7") == (second["lastReanchor"], second["lastReanchorRequest"])
    assert ("True", "Disabled") == told(third, Condition.REANCHOR_THROTTLED)


def test_a_spec_that_cannot_be_used_keeps_the_rest() -> None:
    """Ready says which field; what else was known stays."""
    before = judged(sound())
    body = {"metadata": {"generation": 4}, "status": before}

    status = refused_status(body, "spec.mode = 'x': unknown", NOW_US)

    assert ("Failed", 4) == (status["phase"], status["observedGeneration"])
    assert ("False", "SpecRefused") == told(status, Condition.READY)
    assert before["conditions"][1:] == status["conditions"][1:]
    assert status == refused_status({**body, "status": status}, "spec.mode = 'x': unknown", NOW_US + SECOND)


def reasons(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str]]:
    return [(event.type, event.reason) for event in transitions(old, new, "btc", "0b1c")]


def test_a_life_is_reported_in_events() -> None:
    """From the first start through a gap and a lost line to a suspension and back."""
    new = judged(Observed(NOW_US, zones=ZONES))
    running = judged(sound(), status=new)
    gap = sound(
        states={"btc-process-0": stands(state="suspect", reason="gap")},
        predictions={("p", "BTCUSDT"): predicts(degraded=True, reason="suspect: gap")},
    )
    suspect = judged(gap, status=running)
    again = judged(sound(), status=suspect)
    suspended = judged(sound(), {"suspend": True}, status=again)
    resumed = judged(sound(), status=suspended)

    assert [] == reasons({}, new)
    assert [("Normal", "Ready"), ("Normal", "Anchored")] == reasons(new, running)
    assert [("Warning", "Degraded"), ("Warning", "Suspect")] == reasons(running, suspect)
    assert [("Normal", "Recovered"), ("Normal", "Anchored")] == reasons(suspect, again)
    assert [("Normal", "Suspended")] == reasons(again, suspended)
    assert [("Normal", "Resumed"), ("Normal", "Ready"), ("Normal", "Anchored")] == reasons(suspended, resumed)
    assert [] == reasons(resumed, resumed)


def test_a_trouble_is_reported_once() -> None:
    """One Event for the cause, however many conditions it affects; no further one while it lasts."""
    seen = with_pods(pod(Component.INFER, ready=False, **waiting("ErrImagePull", "not found")), without=Component.INFER)
    before = judged(sound())

    after = judged(seen, status=before)

    assert [("Warning", "Failed"), ("Warning", "ImageUnavailable")] == reasons(before, after)
    assert [] == reasons(after, judged(seen, status=after))


def test_what_is_lost_has_a_name_of_its_own() -> None:
    """A lost line, exchange, inference or master: each is an Event that can be searched for."""
    before = judged(sound())
    silent = PodResponse({"checks": {"sbe_websocket": {"status": "disconnected", "message": "refused"}}})
    lines = [pod(Component.INGEST, zone=zone, ready=False) for zone in ZONES]
    one_line = with_pods(lines[0], *(pod(Component.INGEST, zone=zone) for zone in ZONES[1:]), without=Component.INGEST)
    exchange = replace(with_pods(*lines, without=Component.INGEST), health={"btc-ingest-zone-a-0": silent})
    model = sound(predictions={("p", "BTCUSDT"): predicts(ts=NOW_US - 60 * SECOND)})
    master = sound(states={"btc-process-0": stands(connected=False)})

    for seen, expected in (
        (one_line, "LineLost"),
        (exchange, "ExchangeUnreachable"),
        (model, "NoPredictions"),
        (master, "NoMaster"),
    ):
        after = judged(seen, status=before)
        assert ("Warning", expected) in reasons(before, after), expected
        new = {name: value for name, value in before.items() if name != "lastPredictionAt"}
        assert ("Warning", expected) not in reasons(new, after), "a first start has lost nothing"
        assert [] == reasons(after, judged(seen, status=after))


def test_a_throttled_reanchor_is_reported() -> None:
    """With the reason, once."""
    wait = SymbolFacts(pending=("y",), throttled=Reason.BUDGET_USED_UP, message="60 rebuilds within an hour")
    before = judged(sound())

    after = judged(sound(), status=before, plan=ReanchorPlan(symbols={"BTCUSDT": wait}))

    events = transitions(before, after, "btc", "0b1c")
    assert [EventReason.REANCHOR_THROTTLED] == [event.reason for event in events]
    assert "60 rebuilds" in events[0].message


components = st.sampled_from([Component.INGEST, Component.PROCESS, Component.INFER, Component.REDIS])
troubled = st.sampled_from(
    [
        {},
        waiting("ErrImagePull", "not found"),
        waiting("CreateContainerConfigError", "secret not found"),
        crashed(2, "x"),
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]},
        {"phase": "Failed"},
        {"conditions": None, "containerStatuses": None},
    ]
)
pods = st.lists(
    st.builds(
        lambda component, number, zone, ready, status: pod(component, number, zone=zone, ready=ready, **status),
        components,
        st.integers(0, 3),
        st.sampled_from(["", *ZONES]),
        st.booleans(),
        troubled,
    ),
    max_size=8,
)
answers = st.sampled_from(
    [
        {},
        {"p": stands()},
        {"p": stands(state="suspect", epoch=0)},
        {"p": PodResponse(None, "x")},
        {"p": PodResponse({"symbols": None})},
        {"p": PodResponse({"symbols": {"BTCUSDT": "odd"}})},
    ]
)
sights = st.builds(
    lambda found, states, secrets, zones: Observed(
        NOW_US, pods=tuple(found), states=states, secrets=secrets, zones=zones
    ),
    pods,
    answers,
    st.sampled_from([{}, {"binance-api-key": None}, {"binance-api-key": frozenset({"api-key"})}]),
    st.sampled_from([(), ZONES]),
)


@given(sights, st.sampled_from([{}, {"suspend": True}, EXTERNAL, {"exchange": OWN_EXCHANGE}]))
def test_whatever_is_seen_the_status_is_sound_and_settles(seen: Observed, spec: dict[str, Any]) -> None:
    """It fits its schema, a second reconcile writes nothing, and every event's reason is on the list."""
    wanted: Pipeline = pipeline(spec)

    first = status_of(wanted, seen)
    second = status_of(replace(wanted, status=first), replace(seen, now_us=NOW_US + SECOND))

    assert PipelineStatus.model_validate(first)
    assert first == second
    for event in transitions({}, first, "btc", "u"):
        assert event.reason in EventReason
        assert event.message


@pytest.mark.parametrize(
    "told",
    [
        {"symbols": ["BTCUSDT"]},
        {"symbols": {"BTCUSDT": {"state": "anchored", "epoch": "x", "term": None, "suspect_since_us": 10**30}}},
        {"checks": {"server": {"role": "master", "replicas": "many"}}},
        {"symbol": "BTCUSDT", "ts": "yesterday", "degraded": 0},
    ],
)
def test_nonsense_of_a_pod_is_no_answer(told: dict[str, Any]) -> None:
    """Whatever a pod says, there is a status, and it does not call the pipeline sound."""
    said = PodResponse(told)
    seen = sound(states={"btc-process-0": said}, health={"btc-redis-0": said}, predictions={("p", "BTCUSDT"): said})

    assert "False" == condition_of(judged(seen), Condition.READY)["status"]


def test_the_active_zone_is_where_most_symbols_are_written() -> None:
    """Each symbol has a writer; the first of them stands for itself only."""
    symbols = {"symbols": ["BTCUSDT", "ETHUSDT", "SOLUSDT"]}
    one = stands().body["symbols"]["BTCUSDT"]  # type: ignore[index]  # it has one
    away = {**one, "active": False}
    first = PodResponse({"symbols": {"BTCUSDT": one, "ETHUSDT": away, "SOLUSDT": away}})
    second = PodResponse({"symbols": {"BTCUSDT": away, "ETHUSDT": one, "SOLUSDT": one}})

    status = judged(sound(states={"btc-process-0": first, "btc-process-1": second}), symbols)

    assert "zone-b" == status["activeZone"]

"""From facts to an explanation: several causes, statuses as the operator makes them, whatever comes, and the JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import Component, Condition, Phase, Reason
from sheetanchor_operator.observation import Observed, PodResponse, Refusal
from sheetanchor_operator.plugin.explain.explanation import Explanation, explain, to_json
from sheetanchor_operator.plugin.explain.facts import Facts, NotKnown, PodAnswer, facts_of
from sheetanchor_operator.plugin.explain.meanings import DOUBTS
from sheetanchor_operator.plugin.explain.text import text_of_explanation
from sheetanchor_operator.reanchors.plan import ReanchorPlan, SymbolFacts
from support.explain_parts import (
    ANCHORED,
    AT,
    GAP,
    SECOND_US,
    SUSPECT,
    body,
    can,
    condition,
    explained,
    health,
    predicted,
    run,
    state,
    why,
)
from support.pipeline_parts import NOW_US, crashed, judged, pod, predicts, sound, stands, waiting, with_pods

# Together


def test_a_gap_in_its_four_lines() -> None:
    """The case that the command is made for: since when and why, what is being done, what a person can do."""
    ready = condition(Condition.READY, "False", "Suspect", f"BTCUSDT: {GAP}; predictions are marked degraded")
    running = run("btc-btcusdt-1a2b3c4d", "Running", startedAt=text_of(NOW_US - 3 * SECOND_US), attempts=1)
    last = run("btc-btcusdt-00", "Succeeded", result="swapped", message="epoch 4", finishedAt=AT, epochAfter=4)
    anchored = condition(Condition.ANCHORED, "False", "Suspect", f"BTCUSDT: {GAP}; until a re-anchor")

    one = explained(body(ready, anchored, symbols=[SUSPECT]), predicted(f"suspect: {GAP}"), runs=[last, running])

    lines = text_of_explanation(one).splitlines()
    now, since = (text_of(NOW_US - before_us)[11:19] for before_us in (0, 40 * SECOND_US))
    assert [
        f"DEGRADED since {since} (40 s): btc (namespace trading), {now} UTC; phase Degraded, 10/10 pods are ready",
        "why",
        f"  1. BTCUSDT: Suspect since {since} (40 s): sequence_gap: {GAP}",
        "     → its predictions are degraded until a re-anchor is swapped in",
        f"     → BTCUSDT's newest prediction is degraded: suspect: {GAP}",
        "being done",
        "  BTCUSDT: btc-btcusdt-1a2b3c4d runs for 3 s: run 1 for sequence_gap",
        "  last: btc-btcusdt-00 Succeeded (swapped) 40 s ago: epoch 4",
        "you can",
        "  if it repeats, compare the ingestors' networks: both lines lost the same messages",
        "  kubectl -n trading describe ra btc-btcusdt-1a2b3c4d",
        "  read docs/runbooks/SheetAnchorNotAnchored.md",
    ] == lines


def test_what_blocks_comes_first() -> None:
    """A user's mistake, then Redis, the symbols, reasons for degraded predictions, and last lost redundancy."""
    eth = {**SUSPECT, "name": "ETHUSDT", "reason": "best bid at or above best ask"}
    one = explained(
        body(
            condition(Condition.INGESTION_HEALTHY, "False", "LineLost", "line b is not ready; the others carry"),
            condition(
                Condition.INFERENCE_READY, "False", "ImageUnavailable", "infer: image x does not exist: correct it"
            ),
            condition(Condition.REDIS_HEALTHY, "False", "NoMaster", "no master; see the log"),
            condition(Condition.ANCHORED, "False", "Suspect", "BTCUSDT: x; ETHUSDT: y; until then"),
            symbols=[SUSPECT, eth],
        ),
        predicted("suspect: x; clock: set", symbol="BTCUSDT"),
        predicted("suspect: y; symbols: others; late: by 3 s", symbol="ETHUSDT"),
    )

    assert [
        ("InferenceReady", "ImageUnavailable"),
        ("RedisHealthy", "NoMaster"),
        ("BTCUSDT", "Suspect"),
        ("ETHUSDT", "Suspect"),
        ("ETHUSDT", "late"),
        ("BTCUSDT", "clock"),
        ("ETHUSDT", "symbols"),
        ("IngestionHealthy", "LineLost"),
    ] == why(one)
    assert ["correct it", "see the log"] == can(one)[:2]
    assert "and 4 more: -o json has all" in text_of_explanation(one)


def test_one_symbol_is_explained_by_what_concerns_it() -> None:
    """Another symbol's problem is left out; problems of the whole pipeline are included."""
    anchored = condition(Condition.ANCHORED, "False", "Suspect", f"BTCUSDT: {GAP}; until a re-anchor")
    ready = {**anchored, "type": "Ready"}
    pipeline = body(anchored, ready, symbols=[SUSPECT, {**ANCHORED, "name": "ETHUSDT"}])
    away = body(condition(Condition.REDIS_HEALTHY, "False", "NoMaster"), symbols=[ANCHORED])

    btc = explained(pipeline, predicted("suspect: x"), symbol="BTCUSDT")
    eth = explained(pipeline, predicted(symbol="ETHUSDT"), symbol="ETHUSDT")

    assert ("degraded", [("BTCUSDT", "Suspect")]) == (btc.verdict, why(btc))
    assert ("sound", []) == (eth.verdict, why(eth))
    assert "every condition holds" not in text_of_explanation(eth)
    assert [("RedisHealthy", "NoMaster")] == why(explained(away, symbol="BTCUSDT"))


def test_the_active_processor_is_believed_before_the_status() -> None:
    """It knows first; the operator's status follows within seconds."""
    since_us = NOW_US - 2 * SECOND_US
    new = explained(body(), state(state="suspect", reason=GAP, suspect_since_us=since_us), predicted())
    first = explained(body(phase="Pending"), state(state="suspect", epoch=0, reason="no state yet"))
    unsound = explained(body(), state(unsound="missing: no trades for 2.1 s"))

    assert [("BTCUSDT", "Suspect")] == why(new)
    assert since_us == new.causes[0].since_us
    assert ("starting", [("BTCUSDT", "AwaitingFirstAnchor")]) == (first.verdict, why(first))
    assert [("BTCUSDT", "missing")] == why(unsound)


def test_a_suspect_state_that_nobody_rebuilds_is_shown_with_the_command() -> None:
    """Requests that no operator has seen, and none at all, are not the same."""
    none = explained(body(symbols=[SUSPECT], phase="Degraded"))
    unseen = explained(body(symbols=[SUSPECT], phase="Degraded"), runs=[run("btc-1")])

    command = 'kubectl reanchor btc -n trading --symbol BTCUSDT --reason "not anchored" --wait'
    assert (True, False) == (command in can(none), command in can(unseen))
    assert "BTCUSDT: nothing: no re-anchor runs or waits" in text_of_explanation(none)
    assert "btc-1 waits for 30 s: no operator has seen it yet: is one running?" in text_of_explanation(unseen)


def test_what_could_not_be_asked_is_named_beside_the_rest() -> None:
    """The rest is explained all the same; pods with the same failure are one line."""
    silent = [
        PodAnswer(f"btc-infer-{number}", "infer", path, error="connection refused")
        for number in range(2)
        for path in ("/predictions/BTCUSDT", "/health/detailed")
    ]
    denied = NotKnown("the last Events", "you may not list events in namespace trading")

    one = explained(body(symbols=[SUSPECT], phase="Degraded"), *silent, not_known=[denied])

    text = text_of_explanation(one)
    assert "  the last Events: you may not list events in namespace trading" in text
    assert "  predictions and health by btc-infer-0, btc-infer-1: connection refused" in text
    assert [("BTCUSDT", "Suspect")] == why(one)


def test_only_events_of_the_last_hour_are_shown() -> None:
    """Newest first, three at most, and none of a sound pipeline."""
    events = [
        {"reason": f"E{age_s}", "message": "words", "eventTime": text_of(NOW_US - age_s * SECOND_US)}
        for age_s in (7200, 3, 1, 4, 2)
    ]

    one = explained(body(symbols=[SUSPECT], phase="Degraded"), events=events)

    shown = [line.split()[1] for line in text_of_explanation(one).splitlines() if ": words" in line]
    assert ["E1:", "E2:", "E3:"] == shown
    assert () == explained(body(), events=events).events


# Statuses as the operator makes them


def as_operated(seen: Observed, *answers: PodAnswer, **others: Any) -> Explanation:
    """Explain what the operator makes of an observation."""
    before = {"lastPredictionAt": text_of(NOW_US - 30 * SECOND_US)}
    status = judged(seen, others.pop("spec", None), status=before, **others)
    metadata = {"name": "btc", "namespace": "market", "generation": 3}
    pipeline = {"metadata": metadata, "spec": {"symbols": ["BTCUSDT"]}, "status": status}
    return explain(facts_of(pipeline, "", NOW_US, answers=answers))


NO_KEY = replace(with_pods(without=Component.INGEST), secrets={"binance-api-key": None})
NO_IMAGE = with_pods(pod(Component.INFER, ready=False, **waiting("ErrImagePull", "not found")), without=Component.INFER)
CRASHES = with_pods(pod(Component.PROCESS, ready=False, **crashed(2, "redis_url: no host")), without=Component.PROCESS)
REFUSED = sound(refusals=(Refusal("Service", "btc-infer", 403, "violates PodSecurity restricted"),))
CASES = [
    (
        NO_KEY,
        "SecretMissing",
        "Secret binance-api-key lacks api-key",
        "kubectl -n market create secret generic binance-api-key --from-file=api-key=FILE",
    ),
    (NO_IMAGE, "ImageUnavailable", "infer: image registry.example/x:1 does not exist", "correct spec.image, or"),
    (CRASHES, "CrashLooping", "ends with exit code 2 repeatedly: redis_url: no host", "correct the setting that it"),
    (REFUSED, "PolicyRefused", "Service btc-infer: violates PodSecurity restricted", "the namespace's Pod Security"),
]


@pytest.mark.parametrize(("seen", "reason", "message", "remedy"), CASES)
def test_a_problem_is_one_cause_with_its_remedy(seen: Observed, reason: str, message: str, remedy: str) -> None:
    """However many conditions report it; the remedy is the operator's, whole, and among what a person can do."""
    one = as_operated(seen)

    assert 1 == [cause.reason for cause in one.causes].count(reason)
    assert (reason, True) == (one.causes[0].reason, message in one.causes[0].message)
    assert can(one)[0].startswith(remedy)
    assert remedy not in one.causes[0].message


def test_a_lost_line_is_no_doubt() -> None:
    """Predictions are sound, and it says so before anything else."""
    lost = sound()
    away = {"btc-ingest-zone-b-0"}
    one = as_operated(replace(lost, pods=tuple(one for one in lost.pods if one["metadata"]["name"] not in away)))

    assert ("degraded", True) == (one.verdict, one.predictions_sound)
    assert "LineLost" in [cause.reason for cause in one.causes]
    assert "predictions are sound" in text_of_explanation(one).splitlines()[0]


def test_a_suspect_state_is_one_cause_for_four_conditions() -> None:
    """Ready, Anchored and InferenceReady all report it, and the prediction does."""
    suspect = stands(state="suspect", reason=GAP, suspect_since_us=NOW_US - 7 * SECOND_US)
    doubtful = predicts(degraded=True, reason=f"suspect: {GAP}")
    plan = ReanchorPlan(
        symbols={"BTCUSDT": SymbolFacts(pending=("btc-1",), throttled=Reason.COOLDOWN, message="cooling")}
    )

    one = as_operated(
        sound(states={"btc-process-0": suspect}, predictions={("btc-infer-0", "BTCUSDT"): doubtful}), plan=plan
    )

    assert [("BTCUSDT", "Suspect")] == why(one)
    assert 7 * SECOND_US >= NOW_US - one.causes[0].since_us >= 6 * SECOND_US
    assert "BTCUSDT: waits: cooling" in text_of_explanation(one)


def test_a_sound_status_is_sound() -> None:
    """Nothing of what the operator writes about a sound pipeline reads as a problem."""
    assert ("sound", ()) == ((one := as_operated(sound())).verdict, one.causes)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"suspend": True}, "Suspended"),
        ({"maintenance": {"enabled": True, "reason": "new disks"}}, "Maintenance"),
    ],
)
def test_a_pipeline_at_rest_is_no_riddle(spec: dict[str, Any], reason: str) -> None:
    """One cause, and the command that ends it."""
    one = as_operated(sound(), spec=spec)

    assert ("at rest", [reason]) == (one.verdict, [cause.reason for cause in one.causes])
    assert can(one)[0].startswith('kubectl -n market patch pp btc --type=merge -p \'{"spec":{')
    assert "nothing: the pipeline is at rest" in text_of_explanation(one)


def test_no_answer_of_a_pod_makes_a_status_worse_than_it_is() -> None:
    """An operator that reaches no pod says Unknown, which is not sound."""
    nobody = sound(states={"btc-process-0": PodResponse(error="refused")})

    one = as_operated(nobody)
    assert ("degraded", None) == (one.verdict, one.predictions_sound)
    assert "Unknown" in [cause.reason for cause in one.causes]
    assert "whether predictions are sound" in [missing.what for missing in one.not_known]


# Whatever comes


_WORDS = st.sampled_from(["", "x", "kubectl; y", "a: b; c", "\x1b[2J", "BTCUSDT: late, clock", "ü" * 700])
_CONDITIONS = st.builds(
    condition,
    st.sampled_from(Condition),
    st.sampled_from(["True", "False", "Unknown"]),
    st.sampled_from(Reason),
    _WORDS,
)
_ANSWERS = st.one_of(
    st.builds(predicted, _WORDS | st.lists(st.sampled_from(list(DOUBTS)), max_size=20).map("; ".join)),
    st.builds(state, state=st.sampled_from(["anchored", "suspect", None]), reason=_WORDS, unsound=_WORDS),
    st.builds(health, st.sampled_from([Component.INGEST, Component.INFER]), _WORDS, _WORDS, _WORDS),
    st.builds(PodAnswer, st.sampled_from(["a", "b"]), st.just("infer"), st.just("/state"), st.none(), _WORDS),
    st.builds(
        PodAnswer,
        st.just("a"),
        st.just("infer"),
        st.sampled_from(["/state", "/predictions/BTCUSDT", "/health/detailed"]),
        st.dictionaries(st.sampled_from(["symbols", "symbol", "ts", "checks", "degraded"]), st.integers() | _WORDS),
    ),
)


@given(
    st.lists(_CONDITIONS, max_size=9, unique_by=lambda one: one["type"]),
    st.lists(_ANSWERS, max_size=12),
    st.sampled_from([*Phase, ""]),
    st.integers(0, 9),
)
def test_whatever_is_known_it_fits_one_screen(
    conditions: list[dict[str, Any]], answers: list[PodAnswer], phase: str, requests: int
) -> None:
    """It never fails, has the verdict first, calls nothing sound that has a cause, and can be written as JSON."""
    runs = [run(f"r{number}", "Pending" if number % 2 else "", message="waits: x") for number in range(requests)]

    one = explained(body(*conditions, symbols=[SUSPECT], phase=str(phase)), *answers, runs=runs)

    lines = text_of_explanation(one).splitlines()
    assert len(lines) <= 48
    assert lines[0].startswith(one.verdict.upper())
    assert not (one.causes and one.verdict == "sound")
    assert one.causes or one.verdict != "degraded"
    assert json.loads(json.dumps(to_json(one)))["verdict"] == one.verdict


def test_the_fields_of_the_json_stay() -> None:
    """Scripts depend on these names."""
    running = run("btc-1", "Running", startedAt=AT)
    last = run("btc-0", "Failed", result="failed", message="500", finishedAt=AT)
    one = to_json(explained(body(symbols=[SUSPECT], phase="Degraded"), predicted("clock: set"), runs=[last, running]))

    expected = (
        "pipeline namespace at symbols verdict predictionsSound since phase ready why beingDone lastReceipts youCan"
    )
    assert [*expected.split(), "runbooks", "notKnown", "events"] == list(one)
    assert ["about", "reason", "message", "since", "evidence", "consequences"] == list(one["why"][0])
    assert {
        "about": "BTCUSDT",
        "state": "running",
        "message": "run 1 for sequence_gap",
        "reanchor": "btc-1",
        "since": AT,
        "next": None,
    } == one["beingDone"][0]
    assert ("btc-0", "failed") == (one["lastReceipts"][0]["reanchor"], one["lastReceipts"][0]["result"])
    assert {"do", "for"} == set(one["youCan"][0])


def test_facts_are_frozen() -> None:
    """An explanation is a function of values."""
    assert Facts(1, "n", "p", ("BTCUSDT",)) == Facts(1, "n", "p", ("BTCUSDT",))

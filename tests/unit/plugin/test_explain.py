"""From facts to an explanation: each verdict, each reason and kind of unsoundness, each health check, alone."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import Component, Condition, Phase
from sheetanchor_operator.plugin.explain.facts import PodAnswer
from sheetanchor_operator.plugin.explain.meanings import CHECKS, DOUBTS, MEANINGS
from sheetanchor_operator.plugin.explain.text import text_of_explanation
from support.explain_parts import (
    OLD,
    SECOND_US,
    SUSPECT,
    body,
    can,
    condition,
    explained,
    health,
    predicted,
    run,
    why,
)
from support.pipeline_parts import NOW_US

# Verdicts


def test_a_sound_pipeline_is_sound_by_what_was_seen() -> None:
    """By the pods' own answers, or by the operator's report of the last minute; nothing is to be done."""
    reported, asked = explained(body()), explained(body(), predicted())

    assert ("sound", "sound") == (reported.verdict, asked.verdict)
    assert ((), (), ()) == (asked.causes, asked.steps, asked.not_known)
    assert "by the operator's report of the last minute" in text_of_explanation(reported)
    assert "by the pods' own answers" in text_of_explanation(asked)
    assert 1 == len(text_of_explanation(asked).splitlines())


@pytest.mark.parametrize(
    ("status", "what"),
    [
        ({"phase": "Running", "lastPredictionAt": OLD}, "whether predictions are sound"),
        ({"phase": "Running", "lastPredictionAt": None}, "whether predictions are sound"),
        ({"phase": "Running", "operator": {"name": "x/y", "seenAt": OLD}}, "whether the status still holds"),
        ({"phase": "Running", "observedGeneration": 2}, "whether the status is about this spec"),
        ({"phase": "", "observedGeneration": None, "conditions": []}, "the pipeline's status"),
    ],
)
def test_what_was_not_seen_has_not_passed(status: dict[str, Any], what: str) -> None:
    """Outdated conditions and predictions that were not observed recently prove nothing."""
    one = explained(body(**status))

    assert ("not known", ()) == (one.verdict, one.causes)
    assert what in [missing.what for missing in one.not_known]


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ((predicted(),), "sound"),
        ((predicted("late: depth by 3 s"),), "degraded"),
        ((predicted(age_s=30),), "degraded"),
        ((PodAnswer("btc-infer-0", "infer", "/predictions/BTCUSDT", error="timed out"),), "not known"),
        ((PodAnswer("btc-infer-0", "infer", "/predictions/BTCUSDT", {"no": "sense"}),), "not known"),
        ((predicted("redis: gone"), predicted(name="btc-infer-1")), "sound"),
    ],
)
def test_pods_answers_count_where_the_status_is_old(answers: tuple[PodAnswer, ...], verdict: str) -> None:
    """The best answer for the newest slot is what a reader gets; a pod that does not answer shows nothing."""
    assert verdict == explained(body(phase="Running", lastPredictionAt=OLD), *answers).verdict


PHASES = {
    Phase.PENDING: "starting",
    Phase.RUNNING: "sound",
    Phase.DEGRADED: "degraded",
    Phase.FAILED: "failed",
    Phase.SUSPENDED: "at rest",
    Phase.MAINTENANCE: "at rest",
    Phase.PAUSED: "at rest",
}


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_its_verdict(phase: Phase) -> None:
    """A phase that is added without one fails here."""
    assert PHASES[phase] == explained(body(phase=str(phase))).verdict


def test_a_missing_pod_is_a_cause_where_nothing_else_is() -> None:
    """If a pipeline is degraded because a pod is missing, the first line shows that, and that predictions are sound."""
    one = explained(body(phase="Degraded", ready="9/10"))

    assert [("pods", "PodsNotReady")] == why(one)
    assert one.predictions_sound
    assert "predictions are sound, 9/10 pods are ready" in text_of_explanation(one)


# Each reason, each kind of unsoundness, each check


KIND_OF = {
    **dict.fromkeys(("Suspended", "Maintenance", "Paused"), (Condition.PAUSED, "True")),
    **dict.fromkeys(("Suspect", "AwaitingFirstAnchor", "Unknown"), (Condition.ANCHORED, "False")),
    **dict.fromkeys(("NoPredictions", "PredictionsDegraded"), (Condition.INFERENCE_READY, "False")),
    **dict.fromkeys(("ZoneLost", "NotSpread"), (Condition.TOPOLOGY_SATISFIED, "False")),
}
ONLY_THROTTLES = {"BackingOff", "Cooldown", "BudgetUsedUp", "ExchangeLimit", "LockHeld", "Disabled"}


@pytest.mark.parametrize("reason", sorted(set(MEANINGS) - ONLY_THROTTLES - {"NotSpread"}))
def test_every_reason_is_explained(reason: str) -> None:
    """Alone it is the only cause, with its time, what follows, and the remedy that the message carries."""
    kind, status = KIND_OF.get(reason, (Condition.INGESTION_HEALTHY, "False"))
    one = explained(body(condition(kind, status, reason), condition(Condition.READY, "False", reason)))

    text = text_of_explanation(one)
    assert [reason] == [cause.reason for cause in one.causes]
    assert MEANINGS[reason].consequence in one.causes[0].consequences
    assert NOW_US - 40 * SECOND_US == one.causes[0].since_us == one.since_us
    assert "DEGRADED since" in text.splitlines()[0]
    assert f"{reason} since" in text
    assert (MEANINGS[reason].carried, "it is so") == ("mend it" in can(one), one.causes[0].message[:8])
    assert MEANINGS[reason].runbook in one.runbooks


def test_what_makes_nothing_worse_yet_is_said_beside_the_verdict() -> None:
    """A pipeline that is not spread over the zones is sound; where it is degraded, that is for another cause."""
    crowded = condition(
        Condition.TOPOLOGY_SATISFIED, "False", "NotSpread", "infer: only in a; it may all go: delete one"
    )
    running = explained(body(crowded, phase="Running"))
    degraded = explained(body(crowded, phase="Degraded", ready="9/10"))

    assert ("sound", True, [("TopologySatisfied", "NotSpread")]) == (
        running.verdict,
        running.predictions_sound,
        why(running),
    )
    assert "notes\n  1. TopologySatisfied: NotSpread" in text_of_explanation(running)
    assert ["it may all go: delete one"] == can(running)
    assert ["PodsNotReady", "NotSpread"] == [cause.reason for cause in degraded.causes]
    assert "degraded" == degraded.verdict


def test_one_zone_is_nothing_to_mend() -> None:
    """Where pods can run in one zone only there is nothing to spread over."""
    single = condition(Condition.TOPOLOGY_SATISFIED, "Unknown", "SingleZone", "nothing to spread over")

    assert ("sound", ()) == ((one := explained(body(single, phase="Running"))).verdict, one.causes)


def test_a_lost_zone_comes_before_what_it_takes_with_it() -> None:
    """Predictions may be sound without it; where they are not, it is the likely cause."""
    lost = condition(Condition.TOPOLOGY_SATISFIED, "False", "ZoneLost", "zone b cannot be reached; check its nodes")
    line = condition(Condition.INGESTION_HEALTHY, "False", "LineLost", "line b is not ready; the others carry")

    spare, doubted = explained(body(lost, line)), explained(body(lost, line, symbols=[SUSPECT]), predicted("late: x"))

    assert (True, ["ZoneLost", "LineLost"]) == (spare.predictions_sound, [cause.reason for cause in spare.causes])
    assert (False, ["ZoneLost", "Suspect", "late", "LineLost"]) == (
        doubted.predictions_sound,
        [cause.reason for cause in doubted.causes],
    )


@pytest.mark.parametrize("reason", sorted(ONLY_THROTTLES))
def test_every_throttle_is_what_is_waited_for(reason: str) -> None:
    """A throttle does not make a state suspect, but delays its rebuild; it comes with the remedy of the runbook."""
    message = "ETHUSDT: other; BTCUSDT: why; kubectl reanchor btc -n trading --force does not wait"
    throttled = condition(Condition.REANCHOR_THROTTLED, "True", reason, message)
    waits = run("btc-1", "Pending", message="waits: why", nextAttemptAt=text_of(NOW_US + 144 * SECOND_US))
    runs = [] if reason == "Disabled" else [waits]

    one = explained(body(throttled, symbols=[SUSPECT]), runs=runs)

    assert [("BTCUSDT", "Suspect")] == why(one)
    assert MEANINGS[reason].runbook in one.runbooks
    forced = "kubectl reanchor btc -n trading --symbol BTCUSDT --force --reason WHY --wait"
    helps = reason in {"Cooldown", "BudgetUsedUp", "Disabled"}
    assert (helps, reason == "ExchangeLimit") == (forced in can(one), any("bans" in step for step in can(one)))
    waiting = "nothing: re-anchoring is disabled" if reason == "Disabled" else "btc-1 waits for 30 s: why; next at"
    assert f"BTCUSDT: {waiting}" in text_of_explanation(one)


@pytest.mark.parametrize("kind", DOUBTS)
def test_every_doubt_is_explained(kind: str) -> None:
    """Where no condition explains it, it is a cause of its own, by a pod's answer and by the condition's words."""
    asked = explained(body(), predicted(f"{kind}: some words"))
    words = f"predictions are marked degraded: BTCUSDT: {kind}"
    reported = explained(body(condition(Condition.INFERENCE_READY, "False", "PredictionsDegraded", words)))

    assert [("BTCUSDT", kind)] == why(asked) == why(reported)
    assert f"1. BTCUSDT: {kind}: some words" in text_of_explanation(asked)
    assert (DOUBTS[kind].consequence,) == asked.causes[0].consequences
    assert DOUBTS[kind].runbook in asked.runbooks


@pytest.mark.parametrize("kind", [kind for kind, one in DOUBTS.items() if one.follows])
def test_a_doubt_that_a_condition_brings_about_is_its_consequence(kind: str) -> None:
    """The condition is the cause; the degraded prediction is not listed as another problem."""
    broken = condition(DOUBTS[kind].follows[0], "False", "ImageUnavailable", "no image; correct spec.image")

    one = explained(body(broken), predicted(f"{kind}: some words"))

    assert ["ImageUnavailable"] == [cause.reason for cause in one.causes]
    assert f"BTCUSDT's newest prediction is degraded: {kind}: some words" in one.causes[0].consequences


CHECKED = [(component, name) for component, checks in CHECKS.items() for name, one in checks.items() if one.text]


@pytest.mark.parametrize(("component", "name"), CHECKED)
def test_a_failing_check_explains_what_rests_on_it(component: Component, name: str) -> None:
    """A failing check is evidence for a condition or a degraded state; alone it only costs redundancy."""
    meaning = CHECKS[component][name]
    answer = health(component, name, "unhealthy", "connection refused")
    doubted = explained(body(), predicted(f"{meaning.doubts[0]}: words"), answer)
    alone, healthy = (
        explained(body(), predicted(), answer),
        explained(body(), predicted(), health(component, name, "healthy")),
    )

    assert (f"btc-{component}-0: {meaning.text}: connection refused",) == doubted.causes[0].evidence
    assert ([(f"btc-{component}-0", name)], True) == (why(alone), alone.predictions_sound)
    assert "sound" == healthy.verdict
    for kind in meaning.explains:
        one = explained(body(condition(kind, "False", "PodsNotReady", "some are away")), answer)
        assert 1 == len(one.causes[0].evidence)


def test_what_another_version_reports_is_shown_as_it_is() -> None:
    """A reason, condition or kind that this version does not know is neither hidden nor an error."""
    unknown = {**condition(Condition.READY, "False", "Haunted", "by ghosts; call somebody"), "type": "Exorcised"}

    one = explained(body(unknown), predicted("spooky: action"))

    assert [("Exorcised", "Haunted"), ("BTCUSDT", "spooky")] == why(one)
    assert "by ghosts; call somebody" in text_of_explanation(one)
    assert 2 == text_of_explanation(one).count("update it")


def test_a_lost_line_does_not_prove_that_predictions_are_sound() -> None:
    """Lost redundancy is the only known problem, but no sound prediction was observed recently."""
    lost = condition(Condition.INGESTION_HEALTHY, "False", "LineLost", "line b is not ready; the others carry")

    one = explained(body(lost, lastPredictionAt=OLD))

    assert ("degraded", None) == (one.verdict, one.predictions_sound)
    assert "whether predictions are sound is not known" in text_of_explanation(one)
    assert "whether predictions are sound" in [missing.what for missing in one.not_known]


@pytest.mark.parametrize("status", ["healthy", "connected", "loaded"])
def test_parts_of_an_ingestor_have_words_of_their_own(status: str) -> None:
    """Each of them is sound, but for a line that lacks a stream: it is connected, and its message says what lacks."""
    sound = explained(body(phase="Running"), health(Component.INGEST, "sbe_websocket", status))
    lacking = explained(body(phase="Running"), health(Component.INGEST, "sbe_websocket", status, "nothing comes of x"))

    assert ("sound", ()) == (sound.verdict, sound.causes)
    assert [("btc-ingest-0", "sbe_websocket")] == why(lacking)


def test_a_check_without_a_status_has_not_passed() -> None:
    """What cannot be read counts as nothing, not as sound."""
    assert [("btc-ingest-0", "sbe_decoder")] == why(explained(body(), health(Component.INGEST, "sbe_decoder", "")))

"""The explanation of a pipeline: verdict, causes, what is being done, what the user can do, what is not known. Pure.

Sound is only what was seen to be: conditions that an operator keeps up to date and, for every symbol, a prediction that
is not degraded, by a pod's own answer of this moment or by the operator's report of the last minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import Condition, Phase, Reason
from sheetanchor_operator.plugin.explain.facts import EventFact, Facts, NotKnown, RunFact
from sheetanchor_operator.plugin.explain.meanings import MEANINGS
from sheetanchor_operator.plugin.explain.under_way import Activity, activities_of, condition, receipts_of, throttle
from sheetanchor_operator.plugin.explain.why import BLOCKS, NOTE, PREDICTION_AGE_MAX_US, SPARE, Cause, causes_of

SOUND, DEGRADED, FAILED, STARTING, AT_REST, NOT_KNOWN = (
    "sound",
    "degraded",
    "failed",
    "starting",
    "at rest",
    "not known",
)

STATUS_AGE_MAX_US: Final = 60_000_000
"""The time of the newest sound prediction is written every 15 s, by reconciles that are up to 11 s apart."""

OPERATOR_AGE_MAX_US: Final = 300_000_000
"""The operator renews its claim every 120 s; twice that and a minute has passed when it does nothing any more."""

EVENT_AGE_MAX_US: Final = 3_600_000_000
EVENTS_SHOWN: Final = 3

STATUS_OLD: Final = "whether the status still holds"
AT_REST_PHASES: Final[frozenset[str]] = frozenset({Phase.SUSPENDED, Phase.MAINTENANCE, Phase.PAUSED})

FORCE_HELPS: Final[frozenset[str]] = frozenset({Reason.COOLDOWN, Reason.BUDGET_USED_UP})
"""Throttles that the runbook lets a person go past. A forced run waits for another one's lock all the same, and
keeps to the exchange's limit."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a person can do.

    Attributes:
        do: A command, or what to do in words.
        about: Reason that it is for.
    """

    do: str
    about: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a pipeline is as it is.

    Attributes:
        verdict: sound, degraded, failed, starting, at rest or not known.
        since_us: Since when; 0 if that is not known.
        predictions_sound: Whether predictions are sound, whatever else is wrong; None if that was not seen.
        causes: What blocks comes first.
        runbooks: Pages of docs/runbooks/, without `.md`, in the order of the causes.
    """

    facts: Facts
    verdict: str
    since_us: int
    predictions_sound: bool | None
    causes: tuple[Cause, ...]
    activities: tuple[Activity, ...]
    receipts: tuple[RunFact, ...]
    steps: tuple[Step, ...]
    runbooks: tuple[str, ...]
    not_known: tuple[NotKnown, ...]
    events: tuple[EventFact, ...]


def explain(facts: Facts) -> Explanation:
    """Explain a pipeline from what is known about it."""
    causes, activities = causes_of(facts), activities_of(facts)
    predictions_sound = _predictions_sound(facts, causes)
    verdict = _verdict(facts, causes, predictions_sound)
    not_known = [*_outdated(facts), *([_UNSEEN] if predictions_sound is None else []), *facts.not_known]
    recent = [one for one in facts.events if facts.now_us - one.at_us <= EVENT_AGE_MAX_US]
    return Explanation(
        facts=facts,
        verdict=verdict,
        since_us=_since(facts, causes),
        predictions_sound=predictions_sound,
        causes=causes,
        activities=activities,
        receipts=receipts_of(facts),
        steps=tuple(_distinct(_steps(facts, causes, activities))),
        runbooks=tuple(dict.fromkeys(filter(None, _runbooks(facts, causes)))),
        not_known=tuple(not_known),
        events=tuple(recent[-EVENTS_SHOWN:]) if verdict != SOUND else (),
    )


_UNSEEN: Final = NotKnown(
    "whether predictions are sound",
    "no pod's answer and no report of the last minute shows it",
)


def _predictions_sound(facts: Facts, causes: tuple[Cause, ...]) -> bool | None:
    """Say whether predictions are sound, None if that was not observed recently."""
    blocking = {one.reason for one in causes if one.group < SPARE}
    if blocking:
        return None if blocking == {Reason.UNKNOWN} else False
    seen = facts.judged and not _outdated(facts) and all(_is_seen_sound(facts, symbol) for symbol in facts.symbols)
    return True if seen else None


def _verdict(facts: Facts, causes: tuple[Cause, ...], predictions_sound: bool | None) -> str:
    if facts.phase in AT_REST_PHASES:
        return AT_REST
    if facts.phase == Phase.FAILED:
        return FAILED
    if facts.phase == Phase.PENDING:
        return STARTING
    if any(one.group != NOTE for one in causes):
        return DEGRADED
    return SOUND if predictions_sound else NOT_KNOWN


def _is_seen_sound(facts: Facts, symbol: str) -> bool:
    """Say whether a symbol's newest prediction was seen not to be degraded; a degraded or old one is a cause."""
    served = [one for one in facts.predictions if one.symbol == symbol]
    if any(not one.degraded and facts.now_us - one.at_us <= PREDICTION_AGE_MAX_US for one in served):
        return True
    return bool(facts.last_sound_us) and facts.now_us - facts.last_sound_us <= STATUS_AGE_MAX_US


def _outdated(facts: Facts) -> list[NotKnown]:
    """Name why the status may be outdated; empty if nothing indicates that."""
    if not facts.judged:
        why = "no operator has written one: does one run that watches this namespace?"
        return [NotKnown("the pipeline's status", why)]
    found = []
    if facts.judged < facts.generation:
        why = f"the operator has not judged generation {facts.generation} of it yet: the status is about {facts.judged}"
        found.append(NotKnown("whether the status is about this spec", why))
    if facts.operator_seen_us and facts.now_us - facts.operator_seen_us > OPERATOR_AGE_MAX_US:
        why = f"the operator last renewed its claim at {text_of(facts.operator_seen_us)}: its status may be old"
        found.append(NotKnown(STATUS_OLD, why))
    return found


def _since(facts: Facts, causes: tuple[Cause, ...]) -> int:
    """Give since when it is as it is: Ready's change where it does not hold, else the earliest cause that blocks."""
    ready = condition(facts, Condition.READY)
    if facts.whole and ready.status == "False" and ready.since_us:
        return ready.since_us
    blocking = [one.since_us for one in causes if one.since_us and one.group == BLOCKS]
    return min(blocking or [one.since_us for one in causes if one.since_us], default=0)


# What a person can do


def _steps(facts: Facts, causes: Iterable[Cause], activities: tuple[Activity, ...]) -> Iterator[Step]:
    for cause in causes:
        if cause.remedy:
            yield Step(cause.remedy, cause.reason)
        for command in cause.commands:
            yield Step(_filled(facts, command), cause.reason)
    for activity in activities:
        yield from _steps_of(facts, activity)
    if _outdated(facts):
        yield Step(_filled(facts, "kubectl -n {namespace} describe pp {name}"), "the operator")


def _steps_of(facts: Facts, activity: Activity) -> Iterator[Step]:
    request = f"kubectl reanchor {facts.name} -n {facts.namespace} --symbol {activity.about}"
    throttled = throttle(facts)
    if activity.state == "running":
        yield Step(f"kubectl -n {facts.namespace} describe ra {activity.reanchor}", Reason.REANCHOR_RUNNING)
    elif activity.state == "none":
        yield Step(f'{request} --reason "not anchored" --wait', Reason.SUSPECT)
    elif activity.state == "blocked":
        yield Step("set spec.reanchor.enabled to true", Reason.DISABLED)
        yield Step(f"{request} --force --reason WHY --wait", Reason.DISABLED)
    elif activity.state == "waiting" and throttled is not None:
        if throttled.reason in FORCE_HELPS:
            yield Step(f"{request} --force --reason WHY --wait", throttled.reason)
        elif throttled.reason == Reason.EXCHANGE_LIMIT:
            yield Step("wait: the exchange bans an address that does not", throttled.reason)
        elif throttled.reason in MEANINGS:
            for command in MEANINGS[throttled.reason].commands:
                yield Step(_filled(facts, command), throttled.reason)


def _filled(facts: Facts, command: str) -> str:
    return command.format(name=facts.name, namespace=facts.namespace)


def _distinct(steps: Iterable[Step]) -> list[Step]:
    return list({one.do: one for one in reversed(list(steps))}.values())[::-1]


def _runbooks(facts: Facts, causes: Iterable[Cause]) -> Iterator[str]:
    for cause in causes:
        yield cause.runbook
    throttled = throttle(facts)
    if throttled is not None and throttled.reason in MEANINGS:
        yield MEANINGS[throttled.reason].runbook
    if any(one.what == STATUS_OLD for one in _outdated(facts)):
        yield "SheetAnchorOperatorDown"


# JSON


def to_json(one: Explanation) -> dict[str, Any]:
    """Render for programs: the names of the fields stay, what is not known is null."""
    facts = one.facts
    return {
        "pipeline": facts.name,
        "namespace": facts.namespace,
        "at": text_of(facts.now_us),
        "symbols": list(facts.symbols),
        "verdict": one.verdict,
        "predictionsSound": one.predictions_sound,
        "since": _time(one.since_us),
        "phase": facts.phase or None,
        "ready": facts.ready or None,
        "why": [_cause_json(cause) for cause in one.causes],
        "beingDone": [_activity_json(activity) for activity in one.activities],
        "lastReceipts": [_receipt_json(receipt) for receipt in one.receipts],
        "youCan": [{"do": step.do, "for": step.about} for step in one.steps],
        "runbooks": list(one.runbooks),
        "notKnown": [{"what": missing.what, "why": missing.why} for missing in one.not_known],
        "events": [
            {"at": _time(event.at_us), "type": event.type, "reason": event.reason, "message": event.message}
            for event in one.events
        ],
    }


def _time(at_us: int) -> str | None:
    return text_of(at_us) if at_us else None


def _cause_json(cause: Cause) -> dict[str, Any]:
    return {
        "about": cause.about,
        "reason": cause.reason,
        "message": cause.message,
        "since": _time(cause.since_us),
        "evidence": list(cause.evidence),
        "consequences": list(cause.consequences),
    }


def _activity_json(activity: Activity) -> dict[str, Any]:
    return {
        "about": activity.about or None,
        "state": activity.state,
        "message": activity.message,
        "reanchor": activity.reanchor or None,
        "since": _time(activity.since_us),
        "next": _time(activity.next_us),
    }


def _receipt_json(run: RunFact) -> dict[str, Any]:
    return {
        "reanchor": run.name,
        "symbol": run.symbol,
        "phase": run.phase,
        "result": run.result or None,
        "finishedAt": _time(run.finished_us),
        "epochBefore": run.epochs[0] or None,
        "epochAfter": run.epochs[1] or None,
        "message": run.message,
    }

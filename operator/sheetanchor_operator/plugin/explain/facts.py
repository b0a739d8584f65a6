"""What is known about a pipeline at one moment, as values: from its objects and from what its pods answered. Pure.

Any program may listen where a pod should, and an operator of another version may have written the status: what cannot
be read counts as missing, and no text is longer than a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor.runtime.plain_text import one_line
from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.names import COMPONENT_LABEL, Component

Object = Mapping[str, Any]

LINE_LENGTH_MAX: Final = 600
NUMBER_END: Final = 4_000_000_000_000_000
"""µs since 1970 in the year 2096; epochs and terms stay far below."""

STATE_PATH: Final = "/state"
HEALTH_PATH: Final = "/health/detailed"
PREDICTION_PATH: Final = "/predictions/"


@dataclass(frozen=True, slots=True)
class ConditionFact:
    """A condition of the pipeline; `since_us` is when its status last changed."""

    type: str
    status: str
    reason: str
    message: str
    since_us: int


@dataclass(frozen=True, slots=True)
class SymbolFact:
    """The state of a trading pair, by the pipeline's status or by one processor.

    Attributes:
        state: anchored, suspect or unknown.
        since_us: Since when it is suspect; 0 if it is not, or if that is not known.
        unsound: Why it is not sound though not suspect, as `kind: text; kind: text`; only a processor reports it.
        active: Whether the processor that reports it writes the state.
        pod: The processor, "" for the status.
    """

    name: str
    state: str
    reason: str = ""
    epoch: int = 0
    since_us: int = 0
    unsound: str = ""
    active: bool = False
    pod: str = ""


@dataclass(frozen=True, slots=True)
class PredictionFact:
    """The newest prediction of a trading pair that a pod serves; `at_us` is its slot, 0 if that cannot be read."""

    pod: str
    symbol: str
    at_us: int
    degraded: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CheckFact:
    """A health check of a pod; a sound one has one of `meanings.SOUND_CHECKS` as its status, and no message."""

    pod: str
    component: str
    name: str
    status: str
    message: str


@dataclass(frozen=True, slots=True)
class RunFact:
    """A ReAnchor and how far it is; times are 0 where they are not known.

    Attributes:
        phase: Pending, Running, Succeeded, Failed or Skipped; "" while no operator has seen it.
        next_us: When the next run begins at the earliest.
    """

    name: str
    symbol: str
    phase: str
    trigger: str
    reason: str
    message: str
    result: str
    attempts: int
    created_us: int
    started_us: int
    finished_us: int
    next_us: int
    epochs: tuple[int, int]
    answered_by: str

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.phase in ("Succeeded", "Failed", "Skipped")


@dataclass(frozen=True, slots=True)
class EventFact:
    """An Event about the pipeline."""

    at_us: int
    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class NotKnown:
    """Something that could not be checked, and so has not passed."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What a pod answered to a question.

    Attributes:
        path: The question, for instance `/state`.
        body: The parsed JSON; None when there was no answer.
        error: Why there was none.
    """

    pod: str
    component: str
    path: str
    body: Object | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known at a moment.

    Attributes:
        now_us: The moment, by this machine's clock.
        symbols: Trading pairs to explain.
        judged: Generation of the spec that the status describes; 0 if there is no status.
        last_sound_us: Slot of the newest prediction that was not degraded, by the status; 0 if there was none.
        operator_seen_us: When the operator last renewed its claim; 0 if it never did.
        runs: Its ReAnchors, oldest first.
        events: Newest last.
    """

    now_us: int
    namespace: str
    name: str
    symbols: tuple[str, ...]
    whole: bool = True
    generation: int = 0
    judged: int = 0
    phase: str = ""
    ready: str = ""
    last_sound_us: int = 0
    operator_seen_us: int = 0
    conditions: tuple[ConditionFact, ...] = ()
    states: tuple[SymbolFact, ...] = ()
    runs: tuple[RunFact, ...] = ()
    events: tuple[EventFact, ...] = ()
    reports: tuple[SymbolFact, ...] = ()
    predictions: tuple[PredictionFact, ...] = ()
    checks: tuple[CheckFact, ...] = ()
    not_known: tuple[NotKnown, ...] = ()


def facts_of(
    pipeline: Object,
    symbol: str,
    now_us: int,
    *,
    runs: Iterable[Object] = (),
    events: Iterable[Object] = (),
    answers: Sequence[PodAnswer] = (),
    not_known: Iterable[NotKnown] = (),
) -> Facts:
    """Read the facts.

    Args:
        pipeline: The object.
        symbol: The only trading pair to explain, "" for all.
        now_us: The time.
        runs: Its ReAnchors, oldest first.
        events: Events about it.
        answers: What its pods answered.
        not_known: What could not be asked.
    """
    metadata, status = pipeline["metadata"], _mapping(pipeline.get("status"))
    symbols = (symbol,) if symbol else tuple(pipeline["spec"]["symbols"])
    return Facts(
        now_us=now_us,
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata["name"]),
        symbols=symbols,
        whole=not symbol,
        generation=_number(metadata.get("generation")),
        judged=_number(status.get("observedGeneration")),
        phase=_text(status.get("phase")),
        ready=_text(status.get("ready")),
        last_sound_us=_time(status.get("lastPredictionAt")),
        operator_seen_us=_time(_mapping(status.get("operator")).get("seenAt")),
        conditions=tuple(map(_condition, _mappings(status.get("conditions")))),
        states=tuple(one for one in map(_state, _mappings(status.get("symbols"))) if one.name in symbols),
        runs=tuple(one for one in map(_run, runs) if one.symbol in symbols),
        events=tuple(sorted(map(_event, events), key=lambda one: one.at_us)),
        reports=tuple(one for answer in answers for one in _reports(answer) if one.name in symbols),
        predictions=tuple(one for answer in answers for one in _predictions(answer) if one.symbol in symbols),
        checks=tuple(one for answer in answers for one in _checks(answer)),
        not_known=(*not_known, *_unanswered(answers)),
    )


def _text(value: Any) -> str:
    return "" if value is None else one_line(str(value), LINE_LENGTH_MAX)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < NUMBER_END else 0


def _time(value: Any) -> int:
    try:
        return micros_of(value) if isinstance(value, str) else 0
    except (ValueError, TypeError):  # TypeError: a time without a zone
        return 0


def _mapping(value: Any) -> Object:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Object]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, Sequence) else []


def _condition(one: Object) -> ConditionFact:
    return ConditionFact(
        type=_text(one.get("type")),
        status=_text(one.get("status")),
        reason=_text(one.get("reason")),
        message=_text(one.get("message")),
        since_us=_time(one.get("lastTransitionTime")),
    )


def _state(one: Object) -> SymbolFact:
    return SymbolFact(
        name=_text(one.get("name")),
        state=_text(one.get("state")) or "unknown",
        reason=_text(one.get("reason")),
        epoch=_number(one.get("epoch")),
        since_us=_time(one.get("suspectSince")),
    )


def _run(one: Object) -> RunFact:
    metadata, spec, status = one["metadata"], _mapping(one.get("spec")), _mapping(one.get("status"))
    return RunFact(
        name=str(metadata["name"]),
        symbol=_text(spec.get("symbol")),
        phase=_text(status.get("phase")),
        trigger=_text(spec.get("trigger")),
        reason=_text(spec.get("reason")),
        message=_text(status.get("message")),
        result=_text(status.get("result")),
        attempts=_number(status.get("attempts")),
        created_us=_time(metadata.get("creationTimestamp")),
        started_us=_time(status.get("startedAt")),
        finished_us=_time(status.get("finishedAt")),
        next_us=_time(status.get("nextAttemptAt")),
        epochs=(_number(status.get("epochBefore")), _number(status.get("epochAfter"))),
        answered_by=_text(status.get("answeredBy")),
    )


def _event(one: Object) -> EventFact:
    """Read an Event of `v1`; those of `events.k8s.io` have their time in another field."""
    times = (_mapping(one.get("series")).get("lastObservedTime"), one.get("lastTimestamp"), one.get("eventTime"))
    created = _mapping(one.get("metadata")).get("creationTimestamp")
    return EventFact(
        at_us=next((at_us for at_us in map(_time, (*times, created)) if at_us), 0),
        type=_text(one.get("type")),
        reason=_text(one.get("reason")),
        message=_text(one.get("message")),
    )


def _reports(answer: PodAnswer) -> Iterable[SymbolFact]:
    if answer.body is None or answer.path != STATE_PATH:
        return
    for name, one in _mapping(answer.body.get("symbols")).items():
        report = _mapping(one)
        state = report.get("state")
        yield SymbolFact(
            name=str(name),
            state=state if state in ("anchored", "suspect") else "unknown",
            reason=_text(report.get("reason")),
            epoch=_number(report.get("epoch")),
            since_us=_number(report.get("suspect_since_us")),
            unsound=_text(report.get("unsound")),
            active=bool(report.get("active")),
            pod=answer.pod,
        )


def _predictions(answer: PodAnswer) -> Iterable[PredictionFact]:
    if answer.body is None or not answer.path.startswith(PREDICTION_PATH):
        return
    yield PredictionFact(
        pod=answer.pod,
        symbol=_text(answer.body.get("symbol")),
        at_us=_number(answer.body.get("ts")),
        degraded=bool(answer.body.get("degraded")),
        reason=_text(answer.body.get("reason")),
    )


def _checks(answer: PodAnswer) -> Iterable[CheckFact]:
    if answer.body is None or answer.path != HEALTH_PATH:
        return
    for name, one in _mapping(answer.body.get("checks")).items():
        check = _mapping(one)
        yield CheckFact(
            answer.pod, answer.component, str(name), _text(check.get("status")), _text(check.get("message"))
        )


def _unanswered(answers: Iterable[PodAnswer]) -> Iterable[NotKnown]:
    """Name what pods did not answer, each error of a component once."""
    silent: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        if answer.body is None:
            pods = silent.setdefault((answer.component, answer.error), [])
            if answer.pod not in pods:
                pods.append(answer.pod)
    for (component, error), pods in silent.items():
        yield NotKnown(f"{_QUESTIONS.get(component, 'health')} by {', '.join(pods)}", error)


_QUESTIONS: Final[Mapping[str, str]] = {
    Component.PROCESS: "the state",
    Component.INFER: "predictions and health",
    Component.INGEST: "the health of the line",
}
"""What a component is asked for."""


def component_of(pod: Object) -> str:
    """Give the component that a pod belongs to, "" if it does not say."""
    return str(_mapping(_mapping(pod.get("metadata")).get("labels")).get(COMPONENT_LABEL, ""))

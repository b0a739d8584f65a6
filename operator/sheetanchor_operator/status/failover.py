"""A pipeline's move in its status: what is requested, what is known of it, and what is written. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sheetanchor.errors import shortened
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.timestamps import micros_of, text_of
from sheetanchor_operator.names import (
    ANY_ZONE,
    EVACUATE_ANNOTATION,
    SWITCHOVER_ANNOTATION,
    Component,
    EventReason,
    FailoverKind,
    FailoverPhase,
    FailoverStep,
    selector_of,
)
from sheetanchor_operator.observation import Observed, symbols_in, whole_number
from sheetanchor_operator.status.problems import is_finished
from sheetanchor_operator.status.workload_health import WorkloadHealth
from sheetanchor_operator.status.zone_report import LOST
from sheetanchor_operator.zones.failover import begin, give_up, proceed
from sheetanchor_operator.zones.failover_record import (
    Action,
    Failed,
    FailoverRecord,
    ProcessorFacts,
    Request,
    Situation,
    StepRecord,
)

REQUEST_LENGTH_MAX: Final = 200
TEXT_MAX: Final = 500
STEPS_MAX: Final = 20
MOVED_AGAIN_US: Final = 60_000_000
"""A writer or master that goes back into an evacuated zone is moved again, but not all the time."""

EVACUATES: Final = (Component.INFER, Component.PROCESS)
"""What leaves an evacuated zone: its line and its Redis replica may go down with it."""


@dataclass(frozen=True, slots=True)
class FailoverPlan:
    """What a reconcile writes about moves, and does.

    Attributes:
        record: The newest move, None if there was none.
        last_switchover: Last value of the annotation for switchovers that was acted on.
        evacuated: Zone that pods are kept out of, "" for none.
    """

    record: FailoverRecord | None = None
    last_switchover: str = ""
    evacuated: str = ""
    action: Action | None = None

    @property
    def running(self) -> bool:
        """Whether a move goes on."""
        return self.record is not None and self.record.running

    def fields(self) -> dict[str, Any]:
        """Give the fields of the status; None for those that it has not."""
        return {
            "failover": None if self.record is None else _written(self.record),
            "lastSwitchoverRequest": self.last_switchover or None,
            "evacuatedZone": self.evacuated or None,
        }


def request_of(pipeline: Pipeline, kind: FailoverKind) -> Request | None:
    """Read what an annotation asks for: `ZONE`, or `ZONE/ID` so that the same zone can be asked for again."""
    name = SWITCHOVER_ANNOTATION if kind is FailoverKind.SWITCHOVER else EVACUATE_ANNOTATION
    value = pipeline.annotations.get(name, "").strip()[:REQUEST_LENGTH_MAX]
    if not value:
        return None
    zone = value.partition("/")[0]
    return Request(kind, value, "" if zone == ANY_ZONE and kind is FailoverKind.SWITCHOVER else zone)


def plan_failover(
    pipeline: Pipeline, observed: Observed, health: WorkloadHealth, failed: Failed | None = None
) -> FailoverPlan:
    """Decide what comes next about moves of a pipeline.

    Args:
        pipeline: The pipeline; its status says where a move stands.
        observed: What is there.
        health: How its workloads stand.
        failed: An action that has failed since the last decision.
    """
    status = pipeline.status
    record = _read(status.get("failover"))
    last, evacuated = str(status.get("lastSwitchoverRequest", "")), pipeline.evacuated_zone
    before = FailoverPlan(record, last, evacuated)
    wanted = request_of(pipeline, FailoverKind.EVACUATION)
    if pipeline.paused:
        return before
    now = situation_of(pipeline, observed, health)
    if wanted is None or wanted.zone != evacuated:
        evacuated = ""
    if record is not None and record.running:
        return _go_on(replace(before, evacuated=evacuated), record, now, wanted, failed)
    asked = request_of(pipeline, FailoverKind.SWITCHOVER)
    if asked is not None and asked.value != last:
        return FailoverPlan(begin(asked, now), asked.value, evacuated)
    if wanted is None or not _is_due(wanted, record, evacuated, now):
        return FailoverPlan(record, last, evacuated)
    begun = begin(wanted, now)
    return FailoverPlan(record if _says_the_same(begun, record) else begun, last, evacuated)


def _go_on(
    before: FailoverPlan, record: FailoverRecord, now: Situation, wanted: Request | None, failed: Failed | None
) -> FailoverPlan:
    evacuates = record.kind is FailoverKind.EVACUATION
    if evacuates and (wanted is None or wanted.value != record.request):
        return replace(before, record=give_up(record, now, f"the annotation {EVACUATE_ANNOTATION} has changed"))
    decision = proceed(record, now, failed)
    after = decision.record or record
    evacuated = before.evacuated
    if evacuates and after.step is FailoverStep.READERS:
        evacuated = record.from_zone
    if evacuates and after.phase is FailoverPhase.ABORTED:
        evacuated = ""  # pods that find no place elsewhere are better off where they were
    return replace(before, record=after, evacuated=evacuated, action=decision.action)


def _is_due(wanted: Request, record: FailoverRecord | None, evacuated: str, now: Situation) -> bool:
    """Say whether an evacuation has to be begun: it was not yet, or writer or master have gone back since."""
    mine = record is not None and (record.kind, record.request) == (FailoverKind.EVACUATION, wanted.value)
    if record is not None and mine and record.phase is FailoverPhase.ABORTED:
        return False
    if evacuated != wanted.zone:
        return True
    ended_us = record.steps[-1].finished_us if record is not None and record.steps else 0
    back = now.master_zone == wanted.zone or any(now.zone_of(pod) == wanted.zone for pod in now.writers.values())
    return back and now.now_us - ended_us > MOVED_AGAIN_US


def _says_the_same(begun: FailoverRecord, record: FailoverRecord | None) -> bool:
    """Say whether a request was refused before for the same reason."""
    return record is not None and begun.phase is FailoverPhase.REFUSED and _written(begun) == _written(record)


def situation_of(pipeline: Pipeline, observed: Observed, health: WorkloadHealth) -> Situation:
    """Give what matters of a pipeline for moving it."""
    zones = {
        pod["metadata"]["name"]: observed.node_zones.get((pod.get("spec") or {}).get("nodeName", ""), "")
        for pod in observed.pods
    }
    verdicts = observed.zone_verdicts or {}
    reported = max((symbol.term for symbol in health.symbols), default=0)
    record = _read(pipeline.status.get("failover"))
    counts = [health.counts[component] for component in EVACUATES]
    newest, sound = _slots(pipeline, observed)
    return Situation(
        now_us=observed.now_us,
        symbols=pipeline.spec.symbols,
        zones=observed.zones if observed.usable_zones is None else observed.usable_zones,
        lost=frozenset(zone for zone, (one, _) in verdicts.items() if one in LOST),
        term=max(reported, whole_number(pipeline.status.get("term")) or 0, record.term if record else 0),
        reported_term=reported,
        processors=_processors(observed, zones),
        writers={symbol.name: symbol.active for symbol in health.symbols if symbol.active},
        managed=health.managed,
        master=health.master,
        master_zone=zones.get(health.master, ""),
        leavers=_leavers(pipeline, observed, zones),
        whole=all(count.ready == count.wanted for count in counts),
        newest_slot=newest,
        sound_slot=sound,
        at_rest=_at_rest(pipeline),
    )


def _at_rest(pipeline: Pipeline) -> str:
    if pipeline.spec.maintenance.enabled:
        return "spec.maintenance.enabled is true"
    return "spec.suspend is true" if pipeline.spec.suspend else ""


def _processors(observed: Observed, zones: Mapping[str, str]) -> tuple[ProcessorFacts, ...]:
    found = []
    for pod, answer in sorted(observed.states.items()):
        if answer.body is None:
            continue
        symbols = {name: one for name, one in symbols_in(answer).items() if isinstance(one, Mapping)}
        found.append(
            ProcessorFacts(
                pod,
                zones.get(pod, ""),
                str(answer.body.get("replica", "")),
                frozenset(n for n, one in symbols.items() if one.get("connected") and one.get("state") != "unknown"),
                frozenset(name for name, one in symbols.items() if one.get("active")),
            )
        )
    return tuple(found)


def _leavers(pipeline: Pipeline, observed: Observed, zones: Mapping[str, str]) -> Mapping[str, int]:
    pods = [pod for component in EVACUATES for pod in observed.pods_of(selector_of(pipeline.name, component))]
    return Counter(zones[pod["metadata"]["name"]] for pod in pods if not is_finished(pod))


def _slots(pipeline: Pipeline, observed: Observed) -> tuple[int, int]:
    """Give the newest slot of any symbol, and the newest that is sound for every symbol."""
    newest, sound = 0, dict.fromkeys(pipeline.spec.symbols, 0)
    for (_, symbol), answer in observed.predictions.items():
        slot = whole_number((answer.body or {}).get("slot")) or 0
        newest = max(newest, slot)
        if answer.body is not None and symbol in sound and not answer.body.get("degraded"):
            sound[symbol] = max(sound[symbol], slot)
    return newest, min(sound.values(), default=0)


# As it is written


def _written(record: FailoverRecord) -> dict[str, Any]:
    row = {
        "request": record.request,
        "kind": str(record.kind),
        "phase": str(record.phase),
        "step": str(record.step),
        "fromZone": record.from_zone or None,
        "toZone": record.to_zone or None,
        "term": record.term or None,
        "target": record.target or None,
        "attempts": record.attempts or None,
        "rounds": record.rounds or None,
        "afterSlot": record.after_slot or None,
        "message": shortened(record.message, TEXT_MAX) or None,
        "steps": [_written_step(one) for one in record.steps[-STEPS_MAX:]] or None,
    }
    return {name: value for name, value in row.items() if value is not None}


def _written_step(step: StepRecord) -> dict[str, Any]:
    row = {
        "name": str(step.name),
        "startedAt": text_of(step.started_us),
        "finishedAt": text_of(step.finished_us) if step.finished_us else None,
        "message": shortened(step.message, TEXT_MAX) or None,
    }
    return {name: value for name, value in row.items() if value is not None}


def _read(row: Mapping[str, Any] | None) -> FailoverRecord | None:
    """Read a record; one that another version has written and this one cannot read counts as none."""
    if not row:
        return None
    try:
        steps = tuple(
            StepRecord(
                FailoverStep(one["name"]),
                micros_of(one["startedAt"]),
                micros_of(one.get("finishedAt")),
                one.get("message", ""),
            )
            for one in row.get("steps", ())
        )
        record = FailoverRecord(
            row["request"],
            FailoverKind(row["kind"]),
            FailoverPhase(row["phase"]),
            FailoverStep(row["step"]),
            from_zone=row.get("fromZone", ""),
            to_zone=row.get("toZone", ""),
            term=int(row.get("term", 0)),
            target=row.get("target", ""),
            attempts=int(row.get("attempts", 0)),
            rounds=int(row.get("rounds", 0)),
            after_slot=int(row.get("afterSlot", 0)),
            message=row.get("message", ""),
            steps=steps,
        )
    except (KeyError, TypeError, ValueError):
        return None
    return None if record.running and not steps else record


def finished_steps(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Name the steps that have ended between two statuses, each with its seconds."""
    known = {(one.get("name"), one.get("startedAt")) for one in _rows(before) if one.get("finishedAt")}
    return [
        (str(one["name"]), (micros_of(one["finishedAt"]) - micros_of(one["startedAt"])) / 1e6)
        for one in _rows(after)
        if one.get("finishedAt") and (one.get("name"), one.get("startedAt")) not in known
    ]


def _rows(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((status.get("failover") or {}).get("steps") or ())


def failover_events(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[bool, EventReason, str]]:
    """Give the Events that a change of a status is worth about moves: whether it warns, reason and text."""
    was, now = before.get("failover") or {}, after.get("failover") or {}
    report: list[tuple[bool, EventReason, str]] = []
    what, message = f"{now.get('kind')} {now.get('request')!r}", now.get("message", "")
    first = (_rows(after) or [{}])[0].get("startedAt")
    if now.get("phase") == FailoverPhase.RUNNING and first != (_rows(before) or [{}])[0].get("startedAt"):
        report.append((False, EventReason.FAILOVER_STARTED, f"{what}: {message}"))
    ended = {(one["name"], one["startedAt"]) for one in _rows(before) if "finishedAt" in one}
    for one in _rows(after):
        if "finishedAt" in one and (one["name"], one["startedAt"]) not in ended:
            took_s = (micros_of(one["finishedAt"]) - micros_of(one["startedAt"])) / 1e6
            text = f"{what}: step {one['name']} ended after {took_s:.1f} s: {one.get('message', '')}"
            report.append((False, EventReason.FAILOVER_STEP, text))
    words = ("phase", "request", "message")
    if [now.get(name) for name in words] != [was.get(name) for name in words]:
        ends = {
            FailoverPhase.DONE: (False, EventReason.FAILOVER_DONE),
            FailoverPhase.ABORTED: (True, EventReason.FAILOVER_ABORTED),
            FailoverPhase.REFUSED: (True, EventReason.FAILOVER_REFUSED),
        }
        if now.get("phase") in ends:
            warns, reason = ends[FailoverPhase(now["phase"])]
            report.append((warns, reason, f"{what}: {message}"))
    zone, zone_before = after.get("evacuatedZone"), before.get("evacuatedZone")
    if zone_before and zone != zone_before:
        report.append((False, EventReason.ZONE_READMITTED, f"pods may run in zone {zone_before} again"))
    if zone and zone != zone_before:
        report.append((False, EventReason.ZONE_EVACUATED, f"processors and readers are kept out of zone {zone}"))
    return report

"""`status` of a pipeline, and the Events about its changes. Pure: equal observations give an identical status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sheetanchor.errors import shortened
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.timestamps import micros_of, text_of
from sheetanchor_operator.events import Event
from sheetanchor_operator.names import PIPELINE_KIND, Component, Condition, EventReason, Phase, Reason, selector_of
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.reanchors.plan import ReanchorPlan
from sheetanchor_operator.status.conditions import MESSAGE_MAX, EvaluatedCondition, Facts, evaluated_conditions
from sheetanchor_operator.status.failover import FailoverPlan, failover_events
from sheetanchor_operator.status.problems import Problem, is_current, problems_of
from sheetanchor_operator.status.workload_health import Count, WorkloadHealth, workload_health_of
from sheetanchor_operator.status.zone_report import lost_zones, with_health, zone_events

PREDICTION_WRITE_US: Final = 15_000_000
"""A running pipeline's status is written this often, so that the age that `kubectl get` shows is wrong by no more."""

SECOND_US: Final = 1_000_000
NO_PLAN: Final = ReanchorPlan()
MOVES: Final = tuple(FailoverPlan().fields())
"""Fields of the status that say something of moves."""

Status = dict[str, Any]


def status_of(
    pipeline: Pipeline, observed: Observed, plan: ReanchorPlan = NO_PLAN, moves: FailoverPlan | None = None
) -> Status:
    """Compute the status of a pipeline.

    Args:
        pipeline: The pipeline with its specification and present status.
        observed: The observation.
        plan: The plan about its re-anchors.
        moves: The plan about moves; None leaves what is written about them.
    """
    workload_health, problems = workload_health_of(pipeline, observed), problems_of(pipeline, observed)
    before = pipeline.status
    zones = _zones(pipeline, observed, workload_health)
    moved = {name: before.get(name) for name in MOVES} if moves is None else moves.fields()
    judged = evaluated_conditions(
        Facts(pipeline, observed, workload_health, problems, plan, tuple(lost_zones(zones)), moved["failover"] or {})
    )
    total = workload_health.total
    status: Status = {
        "operator": before.get("operator"),
        "phase": str(phase_of(pipeline, judged, workload_health, problems, lost_zones(zones, failed_only=True))),
        "ready": f"{total.ready}/{total.wanted}",
        "observedGeneration": pipeline.generation,
        "conditions": [_condition(evaluated, pipeline, observed.now_us) for evaluated in judged],
        "activeZone": workload_health.active_zone or before.get("activeZone"),
        "epoch": min((symbol.epoch for symbol in workload_health.symbols if symbol.term), default=before.get("epoch")),
        "term": max(
            before.get("term", 0),
            *(symbol.term for symbol in workload_health.symbols),
            # Written before a standby is asked to take it: no other one is asked to take the same.
            (moved["failover"] or {}).get("term", 0),
        ),
        "model": next((one.model for one in workload_health.predictions if one.model), before.get("model")),
        "lastPredictionAt": _last_prediction(workload_health, before),
        "lastReanchor": plan.last_reanchor or before.get("lastReanchor"),
        "lastReanchorRequest": plan.last_request or before.get("lastReanchorRequest"),
        "reanchorRequests": _requests(plan, before),
        "reanchorRuns": _runs(plan, before),
        "symbols": _symbols(workload_health, plan, before),
        "zones": zones,
        **moved,
        **_components(pipeline, workload_health),
    }
    return {name: value for name, value in status.items() if value is not None}


def _requests(plan: ReanchorPlan, before: Mapping[str, Any]) -> list[Status] | None:
    if plan.requests is None:
        return before.get("reanchorRequests")
    return [one.entry() for one in plan.requests] or None


def _runs(plan: ReanchorPlan, before: Mapping[str, Any]) -> Status | None:
    if plan.outcomes is None:
        return before.get("reanchorRuns")
    report = dict(zip(("succeededMicros", "failedMicros"), map(list, plan.outcomes), strict=True))
    return report if any(report.values()) else None


def refused_status(body: Mapping[str, Any], message: str, now_us: int) -> Status:
    """Give the status of a pipeline whose spec this operator cannot use; the rest stays as it was.

    Args:
        body: The resource.
        message: The field, its value and what was expected.
        now_us: The time.
    """
    before = dict(body.get("status") or {})
    generation = body["metadata"].get("generation", 0)
    report = f"{message}; correct the field, or install the operator of the version that knows it"
    ready = _at(EvaluatedCondition(Condition.READY, "False", Reason.SPEC_REFUSED, report), before, generation, now_us)
    others = [one for one in before.get("conditions", ()) if one["type"] != Condition.READY]
    return {
        **before,
        "phase": str(Phase.FAILED),
        "observedGeneration": generation,
        "conditions": [ready, *others],
    }


def _condition(evaluated: EvaluatedCondition, pipeline: Pipeline, now_us: int) -> Status:
    return _at(evaluated, pipeline.status, pipeline.generation, now_us)


def _at(evaluated: EvaluatedCondition, before: Mapping[str, Any], generation: int, now_us: int) -> Status:
    """Add the times: a condition's own time is that of the last change of its status."""
    known = condition_of(before, evaluated.type)
    same = known is not None and known.get("status") == evaluated.status
    return {
        "type": str(evaluated.type),
        "status": evaluated.status,
        "reason": str(evaluated.reason),
        "message": shortened(evaluated.message, MESSAGE_MAX),
        "lastTransitionTime": known["lastTransitionTime"] if same and known is not None else _whole(now_us),
        "observedGeneration": generation,
    }


def _whole(at_us: int) -> str:
    return text_of(at_us // SECOND_US * SECOND_US)


def condition_of(status: Mapping[str, Any], kind: Condition) -> Mapping[str, Any] | None:
    """Find a condition in a status, None if it is not there."""
    return next((one for one in status.get("conditions", ()) if one.get("type") == kind), None)


def phase_of(
    pipeline: Pipeline,
    judged: tuple[EvaluatedCondition, ...],
    workload_health: WorkloadHealth,
    problems: tuple[Problem, ...],
    failed_zones: Sequence[str] = (),
) -> Phase:
    """Give the phase of the whole pipeline."""
    if pipeline.paused:
        return Phase.PAUSED
    if pipeline.spec.maintenance.enabled:
        return Phase.MAINTENANCE
    if pipeline.spec.suspend:
        return Phase.SUSPENDED
    by_type = {evaluated.type: evaluated for evaluated in judged}
    sound = all(by_type[kind].status == "True" for kind in (Condition.INGESTION_HEALTHY, Condition.REDIS_HEALTHY))
    ready = by_type[Condition.READY]
    if ready.status == "True":
        total = workload_health.total
        # A Redis node that is replaced by a roll-out is no degradation.
        complete = total.ready == total.wanted or ready.reason is Reason.ROLLING_OUT
        whole = sound and complete and not problems and not failed_zones
        return Phase.RUNNING if whole else Phase.DEGRADED
    serving = workload_health.counts[Component.INFER].ready > 0
    if problems and not serving:
        return Phase.FAILED
    return Phase.DEGRADED if pipeline.status.get("lastPredictionAt") else Phase.PENDING


def _last_prediction(workload_health: WorkloadHealth, before: Mapping[str, Any]) -> str | None:
    known = before.get("lastPredictionAt")
    if not workload_health.predictions or not all(
        one.at_us and one.fresh and not one.degraded for one in workload_health.predictions
    ):
        return known
    newest_us = min(one.at_us for one in workload_health.predictions)
    if known and newest_us - micros_of(known) < PREDICTION_WRITE_US:
        return str(known)
    return _whole(newest_us)


def _symbols(workload_health: WorkloadHealth, plan: ReanchorPlan, before: Mapping[str, Any]) -> list[Status]:
    rows = []
    known = {row["name"]: row for row in before.get("symbols", ())}
    for symbol in workload_health.symbols:
        facts = plan.symbols.get(symbol.name)
        # A value that is not known now keeps its last one: terms and epochs must not decrease.
        kept = known.get(symbol.name, {}) if symbol.state == "unknown" else {}
        row: Status = {
            "name": symbol.name,
            "state": symbol.state,
            "reason": shortened(symbol.reason, 500) or None,
            "epoch": symbol.epoch or kept.get("epoch", 0),
            "term": symbol.term or kept.get("term", 0),
            "suspectSince": _whole(symbol.suspect_since_us) if symbol.suspect_since_us else None,
            "rebuiltMicros": list(facts.rebuilt_us) if facts is not None and facts.rebuilt_us else None,
            "comparedMicros": list(facts.compared_us) if facts is not None and facts.compared_us else None,
        }
        rows.append({name: value for name, value in row.items() if value is not None})
    return rows


def _zones(pipeline: Pipeline, observed: Observed, workload_health: WorkloadHealth) -> list[Status]:
    rows = []
    known = {row["name"]: row for row in pipeline.status.get("zones", ())}
    for line, ready in workload_health.lines:
        if line.bound:
            nodes = {node for node, zone in observed.node_zones.items() if zone == line.name}
            pods = [pod for pod in observed.pods if pod["spec"].get("nodeName") in nodes and is_current(pod)]
        else:
            pods = [
                pod
                for pod in observed.pods_of(selector_of(pipeline.name, Component.INGEST, line.name))
                if is_current(pod)
            ]
        row: Status = {"name": line.name, "ready": ready, "pods": len(pods)}
        verdicts = observed.zone_verdicts if line.bound else None
        rows.append(with_health(row, known.get(line.name, {}), verdicts, observed.now_us))
    return rows


def _components(pipeline: Pipeline, workload_health: WorkloadHealth) -> Status:
    def row(count: Count) -> Status:
        return {"replicas": count.wanted, "ready": count.ready}

    counts = workload_health.counts
    labels = selector_of(pipeline.name, Component.INFER)
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    return {
        "ingestion": row(counts[Component.INGEST]),
        "processor": row(counts[Component.PROCESS]),
        "inference": {**row(counts[Component.INFER]), "selector": selector},
        "redis": {
            **row(counts[Component.REDIS]),
            **({"master": workload_health.master} if workload_health.master else {}),
        },
    }


_PROBLEM_EVENTS: Final[Mapping[str, EventReason]] = {
    Reason.IMAGE_UNAVAILABLE: EventReason.IMAGE_UNAVAILABLE,
    Reason.SECRET_MISSING: EventReason.SECRET_MISSING,
    Reason.CONFIG_MAP_MISSING: EventReason.CONFIG_MAP_MISSING,
    Reason.QUOTA_EXCEEDED: EventReason.QUOTA_EXCEEDED,
    Reason.APPLY_FORBIDDEN: EventReason.APPLY_REFUSED,
    Reason.APPLY_REFUSED: EventReason.APPLY_REFUSED,
    Reason.POD_REFUSED: EventReason.APPLY_REFUSED,
    Reason.POLICY_REFUSED: EventReason.APPLY_REFUSED,
    Reason.LIMITS_REFUSED: EventReason.APPLY_REFUSED,
    Reason.NAMESPACE_TERMINATING: EventReason.APPLY_REFUSED,
    Reason.NAME_TAKEN: EventReason.NAME_TAKEN,
    Reason.WATCH_REFUSED: EventReason.WATCH_REFUSED,
    Reason.UNSCHEDULABLE: EventReason.UNSCHEDULABLE,
    Reason.CRASH_LOOPING: EventReason.CRASH_LOOPING,
    Reason.REDIS_UNREACHABLE: EventReason.REDIS_UNREACHABLE,
    Reason.SPEC_REFUSED: EventReason.SPEC_REFUSED,
    Reason.VOLUME_CLAIM_MISSING: EventReason.VOLUME_CLAIM_MISSING,
    Reason.CONTAINER_REFUSED: EventReason.CONTAINER_REFUSED,
    Reason.NO_MASTER: EventReason.NO_MASTER,
    Reason.EXCHANGE_UNREACHABLE: EventReason.EXCHANGE_UNREACHABLE,
    Reason.LINE_LOST: EventReason.LINE_LOST,
    Reason.NO_PREDICTIONS: EventReason.NO_PREDICTIONS,
}


_LOSSES: Final = frozenset(
    {Reason.REDIS_UNREACHABLE, Reason.NO_MASTER, Reason.EXCHANGE_UNREACHABLE, Reason.LINE_LOST, Reason.NO_PREDICTIONS}
)
"""Reasons that are normal before the first prediction: each of them is true for some seconds of every first start."""


def transitions(old: Mapping[str, Any], new: Mapping[str, Any], name: str, uid: str) -> tuple[Event, ...]:
    """Give the Events about a change of status; none for changes that users need not know of.

    Args:
        old: Status before the change.
        new: Status after it.
        name: Name of the pipeline.
        uid: Its uid.
    """
    report: list[tuple[bool, EventReason, str]] = [
        *_of_phase(old, new),
        *_of_anchor(old, new),
        *_of_ready(old, new),
        *_of_throttle(old, new),
        *zone_events(old.get("zones", ()), new.get("zones", ())),
        *failover_events(old, new),
    ]
    return tuple(
        Event(PIPELINE_KIND, name, uid, "Warning" if warns else "Normal", reason, message)
        for warns, reason, message in report
    )


EventRows = list[tuple[bool, EventReason, str]]


def _field(status: Mapping[str, Any], kind: Condition, field: str) -> str:
    return str((condition_of(status, kind) or {}).get(field, ""))


def _of_phase(old: Mapping[str, Any], new: Mapping[str, Any]) -> EventRows:
    was, now = old.get("phase", ""), new.get("phase", "")
    if was == now:
        return []
    ready, paused = _field(new, Condition.READY, "message"), _field(new, Condition.PAUSED, "message")
    report: EventRows = []
    ends = {
        Phase.SUSPENDED: (False, EventReason.RESUMED, "workloads are started again"),
        Phase.MAINTENANCE: (False, EventReason.MAINTENANCE_ENDED, "workloads are started again"),
        Phase.PAUSED: (False, EventReason.UNPAUSED, "the operator applies the pipeline's objects again"),
    }
    if was in ends:
        report.append(ends[Phase(was)])
    begins = {
        Phase.SUSPENDED: (False, EventReason.SUSPENDED, paused),
        Phase.MAINTENANCE: (False, EventReason.MAINTENANCE_STARTED, paused),
        Phase.PAUSED: (False, EventReason.PAUSED, paused),
        Phase.DEGRADED: (True, EventReason.DEGRADED, _why_degraded(new)),
        Phase.FAILED: (True, EventReason.FAILED, ready),
    }
    if now in begins:
        report.append(begins[Phase(now)])
    elif now == Phase.RUNNING:
        worse = was in (Phase.DEGRADED, Phase.FAILED)
        report.append((False, EventReason.RECOVERED if worse else EventReason.READY, ready))
    return report


def _why_degraded(new: Mapping[str, Any]) -> str:
    """Give the message of the first condition that is not met, Ready first."""
    for kind in (Condition.READY, Condition.INGESTION_HEALTHY, Condition.REDIS_HEALTHY, Condition.INFERENCE_READY):
        if _field(new, kind, "status") == "False":
            return _field(new, kind, "message")
    return f"{new.get('ready')} pods are ready"


def _of_anchor(old: Mapping[str, Any], new: Mapping[str, Any]) -> EventRows:
    was, now = (_field(status, Condition.ANCHORED, "status") for status in (old, new))
    message = _field(new, Condition.ANCHORED, "message")
    if was != "True" and now == "True":
        return [(False, EventReason.ANCHORED, message)]
    if was == "True" and now == "False":
        return [(True, EventReason.SUSPECT, message)]
    return []


def _of_ready(old: Mapping[str, Any], new: Mapping[str, Any]) -> EventRows:
    report: dict[str, str] = {}
    for condition in new.get("conditions", ()):
        kind = Condition(condition["type"])
        reason = _PROBLEM_EVENTS.get(condition["reason"])
        if condition["reason"] in _LOSSES and not old.get("lastPredictionAt"):
            continue
        if reason is not None and _field(old, kind, "reason") != condition["reason"]:
            report.setdefault(reason, condition["message"])
    return [(True, EventReason(reason), message) for reason, message in report.items()]


def _of_throttle(old: Mapping[str, Any], new: Mapping[str, Any]) -> EventRows:
    was, now = (_field(status, Condition.REANCHOR_THROTTLED, "status") for status in (old, new))
    if was != "True" and now == "True":
        return [(True, EventReason.REANCHOR_THROTTLED, _field(new, Condition.REANCHOR_THROTTLED, "message"))]
    return []

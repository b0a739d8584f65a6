"""A pipeline's conditions: each from the problems, the health of the workloads and the specification. Pure.

A message says what is the case and what to do. It holds no number that changes while nothing else does: each would
cause another write of the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sheetanchor.errors import shortened
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.names import (
    COMPONENT_LABEL,
    PIPELINE_KIND,
    PIPELINE_LABEL,
    REANCHOR_KIND,
    Component,
    Condition,
    FailoverPhase,
    Reason,
)
from sheetanchor_operator.observation import Live, Observed, PodResponse
from sheetanchor_operator.reanchors.plan import ReanchorPlan
from sheetanchor_operator.status.problems import Problem, worst_of
from sheetanchor_operator.status.topology import topology
from sheetanchor_operator.status.workload_health import WorkloadHealth

Truth = Literal["True", "False", "Unknown"]
MESSAGE_MAX: Final = 1000
REDIS_QUORUM: Final = 2
PLANNED_FROM: Final = frozenset({PIPELINE_KIND, REANCHOR_KIND, "Job", "Pod"})
"""Kinds without which no re-anchor is planned: without them a second run would start, or the end of one be missed."""

FORCE_SKIPS: Final = frozenset({Reason.BACKING_OFF, Reason.BUDGET_USED_UP, Reason.COOLDOWN})
"""Throttles that a forced request does not wait for: a lock that another run holds it does."""


@dataclass(frozen=True, slots=True)
class EvaluatedCondition:
    """One condition without its times."""

    type: Condition
    status: Truth
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The input of all conditions.

    Attributes:
        lost_zones: Zones that count as silent or failed.
        failover: `status.failover` as it will be written; empty for none.
    """

    pipeline: Pipeline
    observed: Observed
    workload_health: WorkloadHealth
    problems: tuple[Problem, ...]
    plan: ReanchorPlan
    lost_zones: tuple[str, ...] = ()
    failover: Mapping[str, Any] = field(default_factory=dict)


def evaluated_conditions(facts: Facts) -> tuple[EvaluatedCondition, ...]:
    """Evaluate every condition."""
    parts = (_anchored(facts), _ingestion(facts), _redis(facts), _inference(facts))
    return (
        _ready(facts, parts),
        *parts,
        _reanchor_in_progress(facts),
        _reanchor_throttled(facts),
        _paused(facts),
        _topology(facts),
        _failover(facts),
    )


def scale_down_reason(pipeline: Pipeline) -> tuple[Reason, str] | None:
    """Say why a pipeline is scaled to zero by its specification; None if it is not."""
    if pipeline.spec.maintenance.enabled:
        return Reason.MAINTENANCE, f"maintenance: {pipeline.spec.maintenance.reason}; workloads are scaled to zero"
    if pipeline.spec.suspend:
        return Reason.SUSPENDED, "spec.suspend is true: workloads are scaled to zero, Redis is kept"
    return None


def _ready(facts: Facts, parts: tuple[EvaluatedCondition, ...]) -> EvaluatedCondition:
    def no(reason: Reason, message: str) -> EvaluatedCondition:
        return EvaluatedCondition(Condition.READY, "False", reason, message)

    paused_reason = scale_down_reason(facts.pipeline)
    if paused_reason is not None:
        return no(*paused_reason)
    anchored, ingestion, redis, inference = parts
    severed = ingestion.status != "True" and ingestion.reason is not Reason.LINE_LOST
    cause = worst_of(facts.problems, *Component)
    for part, failed in (
        (redis, redis.status == "False"),
        (ingestion, severed),
        (anchored, anchored.status != "True"),
        (inference, inference.status != "True"),
    ):
        if failed:
            return no(cause.reason, cause.message) if cause is not None else no(part.reason, part.message)
    if cause is not None:
        return EvaluatedCondition(Condition.READY, "True", cause.reason, f"predictions flow, but {cause.message}")
    if _rolling_out(facts):
        return EvaluatedCondition(
            Condition.READY, "True", Reason.ROLLING_OUT, "predictions flow while a change is rolled out"
        )
    return EvaluatedCondition(Condition.READY, "True", Reason.AS_EXPECTED, "predictions flow and are sound")


def _rolling_out(facts: Facts) -> bool:
    return any(
        _moves(kind, live)
        for (kind, _), live in facts.observed.children.items()
        if kind in ("Deployment", "StatefulSet")
    )


def _moves(kind: str, live: Live) -> bool:
    """Say whether a workload's pods are being replaced or added."""
    status, wanted = live.get("status", {}), live["spec"].get("replicas", 1)
    if not wanted:
        return False
    if status.get("observedGeneration", 0) < live["metadata"].get("generation", 0):
        return True
    if kind == "StatefulSet":
        return bool(status.get("currentRevision") != status.get("updateRevision"))
    return not status.get("updatedReplicas", 0) >= wanted >= status.get("replicas", 0)


def _anchored(facts: Facts) -> EvaluatedCondition:
    def condition(status: Truth, reason: Reason, message: str) -> EvaluatedCondition:
        return EvaluatedCondition(Condition.ANCHORED, status, reason, message)

    paused_reason = scale_down_reason(facts.pipeline)
    if paused_reason is not None:
        return condition("Unknown", *paused_reason)
    symbols = facts.workload_health.symbols
    new = [symbol.name for symbol in symbols if symbol.state == "suspect" and symbol.epoch == 0]
    suspect = [
        f"{symbol.name}: {symbol.reason or 'no reason given'}" for symbol in symbols if symbol.state == "suspect"
    ]
    unknown = [symbol.name for symbol in symbols if symbol.state == "unknown"]
    if new:
        return condition("False", Reason.AWAITING_FIRST_ANCHOR, f"{', '.join(new)}: waiting for the first anchor")
    if suspect:
        return condition(
            "False", Reason.SUSPECT, f"{'; '.join(suspect)}; predictions are marked degraded until a re-anchor"
        )
    if unknown:
        problem = worst_of(facts.problems, Component.PROCESS, Component.REDIS)
        if problem is not None:
            return condition("Unknown", problem.reason, problem.message)
        return condition("Unknown", Reason.UNKNOWN, f"{', '.join(unknown)}: no processor reports its state")
    return condition("True", Reason.ANCHORED, "every symbol is anchored: its state agrees with the exchange")


def _ingestion(facts: Facts) -> EvaluatedCondition:
    def condition(status: Truth, reason: Reason, message: str) -> EvaluatedCondition:
        return EvaluatedCondition(Condition.INGESTION_HEALTHY, status, reason, message)

    paused_reason = scale_down_reason(facts.pipeline)
    if paused_reason is not None:
        return condition("Unknown", *paused_reason)
    lost = [line.name for line, ready in facts.workload_health.lines if not ready]
    if not facts.workload_health.lines:
        problem = worst_of(facts.problems, Component.INGEST)
        why = problem.message if problem is not None else "the zones of the cluster are not known"
        return condition(
            "False", Reason.STARTING if problem is None else problem.reason, f"there are no lines yet: {why}"
        )
    if not lost:
        return condition("True", Reason.AS_EXPECTED, "every line receives and appends")
    problem = worst_of(facts.problems, Component.INGEST)
    if len(lost) < len(facts.workload_health.lines):
        why = "the others deliver the whole feed" if problem is None else problem.message
        return condition("False", Reason.LINE_LOST, f"line {', '.join(lost)} is not ready; {why}")
    if problem is not None:
        return condition("False", problem.reason, problem.message)
    return condition("False", *_why_no_line(facts))


def _why_no_line(facts: Facts) -> tuple[Reason, str]:
    for _, answer in sorted(facts.observed.health.items()):
        checks = _checks(answer)
        if checks.get("kinesis_producer", {}).get("status") in ("unhealthy", "waiting"):
            return Reason.REDIS_UNREACHABLE, "ingestors cannot append to Redis; see the condition RedisHealthy"
        websocket = checks.get("sbe_websocket", {})
        if websocket.get("status") in ("unhealthy", "disconnected", "degraded"):
            message = shortened(str(websocket.get("message") or "no message"), 200)
            return (
                Reason.EXCHANGE_UNREACHABLE,
                f"no line is connected to {facts.pipeline.spec.exchange.websocket_url}: {message}; check the address, "
                "the API key and that pods may reach it",
            )
    return Reason.STARTING, "no line is ready yet"


def _checks(answer: PodResponse) -> Mapping[str, Mapping[str, Any]]:
    checks = (answer.body or {}).get("checks")
    return checks if isinstance(checks, Mapping) else {}


def _redis(facts: Facts) -> EvaluatedCondition:
    def condition(status: Truth, reason: Reason, message: str) -> EvaluatedCondition:
        return EvaluatedCondition(Condition.REDIS_HEALTHY, status, reason, message)

    connected = [symbol.connected for symbol in facts.workload_health.symbols if symbol.connected is not None]
    if not facts.workload_health.managed:
        return condition(*_external(facts, connected))
    count = facts.workload_health.counts[Component.REDIS]
    if count.ready == count.wanted and (not connected or any(connected)):
        return condition("True", Reason.AS_EXPECTED, "all nodes are ready")
    problem = worst_of(facts.problems, Component.REDIS)
    missing = f"{count.wanted - count.ready} of {count.wanted} nodes are not ready"
    if count.ready >= REDIS_QUORUM and (not connected or any(connected)):
        why = "the others serve" if problem is None else problem.message
        # The remaining nodes are a majority: writes are still accepted.
        return condition("True", Reason.PODS_NOT_READY if problem is None else problem.reason, f"{missing}; {why}")
    if problem is not None:
        return condition("False", problem.reason, problem.message)
    if count.ready == count.wanted:
        return condition(
            "False",
            Reason.NO_MASTER,
            "nodes are ready but no processor reaches a master; see "
            f"kubectl -n {facts.pipeline.namespace} logs -l {PIPELINE_LABEL}={facts.pipeline.name},"
            f"{COMPONENT_LABEL}={Component.REDIS} -c sentinel",
        )
    return condition("False", Reason.STARTING if _is_new(facts) else Reason.PODS_NOT_READY, missing)


def _external(facts: Facts, connected: list[bool]) -> tuple[Truth, Reason, str]:
    external = facts.pipeline.spec.redis.external
    url = external.url if external is not None else ""
    if any(connected):
        return "True", Reason.EXTERNAL, "processors reach the external Redis"
    paused_reason = scale_down_reason(facts.pipeline)
    if paused_reason is not None:
        return "Unknown", *paused_reason
    problem = worst_of(facts.problems, Component.PROCESS)
    if problem is not None and problem.reason is not Reason.CRASH_LOOPING:
        return "Unknown", problem.reason, problem.message
    if connected or problem is not None:
        report = f" ({problem.message})" if problem is not None else ""
        return (
            "False",
            Reason.REDIS_UNREACHABLE,
            f"no processor reaches {url}{report}; check redis.external.url and passwordSecret, and that pods may "
            "connect to it",
        )
    return (
        "Unknown",
        Reason.STARTING if _is_new(facts) else Reason.UNKNOWN,
        f"no processor has reported yet whether it reaches {url}",
    )


def _is_new(facts: Facts) -> bool:
    return not facts.pipeline.status.get("lastPredictionAt")


def _inference(facts: Facts) -> EvaluatedCondition:
    def condition(status: Truth, reason: Reason, message: str) -> EvaluatedCondition:
        return EvaluatedCondition(Condition.INFERENCE_READY, status, reason, message)

    paused_reason = scale_down_reason(facts.pipeline)
    if paused_reason is not None:
        return condition("Unknown", *paused_reason)
    if facts.workload_health.counts[Component.INFER].ready == 0:
        problem = worst_of(facts.problems, Component.INFER)
        if problem is not None:
            return condition("False", problem.reason, problem.message)
        return condition(
            "False", Reason.STARTING if _is_new(facts) else Reason.PODS_NOT_READY, "no inference pod is ready"
        )
    predictions = facts.workload_health.predictions
    missing = [one.symbol for one in predictions if not one.fresh]
    if missing:
        return condition(
            "False", Reason.NO_PREDICTIONS, f"{', '.join(missing)}: no recent prediction; see the inference log"
        )
    degraded = [f"{one.symbol}: {_kinds(one.reason)}" for one in predictions if one.degraded]
    if degraded:
        return condition(
            "False", Reason.PREDICTIONS_DEGRADED, f"predictions are marked degraded: {'; '.join(degraded)}"
        )
    return condition("True", Reason.AS_EXPECTED, "every slot is predicted")


def _kinds(reason: str) -> str:
    """Give the reasons without their numbers, which change with every slot."""
    return ", ".join(dict.fromkeys(part.partition(":")[0].strip() for part in reason.split(";"))) or "no reason given"


def _reanchor_in_progress(facts: Facts) -> EvaluatedCondition:
    def condition(status: Truth, reason: Reason, message: str) -> EvaluatedCondition:
        return EvaluatedCondition(Condition.REANCHOR_IN_PROGRESS, status, reason, message)

    unwatchable = worst_of(facts.problems) if PLANNED_FROM & facts.observed.unwatchable.keys() else None
    if unwatchable is not None:
        return condition("Unknown", unwatchable.reason, unwatchable.message)
    symbols = sorted(facts.plan.symbols.items())
    running = [f"{symbol}: {one.running}" for symbol, one in symbols if one.running]
    pending = [f"{symbol}: {', '.join(one.pending[:3])}" for symbol, one in symbols if one.pending]
    if running:
        return condition("True", Reason.REANCHOR_RUNNING, "; ".join(running))
    if pending:
        return condition("False", Reason.REANCHOR_PENDING, f"waiting: {'; '.join(pending)}")
    return condition("False", Reason.IDLE, "no re-anchor is requested")


def _reanchor_throttled(facts: Facts) -> EvaluatedCondition:
    waits = [(symbol, one) for symbol, one in sorted(facts.plan.symbols.items()) if one.throttled is not None]
    blocked = _switched_off(facts)
    if blocked:
        text = (
            f"reanchor.enabled is false and {', '.join(blocked)} would be rebuilt: set it to true, or "
            f"{_command(facts.pipeline)} --force"
        )
        return EvaluatedCondition(Condition.REANCHOR_THROTTLED, "True", Reason.DISABLED, text)
    if not waits:
        return EvaluatedCondition(
            Condition.REANCHOR_THROTTLED, "False", Reason.NOT_THROTTLED, "no re-anchor is throttled"
        )
    first = waits[0][1].throttled or Reason.UNKNOWN
    text = "; ".join(f"{symbol}: {one.message}" for symbol, one in waits)
    reasons = {one.throttled for _, one in waits}
    if Reason.EXCHANGE_LIMIT in reasons:
        text += "; wait: the exchange bans an address that does not"
    elif reasons & FORCE_SKIPS:
        text += f"; {_command(facts.pipeline)} --force does not wait"
    return EvaluatedCondition(Condition.REANCHOR_THROTTLED, "True", first, text)


def _switched_off(facts: Facts) -> list[str]:
    """Name the symbols that need a rebuild and get none because re-anchoring is disabled.

    A suspect state needs one whether or not it is requested: with re-anchoring off requests are skipped, and none
    waits.
    """
    if facts.pipeline.spec.reanchor.enabled:
        return []
    forced = {body["metadata"]["name"] for body in facts.observed.reanchors if (body.get("spec") or {}).get("force")}
    waiting = {symbol for symbol, one in facts.plan.symbols.items() if not forced.issuperset(one.pending)}
    suspect = {symbol.name for symbol in facts.workload_health.symbols if symbol.state == "suspect"}
    return sorted(waiting | suspect)


def _command(pipeline: Pipeline) -> str:
    return f"kubectl reanchor {pipeline.name} -n {pipeline.namespace}"


def _paused(facts: Facts) -> EvaluatedCondition:
    if facts.pipeline.paused:
        text = "annotation sheetanchor.dev/paused is true: its objects are left as they are; remove it to resume"
        return EvaluatedCondition(Condition.PAUSED, "True", Reason.PAUSED, text)
    paused_reason = scale_down_reason(facts.pipeline)
    if paused_reason is not None:
        return EvaluatedCondition(Condition.PAUSED, "True", *paused_reason)
    return EvaluatedCondition(Condition.PAUSED, "False", Reason.NOT_PAUSED, "")


def _topology(facts: Facts) -> EvaluatedCondition:
    paused_reason = scale_down_reason(facts.pipeline)
    if paused_reason is not None:
        return EvaluatedCondition(Condition.TOPOLOGY_SATISFIED, "Unknown", *paused_reason)
    spread = topology(facts.pipeline, facts.observed, facts.workload_health, facts.lost_zones)
    return EvaluatedCondition(Condition.TOPOLOGY_SATISFIED, *spread)


def _failover(facts: Facts) -> EvaluatedCondition:
    found = facts.failover
    phase, message = found.get("phase"), str(found.get("message", ""))
    what = f"{found.get('kind')} {found.get('request')!r}"
    if phase == FailoverPhase.RUNNING:
        text = f"{what}, step {found.get('step')}: {message}"
        return EvaluatedCondition(Condition.FAILOVER_IN_PROGRESS, "True", Reason.FAILOVER_RUNNING, text)
    ended = {FailoverPhase.ABORTED: Reason.FAILOVER_ABORTED, FailoverPhase.REFUSED: Reason.FAILOVER_REFUSED}
    if phase in ended:
        reason = ended[FailoverPhase(str(phase))]
        return EvaluatedCondition(Condition.FAILOVER_IN_PROGRESS, "False", reason, f"{what}: {message}")
    return EvaluatedCondition(Condition.FAILOVER_IN_PROGRESS, "False", Reason.IDLE, "nothing is being moved")

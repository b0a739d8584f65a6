"""A pipeline's conditions: each from the troubles, from how the pipeline stands, and from what is wanted. Pure.

A message says what is the case and what to do. It holds no number that changes while nothing else does, so that a
pipeline that is as it was is not written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    Reason,
)
from sheetanchor_operator.observation import Answer, Live, Observed
from sheetanchor_operator.reanchors.plan import Plan
from sheetanchor_operator.status.problems import Trouble, worst_of
from sheetanchor_operator.status.workload_health import Standing

Truth = Literal["True", "False", "Unknown"]
MESSAGE_MAX: Final = 1000
REDIS_QUORUM: Final = 2
PLANNED_FROM: Final = frozenset({PIPELINE_KIND, REANCHOR_KIND, "Job", "Pod"})
"""Kinds without which no re-anchor is planned: half of a picture would start a second run, or miss the end of one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition without its times."""

    type: Condition
    status: Truth
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that conditions are judged by."""

    pipeline: Pipeline
    observed: Observed
    standing: Standing
    troubles: tuple[Trouble, ...]
    plan: Plan


def verdicts(facts: Facts) -> tuple[Verdict, ...]:
    """Judge every condition."""
    parts = (_anchored(facts), _ingestion(facts), _redis(facts), _inference(facts))
    return (
        _ready(facts, parts),
        *parts,
        _reanchor_in_progress(facts),
        _reanchor_throttled(facts),
        _paused(facts),
    )


def at_rest(pipeline: Pipeline) -> tuple[Reason, str] | None:
    """Say why a pipeline rests on purpose; None if it does not."""
    if pipeline.spec.maintenance.enabled:
        return Reason.MAINTENANCE, f"maintenance: {pipeline.spec.maintenance.reason}; workloads are scaled to zero"
    if pipeline.spec.suspend:
        return Reason.SUSPENDED, "spec.suspend is true: workloads are scaled to zero, Redis is kept"
    return None


def _ready(facts: Facts, parts: tuple[Verdict, ...]) -> Verdict:
    def no(reason: Reason, message: str) -> Verdict:
        return Verdict(Condition.READY, "False", reason, message)

    rest = at_rest(facts.pipeline)
    if rest is not None:
        return no(*rest)
    anchored, ingestion, redis, inference = parts
    severed = ingestion.status != "True" and ingestion.reason is not Reason.LINE_LOST
    cause = worst_of(facts.troubles, *Component)
    for part, failed in (
        (redis, redis.status == "False"),
        (ingestion, severed),
        (anchored, anchored.status != "True"),
        (inference, inference.status != "True"),
    ):
        if failed:
            return no(cause.reason, cause.message) if cause is not None else no(part.reason, part.message)
    if cause is not None:
        return Verdict(Condition.READY, "True", cause.reason, f"predictions flow, but {cause.message}")
    if _rolling_out(facts):
        return Verdict(Condition.READY, "True", Reason.ROLLING_OUT, "predictions flow while a change is rolled out")
    return Verdict(Condition.READY, "True", Reason.AS_EXPECTED, "predictions flow and are sound")


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


def _anchored(facts: Facts) -> Verdict:
    def tell(status: Truth, reason: Reason, message: str) -> Verdict:
        return Verdict(Condition.ANCHORED, status, reason, message)

    rest = at_rest(facts.pipeline)
    if rest is not None:
        return tell("Unknown", *rest)
    symbols = facts.standing.symbols
    new = [symbol.name for symbol in symbols if symbol.state == "suspect" and symbol.epoch == 0]
    suspect = [
        f"{symbol.name}: {symbol.reason or 'no reason given'}" for symbol in symbols if symbol.state == "suspect"
    ]
    unknown = [symbol.name for symbol in symbols if symbol.state == "unknown"]
    if new:
        return tell("False", Reason.AWAITING_FIRST_ANCHOR, f"{', '.join(new)}: not anchored for the first time yet")
    if suspect:
        return tell("False", Reason.SUSPECT, f"{'; '.join(suspect)}; predictions are marked degraded until a re-anchor")
    if unknown:
        trouble = worst_of(facts.troubles, Component.PROCESS, Component.REDIS)
        if trouble is not None:
            return tell("Unknown", trouble.reason, trouble.message)
        return tell("Unknown", Reason.UNKNOWN, f"{', '.join(unknown)}: no processor answers that knows its state")
    return tell("True", Reason.ANCHORED, "the state of every symbol is what the exchange says")


def _ingestion(facts: Facts) -> Verdict:
    def tell(status: Truth, reason: Reason, message: str) -> Verdict:
        return Verdict(Condition.INGESTION_HEALTHY, status, reason, message)

    rest = at_rest(facts.pipeline)
    if rest is not None:
        return tell("Unknown", *rest)
    lost = [line.name for line, ready in facts.standing.lines if not ready]
    if not facts.standing.lines:
        trouble = worst_of(facts.troubles, Component.INGEST)
        why = trouble.message if trouble is not None else "the zones of the cluster are not known"
        return tell("False", Reason.STARTING if trouble is None else trouble.reason, f"there are no lines yet: {why}")
    if not lost:
        return tell("True", Reason.AS_EXPECTED, "every line receives and appends")
    trouble = worst_of(facts.troubles, Component.INGEST)
    if len(lost) < len(facts.standing.lines):
        why = "the others carry the whole feed" if trouble is None else trouble.message
        return tell("False", Reason.LINE_LOST, f"line {', '.join(lost)} is not ready; {why}")
    if trouble is not None:
        return tell("False", trouble.reason, trouble.message)
    return tell("False", *_why_no_line(facts))


def _why_no_line(facts: Facts) -> tuple[Reason, str]:
    for _, answer in sorted(facts.observed.health.items()):
        checks = _checks(answer)
        if checks.get("kinesis_producer", {}).get("status") in ("unhealthy", "waiting"):
            return Reason.REDIS_UNREACHABLE, "ingestors cannot append to Redis; see the condition RedisHealthy"
        websocket = checks.get("sbe_websocket", {})
        if websocket.get("status") in ("unhealthy", "disconnected", "degraded"):
            said = shortened(str(websocket.get("message") or "no message"), 200)
            return (
                Reason.EXCHANGE_UNREACHABLE,
                f"no line is connected to {facts.pipeline.spec.exchange.websocket_url}: {said}; check the address, "
                "the API key and that pods may reach it",
            )
    return Reason.STARTING, "no line is ready yet"


def _checks(answer: Answer) -> Mapping[str, Mapping[str, Any]]:
    checks = (answer.body or {}).get("checks")
    return checks if isinstance(checks, Mapping) else {}


def _redis(facts: Facts) -> Verdict:
    def tell(status: Truth, reason: Reason, message: str) -> Verdict:
        return Verdict(Condition.REDIS_HEALTHY, status, reason, message)

    connected = [symbol.connected for symbol in facts.standing.symbols if symbol.connected is not None]
    if not facts.standing.managed:
        return tell(*_external(facts, connected))
    count = facts.standing.counts[Component.REDIS]
    if count.ready == count.wanted and (not connected or any(connected)):
        return tell("True", Reason.AS_EXPECTED, "all nodes are ready")
    trouble = worst_of(facts.troubles, Component.REDIS)
    missing = f"{count.wanted - count.ready} of {count.wanted} nodes are not ready"
    if count.ready >= REDIS_QUORUM and (not connected or any(connected)):
        why = "the others serve" if trouble is None else trouble.message
        # What is left has a majority: writes go on.
        return tell("True", Reason.PODS_NOT_READY if trouble is None else trouble.reason, f"{missing}; {why}")
    if trouble is not None:
        return tell("False", trouble.reason, trouble.message)
    if count.ready == count.wanted:
        return tell(
            "False",
            Reason.NO_MASTER,
            "nodes are ready but no processor reaches a master; see "
            f"kubectl -n {facts.pipeline.namespace} logs -l {PIPELINE_LABEL}={facts.pipeline.name},"
            f"{COMPONENT_LABEL}={Component.REDIS} -c sentinel",
        )
    return tell("False", Reason.STARTING if _is_new(facts) else Reason.PODS_NOT_READY, missing)


def _external(facts: Facts, connected: list[bool]) -> tuple[Truth, Reason, str]:
    external = facts.pipeline.spec.redis.external
    url = external.url if external is not None else ""
    if any(connected):
        return "True", Reason.EXTERNAL, "processors reach the external Redis"
    rest = at_rest(facts.pipeline)
    if rest is not None:
        return "Unknown", *rest
    trouble = worst_of(facts.troubles, Component.PROCESS)
    if trouble is not None and trouble.reason is not Reason.CRASH_LOOPING:
        return "Unknown", trouble.reason, trouble.message
    if connected or trouble is not None:
        told = f" ({trouble.message})" if trouble is not None else ""
        return (
            "False",
            Reason.REDIS_UNREACHABLE,
            f"no processor reaches {url}{told}; check redis.external.url and passwordSecret, and that pods may "
            "connect to it",
        )
    return (
        "Unknown",
        Reason.STARTING if _is_new(facts) else Reason.UNKNOWN,
        f"no processor has said yet whether it reaches {url}",
    )


def _is_new(facts: Facts) -> bool:
    return not facts.pipeline.status.get("lastPredictionAt")


def _inference(facts: Facts) -> Verdict:
    def tell(status: Truth, reason: Reason, message: str) -> Verdict:
        return Verdict(Condition.INFERENCE_READY, status, reason, message)

    rest = at_rest(facts.pipeline)
    if rest is not None:
        return tell("Unknown", *rest)
    if facts.standing.counts[Component.INFER].ready == 0:
        trouble = worst_of(facts.troubles, Component.INFER)
        if trouble is not None:
            return tell("False", trouble.reason, trouble.message)
        return tell("False", Reason.STARTING if _is_new(facts) else Reason.PODS_NOT_READY, "no inference pod is ready")
    forecasts = facts.standing.forecasts
    missing = [one.symbol for one in forecasts if not one.fresh]
    if missing:
        return tell(
            "False", Reason.NO_PREDICTIONS, f"{', '.join(missing)}: no recent prediction; see the inference log"
        )
    degraded = [f"{one.symbol}: {_kinds(one.reason)}" for one in forecasts if one.degraded]
    if degraded:
        return tell("False", Reason.PREDICTIONS_DEGRADED, f"predictions are marked degraded: {'; '.join(degraded)}")
    return tell("True", Reason.AS_EXPECTED, "every slot is predicted")


def _kinds(reason: str) -> str:
    """Give the kinds of doubt without their numbers, which change with every slot."""
    return ", ".join(dict.fromkeys(part.partition(":")[0].strip() for part in reason.split(";"))) or "no reason given"


def _reanchor_in_progress(facts: Facts) -> Verdict:
    def tell(status: Truth, reason: Reason, message: str) -> Verdict:
        return Verdict(Condition.REANCHOR_IN_PROGRESS, status, reason, message)

    blind = worst_of(facts.troubles) if PLANNED_FROM & facts.observed.blind.keys() else None
    if blind is not None:
        return tell("Unknown", blind.reason, blind.message)
    symbols = sorted(facts.plan.symbols.items())
    running = [f"{symbol}: {one.running}" for symbol, one in symbols if one.running]
    pending = [f"{symbol}: {', '.join(one.pending[:3])}" for symbol, one in symbols if one.pending]
    if running:
        return tell("True", Reason.REANCHOR_RUNNING, "; ".join(running))
    if pending:
        return tell("False", Reason.REANCHOR_PENDING, f"waiting: {'; '.join(pending)}")
    return tell("False", Reason.IDLE, "no re-anchor is wanted")


def _reanchor_throttled(facts: Facts) -> Verdict:
    waits = [(symbol, one) for symbol, one in sorted(facts.plan.symbols.items()) if one.throttled is not None]
    held = _held_by_the_switch(facts)
    if held:
        text = (
            f"reanchor.enabled is false and {', '.join(held)} would be rebuilt: set it to true, or "
            f"{_command(facts.pipeline)} --force"
        )
        return Verdict(Condition.REANCHOR_THROTTLED, "True", Reason.DISABLED, text)
    if not waits:
        return Verdict(Condition.REANCHOR_THROTTLED, "False", Reason.NOT_THROTTLED, "nothing holds up a re-anchor")
    first = waits[0][1].throttled or Reason.UNKNOWN
    text = "; ".join(f"{symbol}: {one.message}" for symbol, one in waits)
    return Verdict(
        Condition.REANCHOR_THROTTLED,
        "True",
        first,
        f"{text}; {_command(facts.pipeline)} --force does not wait",
    )


def _held_by_the_switch(facts: Facts) -> list[str]:
    """Name the symbols that want a rebuild and get none because re-anchoring is switched off.

    A state in doubt wants one whether or not somebody asks: its requests are skipped, and nothing is left waiting.
    """
    if facts.pipeline.spec.reanchor.enabled:
        return []
    forced = {body["metadata"]["name"] for body in facts.observed.reanchors if (body.get("spec") or {}).get("force")}
    waiting = {symbol for symbol, one in facts.plan.symbols.items() if not forced.issuperset(one.pending)}
    suspect = {symbol.name for symbol in facts.standing.symbols if symbol.state == "suspect"}
    return sorted(waiting | suspect)


def _command(pipeline: Pipeline) -> str:
    return f"kubectl reanchor {pipeline.name} -n {pipeline.namespace}"


def _paused(facts: Facts) -> Verdict:
    if facts.pipeline.paused:
        text = "annotation sheetanchor.dev/paused is true: children are left as they are; remove it to go on"
        return Verdict(Condition.PAUSED, "True", Reason.PAUSED, text)
    rest = at_rest(facts.pipeline)
    if rest is not None:
        return Verdict(Condition.PAUSED, "True", *rest)
    return Verdict(Condition.PAUSED, "False", Reason.NOT_PAUSED, "")

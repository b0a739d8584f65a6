"""Pipelines, ReAnchors and answers of pods, as `kubectl reanchor explain` reads them, and what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import Component, Condition
from sheetanchor_operator.plugin.explain.explanation import Explanation, explain
from sheetanchor_operator.plugin.explain.facts import PodAnswer, facts_of
from support.pipeline_parts import NOW_US

SECOND_US = 1_000_000
AT = text_of(NOW_US - 40 * SECOND_US)
OLD = text_of(NOW_US - 400 * SECOND_US)
SOUND = [
    {"type": str(kind), "status": status, "reason": "AsExpected", "message": "", "lastTransitionTime": AT}
    for kind, status in (
        (Condition.READY, "True"),
        (Condition.ANCHORED, "True"),
        (Condition.INGESTION_HEALTHY, "True"),
        (Condition.REDIS_HEALTHY, "True"),
        (Condition.INFERENCE_READY, "True"),
        (Condition.REANCHOR_IN_PROGRESS, "False"),
        (Condition.REANCHOR_THROTTLED, "False"),
        (Condition.PAUSED, "False"),
        (Condition.TOPOLOGY_SATISFIED, "True"),
        (Condition.FAILOVER_IN_PROGRESS, "False"),
    )
]
ANCHORED = {"name": "BTCUSDT", "state": "anchored", "epoch": 4, "term": 2}
GAP = "Sequence gap detected: depth 124 → 131"
SUSPECT = {**ANCHORED, "state": "suspect", "reason": GAP, "suspectSince": AT}


def condition(kind: Condition, status: str, reason: str, message: str = "it is so; mend it") -> dict[str, Any]:
    return {"type": str(kind), "status": status, "reason": reason, "message": message, "lastTransitionTime": AT}


def body(*changed: dict[str, Any], symbols: Sequence[dict[str, Any]] = (ANCHORED,), **status: Any) -> dict[str, Any]:
    """Make a pipeline that is sound but for some conditions and fields of its status."""
    kinds = {one["type"] for one in changed}
    whole = {
        "phase": "Degraded" if changed or status else "Running",
        "ready": "10/10",
        "observedGeneration": 3,
        "operator": {"name": "x/y", "seenAt": AT},
        "lastPredictionAt": text_of(NOW_US - 9 * SECOND_US),
        "symbols": list(symbols),
        "conditions": [*(one for one in SOUND if one["type"] not in kinds), *changed],
        **status,
    }
    names = [one["name"] for one in symbols]
    metadata = {"name": "btc", "namespace": "trading", "generation": 3}
    return {"metadata": metadata, "spec": {"symbols": names}, "status": whole}


def run(name: str, phase: str = "", **fields: Any) -> dict[str, Any]:
    """Make a ReAnchor that was requested for the gap."""
    spec = {"pipeline": "btc", "symbol": fields.pop("symbol", "BTCUSDT"), "trigger": "sequence_gap", "reason": GAP}
    created = text_of(NOW_US - 30 * SECOND_US)
    status = {"phase": phase, **fields} if phase else {}
    return {"metadata": {"name": name, "creationTimestamp": created}, "spec": spec, "status": status}


def predicted(reason: str = "", *, age_s: float = 1, symbol: str = "BTCUSDT", name: str = "btc-infer-0") -> PodAnswer:
    answer = {"symbol": symbol, "ts": NOW_US - int(age_s * SECOND_US), "degraded": bool(reason), "reason": reason}
    return PodAnswer(name, "infer", f"/predictions/{symbol}", answer)


def state(symbol: str = "BTCUSDT", **fields: Any) -> PodAnswer:
    report = {"state": "anchored", "active": True, "epoch": 4, "suspect_since_us": 0, **fields}
    return PodAnswer("btc-process-0", "process", "/state", {"symbols": {symbol: report}})


def health(component: Component, check: str, status: str, message: str = "") -> PodAnswer:
    checks = {check: {"status": status, "message": message}}
    return PodAnswer(f"btc-{component}-0", str(component), "/health/detailed", {"checks": checks})


def explained(pipeline: dict[str, Any], *answers: PodAnswer, symbol: str = "", **known: Any) -> Explanation:
    return explain(facts_of(pipeline, symbol, NOW_US, answers=answers, **known))


def why(one: Explanation) -> list[tuple[str, str]]:
    return [(cause.about, cause.reason) for cause in one.causes]


def can(one: Explanation) -> list[str]:
    return [step.do for step in one.steps]

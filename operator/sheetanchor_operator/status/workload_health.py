"""The health of a pipeline as its workloads report it: symbols, predictions, lines, pods. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.redis_access import REDIS_NODES
from sheetanchor_operator.names import Component, selector_of
from sheetanchor_operator.observation import Live, Observed, symbols_in, whole_number
from sheetanchor_operator.status.problems import is_ready
from sheetanchor_operator.zones.lines import Line, lines

PREDICTION_AGE_MAX_US: Final = 10_000_000
"""Five slots. A slot is two seconds; the rest is for clocks that differ and for an observation that took its time."""


@dataclass(frozen=True, slots=True)
class Count:
    """Pods of a component.

    Attributes:
        ready: Ready ones, at most as many as wanted: during a roll-out there is one more.
    """

    wanted: int
    ready: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """The state of a trading pair as the active processor, else the best informed one, reports it.

    Attributes:
        state: anchored, suspect or unknown.
        active: Pod of the active processor, "" if none reports that it is.
        connected: Whether that processor reaches Redis; None if none has answered.
    """

    name: str
    state: str = "unknown"
    reason: str = ""
    epoch: int = 0
    term: int = 0
    suspect_since_us: int = 0
    active: str = ""
    connected: bool | None = None


@dataclass(frozen=True, slots=True)
class SymbolPrediction:
    """The newest prediction of a trading pair.

    Attributes:
        at_us: Time of its slot; 0 if there is none.
        fresh: Whether that is recent.
    """

    symbol: str
    at_us: int = 0
    fresh: bool = False
    degraded: bool = False
    reason: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadHealth:
    """The health of the whole pipeline.

    Attributes:
        managed: Whether the operator runs Redis.
        master: Pod that reports to be the master, "" if none does.
    """

    counts: Mapping[Component, Count]
    lines: tuple[tuple[Line, bool], ...]
    symbols: tuple[Symbol, ...]
    predictions: tuple[SymbolPrediction, ...]
    active_zone: str
    managed: bool
    master: str

    @property
    def total(self) -> Count:
        """Give the pods of all components together."""
        counts = self.counts.values()
        return Count(sum(count.wanted for count in counts), sum(count.ready for count in counts))


def workload_health_of(pipeline: Pipeline, observed: Observed) -> WorkloadHealth:
    """Evaluate the reports of the workloads and the state of their pods."""
    symbols = tuple(_symbol(name, observed) for name in pipeline.spec.symbols)
    known = lines(pipeline, observed)
    return WorkloadHealth(
        counts=_counts(pipeline, observed, len(known)),
        lines=tuple((line, bool(ready_pods(pipeline, observed, Component.INGEST, line.name))) for line in known),
        symbols=symbols,
        predictions=tuple(_prediction(name, observed) for name in pipeline.spec.symbols),
        active_zone=_active_zone(symbols, observed),
        managed=pipeline.managed_redis is not None,
        master=_master(observed),
    )


def ready_pods(pipeline: Pipeline, observed: Observed, component: Component, zone: str = "") -> list[Live]:
    """Give the pods of a component that are ready and have answered recently.

    That a pod is ready is its kubelet's word, and stays when the node is lost.
    """
    return [
        pod
        for pod in observed.pods_of(selector_of(pipeline.name, component, zone))
        if is_ready(pod) and pod["metadata"]["name"] not in observed.unanswered
    ]


def _counts(pipeline: Pipeline, observed: Observed, line_count: int) -> dict[Component, Count]:
    spec = pipeline.spec
    working = 0 if pipeline.scaled_to_zero else 1
    wanted = {
        Component.INGEST: working * line_count,
        Component.PROCESS: working * spec.processor.replicas,
        Component.INFER: working * spec.inference.replicas,
        Component.REDIS: REDIS_NODES if pipeline.managed_redis is not None else 0,
    }
    return {
        component: Count(number, min(number, len(ready_pods(pipeline, observed, component))))
        for component, number in wanted.items()
    }


def _symbol(name: str, observed: Observed) -> Symbol:
    best: tuple[tuple[bool, bool, int, int], Symbol] | None = None
    for pod, answer in sorted(observed.states.items()):
        report = symbols_in(answer).get(name)
        if not isinstance(report, Mapping):
            continue
        symbol = Symbol(
            name=name,
            state=_word(report.get("state"), ("anchored", "suspect")),
            reason=str(report.get("reason") or ""),
            epoch=_number(report.get("epoch")),
            term=_number(report.get("term")),
            suspect_since_us=_number(report.get("suspect_since_us")),
            active=pod if report.get("active") else "",
            connected=bool(report.get("connected")),
        )
        rank = (symbol.state != "unknown", bool(symbol.active), symbol.term, symbol.epoch)
        if best is None or rank > best[0]:
            best = (rank, symbol)
    return Symbol(name) if best is None else best[1]


def _word(value: Any, known: tuple[str, ...]) -> str:
    return str(value) if value in known else "unknown"


def _number(value: Any) -> int:
    """Read a number from a pod's answer, for display; anything else counts as missing."""
    return whole_number(value) or 0


def _prediction(symbol: str, observed: Observed) -> SymbolPrediction:
    bodies = [
        answer.body for (_, name), answer in sorted(observed.predictions.items()) if name == symbol and answer.body
    ]
    if not bodies:
        return SymbolPrediction(symbol)
    # Of the replicas' answers for the newest slot one that is not degraded counts: that is what a reader gets.
    newest = max(bodies, key=lambda body: (_number(body.get("ts")), not body.get("degraded")))
    at_us = _number(newest.get("ts"))
    return SymbolPrediction(
        symbol=symbol,
        at_us=at_us,
        fresh=observed.now_us - at_us <= PREDICTION_AGE_MAX_US,
        degraded=bool(newest.get("degraded")),
        reason=str(newest.get("reason") or ""),
        model=str(newest.get("model") or ""),
    )


def _active_zone(symbols: tuple[Symbol, ...], observed: Observed) -> str:
    """Name the zone from which most symbols are written; each symbol has its own active processor."""
    nodes = {pod["metadata"]["name"]: (pod.get("spec") or {}).get("nodeName", "") for pod in observed.pods}
    zones = Counter(observed.node_zones.get(nodes.get(symbol.active, ""), "") for symbol in symbols if symbol.active)
    del zones[""]
    return max(sorted(zones), key=lambda zone: zones[zone], default="")


def _master(observed: Observed) -> str:
    """Name the pod of the Redis master; of two that report to be it, the one that has replicas."""
    masters: list[tuple[int, str]] = []
    for pod, answer in sorted(observed.health.items()):
        checks = (answer.body or {}).get("checks")
        server = checks.get("server") if isinstance(checks, Mapping) else None
        if isinstance(server, Mapping) and server.get("role") == "master":
            masters.append((_number(server.get("replicas")), pod))
    return max(masters, default=(0, ""))[1]

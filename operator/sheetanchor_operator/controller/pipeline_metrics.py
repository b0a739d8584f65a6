"""The metrics of pipelines and their re-anchors."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sheetanchor.contract import Receipt
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES
from sheetanchor_operator import metrics
from sheetanchor_operator.kube.cache import Key
from sheetanchor_operator.names import Component, Condition, FailoverKind, FailoverPhase, Phase
from sheetanchor_operator.reanchors.durable_record import outcomes_of
from sheetanchor_operator.reanchors.runs import read_reanchor
from sheetanchor_operator.status.failover import finished_steps

FINAL: Final = ("Succeeded", "Failed", "Skipped")
_RUN: Final = ("Succeeded", "Failed")
_MECHANISM: Final = "reanchor"
_RESULTS: Final = ("success", "failure")
TRIGGERS: Final = frozenset({*GAP_DETECTION_RULES, "start", "suspect", "annotation", "schedule", "failover", "manual"})
"""Triggers that the product itself writes. A user may write any text, and each would become a series of its own."""

OTHER: Final = "other"
LOCK_HELD: Final = "lock_held"
FAILOVER_RESULTS: Final = (FailoverPhase.DONE, FailoverPhase.ABORTED)
ALERT_FAILED: Final = "REANCHOR_FAILED"
"""Code of the alert about a failed run, as dashboards of such pipelines expect it."""

OPERATION: Final = "rest"
ENDPOINTS: Final = frozenset(
    f"/api/v3/{name}" for name in ("depth", "trades", "klines", "ticker/24hr", "time", "ping", "exchangeInfo")
)
RUN_S_MAX: Final = 3_600
RETRIES_MAX: Final = 1_000
_STATUS: Final = re.compile(r"[1-5][0-9]{2}")
_COMPONENTS: Final = {
    "ingestion": Component.INGEST,
    "processor": Component.PROCESS,
    "inference": Component.INFER,
    "redis": Component.REDIS,
}


class PipelineMetrics:
    """Keeps the metrics of pipelines; the series of a deleted pipeline are removed."""

    def __init__(self) -> None:
        self._phases: dict[Key, tuple[str, float]] = {}
        self._series: dict[Key, set[tuple[Any, tuple[str, ...]]]] = {}
        """Metric and further labels of each counter's series: the library removes a series only by all of its
        labels."""

    def pipelines(self) -> list[Key]:
        """Name the pipelines that have metrics."""
        return list(self._phases)

    def take(
        self, key: Key, status: Mapping[str, Any], reanchors: Sequence[Mapping[str, Any]], *, announced: bool
    ) -> None:
        """Update the metrics from a status.

        Args:
            key: The pipeline.
            status: As it is now.
            reanchors: Its ReAnchors.
            announced: Whether maintenance is announced, which mutes alerts whatever the phase is.
        """
        self._phase(key, str(status.get("phase", "")))
        metrics.MAINTENANCE.labels(*key).set(announced)
        for result in _RESULTS:
            metrics.RECOVERIES.labels(
                *key, _MECHANISM, result
            )  # starts at zero, so that the first one counts as an increase
        for condition in status.get("conditions", ()):
            if condition["status"] == "Unknown":
                _remove(metrics.CONDITION, *key, condition["type"])
            else:
                metrics.CONDITION.labels(*key, condition["type"]).set(condition["status"] == "True")
        for field, component in _COMPONENTS.items():
            counts = status.get(field) or {}
            metrics.REPLICAS.labels(*key, str(component)).set(counts.get("replicas", 0))
            metrics.READY_REPLICAS.labels(*key, str(component)).set(counts.get("ready", 0))
        self._success_rate(key, status, reanchors)
        self._counter(metrics.ALERTS, key, ALERT_FAILED)
        for kind in FailoverKind:
            for result in FAILOVER_RESULTS:
                self._counter(metrics.FAILOVERS, key, str(kind), str(result))

    def _phase(self, key: Key, phase: str) -> None:
        now_s = time.monotonic()
        was, since_s = self._phases.get(key, ("", now_s))
        if was != phase:
            if was:
                metrics.PHASE_SECONDS.labels(was).observe(now_s - since_s)
            self._phases[key] = (phase, now_s)
        for known in Phase:
            metrics.PHASE.labels(*key, str(known)).set(known == phase)

    def _success_rate(self, key: Key, status: Mapping[str, Any], reanchors: Sequence[Mapping[str, Any]]) -> None:
        runs = status.get("reanchorRuns")
        if runs is None:  # written by the first reconcile that plans; until then only the existing objects are known
            good, bad = map(len, outcomes_of(map(read_reanchor, reanchors), {}, time.time_ns() // 1_000))
        else:
            good, bad = (len(runs.get(name) or ()) for name in ("succeededMicros", "failedMicros"))
        if good + bad:
            metrics.SUCCESS_RATE.labels(*key).set(good / (good + bad))
        else:
            _remove(metrics.SUCCESS_RATE, *key)

    def moved(self, key: Key, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Count a move that has ended, and the steps that have.

        Args:
            key: The pipeline.
            before: Its status before.
            after: Its status as it is written now.
        """
        for step, seconds in finished_steps(before, after):
            metrics.FAILOVER_SECONDS.labels(step).observe(seconds)
        was, now = before.get("failover") or {}, after.get("failover") or {}
        if was.get("phase") == FailoverPhase.RUNNING and now.get("phase") in FAILOVER_RESULTS:
            self._counter(metrics.FAILOVERS, key, str(now["kind"]), str(now["phase"])).inc()

    def count(self, key: Key, receipt: Receipt) -> None:
        """Count what a receipt says of its run, once: when its end is recorded.

        Args:
            key: The pipeline.
            receipt: The run's; any image may have written it, so labels that the product does not write count as one.
        """
        reason = receipt.trigger if receipt.trigger in TRIGGERS else OTHER
        self._counter(metrics.REANCHOR_RUNS, key, receipt.result, reason).inc()
        for endpoint, status, seconds in receipt.calls:
            where = endpoint if endpoint in ENDPOINTS else OTHER
            what = status if status in ("timeout", "error") or _STATUS.fullmatch(status) else OTHER
            self._counter(metrics.REST_CALLS, key, where, what).inc()
            if 0 <= seconds < RUN_S_MAX:
                metrics.REST_LATENCY.labels(where).observe(seconds)
            if what == "timeout":
                self._counter(metrics.TIMEOUTS, key, OPERATION).inc()
        self._counter(metrics.RETRIES, key, OPERATION).inc(min(max(0, receipt.retries), RETRIES_MAX))
        if receipt.alert == ALERT_FAILED:
            self._counter(metrics.ALERTS, key, ALERT_FAILED).inc()

    def _counter(self, metric: Any, key: Key, *labels: str) -> Any:
        self._series.setdefault(key, set()).add((metric, labels))
        return metric.labels(*key, *labels)

    def changed(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Count what a change of a ReAnchor shows: the end of a run, and the end of the ReAnchor.

        Args:
            before: The object before the change.
            after: The object after it.
        """
        was, now = before.get("status") or {}, after.get("status") or {}
        if was.get("phase") in FINAL:
            return
        spec, metadata = after["spec"], after["metadata"]
        key = metadata["namespace"], spec["pipeline"]
        final = now.get("phase") in FINAL
        # A ReAnchor that another one's run has answered had no run of its own.
        ran = bool(now.get("finishedAt")) and not now.get("answeredBy")
        # A run that found another one in progress has changed nothing, and is no failure.
        ran = ran and now.get("result") != LOCK_HELD
        if ran and (now["phase"] in _RUN if final else now.get("finishedAt") != was.get("finishedAt")):
            good = "success" if now["phase"] == "Succeeded" else "failure"
            metrics.RECOVERIES.labels(*key, _MECHANISM, good).inc()
        if not final:
            return
        trigger = spec.get("trigger", "manual")
        end = trigger if trigger in TRIGGERS else OTHER, str(now.get("result", ""))
        self._counter(metrics.REANCHORS, key, *end).inc()
        if ran and "durationSeconds" in now:
            metrics.REANCHOR_SECONDS.labels(end[1]).observe(float(now["durationSeconds"]))

    def forget(self, key: Key) -> None:
        """Remove the series of a deleted pipeline."""
        self._phases.pop(key, None)
        for phase in Phase:
            _remove(metrics.PHASE, *key, str(phase))
        for condition in Condition:
            _remove(metrics.CONDITION, *key, str(condition))
        for component in _COMPONENTS.values():
            _remove(metrics.REPLICAS, *key, str(component))
            _remove(metrics.READY_REPLICAS, *key, str(component))
        _remove(metrics.MAINTENANCE, *key)
        _remove(metrics.SUCCESS_RATE, *key)
        for result in _RESULTS:
            _remove(metrics.RECOVERIES, *key, _MECHANISM, result)
        for metric, labels in self._series.pop(key, ()):
            _remove(metric, *key, *labels)


def _remove(metric: Any, *labels: str) -> None:
    """Remove a series; a missing one is no error with the library's version 0.21 or newer."""
    metric.remove(*labels)

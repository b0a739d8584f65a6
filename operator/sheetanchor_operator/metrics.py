"""Every Prometheus metric of the operator. Those of pipelines are told by the leader only."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

RECONCILES: Final = Counter("sheetanchor_operator_reconciles_total", "Reconciliations of pipelines.", ["result"])
RECONCILE_SECONDS: Final = Histogram(
    "sheetanchor_operator_reconcile_duration_seconds",
    "Duration of a reconciliation, questions to the workloads included.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
QUEUE_DEPTH: Final = Gauge("sheetanchor_operator_queue_depth", "Pipelines that are due and wait for a worker.")
QUEUE_RETRIES: Final = Counter("sheetanchor_operator_queue_retries_total", "Reconciliations put off after a failure.")
LEADER: Final = Gauge("sheetanchor_operator_leader", "1 on the operator that acts, 0 on those that stand by.")
WATCH_AGE: Final = Gauge(
    "sheetanchor_operator_watch_age_seconds", "How long the watch of a kind has been behind the API server.", ["kind"]
)
APPLIES: Final = Counter("sheetanchor_operator_applies_total", "Objects written, creations included.", ["kind"])
API_ERRORS: Final = Counter(
    "sheetanchor_operator_api_errors_total", "Requests that the API server did not grant, by status code.", ["code"]
)

_PIPELINE = ["namespace", "name"]
PHASE: Final = Gauge("sheetanchor_pipeline_phase", "1 for the phase that a pipeline is in.", [*_PIPELINE, "phase"])
CONDITION: Final = Gauge(
    "sheetanchor_pipeline_condition",
    "1 for a condition that is True, 0 for one that is False; absent while it is Unknown.",
    [*_PIPELINE, "condition"],
)
PHASE_SECONDS: Final = Histogram(
    "sheetanchor_pipeline_phase_seconds",
    "Time that pipelines spent in a phase before they left it.",
    ["phase"],
    buckets=(1, 5, 10, 30, 60, 300, 1800, 3600, 21_600, 86_400),
)
MAINTENANCE: Final = Gauge("sheetanchor_pipeline_maintenance", "1 while a pipeline is in maintenance.", _PIPELINE)
REPLICAS: Final = Gauge(
    "sheetanchor_pipeline_replicas", "Pods that a component should have.", [*_PIPELINE, "component"]
)
READY_REPLICAS: Final = Gauge(
    "sheetanchor_pipeline_ready_replicas", "Pods of a component that are ready.", [*_PIPELINE, "component"]
)
REANCHORS: Final = Counter(
    "sheetanchor_reanchors_total", "Re-anchors that have ended.", [*_PIPELINE, "trigger", "result"]
)
REANCHOR_SECONDS: Final = Histogram(
    "sheetanchor_reanchor_duration_seconds",
    "Time from a re-anchor's first run to its end.",
    ["result"],
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300),
)
SUCCESS_RATE: Final = Gauge(
    "reanchor_success_rate", "Share of the re-anchors in the kept history that did not fail.", _PIPELINE
)
RECOVERIES: Final = Counter("recovery_attempts_total", "Attempts at recovery.", ["mechanism", "result"])

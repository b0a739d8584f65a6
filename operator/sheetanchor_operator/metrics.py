"""Every Prometheus metric of the operator. Only the leader exports those of pipelines."""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from sheetanchor.runtime.memory import memory_limit_bytes, memory_used_bytes

REGISTRY: Final = CollectorRegistry()
"""Not the library's default registry: the workloads' metrics, some of the same names, may be in the same process."""

for _collector in (ProcessCollector, PlatformCollector, GCCollector):
    _collector(registry=REGISTRY)

MEMORY_LIMIT: Final = Gauge(
    "sheetanchor_memory_limit_bytes", "Memory that the container may use; infinite without limit.", registry=REGISTRY
)
MEMORY_LIMIT.set_function(memory_limit_bytes)
MEMORY_USED: Final = Gauge(
    "sheetanchor_memory_used_bytes",
    "Memory that the container uses of its limit, as the kernel counts it: child processes too, such as a server.",
    registry=REGISTRY,
)
MEMORY_USED.set_function(memory_used_bytes)

HTTP_REQUESTS: Final = Counter(
    "http_requests", "HTTP answers by status and route.", ["status", "endpoint"], registry=REGISTRY
)
HTTP_REQUEST_ERRORS: Final = Counter(
    "http_request_errors", "HTTP answers that were errors, by kind.", ["error_type"], registry=REGISTRY
)
RECONCILES: Final = Counter(
    "sheetanchor_operator_reconciles_total", "Reconciliations of pipelines.", ["result"], registry=REGISTRY
)
RECONCILE_SECONDS: Final = Histogram(
    "sheetanchor_operator_reconcile_duration_seconds",
    "Duration of a reconciliation, polling the workloads included.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
QUEUE_DEPTH: Final = Gauge(
    "sheetanchor_operator_queue_depth", "Pipelines that are due and wait for a worker.", registry=REGISTRY
)
QUEUE_RETRIES: Final = Counter(
    "sheetanchor_operator_queue_retries_total",
    "Reconciliations that are retried later after a failure.",
    registry=REGISTRY,
)
EVENTS_LEFT_OUT: Final = Counter(
    "sheetanchor_operator_events_left_out_total",
    "Kubernetes Events that were not published, since too many of their namespace waited.",
    registry=REGISTRY,
)
LEADER: Final = Gauge(
    "sheetanchor_operator_leader", "1 on the operator that leads, 0 on those on standby.", registry=REGISTRY
)
ZONE_HEALTHY: Final = Gauge(
    "sheetanchor_zone_healthy",
    "1 for a zone whose pods this operator reaches, 0 for one that counts as silent or failed; absent while unknown.",
    ["zone"],
    registry=REGISTRY,
)
READERS_WITHDRAWN: Final = Counter(
    "sheetanchor_readers_withdrawn_total",
    "Inference pods of silent zones that were taken out of their Service, by result.",
    ["result"],
    registry=REGISTRY,
)
for _result in ("withdrawn", "stale", "conflict", "failed", "disputed"):
    READERS_WITHDRAWN.labels(_result)
FAILOVER_SECONDS: Final = Histogram(
    "sheetanchor_failover_duration_seconds",
    "Duration of the steps of moves of pipelines out of a zone.",
    ["step"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900),
    registry=REGISTRY,
)
for _step in ("Intent", "Fence", "Redis", "Readers", "Verify"):
    FAILOVER_SECONDS.labels(_step)
WATCH_AGE: Final = Gauge(
    "sheetanchor_operator_watch_age_seconds",
    "How long the watch of a kind has been behind the API server.",
    ["kind"],
    registry=REGISTRY,
)
WATCH_REFUSED: Final = Gauge(
    "sheetanchor_operator_watch_refused",
    "1 while a kind cannot be listed or watched in a namespace, empty for everywhere; 0 while it can.",
    ["kind", "watched_namespace"],
    registry=REGISTRY,
)
APPLIES: Final = Counter(
    "sheetanchor_operator_applies_total", "Objects written, creations included.", ["kind"], registry=REGISTRY
)
API_ERRORS: Final = Counter(
    "sheetanchor_operator_api_errors_total",
    "Requests that the API server answered with an error, by status code, or did not answer: none.",
    ["code"],
    registry=REGISTRY,
)

_PIPELINE = ["namespace", "name"]
PHASE: Final = Gauge(
    "sheetanchor_pipeline_phase", "1 for the phase that a pipeline is in.", [*_PIPELINE, "phase"], registry=REGISTRY
)
CONDITION: Final = Gauge(
    "sheetanchor_pipeline_condition",
    "1 for a condition that is True, 0 for one that is False; absent while it is Unknown.",
    [*_PIPELINE, "condition"],
    registry=REGISTRY,
)
PHASE_SECONDS: Final = Histogram(
    "sheetanchor_pipeline_phase_seconds",
    "Time that pipelines spent in a phase before they left it.",
    ["phase"],
    buckets=(1, 5, 10, 30, 60, 300, 1800, 3600, 21_600, 86_400),
    registry=REGISTRY,
)
MAINTENANCE: Final = Gauge(
    "sheetanchor_pipeline_maintenance", "1 while maintenance of a pipeline is announced.", _PIPELINE, registry=REGISTRY
)
KEPT_OFF: Final = Gauge(
    "sheetanchor_operator_kept_off",
    "1 for a pipeline that another installation of the operator manages.",
    _PIPELINE,
    registry=REGISTRY,
)
REPLICAS: Final = Gauge(
    "sheetanchor_pipeline_replicas", "Pods that a component should have.", [*_PIPELINE, "component"], registry=REGISTRY
)
READY_REPLICAS: Final = Gauge(
    "sheetanchor_pipeline_ready_replicas",
    "Pods of a component that are ready.",
    [*_PIPELINE, "component"],
    registry=REGISTRY,
)
REANCHORS: Final = Counter(
    "sheetanchor_reanchors_total", "Re-anchors that have ended.", [*_PIPELINE, "trigger", "result"], registry=REGISTRY
)
REANCHOR_SECONDS: Final = Histogram(
    "sheetanchor_reanchor_duration_seconds",
    "Duration of the run that gave a re-anchor its result, by result.",
    ["result"],
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300),
    registry=REGISTRY,
)
SUCCESS_RATE: Final = Gauge(
    "reanchor_success_rate",
    "Share of the re-anchors of the last 24 hours that succeeded, of those that had a run of their own.",
    _PIPELINE,
    registry=REGISTRY,
)
FAILOVERS: Final = Counter(
    "sheetanchor_failovers_total",
    "Moves of pipelines that have ended.",
    [*_PIPELINE, "kind", "result"],
    registry=REGISTRY,
)
RECOVERIES: Final = Counter(
    "recovery_attempts_total", "Attempts at recovery.", [*_PIPELINE, "mechanism", "result"], registry=REGISTRY
)

# From the receipts of re-anchor runs: their own processes end before they can be scraped
REANCHOR_RUNS: Final = Counter(
    "ingestor_rest_reanchors_total", "Re-anchor runs by result.", [*_PIPELINE, "result", "reason"], registry=REGISTRY
)
REST_CALLS: Final = Counter(
    "ingestor_rest_api_calls_total",
    "REST requests by endpoint and status.",
    [*_PIPELINE, "endpoint", "status"],
    registry=REGISTRY,
)
REST_LATENCY: Final = Histogram(
    "ingestor_rest_api_latency_seconds",
    "Time of a REST request.",
    ["endpoint"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
RETRIES: Final = Counter(
    "retry_attempts_total", "Retries, not counting first attempts.", [*_PIPELINE, "operation"], registry=REGISTRY
)
TIMEOUTS: Final = Counter(
    "operation_timeouts_total", "Calls that did not end in time.", [*_PIPELINE, "operation"], registry=REGISTRY
)
ALERTS: Final = Counter(
    "sheetanchor_alerts_total", "Conditions that need a person's attention.", [*_PIPELINE, "code"], registry=REGISTRY
)

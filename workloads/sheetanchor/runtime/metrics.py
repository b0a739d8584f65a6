"""Every Prometheus metric of the workloads, declared once. Roles import the ones that they update.

Names that existing dashboards of this pipeline use are kept exactly (`ingestor_*`, `reanchor_success_rate`), our own
begin with `sheetanchor_`. A symbol is a label where a role serves several; its values are bounded by the settings.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from sheetanchor.runtime.memory import memory_limit_bytes, memory_used_bytes

# HTTP of every role
HTTP_REQUESTS: Final = Counter("http_requests", "HTTP answers by status and route.", ["status", "endpoint"])
HTTP_REQUEST_ERRORS: Final = Counter("http_request_errors", "HTTP answers that were errors, by kind.", ["error_type"])
HEALTH_STATUS: Final = Gauge(
    "health_status", "Result of a check: 1 healthy, 0.5 degraded, 0 unhealthy.", ["service", "dependency"]
)

# Every process
MEMORY_LIMIT: Final = Gauge(
    "sheetanchor_memory_limit_bytes", "Memory that the container may use; infinite without limit."
)
MEMORY_LIMIT.set_function(memory_limit_bytes)
MEMORY_USED: Final = Gauge(
    "sheetanchor_memory_used_bytes",
    "Memory that the container uses of its limit, as the kernel counts it: child processes too, such as a server.",
)
MEMORY_USED.set_function(memory_used_bytes)

# Ingestor
SBE_MESSAGES: Final = Counter("ingestor_sbe_messages", "SBE frames received.", ["symbol", "stream"])
SBE_DECODE_ERRORS: Final = Counter("ingestor_sbe_decode_errors", "Frames refused by the decoder.", ["kind"])
SBE_DECODE_DURATION: Final = Histogram(
    "ingestor_sbe_decode_duration_seconds",
    "Time to check one frame.",
    buckets=(1e-7, 2.5e-7, 5e-7, 1e-6, 2.5e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 1e-2),
)
SBE_CONNECTION_STATUS: Final = Gauge(
    "ingestor_sbe_connection_status", "1 while the line is connected and receives frames or pongs.", ["line"]
)
SBE_STREAM_LACKING: Final = Gauge(
    "ingestor_sbe_stream_lacking",
    "1 while a live connection delivers nothing of a stream although it delivers others.",
    ["symbol", "stream"],
)
SBE_SEQUENCE_GAPS: Final = Counter("ingestor_sbe_sequence_gaps", "Jumps of ids seen on one line.", ["symbol", "stream"])
RECORDS_SENT: Final = Counter(
    "ingestor_kinesis_records_sent",
    "Entries appended to the line's stream.",
    ["stream"],
)
FRAMES_SHED: Final = Counter(
    "ingestor_frames_shed", "Frames dropped because the bounded queue was full.", ["symbol", "stream"]
)
FOREIGN_FRAMES: Final = Counter("ingestor_foreign_frames", "Frames of symbols that were not subscribed to.")
QUEUE_BYTES: Final = Gauge("ingestor_queue_bytes", "Bytes of frames waiting for Redis.")
RECONNECTION_ATTEMPTS: Final = Counter("reconnection_attempts", "Attempts to reconnect.", ["service", "result"])
INGEST_DELAY: Final = Histogram(
    "ingestor_append_delay_seconds",
    "From receiving a frame to Redis having it.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5),
)

# Processor
FRAMES_PROCESSED: Final = Counter("sheetanchor_processor_frames", "Frames consumed from the lines.", ["symbol", "line"])
DECODE_ERRORS: Final = Counter(
    "sheetanchor_processor_decode_errors", "Frames refused by the decoder.", ["symbol", "kind"]
)
HOT_WRITES: Final = Counter("sheetanchor_processor_writes", "Writes of the hot keys by reply.", ["symbol", "status"])
FRAME_TO_HOT: Final = Histogram(
    "sheetanchor_frame_to_hot_seconds",
    "From the ingestor receiving a frame to the hot keys holding it; replays are not counted.",
    ["symbol"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 15),
)
GAPS: Final = Counter("sheetanchor_gaps", "Gaps by rule and action.", ["symbol", "rule", "action"])
ANCHORED: Final = Gauge("sheetanchor_anchored", "1 while the hot state is anchored.", ["symbol"])
UNSOUND: Final = Gauge(
    "sheetanchor_unsound", "1 while the hot state is unsound for a reason of this kind.", ["symbol", "reason"]
)
LINE_BEHIND: Final = Gauge(
    "sheetanchor_line_behind",
    "1 while a line delivers nothing of a stream that another line delivers.",
    ["symbol", "line", "stream"],
)
CLOCK_JUMPS: Final = Counter("sheetanchor_clock_jumps", "Times that Redis' clock was found to have jumped.", ["symbol"])
EPOCH: Final = Gauge("sheetanchor_epoch", "Epoch of the hot state.", ["symbol"])
TERM: Final = Gauge("sheetanchor_term", "Term of the writer of the hot state.", ["symbol"])
RESTATEMENTS: Final = Counter(
    "sheetanchor_restatements",
    "Attempts to write the hot state from memory after Redis has lost acknowledged writes, by reply.",
    ["symbol", "status"],
)
WRITER: Final = Gauge("sheetanchor_writer", "1 while this process is the writer.", ["symbol"])

# Inference
_STAGE_BUCKETS: Final = (
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
)
STAGE_DURATION: Final = Histogram(
    "sheetanchor_inference_stage_seconds",
    "Time by stage: read, features, model, commit.",
    ["stage"],
    buckets=_STAGE_BUCKETS,
)
PREDICTION_LATENCY: Final = Histogram(
    "sheetanchor_prediction_latency_seconds",
    "From the slot's time to its commit.",
    ["symbol"],
    buckets=_STAGE_BUCKETS,
)
PREDICTIONS: Final = Counter("sheetanchor_predictions", "Commits by mode and reply.", ["symbol", "mode", "status"])
DEGRADED_PREDICTIONS: Final = Counter(
    "sheetanchor_degraded_predictions", "Degraded predictions by reason.", ["symbol", "reason"]
)
FEATURE_AGE: Final = Gauge(
    "sheetanchor_feature_age_seconds", "Age of the last market event at the last slot.", ["symbol"]
)
ACCURACY: Final = Gauge(
    "sheetanchor_directional_accuracy", "Share of decided predictions with the right direction.", ["symbol", "window"]
)
DECIDED: Final = Gauge(
    "sheetanchor_decided_predictions", "Decided predictions behind the directional accuracy.", ["symbol", "window"]
)
MODEL_ACCURACY: Final = Gauge(
    "sheetanchor_model_directional_accuracy",
    "Directional accuracy of the model in use over the last hour.",
    ["symbol"],
)
MODEL_DECIDED: Final = Gauge(
    "sheetanchor_model_decided_predictions", "Decided predictions behind the accuracy of the model in use.", ["symbol"]
)
BASELINE_ACCURACY: Final = Gauge(
    "sheetanchor_model_baseline_accuracy",
    "Directional accuracy of the model in training.",
    ["symbol"],
)
MODEL_FAILURES: Final = Counter(
    "sheetanchor_model_failures", "Failures of a model by step of the fallback chain.", ["symbol", "step"]
)
MODEL_INFO: Final = Gauge("sheetanchor_model_info", "1 for the model in use.", ["symbol", "model", "mode"])

# Managed Redis: labelled, so that other roles export no series of these
REDIS_UP: Final = Gauge("redis_up", "1 while the server answers.", ["node"])
REDIS_MASTER: Final = Gauge("redis_master", "1 while the server is the master.", ["node"])
REDIS_LINK_UP: Final = Gauge("redis_master_link_up", "1 while a replica follows its master; 1 on the master.", ["node"])
REDIS_REPLICAS: Final = Gauge("redis_connected_replicas", "Replicas connected to a master.", ["node"])
REDIS_OFFSET: Final = Gauge("redis_replication_offset_bytes", "Replication offset.", ["node"])
REDIS_MEMORY: Final = Gauge("redis_memory_used_bytes", "Memory in use.", ["node"])
REDIS_MEMORY_MAX: Final = Gauge("redis_memory_max_bytes", "Memory that may be used; 0 without limit.", ["node"])
REDIS_CLIENTS: Final = Gauge("redis_connected_clients", "Connections of clients.", ["node"])
REDIS_LIBRARY_REPAIRS: Final = Counter(
    "redis_library_repairs",
    "Times that a foreign function library was replaced or removed.",
    ["node"],
)
SENTINEL_UP: Final = Gauge("redis_sentinel_up", "1 while the Sentinel answers.", ["node"])
SENTINEL_MASTER_DOWN: Final = Gauge(
    "redis_sentinel_master_down", "1 while this Sentinel does not reach the master.", ["node"]
)
SENTINEL_EPOCH: Final = Gauge("redis_sentinel_config_epoch", "Rises with every failover.", ["node"])
SENTINEL_OTHERS: Final = Gauge("redis_sentinel_others", "Other Sentinels known to this one.", ["node"])

# Re-anchor: its process ends before it can be scraped, so the local supervisor counts from the receipts
REANCHORS: Final = Counter("ingestor_rest_reanchors", "Re-anchor runs by result.", ["symbol", "result", "reason"])
REANCHOR_DURATION: Final = Histogram(
    "sheetanchor_reanchor_run_seconds",
    "Length of a re-anchor run.",
    ["symbol"],
    buckets=(0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300),
)
REANCHOR_REQUESTS: Final = Counter(
    "sheetanchor_reanchor_requests",
    "ReAnchor objects requested over the Kubernetes API, by result.",
    ["symbol", "result"],
)
REST_CALLS: Final = Counter("ingestor_rest_api_calls", "REST requests by endpoint and status.", ["endpoint", "status"])
REST_LATENCY: Final = Histogram("ingestor_rest_api_latency_seconds", "Time of a REST request.", ["endpoint"])
REST_WEIGHT: Final = Gauge(
    "sheetanchor_rest_weight_remaining", "Request weight left in its minute after the last re-anchor."
)

# Fault tolerance
TASK_FAULTS: Final = Counter(
    "sheetanchor_task_faults", "Unexpected ends of background tasks, which are restarted.", ["task"]
)
CIRCUIT_STATE: Final = Gauge("circuit_breaker_state", "0 closed, 1 half-open, 2 open.", ["dependency"])
RETRIES: Final = Counter("retry_attempts", "Retries, not counting first attempts.", ["operation"])
TIMEOUTS: Final = Counter("operation_timeouts", "Calls that did not end in time.", ["operation"])
RECOVERY_ATTEMPTS: Final = Counter("recovery_attempts", "Recoveries by mechanism and result.", ["mechanism", "result"])
ALERTS: Final = Counter("sheetanchor_alerts", "Conditions that need a person's attention.", ["code"])

"""Every name that the cluster sees: kinds, labels, annotations, names of children, and the closed lists of reasons.

Scripts, alerts and documents depend on these names: a list here only ever grows.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sheetanchor.policy.reanchor_object import symbol_label

GROUP: Final = "sheetanchor.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
PIPELINE_KIND: Final = "PredictionPipeline"
PIPELINES: Final = "predictionpipelines"
REANCHOR_KIND: Final = "ReAnchor"
REANCHORS: Final = "reanchors"
CATEGORY: Final = "sheetanchor"

FIELD_MANAGER: Final = "sheetanchor-operator"

PIPELINE_LABEL: Final = f"{GROUP}/pipeline"
ZONE_LABEL: Final = f"{GROUP}/zone"
SYMBOL_LABEL: Final = f"{GROUP}/symbol"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
TOPOLOGY_ZONE: Final = "topology.kubernetes.io/zone"
HOSTNAME: Final = "kubernetes.io/hostname"

REANCHOR_ANNOTATION: Final = f"{GROUP}/reanchor"
PAUSED_ANNOTATION: Final = f"{GROUP}/paused"
OPERATOR_ANNOTATION: Final = f"{GROUP}/operator"
SWITCHOVER_ANNOTATION: Final = f"{GROUP}/switchover"
EVACUATE_ANNOTATION: Final = f"{GROUP}/evacuate-zone"
ANY_ZONE: Final = "any"
"""In the annotation for a switchover: to whichever zone has a standby."""
SETTINGS_HASH: Final = f"{GROUP}/settings-hash"

ZONE_UNREACHABLE: Final = "ZoneUnreachable"
"""Reason in the condition Ready of a pod that an operator has taken out of its Service."""

PIPELINE_NAME_LENGTH_MAX: Final = 40
"""A Service's name holds 63 characters, a StatefulSet's 52, since its pods carry it with a hash as a label.

Only names of lines are longer, by `-ingest-` and a zone of 31: a Deployment's holds 253, and its pods' are shortened.
"""

LABEL_LENGTH_MAX: Final = 63

HTTP_PORT: Final = 8080
PROBE_PORT: Final = 8082
"""Liveness and readiness only. No policy opens it: the kubelet of a pod's node reaches it without one."""
REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
SENTINEL_HTTP_PORT: Final = 8081
SENTINEL_CONTAINER: Final = "sentinel"
SENTINEL_SERVICE: Final = "sheetanchor"

SETTINGS_FOLDER: Final = "/etc/sheetanchor/settings"
SECRETS_FOLDER: Final = "/etc/sheetanchor/secrets"
MODEL_FOLDER: Final = "/etc/sheetanchor/model"
REDIS_CA_FILE: Final = "/etc/sheetanchor/redis-ca/ca.crt"
REDIS_PASSWORD_FILE: Final = f"{SECRETS_FOLDER}/redis-password"
API_KEY_FILE: Final = f"{SECRETS_FOLDER}/api-key"

USER_ID: Final = 65532
"""The image's user: not root, and not a user of a base image."""

DEFAULT_API_KEY_SECRET: Final = "binance-api-key"
DEFAULT_API_KEY_KEY: Final = "api-key"


class Component(StrEnum):
    """Values of the label `app.kubernetes.io/component`."""

    INGEST = "ingest"
    PROCESS = "process"
    INFER = "infer"
    REDIS = "redis"
    REANCHOR = "reanchor"
    SETTINGS = "settings"


class Phase(StrEnum):
    """`status.phase` of a pipeline."""

    PENDING = "Pending"
    RUNNING = "Running"
    DEGRADED = "Degraded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    MAINTENANCE = "Maintenance"
    PAUSED = "Paused"


class Condition(StrEnum):
    """Types of a pipeline's conditions."""

    READY = "Ready"
    ANCHORED = "Anchored"
    INGESTION_HEALTHY = "IngestionHealthy"
    REDIS_HEALTHY = "RedisHealthy"
    INFERENCE_READY = "InferenceReady"
    REANCHOR_IN_PROGRESS = "ReanchorInProgress"
    REANCHOR_THROTTLED = "ReanchorThrottled"
    PAUSED = "Paused"
    TOPOLOGY_SATISFIED = "TopologySatisfied"
    FAILOVER_IN_PROGRESS = "FailoverInProgress"


class ZoneHealth(StrEnum):
    """`status.zones[].health` of a pipeline."""

    HEALTHY = "healthy"
    SILENT = "silent"
    FAILED = "failed"
    UNKNOWN = "unknown"


class ZoneReason(StrEnum):
    """Why a zone counts as what it does."""

    ANSWERS = "Answers"
    UNREACHABLE = "Unreachable"
    RETURNING = "Returning"
    NO_WITNESSES = "NoWitnesses"
    UNCONFIRMED = "Unconfirmed"


class FailoverKind(StrEnum):
    """What a move of a pipeline is."""

    SWITCHOVER = "Switchover"
    EVACUATION = "Evacuation"


class FailoverPhase(StrEnum):
    """`status.failover.phase` of a pipeline."""

    RUNNING = "Running"
    DONE = "Done"
    ABORTED = "Aborted"
    REFUSED = "Refused"


class FailoverStep(StrEnum):
    """Steps of a move, in their order."""

    INTENT = "Intent"
    FENCE = "Fence"
    REDIS = "Redis"
    READERS = "Readers"
    VERIFY = "Verify"


class Reason(StrEnum):
    """Reasons of a pipeline's conditions."""

    # Nothing is wrong
    AS_EXPECTED = "AsExpected"
    ANCHORED = "Anchored"
    NOT_PAUSED = "NotPaused"
    IDLE = "Idle"
    NOT_THROTTLED = "NotThrottled"
    EXTERNAL = "External"
    # In progress
    STARTING = "Starting"
    ROLLING_OUT = "RollingOut"
    AWAITING_FIRST_ANCHOR = "AwaitingFirstAnchor"
    REANCHOR_PENDING = "ReanchorPending"
    REANCHOR_RUNNING = "ReanchorRunning"
    FAILOVER_RUNNING = "FailoverRunning"
    # As a user specified
    SUSPENDED = "Suspended"
    MAINTENANCE = "Maintenance"
    PAUSED = "Paused"
    # What a person has to fix
    SPEC_REFUSED = "SpecRefused"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    SECRET_MISSING = "SecretMissing"
    CONFIG_MAP_MISSING = "ConfigMapMissing"
    VOLUME_CLAIM_MISSING = "VolumeClaimMissing"
    QUOTA_EXCEEDED = "QuotaExceeded"
    APPLY_FORBIDDEN = "ApplyForbidden"
    APPLY_REFUSED = "ApplyRefused"
    POD_REFUSED = "PodRefused"
    UNSCHEDULABLE = "Unschedulable"
    CRASH_LOOPING = "CrashLooping"
    CONTAINER_REFUSED = "ContainerRefused"
    NAME_TAKEN = "NameTaken"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    POLICY_REFUSED = "PolicyRefused"
    LIMITS_REFUSED = "LimitsRefused"
    WATCH_REFUSED = "WatchRefused"
    # What may recover by itself
    PODS_NOT_READY = "PodsNotReady"
    REDIS_UNREACHABLE = "RedisUnreachable"
    NO_MASTER = "NoMaster"
    EXCHANGE_UNREACHABLE = "ExchangeUnreachable"
    LINE_LOST = "LineLost"
    NO_PREDICTIONS = "NoPredictions"
    PREDICTIONS_DEGRADED = "PredictionsDegraded"
    SUSPECT = "Suspect"
    ZONE_LOST = "ZoneLost"
    NOT_SPREAD = "NotSpread"
    SINGLE_ZONE = "SingleZone"
    FAILOVER_ABORTED = "FailoverAborted"
    FAILOVER_REFUSED = "FailoverRefused"
    UNKNOWN = "Unknown"
    # Why a re-anchor is throttled
    BACKING_OFF = "BackingOff"
    COOLDOWN = "Cooldown"
    BUDGET_USED_UP = "BudgetUsedUp"
    EXCHANGE_LIMIT = "ExchangeLimit"
    LOCK_HELD = "LockHeld"
    DISABLED = "Disabled"


class EventReason(StrEnum):
    """Reasons of Kubernetes Events about a pipeline or a re-anchor."""

    GAP_FOUND = "GapFound"
    REANCHOR_STARTED = "ReanchorStarted"
    REANCHOR_SUCCEEDED = "ReanchorSucceeded"
    REANCHOR_FAILED = "ReanchorFailed"
    REANCHOR_RETRIED = "ReanchorRetried"
    REANCHOR_SKIPPED = "ReanchorSkipped"
    REANCHOR_THROTTLED = "ReanchorThrottled"
    READY = "Ready"
    DEGRADED = "Degraded"
    FAILED = "Failed"
    RECOVERED = "Recovered"
    SUSPECT = "Suspect"
    ANCHORED = "Anchored"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    PAUSED = "Paused"
    UNPAUSED = "Unpaused"
    MAINTENANCE_STARTED = "MaintenanceStarted"
    MAINTENANCE_ENDED = "MaintenanceEnded"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    SECRET_MISSING = "SecretMissing"
    CONFIG_MAP_MISSING = "ConfigMapMissing"
    QUOTA_EXCEEDED = "QuotaExceeded"
    APPLY_REFUSED = "ApplyRefused"
    UNSCHEDULABLE = "Unschedulable"
    CRASH_LOOPING = "CrashLooping"
    REDIS_UNREACHABLE = "RedisUnreachable"
    SPEC_REFUSED = "SpecRefused"
    VOLUME_CLAIM_MISSING = "VolumeClaimMissing"
    CONTAINER_REFUSED = "ContainerRefused"
    NO_MASTER = "NoMaster"
    EXCHANGE_UNREACHABLE = "ExchangeUnreachable"
    LINE_LOST = "LineLost"
    NO_PREDICTIONS = "NoPredictions"
    NAME_TAKEN = "NameTaken"
    WATCH_REFUSED = "WatchRefused"
    KEPT_OFF = "KeptOff"
    ZONE_SILENT = "ZoneSilent"
    ZONE_FAILED = "ZoneFailed"
    ZONE_RETURNED = "ZoneReturned"
    ZONE_DISPUTED = "ZoneDisputed"
    READERS_WITHDRAWN = "ReadersWithdrawn"
    POD_MOVED = "PodMoved"
    FAILOVER_STARTED = "FailoverStarted"
    FAILOVER_STEP = "FailoverStep"
    FAILOVER_DONE = "FailoverDone"
    FAILOVER_ABORTED = "FailoverAborted"
    FAILOVER_REFUSED = "FailoverRefused"
    ZONE_EVACUATED = "ZoneEvacuated"
    ZONE_READMITTED = "ZoneReadmitted"


def child_name(pipeline: str, component: Component | str, zone: str = "") -> str:
    """Name a child, for instance `btc-ingest-a`.

    Args:
        pipeline: Name of the pipeline.
        component: What the child is for.
        zone: The line that it belongs to, "" for none.
    """
    return "-".join(filter(None, (pipeline, str(component), zone)))


def labels_of(pipeline: str, component: Component | str, zone: str = "", symbol: str = "") -> dict[str, str]:
    """Give the labels that a child and its pods carry.

    Args:
        pipeline: Name of the pipeline.
        component: What the child is for.
        zone: The line that it belongs to, "" for none.
        symbol: The trading pair that it belongs to, "" for none.
    """
    labels = {
        "app.kubernetes.io/name": "sheetanchor",
        "app.kubernetes.io/instance": pipeline,
        COMPONENT_LABEL: str(component),
        "app.kubernetes.io/managed-by": "sheetanchor-operator",
        "app.kubernetes.io/part-of": "sheetanchor",
        PIPELINE_LABEL: pipeline,
    }
    if zone:
        labels[ZONE_LABEL] = zone
    if symbol:
        labels[SYMBOL_LABEL] = symbol_label(symbol)
    return labels


def selector_of(pipeline: str, component: Component | str, zone: str = "") -> dict[str, str]:
    """Give the labels that select a component's pods; they never change, since selectors cannot."""
    labels = {PIPELINE_LABEL: pipeline, COMPONENT_LABEL: str(component)}
    return {**labels, ZONE_LABEL: zone} if zone else labels

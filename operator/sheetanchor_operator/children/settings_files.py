"""The settings file of each role, checked by the role's own model while it is rendered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel

from sheetanchor.runtime.settings import InferSettings, IngestSettings, ProcessSettings, ReanchorSettings, RoleSettings
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults, Manifest, metadata_of
from sheetanchor_operator.children.redis_access import SecretEntry, password_entry, redis_url
from sheetanchor_operator.names import (
    API_KEY_FILE,
    DEFAULT_API_KEY_KEY,
    DEFAULT_API_KEY_SECRET,
    HTTP_PORT,
    MODEL_FOLDER,
    PROBE_PORT,
    REDIS_CA_FILE,
    REDIS_PASSWORD_FILE,
    Component,
    child_name,
)

NO_API_KEY: Final = "none"
"""The workload requires a key; an exchange other than Binance ignores it."""

Settings = dict[str, Any]


def api_key_entry(pipeline: Pipeline) -> SecretEntry | None:
    """Name the Secret entry with the exchange's API key; None for an exchange that requires none."""
    given = pipeline.spec.exchange.api_key_secret
    if given is not None:
        return SecretEntry(given.name, given.key)
    host = urlsplit(pipeline.spec.exchange.websocket_url).hostname or ""
    wants_one = host == "binance.com" or host.endswith((".binance.com", ".binance.us", ".binance.vision"))
    return SecretEntry(DEFAULT_API_KEY_SECRET, DEFAULT_API_KEY_KEY) if wants_one else None


def _common(pipeline: Pipeline, role: Component, defaults: Defaults) -> Settings:
    settings: Settings = {
        "symbol": list(pipeline.spec.symbols),
        "log_level": pipeline.spec.log_level,
        "redis_url": redis_url(pipeline, role, defaults),
    }
    if password_entry(pipeline, role) is not None:
        settings["redis_password_file"] = REDIS_PASSWORD_FILE
    external = pipeline.spec.redis.external
    if external is not None and external.ca_secret is not None:
        settings["redis_ca_file"] = REDIS_CA_FILE
    return settings


def _ingest(pipeline: Pipeline) -> Settings:
    ingestion = pipeline.spec.ingestion
    settings: Settings = {
        "ws_url": pipeline.spec.exchange.websocket_url,
        "streams": list(ingestion.streams),
        "silence_s": ingestion.silence_seconds,
        "connection_loss_s": ingestion.connection_loss_seconds,
        "rotate_after_s": ingestion.rotate_after_hours * 3600,
        "queue_bytes_max": ingestion.queue_megabytes * 1024 * 1024,
    }
    if api_key_entry(pipeline) is not None:
        settings["api_key_file"] = API_KEY_FILE
    return settings


def _process(pipeline: Pipeline) -> Settings:
    processor = pipeline.spec.processor
    return {
        "rest_url": pipeline.spec.exchange.rest_url,
        "gap_threshold": processor.gaps.sequence_threshold,
        "gap_wait_ms": processor.gaps.wait_milliseconds,
        "time_gap_s": processor.gaps.time_seconds,
        "volume_sigmas": processor.gaps.volume_sigmas,
        "price_jump": processor.gaps.price_jump,
        "suppress_rules": list(processor.gaps.suppress),
        "self_reanchor_after_s": processor.self_reanchor_after_seconds,
        "reanchor_depth_limit": pipeline.spec.reanchor.depth_limit,
        "reanchor_timeout_s": pipeline.spec.reanchor.timeout_seconds,
        **_reliability(pipeline),
        "reanchor_requests": "kubernetes",
        "pipeline": pipeline.name,
        "pipeline_uid": pipeline.uid,
        "pipeline_namespace": pipeline.namespace,
    }


def _infer(pipeline: Pipeline) -> Settings:
    model = pipeline.spec.inference.model
    settings: Settings = {"warm_runs": pipeline.spec.inference.warm_runs}
    if model.config_map is not None or model.persistent_volume_claim is not None:
        settings["models"] = MODEL_FOLDER
    return settings


def _reanchor(pipeline: Pipeline) -> Settings:
    return {
        "rest_url": pipeline.spec.exchange.rest_url,
        "depth_limit": pipeline.spec.reanchor.depth_limit,
        "timeout_s": pipeline.spec.reanchor.timeout_seconds,
        **_reliability(pipeline),
    }


def _reliability(pipeline: Pipeline) -> Settings:
    wanted = pipeline.spec.reliability
    return {
        "retry_max_attempts": wanted.retry_max_attempts,
        "retry_initial_delay_ms": wanted.retry_initial_delay_milliseconds,
        "circuit_breaker_threshold": wanted.circuit_breaker_threshold,
        "circuit_breaker_timeout_seconds": wanted.circuit_breaker_timeout_seconds,
    }


_ROLES: Final[dict[Component, tuple[Callable[[Pipeline], Settings], type[BaseModel]]]] = {
    Component.INGEST: (_ingest, IngestSettings),
    Component.PROCESS: (_process, ProcessSettings),
    Component.INFER: (_infer, InferSettings),
    Component.REANCHOR: (_reanchor, ReanchorSettings),
}


def settings_of(pipeline: Pipeline, role: Component, defaults: Defaults) -> Settings:
    """Give the settings of a role as its file has them.

    Raises:
        ValueError: The role's own model refuses them, which is a defect of this module.
    """
    own, model = _ROLES[role]
    settings = {**_common(pipeline, role, defaults), **own(pipeline)}
    if issubclass(model, RoleSettings):
        settings["health_check_interval_seconds"] = pipeline.spec.reliability.health_check_interval_seconds
        settings |= {"http_host": defaults.listen_address, "http_port": HTTP_PORT, "probe_port": PROBE_PORT}
    model.model_validate(settings)
    return settings


def file_text(settings: Mapping[str, Any]) -> str:
    """Render settings as YAML, one a line; the same settings give the same text, whatever library is installed."""
    return "".join(f"{name}: {json.dumps(settings[name], ensure_ascii=False)}\n" for name in sorted(settings))


def settings_map(pipeline: Pipeline, defaults: Defaults) -> Manifest:
    """Render the ConfigMap with one file per role."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata_of(pipeline, Component.SETTINGS, child_name(pipeline.name, Component.SETTINGS)),
        "data": {f"{role}.yaml": file_text(settings_of(pipeline, role, defaults)) for role in _ROLES},
    }

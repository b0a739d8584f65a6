"""The managed Redis: three servers with a Sentinel each, their passwords, and their disruption budget."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

from sheetanchor.runtime.settings import REDIS_USERS, RedisSettings
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.redis_spec import ManagedRedis
from sheetanchor_operator.children.object_meta import Defaults, Manifest, disruption_budget, metadata_of
from sheetanchor_operator.children.pod_template import (
    CONTAINER_SECURITY,
    SCRAPED,
    apart_on_nodes,
    image_of,
    pod_metadata,
    pod_security,
    pull_policy_of,
    resources_of,
    scheduling_fields,
    tolerations,
    unless_missing,
)
from sheetanchor_operator.children.redis_access import REDIS_NODES, redis_hosts
from sheetanchor_operator.names import (
    GROUP,
    HTTP_PORT,
    PROBE_PORT,
    REDIS_PORT,
    SECRETS_FOLDER,
    SENTINEL_CONTAINER,
    SENTINEL_HTTP_PORT,
    SENTINEL_PORT,
    SETTINGS_HASH,
    TOPOLOGY_ZONE,
    Component,
    child_name,
    labels_of,
    selector_of,
)
from sheetanchor_operator.observation import Observed

CREATE_ONLY: Final = f"{GROUP}/create-only"
"""Annotation of an object that is created once and never written again."""

SENTINEL_PROBE_PORT: Final = 8083
VOLUME_FOLDER: Final = "/var/lib/sheetanchor"
SERVER_FOLDER: Final = f"{VOLUME_FOLDER}/redis"
SENTINEL_FOLDER: Final = f"{VOLUME_FOLDER}/sentinel"
"""Beside the data: if the data outlives the pods, so must the record of which node had the newest."""

GRACE_S: Final = 30
"""A master takes at most 8 s to hand over and 8 s to end."""

SETTLED_S: Final = 5
"""A node that has followed its master for this long is known to every Sentinel; then the next one may be replaced."""

NOTES_SIZE: Final = "64Mi"
"""Configuration files, and nothing else where data is kept in memory only."""

DNS_OPTIONS: Final = (
    {"name": "ndots", "value": "1"},
    {"name": "timeout", "value": "1"},
    {"name": "attempts", "value": "2"},
)
"""Servers and Sentinels block while they resolve a name: a slow look-up would look like a node that is down."""

_BYTES: Final = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def redis_children(
    pipeline: Pipeline, observed: Observed, defaults: Defaults, make_password: Callable[[str], str]
) -> tuple[Manifest, ...]:
    """Render the managed Redis; nothing if the pipeline uses an external one.

    Args:
        pipeline: The pipeline with its specification.
        observed: The live objects.
        defaults: Values from the operator's own settings.
        make_password: Makes a fresh random password for a user.
    """
    managed = pipeline.managed_redis
    if managed is None:
        return ()
    name = child_name(pipeline.name, Component.REDIS)
    secret = () if managed.password_secret is not None else (_secret(pipeline, name, make_password),)
    return (
        *secret,
        _service(pipeline, name),
        disruption_budget(pipeline, Component.REDIS, name),
        _stateful_set(pipeline, managed, observed, defaults, name),
    )


def bytes_of(size: str) -> int:
    """Give the bytes of a size such as `768Mi`."""
    return int(size[:-2]) * _BYTES[size[-2:]]


def _secret(pipeline: Pipeline, name: str, make_password: Callable[[str], str]) -> Manifest:
    metadata = metadata_of(pipeline, Component.REDIS, name)
    metadata["annotations"] = {CREATE_ONLY: "true"}
    passwords = {user: base64.b64encode(make_password(user).encode()).decode() for user in REDIS_USERS}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": passwords}


def _service(pipeline: Pipeline, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata_of(pipeline, Component.REDIS, name),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            # Nodes have to find one another before any of them is ready; without this none would become ready.
            "publishNotReadyAddresses": True,
            "selector": selector_of(pipeline.name, Component.REDIS),
            "ports": [
                {"name": "redis", "port": REDIS_PORT, "targetPort": "redis", "protocol": "TCP"},
                {"name": "sentinel", "port": SENTINEL_PORT, "targetPort": "sentinel", "protocol": "TCP"},
            ],
        },
    }


def _stateful_set(
    pipeline: Pipeline, managed: ManagedRedis, observed: Observed, defaults: Defaults, name: str
) -> Manifest:
    spec: Manifest = {
        "serviceName": name,
        "replicas": REDIS_NODES,
        "podManagementPolicy": "Parallel",
        "minReadySeconds": SETTLED_S,
        "revisionHistoryLimit": 3,
        "updateStrategy": {"type": "RollingUpdate"},
        "selector": {"matchLabels": selector_of(pipeline.name, Component.REDIS)},
        "template": _template(pipeline, managed, observed, defaults, name),
    }
    if managed.storage is not None:
        claim: Manifest = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": managed.storage.size}},
        }
        if managed.storage.storage_class_name:
            claim["storageClassName"] = managed.storage.storage_class_name
        spec["volumeClaimTemplates"] = [
            {"metadata": {"name": "data", "labels": selector_of(pipeline.name, Component.REDIS)}, "spec": claim}
        ]
        spec["persistentVolumeClaimRetentionPolicy"] = {"whenDeleted": "Delete", "whenScaled": "Retain"}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata_of(pipeline, Component.REDIS, name),
        "spec": spec,
    }


def _template(pipeline: Pipeline, managed: ManagedRedis, observed: Observed, defaults: Defaults, name: str) -> Manifest:
    given = managed.password_secret
    secret = name if given is None else given.name
    # The Secret that the operator creates never changes; the first reconcile that sees it must not replace any pod.
    version = "" if given is None else observed.secret_versions.get(secret, "")
    content = json.dumps({"secret": secret, "version": version}, sort_keys=True)
    missing = given is not None and not set(REDIS_USERS) <= (observed.secrets.get(secret) or frozenset())
    new = hashlib.sha256(content.encode()).hexdigest()[:16]
    stamp = unless_missing(new, observed.child("StatefulSet", name), missing=missing)
    items = [{"key": user, "path": user} for user in REDIS_USERS]
    volumes: list[Manifest] = [
        {"name": "secrets", "secret": {"secretName": secret, "defaultMode": 0o440, "items": items}},
        # In memory: configuration files hold passwords.
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
    ]
    if managed.storage is None:
        volumes.append({"name": "data", "emptyDir": {"sizeLimit": NOTES_SIZE}})
    spec: Manifest = {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(defaults),
        "terminationGracePeriodSeconds": GRACE_S,
        "dnsConfig": {"options": [dict(one) for one in DNS_OPTIONS]},
        "tolerations": tolerations(pipeline),
        "affinity": apart_on_nodes(pipeline, Component.REDIS),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": TOPOLOGY_ZONE,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector_of(pipeline.name, Component.REDIS)},
            }
        ],
        "containers": [_server(pipeline, managed, defaults), _sentinel(pipeline, managed, defaults)],
        "volumes": volumes,
        **scheduling_fields(pipeline, defaults),
    }
    return {
        "metadata": pod_metadata(
            pipeline, labels_of(pipeline.name, Component.REDIS), {SETTINGS_HASH: stamp, **SCRAPED}
        ),
        "spec": spec,
    }


def _settings(pipeline: Pipeline, managed: ManagedRedis, defaults: Defaults) -> dict[str, Any]:
    """Give the settings of both containers of a node, checked by the role's own model."""
    settings = {
        "nodes": list(redis_hosts(pipeline, defaults)),
        "log_level": pipeline.spec.log_level,
        "http_host": defaults.listen_address,
        "password_dir": SECRETS_FOLDER,
        "maxmemory_bytes": bytes_of(managed.max_memory),
        "min_replicas_to_write": managed.min_replicas_to_write,
    }
    RedisSettings.model_validate(settings)
    return settings


def _args(settings: dict[str, Any], *flags: str) -> list[str]:
    words = ["redis", *flags]
    for name, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            words += ["--" + name.replace("_", "-"), str(one)]
    return words


def _server(pipeline: Pipeline, managed: ManagedRedis, defaults: Defaults) -> Manifest:
    flags = ["--persistent"] if managed.storage is not None else []
    own = {"data_dir": SERVER_FOLDER, "config_dir": "/tmp/redis", "http_port": HTTP_PORT, "probe_port": PROBE_PORT}
    settings = _settings(pipeline, managed, defaults) | own
    ports = {"redis": REDIS_PORT, "http": HTTP_PORT, "probes": PROBE_PORT}
    resources = resources_of(managed.resources)
    return _container(pipeline, managed, defaults, "redis", _args(settings, *flags), ports, resources)


def _sentinel(pipeline: Pipeline, managed: ManagedRedis, defaults: Defaults) -> Manifest:
    own = {"data_dir": SENTINEL_FOLDER, "config_dir": "/tmp/sentinel", "http_port": SENTINEL_HTTP_PORT}
    own |= {"probe_port": SENTINEL_PROBE_PORT}
    settings = _settings(pipeline, managed, defaults) | own
    ports = {"sentinel": SENTINEL_PORT, "http-sentinel": SENTINEL_HTTP_PORT, "probes-sentinel": SENTINEL_PROBE_PORT}
    args = _args(settings, "--sentinel")
    resources = resources_of(managed.sentinel_resources)
    return _container(pipeline, managed, defaults, SENTINEL_CONTAINER, args, ports, resources)


def _container(
    pipeline: Pipeline,
    managed: ManagedRedis,
    defaults: Defaults,
    name: str,
    args: list[str],
    ports: dict[str, int],
    resources: Manifest,
) -> Manifest:
    probed = next(port for port in ports if port.startswith("probes"))
    return {
        "name": name,
        "image": managed.image or image_of(pipeline, defaults),
        "imagePullPolicy": pull_policy_of(pipeline, defaults),
        "args": args,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": resources,
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "ports": [{"name": port, "containerPort": number, "protocol": "TCP"} for port, number in ports.items()],
        "startupProbe": _probe("/health/live", probed, 1, 120),
        "livenessProbe": _probe("/health/live", probed, 5, 6),
        "readinessProbe": _probe("/health/ready", probed, 2, 3),
        "volumeMounts": [
            {"name": "data", "mountPath": VOLUME_FOLDER},
            {"name": "secrets", "mountPath": SECRETS_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _probe(path: str, port: str, period_s: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }

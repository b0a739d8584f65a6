"""The pod template that all roles share: restricted, without an API token, its files mounted read-only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.shared_fields import Resources
from sheetanchor_operator.children.object_meta import Defaults, Manifest
from sheetanchor_operator.children.redis_access import SecretEntry, password_entry
from sheetanchor_operator.children.settings_files import api_key_entry, file_text, settings_of
from sheetanchor_operator.names import (
    HOSTNAME,
    HTTP_PORT,
    PROBE_PORT,
    REDIS_CA_FILE,
    SECRETS_FOLDER,
    SETTINGS_FOLDER,
    SETTINGS_HASH,
    TOPOLOGY_ZONE,
    USER_ID,
    Component,
    child_name,
    labels_of,
    selector_of,
)
from sheetanchor_operator.observation import Live, Observed

LOST_NODE_TOLERATION_S: Final = 10
"""A pod on a lost node is replaced after this time; Kubernetes' own 300 s would be 150 slots."""

TMP_SIZE: Final = "64Mi"

IDS: Final[Manifest] = {
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
}
POD_SECURITY: Final[Manifest] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY: Final[Manifest] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "privileged": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}
SCRAPED: Final = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(HTTP_PORT),
    "prometheus.io/path": "/metrics",
}


@dataclass(frozen=True, slots=True)
class WorkloadRole:
    """What differs between the pods of two roles.

    Attributes:
        component: The component.
        args: Flags after the settings file.
        resources: Requests and limits.
        grace_s: Seconds between SIGTERM and SIGKILL.
        linger_s: Seconds that a terminating pod goes on serving, until no Service routes requests to it any more.
        served: Whether it listens on the HTTP port and is probed there.
        volumes: Pairs of a volume and its mount, beside those that every role has.
        env: Environment variables.
        zone: Line that its pods belong to, "" for none.
    """

    component: Component
    resources: Resources
    args: tuple[str, ...] = ()
    grace_s: int = 20
    linger_s: int = 0
    served: bool = True
    volumes: tuple[tuple[Manifest, Manifest], ...] = ()
    env: tuple[Manifest, ...] = ()
    zone: str = ""


def image_of(pipeline: Pipeline, defaults: Defaults) -> str:
    """Give the image of a pipeline's workloads."""
    return pipeline.spec.image or defaults.image


def pull_policy_of(pipeline: Pipeline, defaults: Defaults) -> str:
    """Say when nodes pull the image."""
    return defaults.pull_policy or pipeline.spec.image_pull_policy


def secret_entries(pipeline: Pipeline, component: Component) -> dict[str, SecretEntry]:
    """Name the Secret entries that a component reads, by the file that it reads them from."""
    entries = {"redis-password": password_entry(pipeline, component)}
    if component is Component.INGEST:
        entries["api-key"] = api_key_entry(pipeline)
    return {file: entry for file, entry in entries.items() if entry is not None}


def pod_security(defaults: Defaults) -> Manifest:
    """Render the security context: restrictions, and user and group where the cluster does not assign them itself."""
    return {**POD_SECURITY, **(IDS if defaults.assign_ids else {})}


def resources_of(resources: Resources) -> Manifest:
    """Render requests and limits."""
    rendered = {"requests": dict(resources.requests), "limits": dict(resources.limits)}
    return {name: quantities for name, quantities in rendered.items() if quantities}


def standard_volumes(pipeline: Pipeline, component: Component) -> list[tuple[Manifest, Manifest]]:
    """Give the volumes of every role, each with its mount: settings, secrets, authority, room for temporary files."""
    file = f"{component}.yaml"
    settings = {"name": child_name(pipeline.name, Component.SETTINGS), "items": [{"key": file, "path": file}]}
    volumes: list[tuple[Manifest, Manifest]] = [
        (
            {"name": "settings", "configMap": settings},
            {"name": "settings", "mountPath": SETTINGS_FOLDER, "readOnly": True},
        ),
        ({"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}}, {"name": "tmp", "mountPath": "/tmp"}),
    ]
    entries = secret_entries(pipeline, component)
    if entries:
        sources = [
            {"secret": {"name": entry.name, "items": [{"key": entry.key, "path": path}]}}
            for path, entry in entries.items()
        ]
        volumes.append(
            (
                {"name": "secrets", "projected": {"defaultMode": 0o440, "sources": sources}},
                {"name": "secrets", "mountPath": SECRETS_FOLDER, "readOnly": True},
            )
        )
    external = pipeline.spec.redis.external
    if external is not None and external.ca_secret is not None:
        authority = {
            "secretName": external.ca_secret.name,
            "items": [{"key": external.ca_secret.key, "path": "ca.crt"}],
        }
        folder = REDIS_CA_FILE.rpartition("/")[0]
        volumes.append(
            ({"name": "redis-ca", "secret": authority}, {"name": "redis-ca", "mountPath": folder, "readOnly": True})
        )
    return volumes


def probes() -> Manifest:
    """Render the three probes: two misses of five seconds take a pod out of service."""

    def ask(path: str, period_s: int, failures: int) -> Manifest:
        return {
            "httpGet": {"path": path, "port": "probes"},
            "periodSeconds": period_s,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        }

    return {
        "startupProbe": ask("/health/live", 1, 120),
        "livenessProbe": ask("/health/live", 5, 6),
        "readinessProbe": ask("/health/ready", 5, 2),
    }


def container(pipeline: Pipeline, defaults: Defaults, role: WorkloadRole, mounts: list[Manifest]) -> Manifest:
    """Render a role's container."""
    rendered: Manifest = {
        "name": str(role.component),
        "image": image_of(pipeline, defaults),
        "imagePullPolicy": pull_policy_of(pipeline, defaults),
        "args": [str(role.component), "--config", f"{SETTINGS_FOLDER}/{role.component}.yaml", *role.args],
        "env": [{"name": "HOME", "value": "/tmp"}, *role.env],
        "resources": resources_of(role.resources),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if role.served:
        ports = {"http": HTTP_PORT, "probes": PROBE_PORT}
        rendered["ports"] = [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]
        rendered.update(probes())
    if role.linger_s:
        rendered["lifecycle"] = {"preStop": {"sleep": {"seconds": role.linger_s}}}
    return rendered


def tolerations(pipeline: Pipeline) -> list[Manifest]:
    """Render the taints that pods tolerate: those of a lost node for a limited time, and the pipeline's own."""
    lost = [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_TOLERATION_S,
        }
        for taint in ("not-ready", "unreachable")
    ]
    given = [
        {name: value for name, value in one.model_dump(by_alias=True).items() if value not in ("", None)}
        for one in pipeline.spec.scheduling.tolerations
    ]
    return lost + given


def pod_spec(pipeline: Pipeline, defaults: Defaults, role: WorkloadRole) -> Manifest:
    """Render a role's pod spec, without the fields that spread pods over nodes."""
    volumes = [*standard_volumes(pipeline, role.component), *role.volumes]
    return {
        "serviceAccountName": child_name(pipeline.name, role.component),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(defaults),
        "terminationGracePeriodSeconds": role.grace_s,
        "tolerations": tolerations(pipeline),
        "containers": [container(pipeline, defaults, role, [mount for _, mount in volumes])],
        "volumes": [volume for volume, _ in volumes],
        **scheduling_fields(pipeline, defaults),
    }


def scheduling_fields(pipeline: Pipeline, defaults: Defaults) -> Manifest:
    """Give a pod's fields for node selection, tolerations, priority and pull secrets."""
    scheduling = pipeline.spec.scheduling
    pull_secrets = [one.name for one in pipeline.spec.image_pull_secrets] or list(defaults.pull_secrets)
    fields = {
        "nodeSelector": dict(scheduling.node_selector),
        "priorityClassName": scheduling.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in pull_secrets],
    }
    return {name: value for name, value in fields.items() if value}


def _given_entries(pipeline: Pipeline, component: Component) -> tuple[SecretEntry, ...]:
    """Name the Secret entries that a component reads and that the operator does not create."""
    generated = child_name(pipeline.name, Component.REDIS)
    entries = [entry for entry in secret_entries(pipeline, component).values() if entry.name != generated]
    external = pipeline.spec.redis.external
    if external is not None and external.ca_secret is not None:
        entries.append(SecretEntry(external.ca_secret.name, external.ca_secret.key))
    return tuple(entries)


def _lacks(pipeline: Pipeline, observed: Observed, component: Component) -> bool:
    """Say whether something that a component's pods mount is missing, or could not be read."""
    entries = _given_entries(pipeline, component)
    if any(entry.key not in (observed.secrets.get(entry.name) or ()) for entry in entries):
        return True
    model = pipeline.spec.inference.model.config_map if component is Component.INFER else None
    return model is not None and observed.config_maps.get(model.name) is None


def settings_hash(pipeline: Pipeline, observed: Observed, defaults: Defaults, component: Component) -> str:
    """Make a text that changes with everything that a role reads when it starts.

    The Secret that the operator creates is left out: it is written once, and the first reconcile that sees it must not
    restart pods.
    """
    names = {entry.name for entry in _given_entries(pipeline, component)}
    model = pipeline.spec.inference.model.config_map if component is Component.INFER else None
    content: dict[str, Any] = {
        "settings": file_text(settings_of(pipeline, component, defaults)),
        "secrets": {name: observed.secret_versions.get(name, "") for name in sorted(names)},
        "model": (observed.config_maps.get(model.name) or {}).get("", "") if model is not None else "",
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def unless_missing(new: str, live: Live | None, *, missing: bool) -> str:
    """Give the hash for a workload's template: while something that it mounts is missing, the hash of the live one.

    New pods could not start then: the running ones keep what they have read.
    """
    if live is None or not missing:
        return new
    metadata = live["spec"]["template"].get("metadata") or {}
    return str((metadata.get("annotations") or {}).get(SETTINGS_HASH, "")) or new


def pod_template(pipeline: Pipeline, observed: Observed, defaults: Defaults, role: WorkloadRole) -> Manifest:
    """Render a role's pod template with the labels and annotations that all have."""
    live = observed.child("Deployment", child_name(pipeline.name, role.component, role.zone))
    missing = _lacks(pipeline, observed, role.component)
    new = settings_hash(pipeline, observed, defaults, role.component)
    annotations = {SETTINGS_HASH: unless_missing(new, live, missing=missing)}
    if role.served:
        annotations.update(SCRAPED)
    return {
        "metadata": pod_metadata(pipeline, labels_of(pipeline.name, role.component, role.zone), annotations),
        "spec": pod_spec(pipeline, defaults, role),
    }


def pod_metadata(pipeline: Pipeline, labels: Mapping[str, str], annotations: Mapping[str, str]) -> Manifest:
    """Give the metadata of pods: the pipeline's own, and the operator's, which takes precedence."""
    given = pipeline.spec.pod_metadata
    fields = {"labels": {**given.labels, **labels}, "annotations": {**given.annotations, **annotations}}
    return {name: value for name, value in fields.items() if value}


def spread_over_zones(pipeline: Pipeline, component: Component) -> list[Manifest]:
    """Render the preference that a component's pods be in different zones."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": TOPOLOGY_ZONE,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector_of(pipeline.name, component)},
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]


def apart_on_nodes(pipeline: Pipeline, component: Component) -> Manifest:
    """Render the preference that a component's pods be on different nodes."""
    term = {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": selector_of(pipeline.name, component)}}
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def placed(pipeline: Pipeline, component: Component) -> Manifest:
    """Render where pods of a component that is not bound to a zone may run: apart, and not in an evacuated zone."""
    affinity = apart_on_nodes(pipeline, component)
    if pipeline.evacuated_zone:
        away = {"key": TOPOLOGY_ZONE, "operator": "NotIn", "values": [pipeline.evacuated_zone]}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [away]}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    return affinity


def deployment_spec(replicas: int, selector: dict[str, str], template: Manifest, min_ready_s: int) -> Manifest:
    """Render a Deployment's spec: a new pod serves before an old one goes.

    Args:
        replicas: How many pods.
        selector: Labels of its pods.
        template: Their template.
        min_ready_s: Seconds that a new pod must have been ready for before an old one goes.
    """
    return {
        "replicas": replicas,
        "revisionHistoryLimit": 3,
        "minReadySeconds": min_ready_s,
        "progressDeadlineSeconds": 300,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": selector},
        "template": template,
    }

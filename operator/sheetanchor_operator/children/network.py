"""Network policies: only the traffic that a component needs is allowed."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from sheetanchor_operator.api.network_peers import peers_of
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults, Manifest, metadata_of
from sheetanchor_operator.children.redis_access import external_ports
from sheetanchor_operator.names import (
    HTTP_PORT,
    PIPELINE_LABEL,
    REDIS_PORT,
    SENTINEL_HTTP_PORT,
    SENTINEL_PORT,
    Component,
    child_name,
    selector_of,
)

_SCHEME_PORTS: Final = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"

Rule = dict[str, Any]


def _ports(*ports: int) -> list[Manifest]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def port_of(url: str) -> int:
    """Give the port of an origin."""
    parts = urlsplit(url)
    return parts.port or _SCHEME_PORTS[parts.scheme]


def _dns(defaults: Defaults) -> Rule:
    ports = [{"port": port, "protocol": way} for port in defaults.dns_ports for way in ("UDP", "TCP")]
    return {**peers_of(defaults.dns_peers), "ports": ports}


def _to_redis(pipeline: Pipeline) -> Rule:
    external = pipeline.spec.redis.external
    if external is not None:
        return {**peers_of(external.cidrs), "ports": _ports(*external_ports(external.url))}
    nodes = {"podSelector": {"matchLabels": selector_of(pipeline.name, Component.REDIS)}}
    return {"to": [nodes], "ports": _ports(REDIS_PORT, SENTINEL_PORT)}


def _from_operator_and_monitoring(defaults: Defaults, *ports: int) -> Rule:
    if not defaults.operator_namespace or not defaults.monitoring_namespaces:
        return {"ports": _ports(*ports)}
    names = sorted({defaults.operator_namespace, *defaults.monitoring_namespaces})
    namespaces = {"matchExpressions": [{"key": _NAMESPACE_NAME, "operator": "In", "values": names}]}
    return {"from": [{"namespaceSelector": namespaces}], "ports": _ports(*ports)}


def _policy(pipeline: Pipeline, component: Component, ingress: list[Rule], egress: list[Rule]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata_of(pipeline, component, child_name(pipeline.name, component)),
        "spec": {
            "podSelector": {"matchLabels": selector_of(pipeline.name, component)},
            "policyTypes": ["Ingress", "Egress"],
            **({"ingress": ingress} if ingress else {}),  # the API server drops an empty one
            "egress": egress,
        },
    }


def _redis(pipeline: Pipeline, defaults: Defaults) -> Manifest:
    clients = {"podSelector": {"matchLabels": {PIPELINE_LABEL: pipeline.name}}}
    return _policy(
        pipeline,
        Component.REDIS,
        [
            {"from": [clients], "ports": _ports(REDIS_PORT, SENTINEL_PORT)},
            _from_operator_and_monitoring(defaults, HTTP_PORT, SENTINEL_HTTP_PORT),
        ],
        [_dns(defaults), _to_redis(pipeline)],
    )


def _processor(pipeline: Pipeline, defaults: Defaults) -> Manifest:
    egress = [_dns(defaults), _to_redis(pipeline), {"ports": _ports(*defaults.api_server_ports)}]
    if pipeline.spec.processor.self_reanchor_after_seconds > 0:  # it may have to run a re-anchor itself
        egress.append({"ports": _ports(port_of(pipeline.spec.exchange.rest_url))})
    return _policy(pipeline, Component.PROCESS, [_from_operator_and_monitoring(defaults, HTTP_PORT)], egress)


def network(pipeline: Pipeline, defaults: Defaults) -> list[Manifest]:
    """Render the policies; none if the pipeline switches them off.

    Predictions may be read from anywhere: who reads them is not known here, and a policy cannot be narrowed by another.
    """
    if not pipeline.spec.network_policy.enabled:
        return []
    spec = pipeline.spec.exchange
    deny = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata_of(pipeline, Component.SETTINGS, child_name(pipeline.name, "default-deny")),
        "spec": {
            "podSelector": {"matchLabels": {PIPELINE_LABEL: pipeline.name}},
            "policyTypes": ["Ingress", "Egress"],
        },
    }
    inside = [_dns(defaults), _to_redis(pipeline)]
    policies = [
        deny,
        _policy(
            pipeline,
            Component.INGEST,
            [_from_operator_and_monitoring(defaults, HTTP_PORT)],
            [*inside, {"ports": _ports(port_of(spec.websocket_url))}],
        ),
        _processor(pipeline, defaults),
        _policy(pipeline, Component.INFER, [{"ports": _ports(HTTP_PORT)}], inside),
        _policy(pipeline, Component.REANCHOR, [], [*inside, {"ports": _ports(port_of(spec.rest_url))}]),
    ]
    return policies if pipeline.spec.redis.external is not None else [*policies, _redis(pipeline, defaults)]

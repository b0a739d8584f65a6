"""What all manifests have in common: metadata, labels, owner; Services and disruption budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.names import API_VERSION, PIPELINE_KIND, Component, labels_of, selector_of

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Defaults:
    """Values from the operator's own settings, for pipelines that do not set them.

    Attributes:
        image: Image of the workloads.
        pull_policy: When nodes pull it; overrides the pipeline's own, "" leaves that to the pipeline.
        cluster_domain: DNS domain of the cluster's services.
        operator_namespace: Where the operator's pods are, which poll workloads over HTTP; "" if that is not known.
        monitoring_namespaces: Namespaces that may scrape metrics; empty means all.
        api_server_ports: Ports of the API server. It is no pod: policies can only name its ports.
        dns_peers: DNS servers that pods may query, as `network_peers.peer_of` reads them; empty means any.
        dns_ports: Ports of the cluster's DNS pods: policies apply to these, not to their Service's port.
        listen_address: Address that workloads listen on; `*` is every address, by IPv4 and IPv6.
        pull_secrets: For images of pipelines that name no pull secrets themselves.
        assign_ids: Whether pods set the user and groups that they run as. Where each namespace has ids of its own,
            as on OpenShift, pods that set others are refused.
    """

    image: str
    pull_policy: str = ""
    cluster_domain: str = "cluster.local"
    operator_namespace: str = ""
    monitoring_namespaces: tuple[str, ...] = ()
    api_server_ports: tuple[int, ...] = (443, 6443)
    dns_ports: tuple[int, ...] = (53,)
    dns_peers: tuple[str, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    listen_address: str = "*"
    assign_ids: bool = True


def owner_of(pipeline: Pipeline) -> Manifest:
    """Give the reference that makes the pipeline the owner of a child."""
    return {
        "apiVersion": API_VERSION,
        "kind": PIPELINE_KIND,
        "name": pipeline.name,
        "uid": pipeline.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata_of(pipeline: Pipeline, component: Component | str, name: str, zone: str = "") -> Manifest:
    """Give a child's metadata.

    Args:
        pipeline: The owner.
        component: What the child is for.
        name: Its name.
        zone: The line that it belongs to, "" for none.
    """
    return {
        "name": name,
        "namespace": pipeline.namespace,
        "labels": labels_of(pipeline.name, component, zone),
        "ownerReferences": [owner_of(pipeline)],
    }


def disruption_budget(pipeline: Pipeline, component: Component, name: str) -> Manifest:
    """Render a disruption budget: one of a component's pods may be evicted at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata_of(pipeline, component, name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector_of(pipeline.name, component)},
            # Otherwise a pod that does not become ready would block the drain of its node.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def http_service(pipeline: Pipeline, component: Component, name: str) -> Manifest:
    """Render the Service of a component's HTTP port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata_of(pipeline, component, name),
        "spec": {
            "type": "ClusterIP",
            "selector": selector_of(pipeline.name, component),
            "ports": [{"name": "http", "port": 8080, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}],
        },
    }

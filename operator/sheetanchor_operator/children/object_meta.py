"""What every manifest is made of: metadata, labels and owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.names import API_VERSION, PIPELINE_KIND, Component, labels_of, selector_of

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the operator's own settings say for pipelines that do not.

    Attributes:
        image: Image of the workloads.
        pull_policy: When nodes pull it, wins over the pipeline's own; "" leaves that to the pipeline.
        cluster_domain: DNS domain of the cluster's services.
        operator_namespace: Where the operator's pods are, which ask workloads over HTTP; "" if that is not known.
        monitoring_namespaces: Namespaces that may scrape metrics; empty means all.
        api_server_ports: Where the API server is reached. It is no pod: policies can only name its ports.
        dns_peers: Whom pods may ask for names, as `network_peers.peer_of` reads them; empty means anybody.
        dns_ports: Where the cluster's DNS pods listen, which is what a policy sees, not their Service's port.
        listen_address: Where workloads listen; `*` is every address, by IPv4 and IPv6.
        pull_secrets: For images of pipelines that name no pull secrets themselves.
        assign_ids: Whether pods name the user and groups that they run as. Where each namespace is given ids of
            its own, as by OpenShift, pods that name others are refused.
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
    """Render a budget: of a component's pods, one may be away on purpose."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata_of(pipeline, component, name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector_of(pipeline.name, component)},
            # A pod that does not work must not keep its node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def http_service(pipeline: Pipeline, component: Component, name: str) -> Manifest:
    """Render the Service that a component's HTTP port is reached at."""
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

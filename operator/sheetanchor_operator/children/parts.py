"""What manifests are made of: metadata, labels, owner, and the pod template that every workload starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sheetanchor_operator.names import API_VERSION, PIPELINE_KIND, Component, labels_of
from sheetanchor_operator.spec import Pipeline

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the operator's own settings say for pipelines that do not.

    Attributes:
        image: Image of the workloads.
        pull_policy: When nodes pull it; "" leaves that to the pipeline.
        cluster_domain: DNS domain of the cluster's services.
        operator_namespace: Where the operator's own pods are, which ask workloads over HTTP.
        monitoring_namespaces: Namespaces that may scrape metrics; empty means all.
    """

    image: str
    pull_policy: str = ""
    cluster_domain: str = "cluster.local"
    operator_namespace: str = ""
    monitoring_namespaces: tuple[str, ...] = ()


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

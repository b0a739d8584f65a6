"""The processors: one is active, the others are on standby."""

from __future__ import annotations

from typing import Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults, Manifest, disruption_budget, http_service, metadata_of
from sheetanchor_operator.children.pod_template import (
    WorkloadRole,
    deployment_spec,
    placed,
    pod_template,
    spread_over_zones,
)
from sheetanchor_operator.names import Component, child_name, selector_of
from sheetanchor_operator.observation import Observed

TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_LIFE_S: Final = 3600

WARM_S: Final = 5
"""A new processor has loaded the book and replayed ten seconds of frames well within this time."""

TOKEN: Final[tuple[Manifest, Manifest]] = (
    {
        "name": "api-token",
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_LIFE_S}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ],
        },
    },
    {"name": "api-token", "mountPath": TOKEN_FOLDER, "readOnly": True},
)


def processor(pipeline: Pipeline, observed: Observed, defaults: Defaults) -> list[Manifest]:
    """Render what belongs to the processors."""
    name = child_name(pipeline.name, Component.PROCESS)
    role = WorkloadRole(Component.PROCESS, pipeline.spec.processor.resources, volumes=(TOKEN,))
    template = pod_template(pipeline, observed, defaults, role)
    template["spec"]["affinity"] = placed(pipeline, Component.PROCESS)
    template["spec"]["topologySpreadConstraints"] = spread_over_zones(pipeline, Component.PROCESS)
    replicas = 0 if pipeline.scaled_to_zero else pipeline.spec.processor.replicas
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata_of(pipeline, Component.PROCESS, name),
        "spec": deployment_spec(replicas, selector_of(pipeline.name, Component.PROCESS), template, WARM_S),
    }
    return [
        disruption_budget(pipeline, Component.PROCESS, name),
        http_service(pipeline, Component.PROCESS, name),
        deployment,
    ]

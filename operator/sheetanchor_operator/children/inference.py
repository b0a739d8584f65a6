"""The inference replicas, all of which serve every slot, and their model."""

from __future__ import annotations

from typing import Final

from sheetanchor.contract import SLOT_MS
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults, Manifest, disruption_budget, http_service, metadata_of
from sheetanchor_operator.children.pod_template import (
    WorkloadRole,
    deployment_spec,
    placed,
    pod_template,
    spread_over_zones,
)
from sheetanchor_operator.names import MODEL_FOLDER, Component, child_name, selector_of
from sheetanchor_operator.observation import Observed

SERVED_S: Final = 3 * SLOT_MS // 1000
"""A new replica has served two slots, whenever it was ready, before an old one goes."""

LINGER_S: Final = 5
"""An ending replica answers until every node has removed it from its Service: a client would get no answer before."""

GRACE_S: Final = 25
MODEL_FILES: Final = ("model.onnx", "manifest.json")


def _model_volume(pipeline: Pipeline) -> tuple[tuple[Manifest, Manifest], ...]:
    model = pipeline.spec.inference.model
    mount: Manifest = {"name": "model", "mountPath": MODEL_FOLDER, "readOnly": True}
    if model.config_map is not None:
        items = [{"key": file, "path": file} for file in MODEL_FILES]
        return (({"name": "model", "configMap": {"name": model.config_map.name, "items": items}}, mount),)
    if model.persistent_volume_claim is not None:
        claim = model.persistent_volume_claim
        if claim.path:
            mount["subPath"] = claim.path
        volume = {"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
        return ((volume, mount),)
    return ()


def inference(pipeline: Pipeline, observed: Observed, defaults: Defaults) -> list[Manifest]:
    """Render what belongs to inference."""
    name = child_name(pipeline.name, Component.INFER)
    role = WorkloadRole(
        Component.INFER,
        pipeline.spec.inference.resources,
        grace_s=GRACE_S,
        linger_s=LINGER_S,
        volumes=_model_volume(pipeline),
    )
    template = pod_template(pipeline, observed, defaults, role)
    template["spec"]["affinity"] = placed(pipeline, Component.INFER)
    template["spec"]["topologySpreadConstraints"] = spread_over_zones(pipeline, Component.INFER)
    replicas = 0 if pipeline.scaled_to_zero else pipeline.spec.inference.replicas
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata_of(pipeline, Component.INFER, name),
        "spec": deployment_spec(replicas, selector_of(pipeline.name, Component.INFER), template, SERVED_S),
    }
    service = http_service(pipeline, Component.INFER, name)
    # Readers in a zone that lives never meet a pod in one that does not. Kubernetes 1.30 drops the field.
    service["spec"]["trafficDistribution"] = "PreferClose"
    return [disruption_budget(pipeline, Component.INFER, name), service, deployment]

"""Service accounts: one per component; only the processor's has a permission."""

from __future__ import annotations

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Manifest, metadata_of
from sheetanchor_operator.names import GROUP, REANCHORS, Component, child_name


def _account(pipeline: Pipeline, component: Component) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata_of(pipeline, component, child_name(pipeline.name, component)),
        "automountServiceAccountToken": False,
    }


def accounts(pipeline: Pipeline) -> list[Manifest]:
    """Render the accounts, and the one permission: the processor may create ReAnchors in its namespace."""
    components = [Component.INGEST, Component.PROCESS, Component.INFER, Component.REANCHOR]
    if pipeline.managed_redis is not None:
        components.append(Component.REDIS)
    name = child_name(pipeline.name, Component.PROCESS)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata_of(pipeline, Component.PROCESS, name),
        "rules": [{"apiGroups": [GROUP], "resources": [REANCHORS], "verbs": ["create"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata_of(pipeline, Component.PROCESS, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": pipeline.namespace}],
    }
    return [*(_account(pipeline, component) for component in components), role, binding]

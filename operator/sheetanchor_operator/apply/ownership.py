"""Whether an object belongs to a pipeline, and on which objects a manifest depends. Pure.

A name is no ownership: an object of that name may have been there before. The pipeline's own objects carry the
operator's label, and are owned by this pipeline, by a deleted one of the same name, or by none if they were orphaned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.names import FIELD_MANAGER, PIPELINE_KIND, PIPELINE_LABEL, REANCHOR_KIND

Live = Mapping[str, Any]
Place = tuple[str, str]
MANAGED_BY: Final = "app.kubernetes.io/managed-by"


def belongs_to(live: Live, pipeline: Pipeline) -> bool:
    """Say whether a pipeline is an object's owner."""
    return any(owner.get("uid") == pipeline.uid for owner in live["metadata"].get("ownerReferences") or ())


def may_take_over(live: Live, pipeline: Pipeline) -> bool:
    """Say whether an object of a child's name belongs to the pipeline, or to a deleted one of the same name."""
    metadata = live["metadata"]
    labels, owners = metadata.get("labels") or {}, metadata.get("ownerReferences") or ()
    if belongs_to(live, pipeline):
        return True
    if labels.get(MANAGED_BY) != FIELD_MANAGER or labels.get(PIPELINE_LABEL) != pipeline.name:
        return False
    return all((one.get("kind"), one.get("name")) == (PIPELINE_KIND, pipeline.name) for one in owners)


def is_run_of(live: Live, manifest: Live) -> bool:
    """Say whether an object with the name of a re-anchor's is the one that a manifest describes."""
    ours = {one["uid"] for one in manifest["metadata"].get("ownerReferences") or ()}
    theirs = {one.get("uid") for one in live["metadata"].get("ownerReferences") or ()}
    if manifest["kind"] == REANCHOR_KIND:
        wanted, found = manifest["spec"], live.get("spec") or {}
        return all(found.get(name) == wanted.get(name) for name in ("pipeline", "symbol")) and (
            not theirs or bool(ours & theirs)
        )
    return bool(ours & theirs)


def depends_on(manifest: Live) -> frozenset[Place]:
    """Name the objects that a manifest refers to, by kind and name."""
    kind, spec = manifest["kind"], manifest.get("spec") or {}
    if kind == "RoleBinding":
        role = manifest["roleRef"]
        return frozenset({(role["kind"], role["name"])})
    if kind not in ("Deployment", "StatefulSet"):
        return frozenset()
    found = set(_of_pod(spec["template"]["spec"]))
    if "serviceName" in spec:
        found.add(("Service", spec["serviceName"]))
    return frozenset(found)


def _of_pod(spec: Live) -> Iterator[Place]:
    if "serviceAccountName" in spec:
        yield "ServiceAccount", spec["serviceAccountName"]
    for volume in spec.get("volumes") or ():
        yield from _of_source(volume, secret="secretName")
        for source in (volume.get("projected") or {}).get("sources") or ():
            yield from _of_source(source, secret="name")


def _of_source(source: Live, *, secret: str) -> Iterator[Place]:
    if "configMap" in source:
        yield "ConfigMap", source["configMap"]["name"]
    if "secret" in source:
        yield "Secret", source["secret"][secret]

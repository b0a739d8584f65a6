"""What the watches have shown of the cluster, by kind and by pipeline. It is fed by watches, writes and full lists."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from sheetanchor_operator.names import PIPELINE_KIND, PIPELINE_LABEL, REANCHOR_KIND, TOPOLOGY_ZONE

Body = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name of a pipeline."""

_UNUSED_METADATA: Final = ("managedFields", "selfLink")


def version_of(body: Body) -> int:
    """Give an object's resource version as a number, by which versions of one object can be ordered."""
    text = str(body["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def slim(body: Body) -> Body:
    """Leave out what is never looked at, and every value of a Secret."""
    metadata = {name: value for name, value in body["metadata"].items() if name not in _UNUSED_METADATA}
    kept = {**body, "metadata": metadata}
    if body.get("kind") == "Secret":
        # The keys are needed to say which one is missing; the values are nobody's business here.
        kept["data"] = dict.fromkeys(body.get("data") or {}, "")
        kept.pop("stringData", None)
    return kept


def pipeline_of(body: Body) -> Key | None:
    """Name the pipeline that an object belongs to, None if it belongs to none."""
    metadata = body["metadata"]
    namespace = metadata.get("namespace", "")
    if body.get("kind") == PIPELINE_KIND:
        return namespace, metadata["name"]
    if body.get("kind") == REANCHOR_KIND:
        name = (body.get("spec") or {}).get("pipeline", "")
    else:
        name = (metadata.get("labels") or {}).get(PIPELINE_LABEL, "")
    return (namespace, name) if name else None


class Cache:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Body]] = defaultdict(dict)
        self._by_pipeline: dict[Key, dict[tuple[str, str], Body]] = defaultdict(dict)

    def put(self, body: Body) -> Key | None:
        """Take an object in, unless a newer version of it is known; gives the pipeline that it belongs to."""
        kind, metadata = body["kind"], body["metadata"]
        place = (metadata.get("namespace", ""), metadata["name"])
        known = self._objects[kind].get(place)
        if known is not None and known["metadata"].get("uid") == metadata.get("uid"):
            if version_of(known) > version_of(body):
                return pipeline_of(known)
        elif known is not None:
            self.drop(kind, *place)
        kept = slim(body)
        self._objects[kind][place] = kept
        key = pipeline_of(kept)
        if key is not None:
            self._by_pipeline[key][kind, place[1]] = kept
        return key

    def drop(self, kind: str, namespace: str, name: str) -> Key | None:
        """Forget an object; gives the pipeline that it belonged to."""
        known = self._objects[kind].pop((namespace, name), None)
        key = pipeline_of(known) if known is not None else None
        if key is not None:
            self._by_pipeline[key].pop((kind, name), None)
            if not self._by_pipeline[key]:
                del self._by_pipeline[key]
        return key

    def get(self, kind: str, namespace: str, name: str) -> Body | None:
        """Give an object, None if it is not known."""
        return self._objects[kind].get((namespace, name))

    def places(self, kind: str) -> dict[Key, Body]:
        """Give all objects of a kind by namespace and name."""
        return dict(self._objects[kind])

    def of(self, key: Key) -> dict[tuple[str, str], Body]:
        """Give everything that belongs to a pipeline, itself included, by kind and name."""
        return dict(self._by_pipeline.get(key, {}))

    def pipelines(self) -> list[Key]:
        """Name all pipelines."""
        return list(self._objects[PIPELINE_KIND])

    def node_zones(self) -> dict[str, str]:
        """Give the zone of each node that has one."""
        zones = {
            node["metadata"]["name"]: (node["metadata"].get("labels") or {}).get(TOPOLOGY_ZONE, "")
            for node in self._objects["Node"].values()
        }
        return {name: zone for name, zone in zones.items() if zone}


def content_hash(body: Body) -> str:
    """Give a hash of what a ConfigMap holds."""
    content = [body.get("data") or {}, body.get("binaryData") or {}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

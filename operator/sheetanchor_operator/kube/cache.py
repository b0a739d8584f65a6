"""What is known of the cluster, by kind and by pipeline. It is filled by watches, writes and complete lists."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.names import (
    GROUP,
    PIPELINE_KIND,
    PIPELINE_LABEL,
    REANCHOR_KIND,
    Component,
    child_name,
)
from sheetanchor_operator.zones.schedulable_zones import ZoneNode, node_of

Body = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name of a pipeline."""

NODE_KIND: Final = "Node"
_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "ownerReferences",
    "finalizers",
)
"""Fields of the metadata that are read; labels and annotations are filtered."""

_LABELS: Final = (f"{GROUP}/", "app.kubernetes.io/", "batch.kubernetes.io/", "job-name", "pod-template-hash")
_ANNOTATIONS: Final = (f"{GROUP}/",)
_POD_STATUS: Final = (
    "phase",
    "reason",
    "message",
    "podIP",
    "conditions",
    "initContainerStatuses",
    "containerStatuses",
)
TEXT_MAX: Final = 256 * 1024
"""Largest object that is kept, in bytes; the operator's own are far smaller. Larger ones are known by name only."""

PER_PIPELINE_MAX: Final = 200
"""Objects of a kind that are kept of a pipeline: any user may put its label on any number of objects."""

_OWNERS_OF_PODS: Final = frozenset({"ReplicaSet", "StatefulSet", "Job"})


def version_of(body: Body) -> int:
    """Give an object's resource version as a number, by which versions of one object can be ordered."""
    text = str(body["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def _filtered(given: Mapping[str, str] | None, prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in (given or {}).items() if name.startswith(prefixes)}


def slim(body: Body) -> Body:
    """Leave out what is never read: foreign labels and annotations, the contents of Secrets and ConfigMaps.

    An annotation may hold a copy of the whole object (`kubectl apply` writes one), and users may add many.
    """
    kind, given = body.get("kind"), body["metadata"]
    metadata: dict[str, Any] = {name: given[name] for name in _METADATA if name in given}
    if kind == NODE_KIND:
        # Kubelets write the status of nodes all the time; only what decides whether pods can run there is read.
        spec = body.get("spec") or {}
        kept = {name: spec[name] for name in ("taints", "unschedulable") if spec.get(name)}
        labels = dict(given.get("labels") or {})
        return {"kind": kind, "apiVersion": body.get("apiVersion"), "metadata": {**metadata, "labels": labels}} | (
            {"spec": kept} if kept else {}
        )
    for name, prefixes in (("labels", _LABELS), ("annotations", _ANNOTATIONS)):
        if sifted := _filtered(given.get(name), prefixes):
            metadata[name] = sifted
    slimmed = {**body, "metadata": metadata}
    if kind == "Secret":
        # The keys are needed to say which one is missing; the values must not be kept.
        slimmed["data"] = dict.fromkeys(body.get("data") or {}, "")
        slimmed.pop("stringData", None)
    elif kind == "ConfigMap":
        slimmed.pop("data", None)
        slimmed.pop("binaryData", None)
    elif kind == "Pod":
        status = body.get("status") or {}
        slimmed["status"] = {name: status[name] for name in _POD_STATUS if name in status}
        slimmed["spec"] = {name: value for name, value in (body.get("spec") or {}).items() if name == "nodeName"}
    return slimmed


def _owner_kinds(body: Body) -> set[tuple[str, str]]:
    owners = body["metadata"].get("ownerReferences") or ()
    return {(str(one.get("kind")), str(one.get("name"))) for one in owners}


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


def may_be_of(body: Body, pipeline: str) -> bool:
    """Say whether an object can belong to a pipeline. Its label alone is no proof: any user may write it."""
    kind, name = body.get("kind"), body["metadata"]["name"]
    owners = _owner_kinds(body)
    if kind == "Pod":
        return bool({owner for owner, _ in owners} & _OWNERS_OF_PODS)
    if kind == "Job":
        return any(owner == REANCHOR_KIND for owner, _ in owners)
    fixed = {child_name(pipeline, part) for part in (*Component, "default-deny")}
    lines = name.startswith(child_name(pipeline, Component.INGEST) + "-")
    return name in fixed or (lines and (PIPELINE_KIND, pipeline) in owners)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An object as it is kept: as JSON, which takes a fifth of the memory of parsed values.

    Attributes:
        key: The pipeline that it belongs to, None if it belongs to none.
        version: Its resource version as a number.
        text: The object; empty for one that is known by name only.
    """

    uid: str
    version: int
    key: Key | None
    text: bytes


class Cache:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, CacheEntry]] = defaultdict(dict)
        self._by_pipeline: dict[Key, set[tuple[str, str]]] = defaultdict(set)
        self._nodes: dict[str, ZoneNode] = {}
        self._unowned_kinds: dict[Key, set[str]] = defaultdict(set)
        """By pipeline, the kinds of objects that carry its label and are known by name only."""

    def take(self, body: Body) -> Key | None:
        """Store what a watch has shown, by name only if it cannot belong to a known pipeline; gives its pipeline."""
        kind, key = body["kind"], pipeline_of(body)
        if kind in (PIPELINE_KIND, REANCHOR_KIND, NODE_KIND):
            return self.put(body)
        if key is not None and self._admits(body, key):
            return self.put(body)
        metadata = body["metadata"]
        place = (metadata.get("namespace", ""), metadata["name"])
        known = self._objects[kind].get(place)
        if known is not None and known.uid == metadata.get("uid") and known.version > version_of(body):
            return known.key
        self.drop(kind, *place)
        self._objects[kind][place] = CacheEntry(metadata.get("uid", ""), version_of(body), None, b"")
        if key is not None:
            self._unowned_kinds[key].add(kind)
        return None if known is None else known.key

    def unowned_kinds(self, key: Key) -> frozenset[str]:
        """Name, once, the kinds of which a new pipeline may own objects that are known by name only."""
        return frozenset(self._unowned_kinds.pop(key, ()))

    def _admits(self, body: Body, key: Key) -> bool:
        if key not in self._objects[PIPELINE_KIND] or not may_be_of(body, key[1]):
            return False
        kind, name = body["kind"], body["metadata"]["name"]
        mine = self._by_pipeline.get(key, set())
        return (kind, name) in mine or sum(kind == one for one, _ in mine) < PER_PIPELINE_MAX

    def put(self, body: Body) -> Key | None:
        """Store an object, unless a newer version of it is known; gives the pipeline that it belongs to."""
        kind, metadata = body["kind"], body["metadata"]
        place, uid, version = (
            (metadata.get("namespace", ""), metadata["name"]),
            metadata.get("uid", ""),
            version_of(body),
        )
        known = self._objects[kind].get(place)
        if known is not None and known.uid == uid and known.version > version:
            return known.key
        key = pipeline_of(body)
        if known is not None and known.key != key:
            self.drop(kind, *place)
        text = json.dumps(slim(body), separators=(",", ":")).encode()
        if len(text) > TEXT_MAX and kind != PIPELINE_KIND:
            self.drop(kind, *place)
            self._objects[kind][place] = CacheEntry(uid, version, None, b"")
            return None if known is None else known.key
        self._objects[kind][place] = CacheEntry(uid, version, key, text)
        if key is not None:
            self._by_pipeline[key].add((kind, place[1]))
        if kind == NODE_KIND:
            self._nodes = {**self._nodes, place[1]: node_of(body)}
        return key

    def drop(self, kind: str, namespace: str, name: str) -> Key | None:
        """Drop an object; gives the pipeline that it belonged to."""
        known = self._objects[kind].pop((namespace, name), None)
        if known is None:
            return None
        if kind == NODE_KIND:
            self._nodes = {one: node for one, node in self._nodes.items() if one != name}
        if known.key is not None:
            self._by_pipeline[known.key].discard((kind, name))
            if not self._by_pipeline[known.key]:
                del self._by_pipeline[known.key]
        return known.key

    def get(self, kind: str, namespace: str, name: str) -> Body | None:
        """Give an object, None if it is not known."""
        known = self._objects[kind].get((namespace, name))
        return None if known is None or not known.text else json.loads(known.text)

    def entry(self, kind: str, namespace: str, name: str) -> CacheEntry | None:
        """Give the entry of an object without parsing it, None if it is not known."""
        return self._objects[kind].get((namespace, name))

    def places(self, kind: str) -> dict[Key, CacheEntry]:
        """Give the entries of all objects of a kind by namespace and name."""
        return dict(self._objects[kind])

    def of(self, key: Key) -> dict[tuple[str, str], Body]:
        """Give everything that belongs to a pipeline, itself included, by kind and name."""
        places = self._by_pipeline.get(key, ())
        return {(kind, name): json.loads(self._objects[kind][key[0], name].text) for kind, name in places}

    def pipelines(self) -> list[Key]:
        """Name all pipelines."""
        return list(self._objects[PIPELINE_KIND])

    def nodes(self) -> Mapping[str, ZoneNode]:
        """Give each known node by its name; a new mapping after every change."""
        return self._nodes

    def node_zones(self) -> dict[str, str]:
        """Give the zone of each node that has one."""
        return {name: node.zone for name, node in self._nodes.items() if node.zone}


def secret_hash(body: Body) -> str:
    """Give a hash that changes with the contents of a Secret, and with nothing else.

    It is written into annotations of pods. It is keyed with the Secret's uid, which only those know who may read the
    Secret, so that a weak password cannot be found by guessing.
    """
    content = json.dumps(body.get("data") or {}, sort_keys=True).encode()
    return hmac.new(str(body["metadata"].get("uid", "")).encode(), content, hashlib.sha256).hexdigest()[:16]


def content_hash(body: Body) -> str:
    """Give a hash of the contents of a ConfigMap."""
    content = [body.get("data") or {}, body.get("binaryData") or {}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

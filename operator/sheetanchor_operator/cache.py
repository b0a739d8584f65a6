"""What the watches have shown of the cluster, by kind and by pipeline. It is fed by watches, writes and full lists."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.names import PIPELINE_KIND, PIPELINE_LABEL, REANCHOR_KIND, TOPOLOGY_ZONE

Body = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name of a pipeline."""

NODE_KIND: Final = "Node"
_UNUSED_METADATA: Final = ("managedFields", "selfLink")


def version_of(body: Body) -> int:
    """Give an object's resource version as a number, by which versions of one object can be ordered."""
    text = str(body["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def slim(body: Body) -> Body:
    """Leave out what is never looked at, and every value of a Secret."""
    metadata = {name: value for name, value in body["metadata"].items() if name not in _UNUSED_METADATA}
    kept = {**body, "metadata": metadata}
    if body.get("kind") == NODE_KIND:
        # Only their zones are looked at, and kubelets write their statuses all the time.
        return {"kind": NODE_KIND, "apiVersion": body.get("apiVersion"), "metadata": metadata}
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


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it is kept: as JSON, which is a fifth of what the same takes as values.

    Attributes:
        key: The pipeline that it belongs to, None if to none.
        version: Its resource version as a number.
    """

    uid: str
    version: int
    key: Key | None
    text: bytes


class Cache:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Entry]] = defaultdict(dict)
        self._by_pipeline: dict[Key, set[tuple[str, str]]] = defaultdict(set)
        self._node_zones: dict[str, str] = {}

    def put(self, body: Body) -> Key | None:
        """Take an object in, unless a newer version of it is known; gives the pipeline that it belongs to."""
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
        self._objects[kind][place] = Entry(uid, version, key, text)
        if key is not None:
            self._by_pipeline[key].add((kind, place[1]))
        if kind == NODE_KIND:
            self._note_zone(place[1], (metadata.get("labels") or {}).get(TOPOLOGY_ZONE, ""))
        return key

    def _note_zone(self, node: str, zone: str) -> None:
        zones = {**self._node_zones, node: zone}
        self._node_zones = {name: one for name, one in zones.items() if one}

    def drop(self, kind: str, namespace: str, name: str) -> Key | None:
        """Forget an object; gives the pipeline that it belonged to."""
        known = self._objects[kind].pop((namespace, name), None)
        if known is None:
            return None
        if kind == NODE_KIND:
            self._note_zone(name, "")
        if known.key is not None:
            self._by_pipeline[known.key].discard((kind, name))
            if not self._by_pipeline[known.key]:
                del self._by_pipeline[known.key]
        return known.key

    def get(self, kind: str, namespace: str, name: str) -> Body | None:
        """Give an object, None if it is not known."""
        known = self._objects[kind].get((namespace, name))
        return None if known is None else json.loads(known.text)

    def entry(self, kind: str, namespace: str, name: str) -> Entry | None:
        """Give what is known of an object without reading it, None if it is not known."""
        return self._objects[kind].get((namespace, name))

    def places(self, kind: str) -> dict[Key, Entry]:
        """Give what is known of all objects of a kind by namespace and name."""
        return dict(self._objects[kind])

    def of(self, key: Key) -> dict[tuple[str, str], Body]:
        """Give everything that belongs to a pipeline, itself included, by kind and name."""
        places = self._by_pipeline.get(key, ())
        return {(kind, name): json.loads(self._objects[kind][key[0], name].text) for kind, name in places}

    def pipelines(self) -> list[Key]:
        """Name all pipelines."""
        return list(self._objects[PIPELINE_KIND])

    def node_zones(self) -> dict[str, str]:
        """Give the zone of each node that has one."""
        return self._node_zones


def secret_hash(body: Body) -> str:
    """Give a text that changes with what a Secret holds, and with nothing else.

    It ends in annotations of pods. Its key is the Secret's uid, which nobody knows who may not read the Secret, so that
    a weak password cannot be found by trying.
    """
    content = json.dumps(body.get("data") or {}, sort_keys=True).encode()
    return hmac.new(str(body["metadata"].get("uid", "")).encode(), content, hashlib.sha256).hexdigest()[:16]


def content_hash(body: Body) -> str:
    """Give a hash of what a ConfigMap holds."""
    content = [body.get("data") or {}, body.get("binaryData") or {}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

"""The entries of Secrets that are created once: their passwords are random, so no manifest can give them again.

A deleted Secret is created again with its latest entries; one that an earlier version created gets the entries that are
new.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sheetanchor_operator.apply.rollout_order import Place, place_of
from sheetanchor_operator.children.object_meta import Manifest
from sheetanchor_operator.kube.api_client import KINDS, ApiUnavailable, Body, Cluster
from sheetanchor_operator.kube.cache import Cache

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SecretContents:
    """Version and entries of each; nowhere else are they kept, and no text shows them."""

    _known: dict[Place, tuple[str, dict[str, str]]] = field(default_factory=dict, repr=False)

    def restored(self, manifest: Manifest) -> Manifest:
        """Give a manifest the entries that were known of its Secret: running pods know these passwords."""
        place = place_of(manifest)
        return {**manifest, "data": self._known[place][1]} if place in self._known else manifest

    async def keep(self, cluster: Cluster, cache: Cache, manifest: Manifest, live: Mapping[str, Any]) -> None:
        """Remember what is in a Secret, and add what its manifest has besides.

        Raises:
            ApiRefused: The API server does not take the new entries.
            ApiUnavailable: The API server cannot do it just now, or the Secret has gone.
        """
        kind, name = place = place_of(manifest)
        if place in self._known and self._known[place][0] == str(live["metadata"].get("resourceVersion")):
            return
        found = await cluster.get(KINDS[kind], live["metadata"]["namespace"], name)
        if found is None:
            return
        found = await _with_new_entries(cluster, cache, manifest, found)
        self._known[place] = (str(found["metadata"]["resourceVersion"]), dict(found.get("data") or {}))


async def _with_new_entries(cluster: Cluster, cache: Cache, manifest: Manifest, found: Body) -> Body:
    """Add the entries that an earlier version did not make, for instance the password of a new Redis user."""
    kind, metadata = KINDS[manifest["kind"]], found["metadata"]
    missing = {name: value for name, value in manifest["data"].items() if name not in (found.get("data") or {})}
    if not missing:
        return found
    # With its version: an entry that a person adds at this moment is not overwritten.
    placed = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    change = {"metadata": placed, "data": missing}
    written = await cluster.merge(kind, metadata["namespace"], metadata["name"], change)
    if written is None:
        raise ApiUnavailable(f"{kind.name} {metadata['namespace']}/{metadata['name']} was deleted during the reconcile")
    log.info("%s %s/%s: added %s", kind.name, metadata["namespace"], metadata["name"], ", ".join(sorted(missing)))
    cache.put(written)
    return written

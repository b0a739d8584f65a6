"""Objects that a pipeline needs and that the operator does not create: Secrets, ConfigMaps, volume claims."""

from __future__ import annotations

from typing import Final

from sheetanchor.runtime.settings import REDIS_USERS
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.inference import MODEL_FILES
from sheetanchor_operator.children.pod_template import secret_entries
from sheetanchor_operator.names import Component, child_name

ROLES: Final = (Component.INGEST, Component.PROCESS, Component.INFER, Component.REANCHOR)


def secrets_needed(pipeline: Pipeline) -> dict[str, frozenset[str]]:
    """Name the Secrets that users have to create, each with the entries that are read; not the operator's own."""
    needed: dict[str, set[str]] = {}
    for component in ROLES:
        for entry in secret_entries(pipeline, component).values():
            needed.setdefault(entry.name, set()).add(entry.key)
    managed, external = pipeline.managed_redis, pipeline.spec.redis.external
    if managed is not None and managed.password_secret is not None:
        needed.setdefault(managed.password_secret.name, set()).update(REDIS_USERS)
    elif managed is not None:
        needed.pop(child_name(pipeline.name, Component.REDIS), None)
    if external is not None and external.ca_secret is not None:
        needed.setdefault(external.ca_secret.name, set()).add(external.ca_secret.key)
    return {name: frozenset(keys) for name, keys in needed.items()}


def component_requiring(pipeline: Pipeline, secret: str) -> str:
    """Name the one component that reads a Secret, "" if several do."""
    readers = [role for role in ROLES if secret in {entry.name for entry in secret_entries(pipeline, role).values()}]
    return str(readers[0]) if len(readers) == 1 else ""


def config_maps_needed(pipeline: Pipeline) -> dict[str, frozenset[str]]:
    """Name the ConfigMaps that users have to create, each with the entries that are read."""
    given = pipeline.spec.inference.model.config_map
    return {} if given is None else {given.name: frozenset(MODEL_FILES)}


def claims_needed(pipeline: Pipeline) -> frozenset[str]:
    """Name the volume claims that users have to create."""
    given = pipeline.spec.inference.model.persistent_volume_claim
    return frozenset() if given is None else frozenset({given.claim_name})

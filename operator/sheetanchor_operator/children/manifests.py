"""The objects that a pipeline consists of, as manifests. Pure: equal pipeline and observation give equal manifests."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.accounts import accounts
from sheetanchor_operator.children.inference import inference
from sheetanchor_operator.children.ingestion import ingestion
from sheetanchor_operator.children.network import network
from sheetanchor_operator.children.object_meta import Defaults, Manifest
from sheetanchor_operator.children.processor import processor
from sheetanchor_operator.children.redis import CREATE_ONLY, redis_children
from sheetanchor_operator.children.settings_files import settings_map
from sheetanchor_operator.observation import Observed

__all__ = ["CREATE_ONLY", "Defaults", "Manifest", "children"]


PASSWORD_BYTES: Final = 24


def random_password(_user: str) -> str:
    """Make a random password of `PASSWORD_BYTES` bytes."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


def children(
    pipeline: Pipeline,
    observed: Observed,
    defaults: Defaults,
    make_password: Callable[[str], str] = random_password,
) -> tuple[Manifest, ...]:
    """Give every child of a pipeline, in the order in which they are best applied.

    Args:
        pipeline: The pipeline with its specification.
        observed: The live objects.
        defaults: Values from the operator's own settings.
        make_password: Makes the passwords of the Secret that is created once (annotation `CREATE_ONLY`): everything
            else depends on pipeline and observation only.
    """
    return (
        *accounts(pipeline),
        settings_map(pipeline, defaults),
        *network(pipeline, defaults),
        *redis_children(pipeline, observed, defaults, make_password),
        *ingestion(pipeline, observed, defaults),
        *processor(pipeline, observed, defaults),
        *inference(pipeline, observed, defaults),
    )

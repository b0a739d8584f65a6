"""The objects that a pipeline consists of, as manifests. Pure: the same pipeline and sight give the same manifests."""

from __future__ import annotations

from sheetanchor_operator.children.accounts import accounts
from sheetanchor_operator.children.inference import inference
from sheetanchor_operator.children.ingestion import ingestion
from sheetanchor_operator.children.network import network
from sheetanchor_operator.children.parts import Defaults, Manifest
from sheetanchor_operator.children.processor import processor
from sheetanchor_operator.children.settings_files import settings_map
from sheetanchor_operator.observed import Observed
from sheetanchor_operator.spec import Pipeline

__all__ = ["Defaults", "Manifest", "children"]


def children(pipeline: Pipeline, observed: Observed, defaults: Defaults) -> tuple[Manifest, ...]:
    """Give every child of a pipeline, in the order in which they are best applied.

    Args:
        pipeline: What is wanted.
        observed: What is there.
        defaults: What the operator's own settings say.
    """
    return (
        *accounts(pipeline),
        settings_map(pipeline, defaults),
        *network(pipeline, defaults),
        *ingestion(pipeline, observed, defaults),
        *processor(pipeline, observed, defaults),
        *inference(pipeline, observed, defaults),
    )

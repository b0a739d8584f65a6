"""The objects that a pipeline consists of, as manifests. Pure: the same pipeline and sight give the same manifests."""

from __future__ import annotations

from sheetanchor_operator.children.parts import Defaults, Manifest
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
    return ()

"""A Kubernetes Event to publish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sheetanchor_operator.names import EventReason


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an object of a pipeline.

    Attributes:
        kind: PredictionPipeline or ReAnchor.
        name: Name of the object it speaks of; its namespace is the pipeline's.
        uid: Its uid.
        type: Normal, or Warning where somebody may have to do something.
        cause: Name of the ReAnchor whose status tells it as well, "" if none does: as long as that is not written,
            nothing has happened yet.
    """

    kind: str
    name: str
    uid: str
    type: Literal["Normal", "Warning"]
    reason: EventReason
    message: str
    cause: str = ""

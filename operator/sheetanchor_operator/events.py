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
        name: Name of the object that it is about; its namespace is the pipeline's.
        uid: Its uid.
        type: Normal, or Warning where a person may have to act.
        cause: Name of the ReAnchor whose status reports the same, "" if none does: the Event is emitted only once that
            status is written.
    """

    kind: str
    name: str
    uid: str
    type: Literal["Normal", "Warning"]
    reason: EventReason
    message: str
    cause: str = ""

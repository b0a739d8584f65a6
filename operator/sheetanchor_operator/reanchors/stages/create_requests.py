"""Requests that the operator creates, for the annotation and for the schedule. Pure."""

from __future__ import annotations

from sheetanchor_operator.names import EventReason
from sheetanchor_operator.reanchors.requests import (
    BadRequest,
    key_of,
    read_request,
    requests_of_annotation,
    requests_of_schedule,
)
from sheetanchor_operator.reanchors.situation import Changes, Situation, Stage


def create_requests(before: Situation) -> Changes:
    """Create the requests that are due by the schedule, and those of new values of the annotation."""
    stage = Stage(before)
    pipeline = stage.pipeline
    asks, next_us = requests_of_schedule(pipeline, pipeline.created_us, stage.known.values(), stage.now_us)
    if next_us is not None:
        stage.wakes.append(next_us)
    value = pipeline.reanchor_request
    values = list(before.observed.overwritten)
    if value and key_of(value) != pipeline.status.get("lastReanchorRequest"):
        values.append(value)
    for value in dict.fromkeys(values):
        try:
            asks = [*asks, *requests_of_annotation(read_request(value, pipeline.spec.symbols), stage.now_us)]
        except BadRequest as error:
            message = f"the annotation sheetanchor.dev/reanchor is ignored: {error}"
            stage.emit(None, "Warning", EventReason.REANCHOR_SKIPPED, message, both=True)
    for ask in asks:
        stage.request(ask)
    return stage.changes()


def last_request(before: Situation) -> str:
    """Give the key of the newest value of the annotation that has been acted upon."""
    known = str(before.pipeline.status.get("lastReanchorRequest") or "")
    value = before.pipeline.reanchor_request
    return known if before.pipeline.paused or not value else key_of(value)

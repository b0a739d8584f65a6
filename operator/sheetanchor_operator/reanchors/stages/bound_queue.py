"""Which requests are handled at all: at most a bounded number, and each id once within a day. Pure."""

from __future__ import annotations

from typing import Final

from sheetanchor.policy.reanchor_scheduler import IDS_KEPT_US
from sheetanchor_operator.names import EventReason
from sheetanchor_operator.reanchors.durable_record import key_of_request
from sheetanchor_operator.reanchors.runs import Ended, ReAnchor
from sheetanchor_operator.reanchors.situation import Changes, Situation, Stage
from sheetanchor_operator.reanchors.status_patch import Status, answered_again, finished

QUEUE_MAX: Final = 100
"""Requests that are handled while they wait; a run answers many, and there are no more than ten symbols."""


def bound_queue(before: Situation) -> Changes:
    """Handle the first hundred that are not final, and skip the rest: a flood must not occupy operator and exchange.

    Running and forced requests go first. A suspect state is rebuilt without any request, so no rebuild is lost.
    """
    stage = Stage(before)
    open_ones = [one for one in before.known.values() if not one.final]
    if len(open_ones) <= QUEUE_MAX:
        return stage.changes()
    open_ones.sort(key=lambda one: (one.phase != "Running", not one.answered_by, not one.force, one.at_us, one.name))
    rest = [one for one in open_ones[QUEUE_MAX:] if one.phase != "Running"]
    message = f"more than {QUEUE_MAX} requests wait: this one is skipped; request it again when fewer wait"
    for one in rest:
        if not stage.may_write():
            break
        stage.write(one.name, skipped(stage, one, message))
    text = f"more than {QUEUE_MAX} requests for re-anchors wait: the first are handled, the others are skipped"
    stage.emit(None, "Warning", EventReason.REANCHOR_SKIPPED, text, both=True)
    return stage.changes(passed_over=frozenset(one.name for one in rest))


def skipped(stage: Stage, one: ReAnchor, reason: str) -> Status:
    """Give the status of a request that changes nothing."""
    return finished(one, "Skipped", Ended(0, "skipped", reason, 0, stage.now_us)) | {"exitCode": None}


def answer_again(stage: Stage, one: ReAnchor) -> bool:
    """Give a request whose id was made within a day the answer of the first; false if there is no such."""
    if not one.request_id:
        return False
    for other in stage.with_id_of(one):
        if (other.created_us, other.name) >= (one.created_us, one.name):
            break
        if one.created_us - other.created_us < IDS_KEPT_US and not other.final:
            message = f"request {one.request_id} was made before, as {other.name}"
            stage.write(
                one.name, {"phase": "Pending", "answeredBy": other.answered_by or other.name, "message": message}
            )
            return True
    first = stage.before.answered.get(key_of_request(one.symbol, one.request_id))
    if first is None or first.name == one.name or one.created_us - first.made_us >= IDS_KEPT_US:
        return False
    stage.write(one.name, answered_again(one, first, stage.now_us))
    return True

"""Requests that another one's run answers: they get its result. Pure."""

from __future__ import annotations

from sheetanchor_operator.reanchors.runs import Ended, ReAnchor
from sheetanchor_operator.reanchors.situation import Changes, Situation, Stage
from sheetanchor_operator.reanchors.status_patch import finished


def attach(stage: Stage, name: str, lead: str) -> None:
    """Merge a waiting request into the one whose run answers both."""
    one = stage.known.get(name)
    if one is not None and one.phase == "Pending" and one.answered_by != lead and name != lead:
        stage.write(name, {"phase": "Pending", "answeredBy": lead, "message": f"merged into {lead}"})


def answer_merged(before: Situation) -> Changes:
    """Give requests that were merged into another one its result."""
    stage = Stage(before)
    for one in list(stage.known.values()):
        if one.final or not one.answered_by:
            continue
        lead = _lead_of(stage, one)
        if lead is None:
            stage.write(
                one.name,
                {"answeredBy": None, "message": "waits again: the request that it was merged into no longer exists"},
            )
        elif lead.final:
            message = f"answered by {lead.name}: {lead.raw.get('message') or lead.result}"
            end = Ended(0, "coalesced", message, 0, lead.finished_us or stage.now_us)
            stage.write(one.name, finished(one, lead.phase, end) | {"answeredBy": lead.name, "exitCode": None})
    return stage.changes()


def _lead_of(stage: Stage, one: ReAnchor) -> ReAnchor | None:
    """Give the ReAnchor whose run answers this one, None if it has a run of its own."""
    seen = {one.name}
    lead = stage.known.get(one.answered_by)
    while lead is not None and lead.answered_by and not lead.final and lead.name not in seen:
        seen.add(lead.name)
        lead = stage.known.get(lead.answered_by)
    return None if lead is None or lead.name in seen else lead

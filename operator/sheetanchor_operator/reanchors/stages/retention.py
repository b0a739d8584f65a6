"""Which finished ReAnchors are deleted, which are adopted, and which one a pipeline's status shows. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.reanchors.runs import SECOND_US, ReAnchor
from sheetanchor_operator.reanchors.situation import Changes, Situation, Stage

KEEP_US: Final = 15 * SECOND_US
"""A client that waits for a result finds it for at least this long."""


def last_reanchor(before: Situation) -> Mapping[str, Any] | None:
    """Give the newest re-anchor that has begun, for `status.lastReanchor`; None if there has been none."""
    recorded = before.pipeline.status.get("lastReanchor")
    begun = [one for one in before.known.values() if one.attempts and one.started_us]
    newest = max(begun, key=lambda one: (one.started_us, one.name), default=None)
    if newest is None or (recorded and micros_of(recorded.get("startedAt")) > newest.started_us):
        return recorded or None
    fields = {
        "name": newest.name,
        "reason": newest.reason,
        "trigger": newest.trigger,
        "symbol": newest.symbol,
        "startedAt": newest.raw.get("startedAt"),
        "finishedAt": newest.raw.get("finishedAt") if newest.final else None,
        "epoch": newest.epoch_after or None,
        "result": newest.result or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def expire(before: Situation) -> Changes:
    """Choose the finished ReAnchors beyond the limits, oldest first; those that other decisions depend on are kept."""
    stage = Stage(before)
    limits = stage.pipeline.spec.reanchor.history
    kept = {one.answered_by for one in stage.known.values() if not one.final}
    for symbol in {one.symbol for one in stage.known.values()}:
        own = [one for one in stage.of(symbol) if one.final]
        kept |= _newest(one for one in own if one.phase == "Succeeded" and one.attempts)
        kept |= _newest(one for one in own if one.attempts and not one.dry_run)  # a failure delays the next run
        kept |= _newest(one for one in own if one.trigger == "schedule")
    finals = sorted((one for one in stage.known.values() if one.final), key=lambda one: (one.finished_us, one.name))
    failed = [one for one in finals if one.phase == "Failed"]
    others = [one for one in finals if one.phase != "Failed"]
    gone = []
    for group, limit in ((failed, limits.failed), (others, limits.successful)):
        free = [one for one in group if one.name not in kept]
        for one in free[: max(0, len(group) - limit)]:
            free_us = max(one.finished_us + KEEP_US, one.next_us if one.phase == "Failed" else 0)
            if free_us > stage.now_us:
                stage.wakes.append(free_us)
            elif stage.may_write():
                gone.append(one.name)
            else:
                return stage.changes(names=tuple(gone))
    return stage.changes(names=tuple(gone))


def _newest(some: Iterable[ReAnchor]) -> set[str]:
    newest = max(some, key=lambda one: (one.finished_us, one.at_us, one.name), default=None)
    return {newest.name} if newest is not None else set()


def adopt(before: Situation, deleted: Collection[str]) -> Changes:
    """Choose the ReAnchors that have no owner yet and are not deleted."""
    stage = Stage(before)
    unowned = [one.name for one in before.known.values() if not one.owned and one.name not in deleted]
    return stage.changes(names=tuple(name for name in unowned if stage.may_write()))

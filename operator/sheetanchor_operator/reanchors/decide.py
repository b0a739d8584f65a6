"""Decides about re-anchors: which to create, start and end, what to record in their statuses, and which to delete.

Pure, and without any memory but the objects themselves: from the same objects every operator, restarted or newly
elected, decides alike. When to start a run is decided by `policy.reanchor_scheduler`, as on a single machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.reanchors.durable_record import outcomes_of, remembered
from sheetanchor_operator.reanchors.plan import Patch, ReanchorPlan
from sheetanchor_operator.reanchors.situation import Changes, Situation, Stage, situation_of
from sheetanchor_operator.reanchors.stages.bound_queue import bound_queue
from sheetanchor_operator.reanchors.stages.create_requests import create_requests, last_request
from sheetanchor_operator.reanchors.stages.merged import answer_merged
from sheetanchor_operator.reanchors.stages.record_runs import record_runs
from sheetanchor_operator.reanchors.stages.retention import adopt, expire, last_reanchor
from sheetanchor_operator.reanchors.stages.start_runs import facts_of, skip_unknown_symbols, start_runs
from sheetanchor_operator.reanchors.symbol_observation import UNKNOWN, redis_ahead_us, symbol_observations


def plan(pipeline: Pipeline, observed: Observed, defaults: Defaults) -> ReanchorPlan:
    """Decide about the re-anchors of a pipeline.

    Args:
        pipeline: The pipeline with its specification.
        observed: Its ReAnchors, their Jobs and pods, the processors' reports, and the time.
        defaults: Values from the operator's own settings.
    """
    observations = symbol_observations(observed.states)
    # All times that are compared are by Redis' clock; only the time of the next reconcile is by our own.
    ahead_us = redis_ahead_us(observations.values(), observed.now_us)
    now = situation_of(pipeline, replace(observed, now_us=observed.now_us + ahead_us), defaults)
    made: list[Changes] = []

    def take(changes: Changes) -> Situation:
        made.append(changes)
        return now.after(changes)

    now = take(bound_queue(now))
    now = take(record_runs(now))
    now = take(answer_merged(now))
    if not pipeline.paused and not pipeline.deleting:
        now = take(create_requests(now))
        for symbol in pipeline.spec.symbols:
            now = take(start_runs(now, symbol, observations.get(symbol, UNKNOWN)))
        now = take(skip_unknown_symbols(now))
    deleted: tuple[str, ...] = ()
    if not pipeline.paused:
        now = take(expire(now))
        deleted = made[-1].names
    now = take(adopt(now, frozenset(deleted)))
    wake_at_us = min((at_us for one in made for at_us in one.wakes), default=None)
    return replace(
        _plan_of(now, made),
        delete=deleted,
        adopt=made[-1].names,
        wake_at_us=None if wake_at_us is None else wake_at_us - ahead_us,
    )


def _plan_of(end: Situation, made: Sequence[Changes]) -> ReanchorPlan:
    """Put the changes of all stages together."""
    idle = Stage(end)
    symbols = {symbol: facts for one in made for symbol, facts in one.symbols.items()}
    known, status = list(end.known.values()), end.pipeline.status
    return ReanchorPlan(
        create=tuple(manifest for one in made for manifest in one.create),
        start=tuple(start for one in made for start in one.start),
        patch=_patches(end, made),
        events=tuple(event for one in made for event in one.events),
        symbols=symbols or {symbol: facts_of(idle, symbol) for symbol in end.pipeline.spec.symbols},
        last_reanchor=last_reanchor(end),
        last_request=last_request(end),
        receipts={name: receipts for one in made for name, receipts in one.receipts.items()},
        requests=tuple(remembered(known, status, end.now_us).values()),
        outcomes=outcomes_of(known, status, end.now_us),
    )


def _patches(end: Situation, made: Sequence[Changes]) -> tuple[Patch, ...]:
    """Give the changes of statuses, in the order in which they are written."""
    statuses: dict[str, dict[str, Any]] = {}
    for one in made:
        for name, status in one.statuses.items():
            statuses.setdefault(name, {}).update(status)
    before = {body["metadata"]["name"]: body.get("status") or {} for body in end.observed.reanchors}
    changed = []
    for name, status in statuses.items():
        news = {key: value for key, value in status.items() if before[name].get(key) != value}
        if news:
            known = end.known[name]
            changed.append(Patch(name, {**news, "observedGeneration": known.generation}, can_wait=not known.attempts))
    # Requests skipped in a flood come last: there may be very many, and no run depends on them.
    changed.sort(key=lambda patch: (patch.can_wait, patch.name in end.passed_over))
    return tuple(changed)

"""Which runs begin, and which requests change nothing and are skipped. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from sheetanchor.policy import reanchor_scheduler
from sheetanchor.policy.reanchor_object import ReAnchorRequest, digest, object_name
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.children.object_meta import Manifest
from sheetanchor_operator.names import EventReason, Reason, ZoneHealth
from sheetanchor_operator.reanchors.durable_record import comparisons
from sheetanchor_operator.reanchors.history import history_of, rebuilds_of
from sheetanchor_operator.reanchors.job import RunParameters, job
from sheetanchor_operator.reanchors.plan import JobStart, SymbolFacts
from sheetanchor_operator.reanchors.requests import OPERATOR
from sheetanchor_operator.reanchors.runs import SECOND_US, ReAnchor
from sheetanchor_operator.reanchors.situation import Changes, Situation, Stage
from sheetanchor_operator.reanchors.stages.bound_queue import answer_again, skipped
from sheetanchor_operator.reanchors.stages.merged import attach
from sheetanchor_operator.reanchors.status_patch import running
from sheetanchor_operator.reanchors.symbol_observation import SymbolObservation

SWAP_SEEN_GRACE_US: Final = 5 * SECOND_US
"""The processor reports a swap within a tenth of a second; a report from before the swap must not count for longer."""

SUSPECT_POLL_US: Final = SECOND_US
"""How often to reconcile while a state is suspect."""

RUN_POLL_US: Final = 5 * SECOND_US

_THROTTLES: Final[Mapping[str, Reason]] = {
    "backoff": Reason.BACKING_OFF,
    "cooldown": Reason.COOLDOWN,
    "budget": Reason.BUDGET_USED_UP,
    "lock": Reason.LOCK_HELD,
}


def start_runs(before: Situation, symbol: str, observation: SymbolObservation) -> Changes:
    """Skip requests that would change nothing, and start at most one run."""
    stage = Stage(before)
    observation = _after_swap(stage, symbol, observation)
    ended_run = _ended_lock_holder(stage, symbol, observation)
    seen = observation.seen(bool(observation.lock_holder) and not ended_run)
    history = history_of(symbol, list(stage.known.values()), stage.pipeline.status, stage.now_us)
    waiting = [one for one in stage.of(symbol) if one.phase == "Pending" and not one.answered_by]
    waiting = [one for one in waiting if one.name not in stage.before.passed_over]
    waiting = [one for one in waiting if not _skip_if_moot(stage, one, history, seen, observation)]
    at_work = [one for one in stage.of(symbol) if one.phase == "Running"]
    if not observation.known:
        waiting = [one for one in waiting if not one.validates]
    rebuilds = [one for one in waiting if not one.dry_run]
    wait = None
    if at_work:
        stage.wakes.append(stage.now_us + RUN_POLL_US)
    else:
        wait = _start_or_wait(stage, symbol, rebuilds, history, seen, observation, ended_run)
        dry = [one for one in waiting if one.dry_run]
        if wait is not None and dry and not seen.lock_held and _may_try(stage, dry, history):
            _start(stage, dry[0], [], ended_run)
            wait = None
    if observation.known and seen.suspect:
        stage.wakes.append(stage.now_us + SUSPECT_POLL_US)
    elif waiting and not observation.known:
        stage.wakes.append(stage.now_us + RUN_POLL_US)
    return stage.changes(symbols={symbol: facts_of(stage, symbol, wait)})


def _may_try(stage: Stage, dry: Sequence[ReAnchor], history: reanchor_scheduler.State) -> bool:
    """Say whether a dry run may begin now: it swaps nothing, but costs the exchange as much as a rebuild."""
    held_us = dry[0].next_us if dry[0].held else 0
    wait = reanchor_scheduler.Wait(held_us, "another run held the lock just now", "lock")
    spent = reanchor_scheduler.budget_wait(history, stage.before.policy) if not dry[0].force else None
    if spent is not None:
        wait = max(spent, wait, key=lambda one: one.until_us or 0)
    if (wait.until_us or 0) <= stage.now_us:
        return True
    stage.wakes.append(wait.until_us or 0)
    for one in dry:
        _record_wait(stage, one, wait)
    return False


def _after_swap(stage: Stage, symbol: str, observation: SymbolObservation) -> SymbolObservation:
    """Treat a processor that has not noticed a swap of the last seconds as if it had."""
    swapped = [one for one in stage.of(symbol) if one.result == "swapped"]
    newest = max(swapped, key=lambda one: one.finished_us, default=None)
    if newest is None or not observation.known or observation.epoch >= newest.epoch_after:
        return observation
    if stage.now_us - newest.finished_us > SWAP_SEEN_GRACE_US:
        return observation
    return replace(observation, state="anchored", epoch=newest.epoch_after, fresh=True, suspect_since_us=0)


def _ended_lock_holder(stage: Stage, symbol: str, observation: SymbolObservation) -> str:
    """Give the request id of a run that is known to have ended and may not have released its lock, "" if none."""
    ended = {}
    for one in stage.of(symbol):
        last = one.attempts - 1 if one.phase == "Running" else one.attempts
        ended.update({one.run_id(attempt): one for attempt in range(1, last + 1)})
    if observation.lock_holder:
        holder = observation.lock_holder.partition(":")[2]
        return holder if holder in ended else ""
    failed = [one for one in stage.of(symbol) if one.attempts and one.finished_us and one.phase != "Succeeded"]
    newest = max(failed, key=lambda one: one.finished_us, default=None)
    return newest.run_id(newest.attempts) if newest is not None and newest.phase != "Running" else ""


def _skip_if_moot(
    stage: Stage,
    one: ReAnchor,
    history: reanchor_scheduler.State,
    seen: reanchor_scheduler.Seen,
    observation: SymbolObservation,
) -> bool:
    if answer_again(stage, one):
        return True
    reason = _paused_reason(stage, one)
    if not reason and not one.dry_run and (observation.known or not one.validates):
        alone, skip = reanchor_scheduler.ask(history, one.request, stage.before.policy)
        if skip is None:
            _, decision = reanchor_scheduler.decide(alone, seen, stage.now_us, stage.before.policy)
            skip = decision if isinstance(decision, reanchor_scheduler.Skip) else None
        reason = skip.reason if skip is not None else ""
    if not reason:
        return False
    stage.write(one.name, skipped(stage, one, reason))
    stage.emit(one, "Normal", EventReason.REANCHOR_SKIPPED, f"{one.trigger} is skipped: {reason}", both=False)
    return True


def _paused_reason(stage: Stage, one: ReAnchor) -> str:
    if stage.pipeline.spec.suspend and not one.force:
        return "the pipeline is suspended"
    if stage.pipeline.spec.maintenance.enabled and not one.force:
        return "the pipeline is in maintenance"
    return ""


def _start_or_wait(
    stage: Stage,
    symbol: str,
    waiting: Sequence[ReAnchor],
    history: reanchor_scheduler.State,
    seen: reanchor_scheduler.Seen,
    observation: SymbolObservation,
    ended_run: str,
) -> reanchor_scheduler.Wait | None:
    """Start a run for the waiting requests, or create one if the state is suspect and there is none."""
    state = history
    for one in waiting:
        state, _ = reanchor_scheduler.ask(state, one.request, stage.before.policy)
    if not waiting and (stage.pipeline.scaled_to_zero or not observation.known):
        return reanchor_scheduler.Wait(None, "no re-anchor is requested")
    _, decision = reanchor_scheduler.decide(state, seen, stage.now_us, stage.before.policy)
    if isinstance(decision, reanchor_scheduler.Skip):
        return reanchor_scheduler.Wait(None, decision.reason)
    if isinstance(decision, reanchor_scheduler.Wait):
        if decision.until_us is not None:
            stage.wakes.append(decision.until_us)
        for one in waiting:
            _record_wait(stage, one, decision)
        return decision
    if not waiting:
        stage.request(_own_request(stage, symbol, decision, history, observation))
        return None
    lead = stage.known[decision.request.id]
    merged = [one for one in waiting if one.name != lead.name and (decision.kind == "rebuild" or one.validates)]
    _start(stage, lead, merged, ended_run)
    return None


def _record_wait(stage: Stage, one: ReAnchor, wait: reanchor_scheduler.Wait) -> None:
    status: Manifest = {"phase": "Pending"}
    if wait.kind in _THROTTLES and not one.attempts:
        status["message"] = f"waits: {wait.reason}"
    if wait.kind in ("cooldown", "budget") and wait.until_us is not None and not one.attempts:
        status["nextAttemptAt"] = text_of(wait.until_us)
    stage.write(one.name, status)


def _own_request(
    stage: Stage,
    symbol: str,
    start: reanchor_scheduler.Start,
    history: reanchor_scheduler.State,
    observation: SymbolObservation,
) -> ReAnchorRequest:
    """Create the request for a suspect state that has none."""
    request = start.request
    parts = (symbol, observation.suspect_since_us, history.ended_us)
    suffix = f"o{observation.epoch}-{digest(*parts)}"
    if object_name(stage.pipeline.name, symbol, suffix) in stage.known:
        suffix = f"o{observation.epoch}-{digest(*parts, stage.now_us // (10 * SECOND_US))}"
    return ReAnchorRequest(
        symbol=symbol,
        suffix=suffix,
        action=request.action,
        reason=request.reason,
        trigger=request.trigger,
        requested_by=OPERATOR,
        at_us=stage.now_us,
        epoch=request.epoch,
    )


def _start(stage: Stage, lead: ReAnchor, merged: Sequence[ReAnchor], ended_run: str) -> None:
    attempt = lead.attempts + 1
    more = f" (and {len(merged)} more)" if merged else ""
    order = RunParameters(
        name=lead.name,
        uid=lead.uid,
        symbol=lead.symbol,
        reason=(lead.reason or lead.trigger) + more,
        trigger=lead.trigger,
        attempt=attempt,
        run_id=lead.run_id(attempt),
        unlock_for=ended_run,
        validate_only=lead.validates,
        dry_run=lead.dry_run,
        answers=tuple(one.name for one in merged),
        lost_zones=tuple(sorted(stage.before.observed.zones_that_are(ZoneHealth.SILENT, ZoneHealth.FAILED))),
    )
    manifest = job(stage.pipeline, stage.before.defaults, order)
    stage.start.append(JobStart(lead.name, lead.symbol, manifest))
    stage.write(lead.name, running(lead, manifest["metadata"]["name"], attempt, stage.now_us))
    for one in merged:
        attach(stage, one.name, lead.name)
    stage.wakes.append(stage.now_us + RUN_POLL_US)
    message = f"run {attempt} for {lead.trigger}: {order.reason}"
    begun = EventReason.REANCHOR_STARTED if attempt == 1 else EventReason.REANCHOR_RETRIED
    stage.emit(lead, "Normal", begun, message, both=True)


def facts_of(stage: Stage, symbol: str, wait: reanchor_scheduler.Wait | None = None) -> SymbolFacts:
    """Give the state of a symbol's re-anchors; `wait` is why none of them starts, None if none has to wait."""
    own = stage.of(symbol)
    pending = tuple(one.name for one in own if one.phase == "Pending" and not one.answered_by)
    throttled = _THROTTLES.get(wait.kind) if wait is not None else None
    if throttled is Reason.BACKING_OFF and any("Retry-After" in (one.raw.get("message") or "") for one in own):
        throttled = Reason.EXCHANGE_LIMIT
    return SymbolFacts(
        running=next((one.name for one in own if one.phase == "Running"), ""),
        pending=pending,
        throttled=throttled,
        message=wait.reason if wait is not None and throttled else "",
        next_us=(wait.until_us or 0) if wait is not None and throttled else 0,
        rebuilt_us=rebuilds_of(symbol, own, stage.pipeline.status, stage.now_us),
        compared_us=comparisons(own, stage.pipeline.status, stage.now_us).get(symbol, ()),
    )


def skip_unknown_symbols(before: Situation) -> Changes:
    """Skip the requests for symbols that the pipeline does not have."""
    stage = Stage(before)
    symbols = stage.pipeline.spec.symbols
    for one in list(stage.known.values()):
        waits = not one.final and one.phase != "Running" and one.name not in stage.before.passed_over
        if one.symbol not in symbols and waits and stage.may_write(2):
            reason = f"the pipeline has no symbol {one.symbol}: it has {', '.join(symbols)}"
            stage.write(one.name, skipped(stage, one, reason))
            stage.emit(one, "Warning", EventReason.REANCHOR_SKIPPED, reason, both=False)
    return stage.changes()

"""Decides about re-anchors: which to create, to start, to give up, what to write down of them, and which to forget.

Pure, and without any memory but the objects themselves: from the same objects every operator, restarted or newly the
leader, decides alike. When to start a run is for `policy.reanchor_scheduler` to say, as on a single machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sheetanchor.policy import reanchor_scheduler
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES
from sheetanchor.policy.reanchor_object import Ask, Owner, digest, object_name, reanchor_object
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.timestamps import micros_of, text_of
from sheetanchor_operator.children.object_meta import Defaults, Manifest
from sheetanchor_operator.names import EventReason, Reason
from sheetanchor_operator.observation import Live, Observed
from sheetanchor_operator.reanchors.durable_record import comparisons, outcomes_of, remembered
from sheetanchor_operator.reanchors.history import history_of, next_try_us, policy_of, rebuilds_of
from sheetanchor_operator.reanchors.job import RunParameters, job
from sheetanchor_operator.reanchors.plan import Draft, JobStart, Patch, ReanchorPlan, SymbolFacts
from sheetanchor_operator.reanchors.request_queue import answer_again, bound_queue, skipped
from sheetanchor_operator.reanchors.requests import (
    OPERATOR,
    BadRequest,
    key_of,
    read_request,
    requests_of_annotation,
    requests_of_schedule,
)
from sheetanchor_operator.reanchors.runs import (
    SECOND_US,
    UNKNOWN,
    Ended,
    JobRun,
    ReAnchor,
    SymbolObservation,
    read_reanchor,
    redis_ahead_us,
    runs_of,
    symbol_observations,
)
from sheetanchor_operator.reanchors.status_patch import finished, retried, running, waiting_for_lock

JOB_MISSING_GRACE_US: Final = 15 * SECOND_US
"""A Job that was just created may not be seen yet; one that is not seen for longer has been deleted."""

SWAP_SEEN_GRACE_US: Final = 5 * SECOND_US
"""After a swap the processor says so within a tenth of a second; an answer from before it must not count for longer."""

HELD_MAX: Final = 20
"""Runs that may find another one at work: with their delays that is longer than any lock lives."""

KEEP_US: Final = 15 * SECOND_US
"""Whoever waits for a result finds it for at least this long."""

SUSPECT_POLL_US: Final = SECOND_US
"""How often to look at a state that is in doubt."""

RUN_POLL_US: Final = 5 * SECOND_US

_THROTTLES: Final[Mapping[str, Reason]] = {
    "backoff": Reason.BACKING_OFF,
    "cooldown": Reason.COOLDOWN,
    "budget": Reason.BUDGET_USED_UP,
    "lock": Reason.LOCK_HELD,
}


def plan(pipeline: Pipeline, observed: Observed, defaults: Defaults) -> ReanchorPlan:
    """Decide about the re-anchors of a pipeline.

    Args:
        pipeline: What is wanted.
        observed: Its ReAnchors, their Jobs and pods, what processors say, and the time.
        defaults: What the operator's own settings say.
    """
    sights = symbol_observations(observed.states)
    # One clock for everything that is compared, that of Redis; only when to look again is told by our own.
    ahead_us = redis_ahead_us(sights.values(), observed.now_us)
    observed = replace(observed, now_us=observed.now_us + ahead_us)
    mine = [body for body in observed.reanchors if (body.get("spec") or {}).get("pipeline") == pipeline.name]
    known = {one.name: one for one in map(read_reanchor, mine)}
    runs = _runs_of_all(known, observed)
    draft = Draft(pipeline, observed, defaults, known, runs, policy_of(pipeline))
    bound_queue(draft)
    for one in list(known.values()):
        if one.name not in draft.passed_over:
            _acknowledge(draft, one)
            _record_runs(draft, one)
    _answer_merged(draft)
    if not pipeline.paused and not pipeline.deleting:
        _request_rebuilds(draft)
        for symbol in pipeline.spec.symbols:
            _decide(draft, symbol, sights.get(symbol, UNKNOWN))
        _skip_unknown_symbols(draft)
    made = _finished_plan(draft)
    return made if made.wake_at_us is None else replace(made, wake_at_us=made.wake_at_us - ahead_us)


def _runs_of_all(known: Mapping[str, ReAnchor], observed: Observed) -> dict[str, list[JobRun]]:
    """Read every ReAnchor's runs, each Job once."""
    jobs: dict[str, list[Live]] = {}
    for body in observed.jobs:
        for owner in body["metadata"].get("ownerReferences") or ():
            jobs.setdefault(str(owner.get("uid", "")), []).append(body)
    return {
        name: runs_of(one, jobs[one.uid], observed.pods, observed.now_us) if one.uid in jobs else []
        for name, one in known.items()
    }


def _finished_plan(draft: Draft) -> ReanchorPlan:
    pipeline = draft.pipeline
    changed = []
    before = {body["metadata"]["name"]: body.get("status") or {} for body in draft.observed.reanchors}
    for name, status in draft.patch.items():
        raw = before[name]
        news = {key: value for key, value in status.items() if raw.get(key) != value}
        if news:
            one = draft.known[name]
            changed.append(Patch(name, {**news, "observedGeneration": one.generation}, can_wait=not one.attempts))
    # What passed over a flood comes last: there is no end to it, and nobody waits for it.
    changed.sort(key=lambda patch: (patch.can_wait, patch.name in draft.passed_over))
    delete = () if pipeline.paused else _forget(draft)
    gone = frozenset(delete)
    homeless = (one.name for one in draft.known.values() if not one.owned and one.name not in gone)
    known = list(draft.known.values())
    plan = ReanchorPlan(
        create=tuple(draft.create),
        start=tuple(draft.start),
        patch=tuple(changed),
        adopt=tuple(name for name in homeless if draft.may_write()),
        delete=delete,
        events=tuple(draft.events),
        symbols=draft.symbols or _idle_facts(draft),
        last_reanchor=_last_reanchor(draft),
        last_request=_last_request(draft),
        receipts=draft.receipts,
        requests=tuple(remembered(known, pipeline.status, draft.now_us).values()),
        outcomes=outcomes_of(known, pipeline.status, draft.now_us),
    )
    return replace(plan, wake_at_us=min(draft.wakes, default=None))


def _idle_facts(draft: Draft) -> dict[str, SymbolFacts]:
    return {symbol: _facts(draft, symbol) for symbol in draft.pipeline.spec.symbols}


# What has become of runs


def _acknowledge(draft: Draft, one: ReAnchor) -> None:
    """Say that a request has been seen."""
    if "phase" in one.raw or not draft.may_write(3):
        return
    draft.write(one.name, {"phase": "Pending"})
    if one.trigger in GAP_DETECTION_RULES:
        draft.tell(one, "Warning", EventReason.GAP_FOUND, f"{one.trigger}: {one.reason}", both=True)


def _record_runs(draft: Draft, one: ReAnchor) -> None:
    """Write down how the newest run of a ReAnchor stands."""
    runs = draft.runs[one.name]
    if one.final:
        # A look that had no time, or was cut off, may have written its end and not whom it answers.
        for name in runs[-1].answers if runs else ():
            _attach(draft, name, one.name)
        return
    run = runs[-1] if runs and runs[-1].attempt >= one.attempts else None
    if run is None:
        if one.phase == "Running" and draft.now_us - one.started_us > JOB_MISSING_GRACE_US:
            gone = Ended(-1, "failed", "the run's Job has vanished", one.started_us, draft.now_us)
            _record_end(draft, one, one.attempts, gone)
        return
    if run.attempt > one.attempts or one.phase == "Running":
        draft.write(one.name, running(one, run.name, run.attempt, run.created_us))
        for name in run.answers:
            _attach(draft, name, one.name)
        if run.ended is not None:
            _record_end(draft, draft.known[one.name], run.attempt, run.ended)
        elif run.message:
            draft.write(one.name, {"message": run.message})


def _attach(draft: Draft, name: str, lead: str) -> None:
    one = draft.known.get(name)
    if one is not None and one.phase == "Pending" and one.answered_by != lead and name != lead:
        draft.write(name, {"phase": "Pending", "answeredBy": lead, "message": f"merged into {lead}"})


def _record_end(draft: Draft, one: ReAnchor, attempt: int, ended: Ended) -> None:
    if ended.receipt is not None:
        draft.receipts[one.name] = (ended.receipt,)
    if ended.exit_code == 0 or ended.exit_code == reanchor_scheduler.EXIT_SUPERSEDED:
        phase = "Succeeded" if ended.exit_code == 0 else "Skipped"
        draft.write(one.name, finished(one, phase, ended))
        good = EventReason.REANCHOR_SUCCEEDED if phase == "Succeeded" else EventReason.REANCHOR_SKIPPED
        draft.tell(one, "Normal", good, f"{ended.result}: {ended.message}", both=phase == "Succeeded")
        return
    if ended.exit_code == reanchor_scheduler.EXIT_LOCK_HELD:
        _record_lock_wait(draft, one, attempt, ended)
        return
    before = history_of(one.symbol, [k for k in draft.known.values() if k.name != one.name], {}, draft.now_us)
    asked_us = ended.receipt.retry_at_us if ended.receipt is not None else 0
    failed = attempt - one.held
    next_us = next_try_us(one, attempt, before.failures + failed, ended.finished_us, asked_us, draft.policy)
    if one.dry_run or failed >= draft.policy.tries_max:
        draft.write(one.name, finished(one, "Failed", ended, next_us))
        draft.tell(one, "Warning", EventReason.REANCHOR_FAILED, _failed_words(attempt, ended), both=True)
        return
    draft.write(one.name, retried(one, attempt, ended, next_us))
    again = f"{_failed_words(attempt, ended)}; again at {text_of(next_us - next_us % SECOND_US)}"
    draft.tell(one, "Warning", EventReason.REANCHOR_FAILED, again, both=True)


def _record_lock_wait(draft: Draft, one: ReAnchor, attempt: int, ended: Ended) -> None:
    """Wait for whoever holds the lock: that another run is at work is no failure, for counters and alerts alike."""
    held = one.held + 1
    if held >= HELD_MAX:
        told = replace(ended, message=f"{held} runs found another one at work: {ended.message}")
        draft.write(one.name, finished(one, "Skipped", told) | {"attempts": attempt, "attemptsHeld": held})
        draft.tell(one, "Normal", EventReason.REANCHOR_SKIPPED, told.message, both=False)
        return
    next_us = next_try_us(one, attempt, held, ended.finished_us, 0, draft.policy)
    draft.write(one.name, waiting_for_lock(attempt, held, ended, next_us))
    told_us = text_of(next_us - next_us % SECOND_US)
    words = f"run {attempt} found another one at work; again at {told_us}: {ended.message}"
    draft.tell(one, "Normal", EventReason.REANCHOR_THROTTLED, words, both=False)


def _failed_words(attempt: int, ended: Ended) -> str:
    code = f" (exit code {ended.exit_code})" if ended.exit_code >= 0 else ""
    return f"run {attempt} failed{code}: {ended.message}"


def _lead_of(draft: Draft, one: ReAnchor) -> ReAnchor | None:
    """Give the ReAnchor whose run answers this one, None if it is none's but its own."""
    seen = {one.name}
    lead = draft.known.get(one.answered_by)
    while lead is not None and lead.answered_by and not lead.final and lead.name not in seen:
        seen.add(lead.name)
        lead = draft.known.get(lead.answered_by)
    return None if lead is None or lead.name in seen else lead


def _answer_merged(draft: Draft) -> None:
    """Give those that were merged into another the end of that one."""
    for one in list(draft.known.values()):
        if one.final or not one.answered_by:
            continue
        lead = _lead_of(draft, one)
        if lead is None:
            draft.write(one.name, {"answeredBy": None, "message": "waits again: what it was merged into is gone"})
        elif lead.final:
            told = f"answered by {lead.name}: {lead.raw.get('message') or lead.result}"
            end = Ended(0, "coalesced", told, 0, lead.finished_us or draft.now_us)
            draft.write(one.name, finished(one, lead.phase, end) | {"answeredBy": lead.name, "exitCode": None})


# What to ask for


def _owner(pipeline: Pipeline) -> Owner:
    return Owner(pipeline.name, pipeline.namespace, pipeline.uid)


def _ask(draft: Draft, ask: Ask) -> None:
    if object_name(draft.pipeline.name, ask.symbol, ask.suffix) not in draft.known:
        draft.create.append(reanchor_object(_owner(draft.pipeline), ask))
        draft.wakes.append(draft.now_us)


def _request_rebuilds(draft: Draft) -> None:
    pipeline = draft.pipeline
    asks, next_us = requests_of_schedule(pipeline, pipeline.created_us, draft.known.values(), draft.now_us)
    if next_us is not None:
        draft.wakes.append(next_us)
    value = pipeline.reanchor_request
    values = list(draft.observed.overwritten)
    if value and key_of(value) != pipeline.status.get("lastReanchorRequest"):
        values.append(value)
    for value in dict.fromkeys(values):
        try:
            asks = [*asks, *requests_of_annotation(read_request(value, pipeline.spec.symbols), draft.now_us)]
        except BadRequest as error:
            told = f"the annotation sheetanchor.dev/reanchor changes nothing: {error}"
            draft.tell(None, "Warning", EventReason.REANCHOR_SKIPPED, told, both=True)
    for ask in asks:
        _ask(draft, ask)


def _last_request(draft: Draft) -> str:
    known = str(draft.pipeline.status.get("lastReanchorRequest") or "")
    value = draft.pipeline.reanchor_request
    return known if draft.pipeline.paused or not value else key_of(value)


# What to start


def _decide(draft: Draft, symbol: str, sight: SymbolObservation) -> None:
    """Skip what changes nothing, and start at most one run."""
    sight = _after_swap(draft, symbol, sight)
    dead = _ended_lock_holder(draft, symbol, sight)
    seen = sight.seen(bool(sight.lock_holder) and not dead)
    memory = history_of(symbol, list(draft.known.values()), draft.pipeline.status, draft.now_us)
    waiting = [one for one in draft.of(symbol) if one.phase == "Pending" and not one.answered_by]
    waiting = [one for one in waiting if one.name not in draft.passed_over]
    waiting = [one for one in waiting if not _skip_if_moot(draft, one, memory, seen, sight)]
    at_work = [one for one in draft.of(symbol) if one.phase == "Running"]
    if not sight.known:
        waiting = [one for one in waiting if not one.validates]
    rebuilds = [one for one in waiting if not one.dry_run]
    wait = None
    if at_work:
        draft.wakes.append(draft.now_us + RUN_POLL_US)
    else:
        wait = _start_or_wait(draft, symbol, rebuilds, memory, seen, sight, dead)
        dry = [one for one in waiting if one.dry_run]
        if wait is not None and dry and not seen.lock_held and _may_try(draft, dry, memory):
            _start(draft, dry[0], [], dead)
            wait = None
    if sight.known and seen.suspect:
        draft.wakes.append(draft.now_us + SUSPECT_POLL_US)
    elif waiting and not sight.known:
        draft.wakes.append(draft.now_us + RUN_POLL_US)
    draft.symbols[symbol] = _facts(draft, symbol, wait)


def _may_try(draft: Draft, dry: Sequence[ReAnchor], memory: reanchor_scheduler.State) -> bool:
    """Say whether a dry run may begin now: it swaps nothing, but asks the exchange for as much as a rebuild."""
    held_us = dry[0].next_us if dry[0].held else 0
    wait = reanchor_scheduler.Wait(held_us, "another run held the lock a moment ago", "lock")
    spent = reanchor_scheduler.budget_wait(memory, draft.policy) if not dry[0].force else None
    if spent is not None:
        wait = max(spent, wait, key=lambda one: one.until_us or 0)
    if (wait.until_us or 0) <= draft.now_us:
        return True
    draft.wakes.append(wait.until_us or 0)
    for one in dry:
        _record_wait(draft, one, wait)
    return False


def _after_swap(draft: Draft, symbol: str, sight: SymbolObservation) -> SymbolObservation:
    """Take a processor that has not noticed a swap of these seconds as if it had."""
    swapped = [one for one in draft.of(symbol) if one.result == "swapped"]
    newest = max(swapped, key=lambda one: one.finished_us, default=None)
    if newest is None or not sight.known or sight.epoch >= newest.epoch_after:
        return sight
    if draft.now_us - newest.finished_us > SWAP_SEEN_GRACE_US:
        return sight
    return replace(sight, state="anchored", epoch=newest.epoch_after, fresh=True, suspect_since_us=0)


def _ended_lock_holder(draft: Draft, symbol: str, sight: SymbolObservation) -> str:
    """Give the request id of a run that is known to have ended and may have left its lock, "" if there is none."""
    ended = {}
    for one in draft.of(symbol):
        last = one.attempts - 1 if one.phase == "Running" else one.attempts
        ended.update({one.run_id(attempt): one for attempt in range(1, last + 1)})
    if sight.lock_holder:
        holder = sight.lock_holder.partition(":")[2]
        return holder if holder in ended else ""
    failed = [one for one in draft.of(symbol) if one.attempts and one.finished_us and one.phase != "Succeeded"]
    newest = max(failed, key=lambda one: one.finished_us, default=None)
    return newest.run_id(newest.attempts) if newest is not None and newest.phase != "Running" else ""


def _skip_if_moot(
    draft: Draft,
    one: ReAnchor,
    memory: reanchor_scheduler.State,
    seen: reanchor_scheduler.Seen,
    sight: SymbolObservation,
) -> bool:
    if answer_again(draft, one):
        return True
    reason = _paused_reason(draft, one)
    if not reason and not one.dry_run and (sight.known or not one.validates):
        alone, skip = reanchor_scheduler.ask(memory, one.request, draft.policy)
        if skip is None:
            _, decision = reanchor_scheduler.decide(alone, seen, draft.now_us, draft.policy)
            skip = decision if isinstance(decision, reanchor_scheduler.Skip) else None
        reason = skip.reason if skip is not None else ""
    if not reason:
        return False
    draft.write(one.name, skipped(draft, one, reason))
    draft.tell(one, "Normal", EventReason.REANCHOR_SKIPPED, f"{one.trigger} changes nothing: {reason}", both=False)
    return True


def _paused_reason(draft: Draft, one: ReAnchor) -> str:
    if draft.pipeline.spec.suspend and not one.force:
        return "the pipeline is suspended"
    if draft.pipeline.spec.maintenance.enabled and not one.force:
        return "the pipeline is in maintenance"
    return ""


def _start_or_wait(
    draft: Draft,
    symbol: str,
    waiting: Sequence[ReAnchor],
    memory: reanchor_scheduler.State,
    seen: reanchor_scheduler.Seen,
    sight: SymbolObservation,
    dead: str,
) -> reanchor_scheduler.Wait | None:
    """Start a run for what waits, or ask for one if the state is in doubt and nobody else has."""
    state = memory
    for one in waiting:
        state, _ = reanchor_scheduler.ask(state, one.request, draft.policy)
    if not waiting and (draft.pipeline.scaled_to_zero or not sight.known):
        return reanchor_scheduler.Wait(None, "nothing is asked for")
    _, decision = reanchor_scheduler.decide(state, seen, draft.now_us, draft.policy)
    if isinstance(decision, reanchor_scheduler.Skip):
        return reanchor_scheduler.Wait(None, decision.reason)
    if isinstance(decision, reanchor_scheduler.Wait):
        if decision.until_us is not None:
            draft.wakes.append(decision.until_us)
        for one in waiting:
            _record_wait(draft, one, decision)
        return decision
    if not waiting:
        _ask(draft, _own_request(draft, symbol, decision, memory, sight))
        return None
    lead = draft.known[decision.request.id]
    merged = [one for one in waiting if one.name != lead.name and (decision.kind == "rebuild" or one.validates)]
    _start(draft, lead, merged, dead)
    return None


def _record_wait(draft: Draft, one: ReAnchor, wait: reanchor_scheduler.Wait) -> None:
    status: Manifest = {"phase": "Pending"}
    if wait.kind in _THROTTLES and not one.attempts:
        status["message"] = f"waits: {wait.reason}"
    if wait.kind in ("cooldown", "budget") and wait.until_us is not None and not one.attempts:
        status["nextAttemptAt"] = text_of(wait.until_us)
    draft.write(one.name, status)


def _own_request(
    draft: Draft,
    symbol: str,
    start: reanchor_scheduler.Start,
    memory: reanchor_scheduler.State,
    sight: SymbolObservation,
) -> Ask:
    """Make the request that nobody has made for a state in doubt."""
    request = start.request
    parts = (symbol, sight.suspect_since_us, memory.ended_us)
    suffix = f"o{sight.epoch}-{digest(*parts)}"
    if object_name(draft.pipeline.name, symbol, suffix) in draft.known:
        suffix = f"o{sight.epoch}-{digest(*parts, draft.now_us // (10 * SECOND_US))}"
    return Ask(
        symbol=symbol,
        suffix=suffix,
        action=request.action,
        reason=request.reason,
        trigger=request.trigger,
        requested_by=OPERATOR,
        at_us=draft.now_us,
        epoch=request.epoch,
    )


def _start(draft: Draft, lead: ReAnchor, merged: Sequence[ReAnchor], dead: str) -> None:
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
        unlock_for=dead,
        validate_only=lead.validates,
        dry_run=lead.dry_run,
        answers=tuple(one.name for one in merged),
    )
    manifest = job(draft.pipeline, draft.defaults, order)
    draft.start.append(JobStart(lead.name, lead.symbol, manifest))
    draft.write(lead.name, running(lead, manifest["metadata"]["name"], attempt, draft.now_us))
    for one in merged:
        _attach(draft, one.name, lead.name)
    draft.wakes.append(draft.now_us + RUN_POLL_US)
    told = f"run {attempt} for {lead.trigger}: {order.reason}"
    begun = EventReason.REANCHOR_STARTED if attempt == 1 else EventReason.REANCHOR_RETRIED
    draft.tell(lead, "Normal", begun, told, both=True)


def _facts(draft: Draft, symbol: str, wait: reanchor_scheduler.Wait | None = None) -> SymbolFacts:
    own = draft.of(symbol)
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
        rebuilt_us=rebuilds_of(symbol, own, draft.pipeline.status, draft.now_us),
        compared_us=comparisons(own, draft.pipeline.status, draft.now_us).get(symbol, ()),
    )


def _skip_unknown_symbols(draft: Draft) -> None:
    symbols = draft.pipeline.spec.symbols
    for one in list(draft.known.values()):
        waits = not one.final and one.phase != "Running" and one.name not in draft.passed_over
        if one.symbol not in symbols and waits and draft.may_write(2):
            reason = f"symbol {one.symbol} is none of the pipeline's: {', '.join(symbols)}"
            draft.write(one.name, skipped(draft, one, reason))
            draft.tell(one, "Warning", EventReason.REANCHOR_SKIPPED, reason, both=False)


# What to show and what to forget


def _last_reanchor(draft: Draft) -> Mapping[str, Any] | None:
    before = draft.pipeline.status.get("lastReanchor")
    begun = [one for one in draft.known.values() if one.attempts and one.started_us]
    newest = max(begun, key=lambda one: (one.started_us, one.name), default=None)
    if newest is None or (before and micros_of(before.get("startedAt")) > newest.started_us):
        return before or None
    told = {
        "name": newest.name,
        "reason": newest.reason,
        "trigger": newest.trigger,
        "symbol": newest.symbol,
        "startedAt": newest.raw.get("startedAt"),
        "finishedAt": newest.raw.get("finishedAt") if newest.final else None,
        "epoch": newest.epoch_after or None,
        "result": newest.result or None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _forget(draft: Draft) -> tuple[str, ...]:
    """Choose the finished ReAnchors beyond the limits, oldest first; what others rest on is kept."""
    limits = draft.pipeline.spec.reanchor.history
    kept = {one.answered_by for one in draft.known.values() if not one.final}
    for symbol in {one.symbol for one in draft.known.values()}:
        own = [one for one in draft.of(symbol) if one.final]
        kept |= _newest(one for one in own if one.phase == "Succeeded" and one.attempts)
        kept |= _newest(one for one in own if one.attempts and not one.dry_run)  # a failure slows down the next
        kept |= _newest(one for one in own if one.trigger == "schedule")
    finals = sorted((one for one in draft.known.values() if one.final), key=lambda one: (one.finished_us, one.name))
    failed = [one for one in finals if one.phase == "Failed"]
    others = [one for one in finals if one.phase != "Failed"]
    gone = []
    for group, limit in ((failed, limits.failed), (others, limits.successful)):
        free = [one for one in group if one.name not in kept]
        for one in free[: max(0, len(group) - limit)]:
            free_us = max(one.finished_us + KEEP_US, one.next_us if one.phase == "Failed" else 0)
            if free_us > draft.now_us:
                draft.wakes.append(free_us)
            elif draft.may_write():
                gone.append(one.name)
            else:
                return tuple(gone)
    return tuple(gone)


def _newest(some: Iterable[ReAnchor]) -> set[str]:
    newest = max(some, key=lambda one: (one.finished_us, one.at_us, one.name), default=None)
    return {newest.name} if newest is not None else set()

"""Moving a pipeline out of a zone, step by step: from its record in the status to the next one. Pure.

The record alone says where a move stands, so that any replica of the operator can go on with it, and each step can be
done again. A term is written into the record before a standby is asked to take it. What has been done is concluded from
what the pods report, not from what was answered: an answer may have been lost, and what was done since be undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from sheetanchor_operator.names import FailoverKind, FailoverPhase, FailoverStep
from sheetanchor_operator.zones.failover_record import (
    Action,
    Failed,
    FailoverRecord,
    HandOver,
    ProcessorFacts,
    Request,
    Situation,
    StepRecord,
    Take,
)

SECOND_US: Final = 1_000_000
ATTEMPTS_MAX: Final = 3
"""Of fencing: another standby is asked each time, if there is one."""

HAND_OVERS_MAX: Final = 6
HAND_OVER_EVERY_US: Final = 5 * SECOND_US
"""Sentinels that have just failed over refuse to do so again until every replica follows the new master."""

ROUNDS_MAX: Final = 3
"""How often a move is begun again because a writer or the master has gone back meanwhile."""

LIMITS_US: Final[Mapping[FailoverStep, int]] = {
    FailoverStep.INTENT: 10 * SECOND_US,
    FailoverStep.FENCE: 60 * SECOND_US,
    FailoverStep.REDIS: 90 * SECOND_US,
    FailoverStep.READERS: 900 * SECOND_US,  # pods are made, and the old ones end one after another
    FailoverStep.VERIFY: 90 * SECOND_US,
}
"""How long a step may last. Steps take a second or two, readers some minutes; the rest is margin for a slow cluster."""

ORDER: Final = tuple(LIMITS_US)


@dataclass(frozen=True, slots=True)
class Decision:
    """What comes next.

    Attributes:
        record: The record to write; None for none.
        action: What to do, only where the record is written already.
    """

    record: FailoverRecord | None
    action: Action | None = None


def refusal_of(request: Request, now: Situation) -> str:
    """Say why a request is not carried out, "" if it is.

    Args:
        request: What is asked for.
        now: What is known.
    """
    zone, known = request.zone, ", ".join(now.zones)
    if now.at_rest:
        return f"{now.at_rest}: nothing runs that could be moved"
    if len(now.zones) < 2:
        return "pods of this pipeline can run in fewer than two zones: there is nowhere to go"
    if zone and zone not in now.zones:
        return f"zone {zone!r} is none in which pods of this pipeline can run: expected one of {known}"
    if request.kind is FailoverKind.SWITCHOVER:
        return _refused_switchover(zone, now)
    others = sorted(now.lost - {zone})
    if others:
        return f"zone {', '.join(others)} is lost: leaving zone {zone} as well would take two zones away"
    return "" if _candidates(zone, "", now.symbols, now) else _nobody(zone, "")


def _refused_switchover(zone: str, now: Situation) -> str:
    left = _writing_zone(now)
    if zone in now.lost and zone:
        return f"zone {zone} is lost: name a zone that answers"
    if not left:
        return "no processor reports itself as the writer, so nothing can be moved; see kubectl reanchor explain"
    if zone and all(now.zone_of(now.writers.get(symbol, "")) == zone for symbol in now.symbols):
        return f"every symbol is written from zone {zone} already"
    return "" if _candidates(left, zone, now.symbols, now) else _nobody(left, zone)


def _nobody(left: str, to: str) -> str:
    where = f"in zone {to}" if to else f"outside of zone {left}"
    return f"no standby {where} answers and is connected to Redis: wait until one does (spec.processor.replicas)"


def _writing_zone(now: Situation) -> str:
    """Name the zone from which most symbols are written."""
    zones = [zone for symbol in now.symbols if (zone := now.zone_of(now.writers.get(symbol, "")))]
    return max(sorted(set(zones)), key=zones.count, default="")


def _suits(zone: str, left: str, to: str, now: Situation) -> bool:
    return bool(zone) and zone != left and zone not in now.lost and to in ("", zone)


def _candidates(left: str, to: str, symbols: tuple[str, ...], now: Situation) -> list[ProcessorFacts]:
    """Give the processors that could write these symbols, those that write already first, then by name."""
    fit = [one for one in now.processors if _suits(one.zone, left, to, now) and set(symbols) <= one.connected]
    return sorted(fit, key=lambda one: (not one.writes, one.pod))


def _misplaced(record: FailoverRecord, now: Situation) -> tuple[str, ...]:
    """Name the symbols that are not written from where they should be."""
    return tuple(
        symbol
        for symbol in now.symbols
        if not _suits(now.zone_of(now.writers.get(symbol, "")), record.from_zone, record.to_zone, now)
    )


def begin(request: Request, now: Situation) -> FailoverRecord:
    """Give the record of a request that has not been seen before: of a move, or of its refusal."""
    refusal = refusal_of(request, now)
    left = request.zone if request.kind is FailoverKind.EVACUATION else _writing_zone(now)
    to = request.zone if request.kind is FailoverKind.SWITCHOVER else ""
    record = FailoverRecord(
        request.value, request.kind, FailoverPhase.RUNNING, FailoverStep.INTENT, from_zone=left, to_zone=to
    )
    if refusal:
        return replace(record, phase=FailoverPhase.REFUSED, message=refusal)
    where = f"to zone {to}" if to else f"out of zone {left}"
    intent = StepRecord(FailoverStep.INTENT, now.now_us)
    return replace(record, message=f"moves {where}", steps=(intent,))


def proceed(record: FailoverRecord, now: Situation, failed: Failed | None = None) -> Decision:
    """Decide what comes next in a move that goes on.

    Args:
        record: The record as it is written.
        now: What is known.
        failed: An action that has failed since it was decided on; another record's is passed over.

    Returns:
        The next record, or the same one with what to do.
    """
    if not record.running:
        return Decision(record)
    step = record.steps[-1]
    if now.at_rest:
        return Decision(_abort(record, now, now.at_rest))
    if now.now_us - step.started_us > LIMITS_US[record.step]:
        seconds = LIMITS_US[record.step] // SECOND_US
        return Decision(_abort(record, now, f"not done within {seconds} s: {_waits_for(record, now)}"))
    return _STEPS[record.step](record, now, failed)


def _intent(record: FailoverRecord, now: Situation, _failed: Failed | None) -> Decision:
    return Decision(_fence_next(_finish(record, now, "written"), now))


def _fence_next(record: FailoverRecord, now: Situation, tried: str = "") -> FailoverRecord:
    """Begin to fence, or begin again: with another standby, if there is one, and a term above all that were seen."""
    symbols = _misplaced(record, now)
    fit = _candidates(record.from_zone, record.to_zone, symbols, now)
    target = next((one.pod for one in fit if one.pod != tried), fit[0].pod if fit else "")
    chosen = replace(record, term=max(record.term, now.term) + 1, target=target)
    return chosen if record.step is FailoverStep.FENCE and _goes_on(record) else _start(chosen, FailoverStep.FENCE, now)


def _fence(record: FailoverRecord, now: Situation, failed: Failed | None) -> Decision:
    symbols = _misplaced(record, now)
    if not symbols:
        pods = ", ".join(sorted({now.writers[symbol] for symbol in now.symbols}))
        return Decision(_start(_finish(record, now, f"{pods} writes"), FailoverStep.REDIS, now))
    target = next((one for one in now.processors if one.pod == record.target), None)
    if isinstance(failed, Failed) and isinstance(failed.action, Take):
        mine = (failed.action.pod, failed.action.term) == (record.target, record.term)
        if mine and record.attempts + 1 >= ATTEMPTS_MAX:
            return Decision(_abort(record, now, f"{record.target} does not take over: {failed.error}"))
        if mine:
            again = replace(record, attempts=record.attempts + 1, message=failed.error)
            return Decision(_fence_next(again, now, tried=record.target))
    fits = target is not None and target in _candidates(record.from_zone, record.to_zone, symbols, now)
    # A term that was taken by another one since is not free any more.
    taken = now.reported_term >= record.term and (target is None or not target.writes)
    if not fits or target is None or taken:
        found = _fence_next(record, now)
        return Decision(found if found.target else record)
    return Decision(record, Take(target.pod, target.replica, record.term, symbols))


def _redis(record: FailoverRecord, now: Situation, failed: Failed | None) -> Decision:
    after = FailoverStep.READERS if record.kind is FailoverKind.EVACUATION else FailoverStep.VERIFY
    if not now.managed:
        return Decision(_start(_finish(record, now, "external: its master is not this operator's"), after, now))
    if now.master_zone and now.master_zone != record.from_zone and now.master_zone not in now.lost:
        said = f"{now.master} is the master"
        return Decision(_start(_finish(record, now, said), after, now))
    if failed is not None and failed.action == HandOver(now.master):
        if record.attempts + 1 >= HAND_OVERS_MAX:
            return Decision(_abort(record, now, f"{now.master} does not hand over: {failed.error}"))
        return Decision(replace(record, attempts=record.attempts + 1, message=failed.error))
    # A master in a zone that is lost is left to the Sentinels: no request to it would be answered.
    answers = now.master and now.master_zone not in now.lost
    due = now.now_us - record.steps[-1].started_us >= record.attempts * HAND_OVER_EVERY_US
    return Decision(record, HandOver(now.master) if answers and due else None)


def _readers(record: FailoverRecord, now: Situation, _failed: Failed | None) -> Decision:
    if now.leavers.get(record.from_zone, 0) or not now.whole:
        return Decision(record)
    return Decision(_start(_finish(record, now, f"no reader is in zone {record.from_zone}"), FailoverStep.VERIFY, now))


def _verify(record: FailoverRecord, now: Situation, _failed: Failed | None) -> Decision:
    # One that does not answer at the moment has gone nowhere yet.
    known = [zone for pod in now.writers.values() if (zone := now.zone_of(pod))]
    back = now.managed and now.master_zone == record.from_zone
    if back or any(not _suits(zone, record.from_zone, record.to_zone, now) for zone in known):
        if record.rounds + 1 >= ROUNDS_MAX:
            return Decision(_abort(record, now, "writer or master went back there again and again"))
        again = replace(_finish(record, now, "writer or master went back there"), rounds=record.rounds + 1)
        return Decision(_fence_next(again, now))
    if now.sound_slot > record.after_slot + 1 and not _misplaced(record, now):
        done = _finish(record, now, f"slot {now.sound_slot} is sound")
        where = sorted({now.zone_of(now.writers[symbol]) for symbol in now.symbols})
        message = f"written from zone {', '.join(where)}"
        return Decision(replace(done, phase=FailoverPhase.DONE, message=message))
    return Decision(record)


_STEPS: Final = {
    FailoverStep.INTENT: _intent,
    FailoverStep.FENCE: _fence,
    FailoverStep.REDIS: _redis,
    FailoverStep.READERS: _readers,
    FailoverStep.VERIFY: _verify,
}


def _waits_for(record: FailoverRecord, now: Situation) -> str:
    """Say what a step has waited for."""
    if record.step is FailoverStep.FENCE:
        return record.message if record.attempts else _nobody(record.from_zone, record.to_zone)
    if record.step is FailoverStep.REDIS:
        return f"the Redis master is {now.master or 'not known'}{f' in zone {now.master_zone}' * bool(now.master_zone)}"
    if record.step is FailoverStep.READERS:
        return f"pods remain in zone {record.from_zone}, or new ones are not ready"
    return "no sound prediction since"


def _goes_on(record: FailoverRecord) -> bool:
    return bool(record.steps) and not record.steps[-1].finished_us


def _start(record: FailoverRecord, step: FailoverStep, now: Situation) -> FailoverRecord:
    after = now.newest_slot if step is FailoverStep.VERIFY else record.after_slot
    begun = (*record.steps, StepRecord(step, now.now_us))
    return replace(record, step=step, attempts=0, after_slot=after, steps=begun)


def _finish(record: FailoverRecord, now: Situation, message: str) -> FailoverRecord:
    ended = replace(record.steps[-1], finished_us=now.now_us, message=message)
    return replace(record, steps=(*record.steps[:-1], ended))


def _abort(record: FailoverRecord, now: Situation, why: str) -> FailoverRecord:
    ended = _finish(record, now, why)
    return replace(ended, phase=FailoverPhase.ABORTED, message=f"aborted at step {record.step}: {why}")


def give_up(record: FailoverRecord, now: Situation, why: str) -> FailoverRecord:
    """End a move that goes on because what asked for it is gone."""
    return _abort(record, now, why) if record.running else record

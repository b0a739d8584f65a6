"""What is being done about a pipeline at this moment, and what was done last, by ReAnchors and conditions. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from sheetanchor_operator.names import Condition, Reason
from sheetanchor_operator.plugin.explain.facts import ConditionFact, Facts, RunFact
from sheetanchor_operator.plugin.explain.why import state_of

State = Literal["running", "waiting", "unseen", "none", "blocked", "rolling out"]

WAITING_SHOWN: Final = 2
RECEIPTS_SHOWN: Final = 2
UNSEEN_HINT_US: Final = 10_000_000
"""A running operator acts upon a request within a second or two."""

ON_THE_WAY: Final[frozenset[str]] = frozenset({Reason.ROLLING_OUT, Reason.STARTING})


@dataclass(frozen=True, slots=True)
class Activity:
    """Something that is being done, or that would be and waits.

    Attributes:
        about: The trading pair, or "" for the whole pipeline.
        state: running; waiting, with the reason as message; unseen by any operator; none, where a suspect state has
            neither run nor request; blocked, where re-anchoring is disabled; rolling out.
        reanchor: Name of the ReAnchor, "" for none.
        since_us: When it began, or was requested; 0 if that is not known.
        next_us: When it goes on at the earliest; 0 if that is not known.
    """

    about: str
    state: State
    message: str
    reanchor: str = ""
    since_us: int = 0
    next_us: int = 0


def activities_of(facts: Facts) -> tuple[Activity, ...]:
    """Give what is done about each symbol, then about the pipeline; none if nothing is done."""
    found = [one for symbol in facts.symbols for one in _of_symbol(facts, symbol)]
    ready = condition(facts, Condition.READY)
    if ready.reason in ON_THE_WAY:
        found.append(Activity("", "rolling out", ready.message or "the operator applies the spec", "", ready.since_us))
    return tuple(found)


def receipts_of(facts: Facts) -> tuple[RunFact, ...]:
    """Give the last ReAnchors that have ended, newest first."""
    ended = sorted((one for one in facts.runs if one.final), key=lambda one: one.finished_us or one.created_us)
    return tuple(reversed(ended[-RECEIPTS_SHOWN:]))


def condition(facts: Facts, kind: Condition) -> ConditionFact:
    """Find a condition; an empty one if it is not there."""
    return next((one for one in facts.conditions if one.type == kind), ConditionFact(str(kind), "", "", "", 0))


def throttle(facts: Facts) -> ConditionFact | None:
    """Give the condition that says why re-anchors wait, None if none is throttled."""
    one = condition(facts, Condition.REANCHOR_THROTTLED)
    return one if one.status == "True" else None


def _of_symbol(facts: Facts, symbol: str) -> Iterable[Activity]:
    open_runs = [one for one in facts.runs if one.symbol == symbol and not one.final and not one.answered_by]
    running = [one for one in open_runs if one.phase == "Running"]
    waiting = [one for one in open_runs if one.phase != "Running"]
    yield from (_running(one) for one in running)
    yield from (_waiting(facts, one) for one in waiting[:WAITING_SHOWN])
    if len(waiting) > WAITING_SHOWN:
        yield Activity(symbol, "waiting", f"{len(waiting) - WAITING_SHOWN} more requests wait")
    if not open_runs and state_of(facts, symbol).state == "suspect":
        yield _nothing(facts, symbol)


def _running(one: RunFact) -> Activity:
    message = ": ".join(filter(None, (f"run {one.attempts or 1} for {one.trigger or 'no trigger'}", one.message)))
    return Activity(one.symbol, "running", message, one.name, one.started_us or one.created_us)


def _waiting(facts: Facts, one: RunFact) -> Activity:
    if not one.phase:
        late = facts.now_us - one.created_us > UNSEEN_HINT_US
        hint = ": is one running? It acts within seconds" if late else ""
        return Activity(one.symbol, "unseen", f"no operator has seen it yet{hint}", one.name, one.created_us)
    message = one.message.removeprefix("waits: ") or _throttle_of(one.symbol, throttle(facts)) or "no reason given"
    return Activity(one.symbol, "waiting", message, one.name, one.created_us, one.next_us)


def _nothing(facts: Facts, symbol: str) -> Activity:
    throttled = throttle(facts)
    if throttled is not None and throttled.reason == Reason.DISABLED:
        return Activity(symbol, "blocked", "re-anchoring is disabled (spec.reanchor.enabled)")
    waits = _throttle_of(symbol, throttled)
    return Activity(symbol, "waiting", waits) if waits else Activity(symbol, "none", "no re-anchor runs or waits")


def _throttle_of(symbol: str, throttled: ConditionFact | None) -> str:
    """Take a symbol's part out of the message of the condition, which lists them; "" if it is not throttled."""
    found = re.search(rf"(?:^|; ){re.escape(symbol)}: ([^;]+)", throttled.message) if throttled is not None else None
    return found[1] if found is not None else ""

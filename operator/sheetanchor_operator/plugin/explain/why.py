"""Why a pipeline is not sound: the causes, a cause before what it blocks, each with its consequences. Pure.

Several conditions often report one problem, and a problem shows in every prediction: each is one cause, what explains
it is its evidence, and what it brings about its consequences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sheetanchor_operator.names import Condition, Reason
from sheetanchor_operator.plugin.explain.facts import CheckFact, ConditionFact, Facts, SymbolFact
from sheetanchor_operator.plugin.explain.meanings import (
    ABOUT_WORK,
    CHECKS,
    DOUBTS,
    MEANINGS,
    NOT_TRUE,
    PROBLEM_STATUSES,
    RULES,
    SOUND_CHECKS,
    CheckMeaning,
    DoubtMeaning,
    Meaning,
)

PREDICTION_AGE_MAX_US: Final = 10_000_000
"""Five slots, as the operator judges it; the rest is for clocks that differ."""

BLOCKS, DOUBTED, SPARE, NOTE = range(4)
"""Groups of causes: what keeps predictions from being sound, what they are doubted for, what costs redundancy only, and
what makes nothing worse as long as nothing else happens."""

GROUPS: Final[Mapping[str, int]] = {Reason.NOT_SPREAD: NOTE}
EXPLAIN_OTHERS: Final[frozenset[str]] = frozenset({Reason.ZONE_LOST})
"""Causes that come before what they may bring about, though by themselves they cost redundancy only."""

BY_SYMBOL: Final[frozenset[str]] = frozenset(
    {Reason.SUSPECT, Reason.AWAITING_FIRST_ANCHOR, Reason.PREDICTIONS_DEGRADED}
)
"""Reasons of conditions that list symbols: each symbol is a cause of its own instead, where it is known."""

NAMES_SYMBOLS: Final = BY_SYMBOL | {Reason.NO_PREDICTIONS}
FLOWING: Final = "predictions flow, but "
_UNKNOWN_REASON: Final = Meaning("what follows is not known to this version of the command: update it", "")
_UNKNOWN_DOUBT: Final = DoubtMeaning("this version of the command does not know it: update it", "")


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause.

    Attributes:
        about: What it is about: a condition, a symbol or a pod.
        reason: Reason of a condition, kind of doubt, or name of a health check.
        message: What is the case, without the remedy.
        since_us: Since when; 0 if that is not known.
        group: BLOCKS, DOUBTED, SPARE or NOTE.
        rank: Place within the group.
        remedy: What the operator's message says to do.
        commands: What else to run, to be filled in.
        runbook: Page of docs/runbooks/, "" for none.
        evidence: What explains it.
        consequences: What it brings about.
        conditions: The conditions that report it.
    """

    about: str
    reason: str
    message: str
    since_us: int = 0
    group: int = BLOCKS
    rank: int = 0
    remedy: str = ""
    commands: tuple[str, ...] = ()
    runbook: str = ""
    evidence: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


def causes_of(facts: Facts) -> tuple[Cause, ...]:
    """Find the causes, first what blocks the others; none if nothing that is known is wrong."""
    conditions = _of_conditions(facts)
    symbols = _of_symbols(facts)
    doubts = _of_predictions(facts)
    conditions = _without_echoes(conditions, symbols, doubts)
    linked = _link_doubts([*conditions, *symbols], doubts)
    found = _link_checks(linked, facts.checks)
    if all(one.group == NOTE for one in found) and facts.whole and facts.phase == "Degraded":
        found = [
            *found,
            replace(_of_reason(Reason.PODS_NOT_READY, "pods", f"{facts.ready} pods are ready", 0), group=SPARE),
        ]
    return tuple(sorted(found, key=_place))


def _place(one: Cause) -> tuple[int, int, str]:
    return BLOCKS if one.reason in EXPLAIN_OTHERS else one.group, one.rank, one.about


def state_of(facts: Facts, symbol: str) -> SymbolFact:
    """Give a symbol's state: by the active processor, else by the best informed one, else by the status."""
    reports = [one for one in facts.reports if one.name == symbol and one.state != "unknown"]
    if reports:
        return max(reports, key=lambda one: (one.active, one.epoch))
    return next((one for one in facts.states if one.name == symbol), SymbolFact(symbol, "unknown"))


def is_wrong(one: ConditionFact) -> bool:
    """Say whether a condition reports a problem: by its status, or by its reason where predictions flow even so."""
    if has_problem_status(one):
        return True
    return one.type not in ABOUT_WORK and one.reason in MEANINGS


def has_problem_status(one: ConditionFact) -> bool:
    """Say whether a condition's status reports a problem; one that this version does not know should be True."""
    return one.status in PROBLEM_STATUSES.get(one.type, NOT_TRUE)


# Conditions


def _of_conditions(facts: Facts) -> list[Cause]:
    """Make a cause of each problem that conditions report, however many report it."""
    found: dict[tuple[str, str], Cause] = {}
    for one in facts.conditions:
        if not is_wrong(one) or not _concerns(facts, one):
            continue
        message = one.message.removeprefix(FLOWING)
        cause = _of_reason(one.reason, one.type, message, one.since_us)
        if not has_problem_status(one):
            cause = replace(cause, group=max(cause.group, SPARE))
        known = found.get((one.reason, message))
        found[one.reason, message] = cause if known is None else _joined(known, cause)
    return _without_ready(list(found.values()))


def _concerns(facts: Facts, one: ConditionFact) -> bool:
    """Say whether a condition concerns the symbols that are asked about: its message may name others only."""
    if facts.whole or one.reason not in NAMES_SYMBOLS:
        return True
    return any(re.search(rf"\b{re.escape(symbol)}\b", one.message) for symbol in facts.symbols)


def _joined(first: Cause, second: Cause) -> Cause:
    times = [one.since_us for one in (first, second) if one.since_us]
    about = second.about if first.about == Condition.READY else first.about
    return replace(
        first,
        about=about,
        since_us=min(times, default=0),
        group=min(first.group, second.group),
        conditions=(*first.conditions, *second.conditions),
    )


def _without_ready(causes: list[Cause]) -> list[Cause]:
    """Leave out what only Ready reports while another condition has the same reason: Ready repeats one of them."""
    reasons = {one.reason for one in causes if one.conditions != (Condition.READY,)}
    return [one for one in causes if one.conditions != (Condition.READY,) or one.reason not in reasons]


def _of_reason(reason: str, about: str, message: str, since_us: int) -> Cause:
    meaning = MEANINGS.get(reason, _UNKNOWN_REASON)
    ranks = list(MEANINGS)
    what, remedy = split_remedy(message) if meaning.carried else (message, "")
    return Cause(
        about=about,
        reason=reason,
        message=what or "no message",
        since_us=since_us,
        group=GROUPS.get(reason, SPARE if meaning.spare else BLOCKS),
        rank=ranks.index(reason) if reason in MEANINGS else len(ranks),
        remedy=remedy,
        commands=meaning.commands,
        runbook=meaning.runbook,
        consequences=(meaning.consequence,) if meaning.consequence else (),
        conditions=(about,),
    )


def split_remedy(message: str) -> tuple[str, str]:
    """Part a condition's message into what is the case and what to do, "" where it does not say."""
    for separator in ("; ", ": "):
        what, found, remedy = message.rpartition(separator)
        if found:
            return what, remedy
    return message, ""


# Symbols


def _of_symbols(facts: Facts) -> list[Cause]:
    causes = []
    for symbol in facts.symbols:
        state = state_of(facts, symbol)
        if state.state != "suspect":
            continue
        reason = Reason.SUSPECT if state.epoch else Reason.AWAITING_FIRST_ANCHOR
        rule = rule_of(facts, symbol, state)
        message = ": ".join(filter(None, (rule, state.reason))) or "no reason given"
        cause = _of_reason(reason, symbol, message, state.since_us)
        advice = RULES.get(rule, "")
        causes.append(replace(cause, remedy=advice, conditions=(Condition.ANCHORED,)))
    return causes


def rule_of(facts: Facts, symbol: str, state: SymbolFact) -> str:
    """Name the gap rule that made a symbol suspect, by the re-anchor that it requested; "" if there is none."""
    for run in reversed(facts.runs):
        if run.symbol == symbol and run.trigger in RULES and state.reason and state.reason in run.reason:
            return run.trigger
    return ""


# Predictions


def _of_predictions(facts: Facts) -> list[Cause]:
    causes = []
    for symbol in facts.symbols:
        served = [one for one in facts.predictions if one.symbol == symbol]
        newest = max(served, key=lambda one: (one.at_us, not one.degraded), default=None)
        if newest is None:
            doubts = doubts_in(state_of(facts, symbol).unsound) or _doubts_of_condition(facts, symbol)
        elif facts.now_us - newest.at_us > PREDICTION_AGE_MAX_US:
            message = "no recent prediction" if newest.at_us else "the answer has no time"
            causes.append(_of_reason(Reason.NO_PREDICTIONS, symbol, message, newest.at_us))
            continue
        else:
            doubts = doubts_in(newest.reason) if newest.degraded else []
            if newest.degraded and not doubts:
                doubts = [("", "no reason given")]
        causes += [_of_doubt(symbol, kind, text) for kind, text in doubts]
    return causes


def doubts_in(reason: str) -> list[tuple[str, str]]:
    """Take the reason of a prediction apart into kinds and texts."""
    found = [part.partition(":") for part in reason.split("; ") if part.strip()]
    return [(kind.strip(), text.strip()) for kind, _, text in found]


def _doubts_of_condition(facts: Facts, symbol: str) -> list[tuple[str, str]]:
    """Read the kinds of doubt from the message of InferenceReady, which leaves out their texts."""
    for one in facts.conditions:
        if one.reason == Reason.PREDICTIONS_DEGRADED:
            listed = re.search(rf"\b{re.escape(symbol)}: ([\w, ]+)", one.message)
            if listed:
                return [(kind, "") for kind in listed[1].split(", ") if kind in DOUBTS]
    return []


def _of_doubt(symbol: str, kind: str, text: str) -> Cause:
    meaning, ranks = DOUBTS.get(kind, _UNKNOWN_DOUBT), list(DOUBTS)
    return Cause(
        about=symbol,
        reason=kind or "unknown",
        message=text,
        group=DOUBTED,
        rank=ranks.index(kind) if kind in DOUBTS else len(ranks),
        commands=meaning.commands,
        runbook=meaning.runbook,
        consequences=(meaning.consequence,),
    )


# What belongs together


def _without_echoes(conditions: Sequence[Cause], symbols: Sequence[Cause], doubts: Sequence[Cause]) -> list[Cause]:
    """Leave out conditions that list what is known symbol by symbol."""
    known: dict[str, bool] = {
        Reason.SUSPECT: bool(symbols),
        Reason.AWAITING_FIRST_ANCHOR: bool(symbols),
        Reason.PREDICTIONS_DEGRADED: any(one.group == DOUBTED for one in doubts),
        Reason.NO_PREDICTIONS: any(one.reason == Reason.NO_PREDICTIONS for one in doubts),
    }
    return [one for one in conditions if not known.get(one.reason)]


def _link_doubts(causes: Sequence[Cause], doubts: Sequence[Cause]) -> list[Cause]:
    """Make doubts consequences of what brings them about; what nothing else explains is a cause of its own."""
    linked, own = list(causes), []
    for doubt in doubts:
        follows = DOUBTS.get(doubt.reason, _UNKNOWN_DOUBT).follows if doubt.group == DOUBTED else ()
        at = next((at for at, one in enumerate(linked) if _brings_about(one, doubt, follows)), None)
        if at is None:
            own.append(doubt)
        else:
            text = ": ".join(filter(None, (doubt.reason, doubt.message)))
            consequence = f"{doubt.about}'s newest prediction is degraded: {text}"
            linked[at] = replace(linked[at], consequences=(*linked[at].consequences, consequence))
    return [*linked, *own]


def _brings_about(cause: Cause, doubt: Cause, follows: Iterable[Condition]) -> bool:
    if cause.group >= SPARE or not set(follows) & set(cause.conditions):
        return False
    of_symbol = cause.conditions == (Condition.ANCHORED,) and cause.about != Condition.ANCHORED
    return not of_symbol or cause.about == doubt.about


def _link_checks(causes: Sequence[Cause], checks: Iterable[CheckFact]) -> list[Cause]:
    """Make failing health checks evidence of what they explain; what explains nothing else is a cause of its own."""
    linked, own = list(causes), []
    for check in checks:
        meaning = _check_meaning(check)
        # A line that lacks a stream is connected, and says in its message what does not come.
        if (check.status in SOUND_CHECKS and not check.message) or not meaning.text:
            continue
        text = f"{meaning.text}: {check.message or check.status or 'it reports nothing'}"
        at = next((at for at, one in enumerate(linked) if _explains(meaning, one)), None)
        if at is None:
            own.append(Cause(check.pod, check.name, text, group=SPARE, rank=len(MEANINGS), runbook=meaning.runbook))
        else:
            linked[at] = replace(linked[at], evidence=(*linked[at].evidence, f"{check.pod}: {text}"))
    return [*linked, *own]


def _check_meaning(check: CheckFact) -> CheckMeaning:
    return CHECKS.get(check.component, {}).get(check.name, CheckMeaning(f"its check {check.name}"))


def _explains(meaning: CheckMeaning, cause: Cause) -> bool:
    return cause.reason in meaning.doubts or bool(set(meaning.explains) & set(cause.conditions))

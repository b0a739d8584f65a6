"""The text of an explanation: one screen, the most important line first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sheetanchor.runtime.plain_text import one_line
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.plugin.explain.explanation import AT_REST, NOT_KNOWN, SOUND, Explanation
from sheetanchor_operator.plugin.explain.facts import RunFact
from sheetanchor_operator.plugin.explain.under_way import Activity
from sheetanchor_operator.plugin.explain.why import Cause

CAUSES_SHOWN: Final = 4
BELOW_SHOWN: Final = 2
"""Lines of evidence, and of consequences, below a cause."""

ACTIVITIES_SHOWN: Final = 4
STEPS_SHOWN: Final = 5
RUNBOOKS_SHOWN: Final = 3
NOT_KNOWN_SHOWN: Final = 3
MESSAGE_LENGTH_MAX: Final = 300
DAY_US: Final = 86_400_000_000
RUNBOOKS: Final = "docs/runbooks/"
SPANS: Final = (("d", 86_400), ("h", 3_600), ("min", 60))


def text_of_explanation(one: Explanation) -> str:
    """Render for a person."""
    return "\n".join(_lines(one))


def span(duration_us: int) -> str:
    """Give a duration as `40 s`, `3 min`, `2 h` or `5 d`; a negative one, of clocks that differ, as 0."""
    seconds = max(0, duration_us) // 1_000_000
    return next((f"{seconds // length} {unit}" for unit, length in SPANS if seconds >= 2 * length), f"{seconds} s")


def clock(at_us: int, now_us: int) -> str:
    """Give a time of day in UTC, with the date if it is not within a day."""
    text = text_of(at_us // 1_000_000 * 1_000_000).removesuffix("Z")
    return text.partition("T")[2] if abs(now_us - at_us) < DAY_US else text.replace("T", " ")


def _lines(one: Explanation) -> Iterator[str]:
    yield _first(one)
    if one.causes:
        yield "notes" if one.verdict == SOUND else "why"
        for at, cause in enumerate(one.causes[:CAUSES_SHOWN], 1):
            yield from _of_cause(one, at, cause)
        yield from _more(len(one.causes) - CAUSES_SHOWN)
    yield from _of_work(one)
    if one.steps or one.runbooks:
        yield "you can"
        yield from (f"  {step.do}" for step in one.steps[:STEPS_SHOWN])
        yield from _more(len(one.steps) - STEPS_SHOWN)
        if one.runbooks:
            yield f"  read {', '.join(f'{RUNBOOKS}{name}.md' for name in one.runbooks[:RUNBOOKS_SHOWN])}"
    if one.not_known:
        yield "not known"
        yield from (f"  {missing.what}: {_short(missing.why)}" for missing in one.not_known[:NOT_KNOWN_SHOWN])
        yield from _more(len(one.not_known) - NOT_KNOWN_SHOWN)
    if one.events:
        yield "last Events"
        for event in reversed(one.events):
            yield f"  {clock(event.at_us, one.facts.now_us)}  {event.reason}: {_short(event.message)}"


def _more(count: int) -> Iterator[str]:
    if count > 0:
        yield f"  and {count} more: -o json has all"


def _short(text: str) -> str:
    return one_line(text, MESSAGE_LENGTH_MAX)


def _first(one: Explanation) -> str:
    facts = one.facts
    name = facts.name if facts.whole else f"{facts.name} {', '.join(facts.symbols)}"
    where = f"{name} (namespace {facts.namespace}), {clock(facts.now_us, facts.now_us)} UTC"
    since = ""
    if one.since_us and one.verdict != SOUND:
        since = f" since {clock(one.since_us, facts.now_us)} ({span(facts.now_us - one.since_us)})"
    return f"{one.verdict.upper()}{since}: {where}{_beside(one)}"


def _beside(one: Explanation) -> str:
    facts = one.facts
    if one.verdict == AT_REST:
        return f"; phase {facts.phase}"
    if one.verdict == NOT_KNOWN:
        return f"; phase {facts.phase or 'not known'}, which may not be true any more"
    if one.verdict == SOUND:
        own = any(prediction.symbol in facts.symbols for prediction in facts.predictions)
        source = "the pods' own answers" if own else "the operator's report of the last minute"
        # Of one symbol nothing is said about conditions: another symbol's are none of its causes.
        whole = "every condition holds, " if facts.whole and not one.causes else ""
        return f"; {whole}predictions are sound by {source}"
    sound = {True: "predictions are sound, ", False: "", None: "whether predictions are sound is not known, "}
    return f"; phase {facts.phase or 'not known'}, {sound[one.predictions_sound]}{facts.ready or '0/0'} pods are ready"


def _of_cause(one: Explanation, number: int, cause: Cause) -> Iterator[str]:
    now_us = one.facts.now_us
    since = f" since {clock(cause.since_us, now_us)} ({span(now_us - cause.since_us)})" if cause.since_us else ""
    message = f": {_short(cause.message)}" if cause.message else ""
    yield f"  {number}. {cause.about}: {cause.reason}{since}{message}"
    yield from _below("because", cause.evidence)
    yield from _below("→", cause.consequences)


def _below(sign: str, lines: Sequence[str]) -> Iterator[str]:
    yield from (f"     {sign} {_short(line)}" for line in lines[:BELOW_SHOWN])
    if len(lines) > BELOW_SHOWN:
        yield f"     {sign} and {len(lines) - BELOW_SHOWN} more"


def _of_work(one: Explanation) -> Iterator[str]:
    if one.verdict == SOUND and not one.activities:
        return
    yield "being done"
    yield from (f"  {_of_activity(one, activity)}" for activity in one.activities[:ACTIVITIES_SHOWN])
    yield from _more(len(one.activities) - ACTIVITIES_SHOWN)
    if not one.activities:
        rest = (
            f"the pipeline is at rest ({one.facts.phase})" if one.verdict == AT_REST else "no re-anchor runs or waits"
        )
        yield f"  nothing: {rest}"
    yield from (f"  last: {_of_receipt(one, receipt)}" for receipt in one.receipts)


def _of_activity(one: Explanation, activity: Activity) -> str:
    now_us = one.facts.now_us
    about = f"{activity.about}: " if activity.about else ""
    begun = f" for {span(now_us - activity.since_us)}" if activity.since_us else ""
    if activity.state in ("none", "blocked"):
        return f"{about}nothing: {_short(activity.message)}"
    if activity.state == "rolling out":
        return f"{about}{_short(activity.message)}"
    state = "runs" if activity.state == "running" else "waits"
    again = (
        f"; next at {clock(activity.next_us, now_us)} (in {span(activity.next_us - now_us)})"
        if activity.next_us
        else ""
    )
    name = f"{activity.reanchor} {state}{begun}: " if activity.reanchor else f"{state}: "
    return f"{about}{name}{_short(activity.message)}{again}"


def _of_receipt(one: Explanation, run: RunFact) -> str:
    ended = f" {span(one.facts.now_us - run.finished_us)} ago" if run.finished_us else ""
    message = f": {_short(run.message)}" if run.message else ""
    return f"{run.name} {run.phase}{f' ({run.result})' if run.result else ''}{ended}{message}"

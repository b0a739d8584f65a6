"""Whether a writer may restate its memory after Redis has lost writes, or a rebuild is needed. Pure.

A restated state passes for one that is known to be what the exchange says. So a memory is restated only where nothing
has happened to it since it was that for certain; whatever is not known counts against it. What another process may have
changed meanwhile is judged once more in Redis, in the step that writes (`hot_state.lua`, `restate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MARKS_WAIT_US: Final = 2_000_000
"""Lines append again what was lost within a second of their new connection; one that has not by then has nothing to."""

GATHER_MAX_US: Final = 4_000_000
"""A rebuild from the exchange takes about as long: there is nothing to be gained by waiting longer than this."""

UNVALIDATED_MAX: Final = 3
"""Restatements in a row without a comparison. Each is right if the one before was, so a fault in the first
would be carried on for ever."""

FAILOVER_DOUBT: Final = "failover:"
"""How the token of a doubt begins that says only that Redis has gone back in time."""


class RestateStep(StrEnum):
    """What a writer does next about a failover."""

    WAIT = "wait"  # something is still expected: frames that lines append again, or an entry that was not read yet
    RESTATE = "restate"
    LOAD = "load"  # what is stored is newer than the memory
    REBUILD = "rebuild"  # from the exchange


@dataclass(frozen=True, slots=True)
class RestateFacts:
    """What a writer knows of its memory and of what is stored.

    Attributes:
        heard_anchored: Whether the state was anchored when it was last heard of before the failover.
        heard_receipt: Its receipt then.
        held_epoch: Epoch of the state that the memory was built on.
        held_receipt: Receipt of that state.
        root: Receipt of the last rebuild from the exchange in it, "" if there was none.
        stored_epoch: Epoch that is stored since the failover.
        stored_receipt: Receipt that is stored since the failover.
        replication_id: Replication history that the server is in, "" where it does not say.
        loaded: Whether the memory was loaded after the state was last heard of.
        faults: Missing ranges that were passed, frames dropped and entries skipped since the memory was loaded, also
            those that no gap rule counts.
        doubt: A doubt about this root that this process has found and that no rebuild has answered, "" if none.
        missing: A missing range that still waits for another line, "" if none.
        caught_up: Whether everything has been read that the lines hold.
        lines_due: Live lines that have not marked the end of what they append again.
        waited_us: Time since this process first saw the replication history.
        unsound: Why the memory is not sound, "" if it is.
        unvalidated: Restatements since the exchange was last asked.
        restated_here: Whether this process has restated in this replication history already.
    """

    heard_anchored: bool
    heard_receipt: str
    held_epoch: int
    held_receipt: str
    root: str
    stored_epoch: int
    stored_receipt: str
    replication_id: str
    loaded: bool = False
    faults: int = 0
    doubt: str = ""
    missing: str = ""
    caught_up: bool = True
    lines_due: tuple[str, ...] = ()
    waited_us: int = 0
    unsound: str = ""
    unvalidated: int = 0
    restated_here: bool = False


@dataclass(frozen=True, slots=True)
class RestateDecision:
    """What to do next, and why it is not to restate."""

    step: RestateStep
    reason: str = ""


def may_restate(facts: RestateFacts) -> RestateDecision:
    """Decide whether a memory may become the hot state."""
    if is_newer(facts.stored_epoch, facts.stored_receipt, facts.held_epoch, facts.held_receipt):
        return RestateDecision(RestateStep.LOAD, "what is stored is newer than what this processor holds")
    if reason := _never(facts):
        return RestateDecision(RestateStep.REBUILD, reason)
    if reason := _not_yet(facts):
        step = RestateStep.WAIT if facts.waited_us < GATHER_MAX_US else RestateStep.REBUILD
        return RestateDecision(step, reason)
    return RestateDecision(RestateStep.RESTATE)


def is_newer(stored_epoch: int, stored_receipt: str, held_epoch: int, held_receipt: str) -> bool:
    """Say whether a stored state was made after the one that a memory was built on, or in its place."""
    return stored_epoch > held_epoch or (stored_epoch == held_epoch and stored_receipt != held_receipt)


def rebuild_due_us(doubt: str, suspect_at_us: int) -> int:
    """Give the moment from which a suspect state waits for a rebuild: its writer may restate one after a failover.

    Args:
        doubt: Token of the doubt that it stands under.
        suspect_at_us: When it became suspect; 0 if it is not.
    """
    is_tried = bool(suspect_at_us) and doubt.startswith(FAILOVER_DOUBT)
    return suspect_at_us + GATHER_MAX_US if is_tried else suspect_at_us


def _never(facts: RestateFacts) -> str:
    """Say what no waiting can cure, "" if nothing."""
    if not facts.replication_id:
        return "the server does not report its replication history"
    if facts.restated_here:
        return "the state was restated in this replication history already"
    if not facts.root or not facts.held_receipt:
        return "no rebuild from the exchange is known"
    if not facts.heard_anchored or facts.heard_receipt != facts.held_receipt:
        return "the state in memory was not anchored when it was last read"
    if facts.loaded:
        return "the memory was loaded since then"
    if facts.faults:
        return f"{facts.faults} missing ranges, dropped frames or skipped entries since the memory was loaded"
    if facts.doubt:
        return f"it was in doubt: {facts.doubt}"
    if facts.unvalidated >= UNVALIDATED_MAX:
        return f"restated {facts.unvalidated} times without a validation"
    return ""


def _not_yet(facts: RestateFacts) -> str:
    """Say what is still expected, "" if nothing."""
    if not facts.caught_up:
        return "entries of the lines are still unread"
    if facts.lines_due and facts.waited_us < MARKS_WAIT_US:
        return f"lines may still append frames again: {', '.join(facts.lines_due)}"
    if facts.missing:
        return f"a missing range may still be filled: {facts.missing}"
    return facts.unsound

"""When a processor may restate its memory after Redis has lost writes: a row for each fact that forbids it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.policy.restatement import (
    GATHER_MAX_US,
    MARKS_WAIT_US,
    UNVALIDATED_MAX,
    RestateDecision,
    RestateFacts,
    RestateStep,
    may_restate,
)

WHOLE = RestateFacts(
    heard_anchored=True,
    heard_receipt="r5",
    held_epoch=5,
    held_receipt="r5",
    root="r3",
    stored_epoch=5,
    stored_receipt="r5",
    replication_id="a1",
)

NEVER = {
    "the server hides its history": {"replication_id": ""},
    "restated once already": {"restated_here": True},
    "never rebuilt": {"root": ""},
    "nothing held": {"held_receipt": "", "heard_receipt": "", "stored_receipt": ""},
    "suspect before": {"heard_anchored": False},
    "heard of another state": {"heard_receipt": "r6"},
    "loaded since": {"loaded": True},
    "one hole passed": {"faults": 1},
    "a doubt of its own": {"doubt": "book_crossed"},
    "never validated": {"unvalidated": UNVALIDATED_MAX},
}

NOT_YET = {
    "unread entries": {"caught_up": False},
    "a line has not marked": {"lines_due": ("b",)},
    "a hole waits": {"missing": "depth"},
    "not sound": {"unsound": "late: depth has fallen behind"},
}

NEWER = {"a later epoch": {"stored_epoch": 6}, "the same number, another rebuild": {"stored_receipt": "r5'"}}


def test_a_whole_memory_is_restated() -> None:
    """Anchored before, no gap since, caught up: also over a state that went back to an earlier epoch or is empty."""
    for stored in ((5, "r5"), (4, "r4"), (0, "")):
        facts = replace(WHOLE, stored_epoch=stored[0], stored_receipt=stored[1])

        assert RestateDecision(RestateStep.RESTATE) == may_restate(facts)


@pytest.mark.parametrize("what", NEVER)
def test_what_speaks_against_it_for_good(what: str) -> None:
    """A rebuild is requested at once, and the reason shows why."""
    decision = may_restate(replace(WHOLE, **NEVER[what]))

    assert (RestateStep.REBUILD, True) == (decision.step, bool(decision.reason))


@pytest.mark.parametrize("what", NOT_YET)
def test_what_is_waited_for(what: str) -> None:
    """The processor waits for it, up to a limit; then it requests a rebuild from the exchange."""
    facts = replace(WHOLE, **NOT_YET[what])

    found = [may_restate(replace(facts, waited_us=us)).step for us in (0, MARKS_WAIT_US - 1, GATHER_MAX_US)]

    last = RestateStep.RESTATE if "lines_due" in NOT_YET[what] else RestateStep.REBUILD
    assert [RestateStep.WAIT, RestateStep.WAIT, last] == found


@pytest.mark.parametrize("what", NEWER)
def test_what_is_newer_is_loaded(what: str) -> None:
    """A memory never takes the place of a state that was made after it."""
    assert RestateStep.LOAD == may_restate(replace(WHOLE, **NEWER[what])).step


def test_lines_are_waited_for_two_seconds() -> None:
    """A line that has nothing to append again marks nothing."""
    due = replace(WHOLE, lines_due=("a",))

    assert RestateStep.WAIT == may_restate(replace(due, waited_us=MARKS_WAIT_US - 1)).step
    assert RestateStep.RESTATE == may_restate(replace(due, waited_us=MARKS_WAIT_US)).step


CHANGES = st.lists(st.sampled_from([*NEVER.values(), *NOT_YET.values(), *NEWER.values()]), min_size=1)


@given(CHANGES, st.integers(0, MARKS_WAIT_US - 1))
def test_nothing_makes_up_for_another_fact(changes: list[dict[str, object]], waited_us: int) -> None:
    """With any combination of facts that forbid it, nothing is restated."""
    merged: dict[str, object] = {}
    for change in changes:
        merged.update(change)

    assert RestateStep.RESTATE is not may_restate(replace(WHOLE, waited_us=waited_us, **merged)).step


def test_every_fact_has_a_row() -> None:
    """A fact that is added without a row here is one that nothing goes by."""
    named = {name for rows in (NEVER, NOT_YET, NEWER) for row in rows.values() for name in row}

    assert {field.name for field in fields(RestateFacts)} - named == {"held_epoch", "waited_us"}

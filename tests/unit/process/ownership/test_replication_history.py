"""How a processor decides whether Redis has lost acknowledged writes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sheetanchor.policy.restatement import MARKS_WAIT_US
from sheetanchor.process.ownership.replication_history import (
    QUEUE_US,
    STANDBY_WAIT_US,
    HeldState,
    LastHeard,
    ReplicationHistory,
)
from sheetanchor.store.hot_records import Anchor

STORED = Anchor(
    epoch=5, term=3, writer="a", heartbeat_us=1_000, receipt="r5", root="r3", state="anchored", dataset="mine"
)

CHANGES = {
    "nothing": ({}, False),
    "a later heartbeat": ({"heartbeat_us": 1_100}, False),
    "a later term": ({"term": 4, "writer": "b"}, False),
    "a later rebuild": ({"epoch": 6, "receipt": "r6"}, False),
    "a doubt": ({"state": "suspect"}, False),
    "an earlier heartbeat": ({"heartbeat_us": 999}, True),
    "an earlier term": ({"term": 2}, True),
    "an earlier epoch": ({"epoch": 4, "receipt": "r4"}, True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_lost(what: str) -> None:
    """Only if another history holds less than was last observed; within one history a clock may go back."""
    change, is_lost = CHANGES[what]
    heard = LastHeard.of(STORED, "one")
    stored = replace(STORED, **change)

    assert (is_lost, False, is_lost) == (
        heard.is_lost(stored, "two"),
        heard.is_lost(stored, "one"),
        replace(heard, replication_id="").is_lost(stored, ""),
    )


def test_a_doubt_that_was_heard_and_is_gone_is_lost() -> None:
    """The state is anchored again by the receipt that had been suspect, so the write of `suspect` was lost."""
    heard = LastHeard.of(replace(STORED, state="suspect"), "one")

    assert heard.is_lost(STORED, "two")
    assert not heard.is_lost(replace(STORED, epoch=6, receipt="r6"), "two")


def test_an_anchor_of_an_earlier_version_is_its_own_root() -> None:
    """It was made by a rebuild: nothing else made one then."""
    assert HeldState(5, "r5", "r5", "") == HeldState.of(Anchor(epoch=5, receipt="r5", state="anchored"))


def test_what_was_heard_before_a_failover_stays() -> None:
    """Neither what the rolled-back server says nor the writes during recovery take its place."""
    history = ReplicationHistory()
    history.load(STORED)
    history.enter("one", 0, changed=False)
    history.hear_reply(3, "anchored", 2_000)
    history.begin(replace(STORED, epoch=4, receipt="r4"), "two", 10)
    history.hear_reply(3, "suspect", 3_000)
    history.hear(STORED, "two", kept=True)

    failover = history.failover
    assert failover is not None
    assert failover.heard is not None
    assert (True, 2_000, 3_000) == (failover.heard.anchored, failover.heard.heartbeat_us, history.acked_us)
    assert not history.loaded


def test_a_second_failover_names_the_doubt_of_the_first() -> None:
    """Only if this process wrote it; what was observed before the first failover still counts."""
    history = ReplicationHistory()
    history.load(STORED)
    history.hear_reply(3, "anchored", 2_000)
    history.begin(STORED, "two", 10)
    unwritten = (history.begin(STORED, "three", 20), history.failover)[1]
    assert unwritten is not None
    unwritten.doubted = True
    history.begin(STORED, "four", 30)

    last = history.failover
    assert last is not None
    assert ("", "failover:three", "failover:four") == (unwritten.replaces, last.replaces, last.doubt)
    assert last.heard == unwritten.heard


def test_lines_are_waited_for_after_a_change_only() -> None:
    """Until each live one has marked, for two seconds at most; a mark of another history is none."""
    history = ReplicationHistory()
    history.enter("one", 0, changed=False)
    first = history.awaits_lines(("a", "b"), 1)
    history.enter("two", 100, changed=True)
    history.mark("a", "one", 150)
    due = [history.lines_due(("a", "b"))]
    history.mark("a", "two", 160)
    due.append(history.lines_due(("a", "b")))
    waits = [history.awaits_lines(("a", "b"), at_us) for at_us in (200, 100 + MARKS_WAIT_US)]
    history.mark("b", "two", 300)
    queued = [history.awaits_lines(("a", "b"), at_us) for at_us in (300, 299 + QUEUE_US, 300 + QUEUE_US)]

    assert (False, [("a", "b"), ("b",)], [True, False]) == (first, due, waits)
    assert ((), [True, True, False]) == (history.lines_due(("a", "b")), queued)


def test_a_standby_leaves_the_writer_a_second() -> None:
    """It waits from its own first observation of the new history; the previous writer does not have to wait."""
    history = ReplicationHistory()
    history.enter("two", 100, changed=True)
    waits = [history.leaves_writer_time(at_us) for at_us in (100, 99 + STANDBY_WAIT_US, 100 + STANDBY_WAIT_US)]
    history.rightful = True

    assert ([True, True, False], False) == (waits, history.leaves_writer_time(100))


def test_writing_on_under_what_is_stored_ends_restating() -> None:
    """The market is not of that state: only a rebuild or a load makes it one again."""
    history = ReplicationHistory()
    history.load(STORED)
    history.adopt(5, "r5")
    kept = history.held.root
    history.adopt(5, "r4")

    assert ("r3", "", "r4") == (kept, history.held.root, history.held.receipt)


def test_a_restatement_keeps_the_root_and_is_counted() -> None:
    """A process restates once in one replication history."""
    history = ReplicationHistory()
    history.load(STORED)
    history.begin(STORED, "two", 10)
    before = history.restated_here()
    history.restate(6, "memory", "mine", 3, 2_000)
    history.begin(replace(STORED, epoch=4), "two", 20)

    assert (False, True) == (before, history.restated_here())
    assert (HeldState(6, "memory", "r3", "mine"), 1) == (history.held, history.unvalidated)

"""The checker finds each thing that must never be seen, and nothing in a history without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import history as log
from faults.checker import CURED_WITHIN_US, INVARIANTS, History, check, losses
from faults.history import Answer, FaultEdge, Levels, Look, Played, Rebuilt, Record, Request
from faults.truth import DEPTH, shipped_truth
from sheetanchor.contract import slot_start_us

FIRST = 850_000_000
SECOND = 1_000_000
SLOTS = 30


class Rule:
    """An exchange whose prices follow from the update's number."""

    def best(self, update_id: int) -> set[tuple[float, float]]:
        return {(update_id - 1.0, update_id + 1.0)}

    def levels(self, update_id: int) -> tuple[Levels, Levels] | None:
        return ((update_id - 1.0, 2.0),), ((update_id + 1.0, 3.0),)


def update_at(slot: int) -> int:
    return 1_000 + 10 * (slot - FIRST)


def answer(slot: int, source: str = "a#1", **changes: object) -> Answer:
    made = Answer(
        at_us=slot_start_us(slot) + 300_000,
        source=source,
        slot=slot,
        committed=True,
        degraded=False,
        price=float(update_at(slot)),
        update_id=update_at(slot),
        feature_us=slot_start_us(slot) - 20_000,
        epoch=1,
        receipt="r1",
        value=0.001,
        made_by="a",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def look(slot: int, **changes: object) -> Look:
    update_id = update_at(slot)
    made = Look(
        at_us=slot_start_us(slot) + 10_000,
        server="0",
        term=1,
        writer="p",
        epoch=1,
        receipt="r1",
        root="r1",
        state="anchored",
        beat_us=slot_start_us(slot),
        update_id=update_id,
        bids=((update_id - 1.0, 2.0),),
        asks=((update_id + 1.0, 3.0),),
        best_id=update_id,
        best=(update_id - 1.0, update_id + 1.0),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def good() -> list[Record]:
    """Half a minute in which a failover moves the writer, a restatement and a rebuild follow, and nothing is wrong."""
    records: list[Record] = []
    for slot in range(FIRST, FIRST + SLOTS):
        at = slot - FIRST
        term, writer = (1, "p") if at < 10 else (2, "q")
        epoch, receipt, root = (1, "r1", "r1") if at < 12 else (2, "m2", "r1") if at < 20 else (3, "r3", "r3")
        records.append(
            look(slot, term=term, writer=writer, epoch=epoch, receipt=receipt, root=root, server=str(int(at >= 10)))
        )
        # A replica has the same a moment later.
        records.append(replace(records[-1], server="2", at_us=slot_start_us(slot) + 20_000))
        records.append(Played(slot_start_us(slot) - 1_000, update_at(slot)))
        records.append(Request(slot_start_us(slot) + 250_000, 3_000, "a"))
        doubted = at in (10, 11)
        for source in ("a#1", "b#1", "store"):
            records.append(answer(slot, source, epoch=epoch, receipt=receipt, degraded=doubted))
    # Between promotion and restatement: the suspect state, and an old state that a server shows again.
    records.append(look(FIRST + 11, term=2, writer="q", state="suspect", server="1", at_us=slot_start_us(FIRST + 12)))
    records.append(look(FIRST + 8, server="1", at_us=slot_start_us(FIRST + 10) + 5_000))
    records.append(Rebuilt(slot_start_us(FIRST), "r1", "swapped"))
    records.append(Rebuilt(slot_start_us(FIRST + 20), "r3", "swapped"))
    return records


def found(records: list[Record]) -> set[str]:
    return {violation.invariant for violation in check(History.of(records), Rule())}


def test_a_good_history_violates_nothing() -> None:
    """A failover, a restatement, a rebuild, a rolled-back server that is read once: all of that may be seen."""
    assert set() == found(good())


def changed(at: int, kind: type[Record], **changes: object) -> Callable[[list[Record]], list[Record]]:
    """Change the record of a kind in a slot; an answer is the one of replica a."""

    def change(records: list[Record]) -> list[Record]:
        begin_us = slot_start_us(FIRST + at)
        places = [
            place
            for place, one in enumerate(records)
            if isinstance(one, kind) and begin_us <= one.at_us < begin_us + 2 * SECOND
        ]
        records[places[0]] = replace(records[places[0]], **changes)  # type: ignore[arg-type]
        return records

    return change


def added(*more: Record) -> Callable[[list[Record]], list[Record]]:
    return lambda records: [*records, *more]


def without_store(at: int) -> Callable[[list[Record]], list[Record]]:
    def change(records: list[Record]) -> list[Record]:
        return [
            one for one in records if not (isinstance(one, Answer) and one.source == "store" and one.slot == FIRST + at)
        ]

    return change


def everywhere(at: int, **changes: object) -> Callable[[list[Record]], list[Record]]:
    """Change all answers of a slot alike."""

    def change(records: list[Record]) -> list[Record]:
        return [
            replace(one, **changes) if isinstance(one, Answer) and one.slot == FIRST + at else one  # type: ignore[arg-type]
            for one in records
        ]

    return change


def doubted_to_the_end(records: list[Record]) -> list[Record]:
    end_us = slot_start_us(FIRST + SLOTS) + CURED_WITHIN_US
    doubt = look(FIRST + SLOTS, term=2, writer="q", epoch=3, receipt="r3", root="r3", state="suspect")
    return [*records, doubt, Request(end_us + 3 * SECOND, 1_000, "a")]


LATER = slot_start_us(FIRST + 6) + 900_000
CONTROLS: dict[str, list[Callable[[list[Record]], list[Record]]]] = {
    "one_answer": [
        # The other replica has made another prediction, and says that it is kept.
        added(answer(FIRST + 5, "c#1", made_by="c", value=0.002)),
        added(answer(FIRST + 5, "c#1", receipt="r9")),
    ],
    "never_back": [
        added(answer(FIRST + 5, at_us=LATER, committed=False)),
    ],
    "committed_kept": [without_store(7)],
    "slots_rise": [
        added(answer(FIRST + 3, "store", at_us=slot_start_us(FIRST + SLOTS))),
    ],
    "terms_rise": [
        # The old master takes a write of the old term, after the new one has taken one of the new.
        added(look(FIRST + 14, epoch=2, receipt="m2", beat_us=slot_start_us(FIRST + 14) + 500_000)),
        # Two writers think that the term is theirs, and both are believed.
        added(*(look(FIRST + 15, term=2, writer="p", epoch=2, receipt="m2", server=one) for one in "12")),
    ],
    "epochs_chain": [
        # A lower epoch is written again: a state of before the failover has come back to stay.
        added(
            look(
                FIRST + 25, term=2, writer="q", beat_us=slot_start_us(FIRST + 25) + 1, epoch=2, receipt="m2", root="r1"
            )
        ),
        # The number of an epoch is used twice.
        added(
            look(
                FIRST + 26, term=2, writer="q", beat_us=slot_start_us(FIRST + 26) + 1, epoch=3, receipt="x3", root="r3"
            )
        ),
        changed(5, Look, epoch=0),
    ],
    "roots_known": [changed(15, Look, root="r0")],
    "states_true": [
        changed(5, Look, bids=((1.0, 2.0),)),
        changed(5, Look, asks=((update_at(FIRST + 5) + 1.0, 4.0),)),
        changed(5, Look, asks=()),
        changed(5, Look, best=(1.0, 2.0)),
    ],
    "predictions_true": [
        everywhere(5, price=1.0),
        everywhere(5, price=None),
        everywhere(5, update_id=None),
    ],
    "predictions_fresh": [
        # Its price was right four slots ago, and its stamp says that it is new.
        everywhere(9, update_id=update_at(FIRST + 5), price=float(update_at(FIRST + 5))),
        everywhere(9, feature_us=slot_start_us(FIRST + 5)),
    ],
    "doubts_answered": [
        # The write of `suspect` was lost with the old master, and the writer continues as if nothing had happened.
        added(
            look(FIRST + 22, term=2, writer="q", epoch=3, receipt="r3", root="r3", state="suspect", at_us=LATER),
        ),
        doubted_to_the_end,
    ],
}


def test_what_a_server_took_alone_was_never_kept() -> None:
    """A master that is cut off takes a standby's term, and loses it: the old term goes on."""
    alone = look(FIRST + 5, term=2, writer="x", server="0", beat_us=slot_start_us(FIRST + 5) + 1)

    assert set() == found([*good(), alone])


def test_every_invariant_has_a_control() -> None:
    """An invariant that nothing violates proves nothing."""
    assert set(INVARIANTS) == set(CONTROLS)
    assert all(test.__doc__ for test in INVARIANTS.values())


@pytest.mark.parametrize(
    ("invariant", "change"),
    [pytest.param(name, one, id=f"{name}-{at}") for name, many in CONTROLS.items() for at, one in enumerate(many)],
)
def test_a_history_that_violates_one_invariant_is_found_by_it_alone(
    invariant: str, change: Callable[[list[Record]], list[Record]]
) -> None:
    """Each control differs from the good history in one thing."""
    assert {invariant} == found(change(good()))


@given(st.permutations(range(8)), st.sets(st.integers(0, SLOTS - 1)), st.integers(0, 10))
def test_order_and_loss_of_observations_invent_no_violation(order: list[int], blind: set[int], repeat: int) -> None:
    """Fewer, repeated or reordered observations never add a violation."""
    kept = [
        one
        for one in good()
        if not (isinstance(one, Look | Played | Request) and (one.at_us // 2_000_000 - FIRST) in blind)
    ]
    by_part: list[list[Record]] = [[] for _ in order]
    for place, one in enumerate(kept):
        by_part[place % len(order)].append(one)
    shuffled = [one for part in order for one in by_part[part]]
    stored = [one for one in kept if isinstance(one, Answer) and one.source == "store"]
    rest = [one for one in shuffled if one not in stored]

    assert set() == found([*rest, *stored, *(one for one in rest[:repeat] if not isinstance(one, Answer))])


@given(st.integers(0, SLOTS - 1), st.sampled_from(("value", "price", "epoch")))
def test_one_other_answer_is_found_wherever_it_is(at: int, what: str) -> None:
    """A replica that answers differently once is found in every slot."""
    other = answer(FIRST + at, "c#1", **{what: 77})

    assert "one_answer" in found([*good(), other])


def test_what_a_reader_loses_is_counted_by_the_end_of_each_slot() -> None:
    """Late is missed; degraded is unsound, and so is missed; failed questions are counted by when they were asked."""
    records: list[Record] = []
    for at in range(12):
        slot = FIRST + at
        late = at in (3, 4)
        at_us = slot_start_us(slot + 1) + 1 if late else slot_start_us(slot) + 200_000
        records.append(answer(slot, at_us=at_us, degraded=at in (5, 6, 9)))
        error = "timed out" if at in (3, 5) else ""
        records.append(Request(slot_start_us(slot) + 100_000, 1_500_000 if error else 4_000, "a", error))
    records.append(answer(FIRST + 3, "store", at_us=slot_start_us(FIRST + 3)))

    lost = losses(History.of(records), slot_start_us(FIRST), slot_start_us(FIRST + 12))

    assert (12, 2, 4) == (lost.slots, lost.missed_in_a_row, lost.unsound)
    assert (2, 3) == (lost.missed, lost.degraded)
    assert (2, 4 * SECOND, 12, 4.0) == (lost.failed, lost.failed_us, lost.asked, lost.p99_ms)


def test_a_history_survives_its_file(tmp_path: Path) -> None:
    """Every kind of record is read back as it was."""
    records = [*good(), FaultEdge(7, "kill p", active=True), answer(FIRST, price=None, feature_us=None)]
    log.write(tmp_path / "history", records)

    assert records == log.read(tmp_path / "history")


def test_the_recording_says_what_the_book_was() -> None:
    """The truth is that of the shipped recording: at its start, at an update of best prices, in every later pass."""
    truth = shipped_truth()
    script = truth.script
    start = script.start
    best = next(step for step in script.steps if step.kind == "bestBidAsk")
    bids, asks = truth.levels(start.update_id) or ((), ())

    assert (DEPTH, DEPTH) == (len(bids), len(asks))
    assert bids[0][0] == pytest.approx(max(start.bids) * 1e-8)
    assert bids[0][0] < asks[0][0]
    assert truth.best(best.last_id)
    assert truth.best(best.last_id) == truth.best(best.last_id + 3 * script.id_shift)
    assert truth.levels(start.update_id + script.id_shift) == truth.levels(start.update_id + 2 * script.id_shift)
    assert truth.levels(start.update_id - 1) is None
    assert set() == truth.best(start.update_id - 1)

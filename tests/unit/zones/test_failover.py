"""Moves of a pipeline out of a zone: a world that obeys, one that does not, and any order of both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor_operator.names import FailoverKind, FailoverPhase, FailoverStep
from sheetanchor_operator.zones.failover import LIMITS_US, ROUNDS_MAX, Decision, begin, proceed, refusal_of
from sheetanchor_operator.zones.failover_record import (
    Action,
    Failed,
    FailoverRecord,
    HandOver,
    ProcessorFacts,
    Request,
    Situation,
    Take,
)

SYMBOLS = ("BTCUSDT", "ETHUSDT")
ZONES = ("a", "b", "c")
SECOND = 1_000_000


@dataclass
class World:
    """Three zones with a processor and a Redis node each; what is asked of it is done, or not."""

    writer: dict[str, str] = field(default_factory=lambda: dict.fromkeys(SYMBOLS, "p-a"))
    terms: dict[str, int] = field(default_factory=lambda: {"BTCUSDT": 4, "ETHUSDT": 7})
    master: str = "a"
    lost: set[str] = field(default_factory=set)
    evacuated: str = ""
    slot: int = 100
    sound: bool = True
    managed: bool = True
    now_us: int = 1_000 * SECOND
    written: int = 0
    """Largest term that was ever written into a record."""

    def situation(self) -> Situation:
        """What an operator sees of it."""
        seen = [zone for zone in ZONES if zone not in self.lost]
        writes = {pod: frozenset(s for s in SYMBOLS if self.writer[s] == pod) for pod in map("p-{}".format, ZONES)}
        processors = tuple(
            ProcessorFacts(f"p-{zone}", zone, f"r-{zone}", frozenset(SYMBOLS), writes[f"p-{zone}"]) for zone in seen
        )
        return Situation(
            now_us=self.now_us,
            symbols=SYMBOLS,
            zones=ZONES,
            lost=frozenset(self.lost),
            term=max(self.written, *self.terms.values()),
            reported_term=max(self.terms.values()),
            processors=processors,
            writers={symbol: pod for symbol, pod in self.writer.items() if pod[2:] not in self.lost},
            managed=self.managed,
            master=f"redis-{self.master}" if self.managed else "",
            master_zone=self.master if self.managed else "",
            leavers={zone: 1 for zone in seen if zone != self.evacuated},
            newest_slot=self.slot,
            sound_slot=self.slot if self.sound else 0,
        )

    def do(self, action: Action) -> Failed | None:
        """Do what is asked, as pods do it: a term that is not above the stored one is refused."""
        if isinstance(action, HandOver):
            if self.master in self.lost or action.pod != f"redis-{self.master}":
                return Failed(action, "it does not answer")
            others = [zone for zone in ZONES if zone not in self.lost | {self.master}]
            if not others:
                return Failed(action, "no other node was promoted")
            self.master = others[0]
            return None
        if action.pod[2:] in self.lost:
            return Failed(action, "it does not answer")
        for symbol in action.symbols:
            held = (self.terms[symbol], self.writer[symbol]) == (action.term, action.pod)
            if action.term <= self.terms[symbol] and not held:
                return Failed(action, f"term {action.term} is not above the stored {self.terms[symbol]}")
            self.terms[symbol], self.writer[symbol] = action.term, action.pod
        return None

    def meet(self, event: str) -> None:
        """Have something happen, and a second pass."""
        if event.startswith("lose") and len(self.lost) < 2:
            self.lost.add(event[-1])
        elif event == "heal":
            self.lost.clear()
            self.sound = True
        elif event == "drift":
            alive = [zone for zone in ZONES if zone not in self.lost]
            term = max(self.terms.values()) + 1
            self.writer, self.terms = dict.fromkeys(SYMBOLS, f"p-{alive[-1]}"), dict.fromkeys(SYMBOLS, term)
        elif event == "master back":
            self.master = "a"
        elif event == "unsound":
            self.sound = False
        self.now_us += (21 if event == "wait" else 1) * SECOND
        self.slot += 1

    def check(self, record: FailoverRecord, action: Action | None) -> None:
        """Fail on a request that must not be made."""
        if isinstance(action, Take):
            assert action.term == record.term
            assert action.pod[2:] not in self.lost | {record.from_zone}
            assert record.to_zone in ("", action.pod[2:])
            held = all(self.writer[symbol] == action.pod for symbol in action.symbols)
            assert held or action.term > max(self.terms[symbol] for symbol in action.symbols)
        if isinstance(action, HandOver):
            assert record.from_zone == self.master
            assert self.master not in self.lost

    def write(self, record: FailoverRecord | None) -> None:
        """Keep what a status keeps."""
        if record is not None:
            self.written = max(self.written, record.term)
            if record.step is FailoverStep.READERS and record.running:
                self.evacuated = record.from_zone


SWITCH = Request(FailoverKind.SWITCHOVER, "b/1", "b")
ANYWHERE = Request(FailoverKind.SWITCHOVER, "any/1", "")
EVACUATE = Request(FailoverKind.EVACUATION, "a", "a")


def run(world: World, record: FailoverRecord, turns: int = 40) -> FailoverRecord:
    """Let an operator go on until the move has ended."""
    failed: Failed | None = None
    for _ in range(turns):
        if not record.running:
            return record
        decision = proceed(record, world.situation(), failed)
        failed = world.do(decision.action) if decision.action is not None else None
        assert decision.record is not None
        record = decision.record
        world.write(record)
        world.slot += 1
        world.now_us += SECOND
    return record


def names(record: FailoverRecord) -> list[str]:
    """Name the steps that were begun."""
    return [str(one.name) for one in record.steps]


@pytest.mark.parametrize("request_", [SWITCH, ANYWHERE, EVACUATE])
def test_a_move_goes_through_its_steps(request_: Request) -> None:
    """Every symbol is written from another zone under one term above all, the master is elsewhere, and it is proven."""
    world = World()
    done = run(world, begin(request_, world.situation()))

    readers = ["Readers"] if request_ is EVACUATE else []
    assert (FailoverPhase.DONE, ["Intent", "Fence", "Redis", *readers, "Verify"]) == (done.phase, names(done))
    assert {"p-b"} == set(world.writer.values())
    assert {8} == set(world.terms.values())
    assert "a" != world.master
    assert ("a" if request_ is EVACUATE else "") == world.evacuated
    assert all(one.finished_us >= one.started_us and one.message for one in done.steps)


def test_nothing_is_asked_before_the_term_is_written() -> None:
    """An operator that dies at any point is followed by one that knows the term, and no other term is used for it."""
    world = World()
    record = begin(SWITCH, world.situation())
    decision = proceed(record, world.situation())
    assert decision.action is None
    assert decision.record is not None
    assert (8, "p-b", FailoverStep.FENCE) == (decision.record.term, decision.record.target, decision.record.step)
    asked = proceed(decision.record, world.situation())
    assert Decision(decision.record, Take("p-b", "r-b", 8, SYMBOLS)) == asked


def test_what_is_as_it_should_be_is_not_touched() -> None:
    """Only symbols that are written from the zone are taken; a master that is elsewhere stays; an external one too."""
    world = World(writer={"BTCUSDT": "p-a", "ETHUSDT": "p-c"}, master="c")
    done = run(world, begin(EVACUATE, world.situation()))
    assert ({"BTCUSDT": "p-c", "ETHUSDT": "p-c"}, "c") == (world.writer, world.master)
    assert {"BTCUSDT": 8, "ETHUSDT": 7} == world.terms
    assert FailoverPhase.DONE is done.phase

    external = World(managed=False)
    assert FailoverPhase.DONE is run(external, begin(SWITCH, external.situation())).phase


@pytest.mark.parametrize(
    ("request_", "changes", "expected"),
    [
        (Request(FailoverKind.EVACUATION, "x", "x"), {}, "zone 'x' is none in which pods of this pipeline can run"),
        (Request(FailoverKind.SWITCHOVER, "x", "x"), {}, "expected one of a, b, c"),
        (SWITCH, {"lost": frozenset("b"), "processors": ()}, "zone b is lost: name a zone that answers"),
        (Request(FailoverKind.SWITCHOVER, "a", "a"), {}, "every symbol is written from zone a already"),
        (EVACUATE, {"lost": frozenset("c")}, "zone c is lost: leaving zone a as well would take two zones away"),
        (EVACUATE, {"zones": ("a",)}, "fewer than two zones"),
        (EVACUATE, {"processors": World().situation().processors[:1]}, "no standby outside of zone a answers"),
        (SWITCH, {"writers": {}}, "no processor reports itself as the writer"),
        (SWITCH, {"at_rest": "spec.suspend is true"}, "spec.suspend is true: nothing runs that could be moved"),
    ],
)
def test_what_cannot_be_done_is_refused_with_one_message(
    request_: Request, changes: dict[str, object], expected: str
) -> None:
    """A zone that is unknown, lost, the last or the second one, or no standby: refused with a message."""
    now = replace(World().situation(), **changes)  # type: ignore[arg-type]
    assert expected in refusal_of(request_, now)
    record = begin(request_, now)
    assert (FailoverPhase.REFUSED, ()) == (record.phase, record.steps)
    assert Decision(record) == proceed(record, now)


def test_another_standby_is_asked_where_one_does_not_take() -> None:
    """Each time under a higher term; after three it is given up, and says why."""
    world = World()
    record = run(world, begin(ANYWHERE, world.situation()), 1)
    asked = []
    while record.running:
        action = proceed(record, world.situation()).action
        assert isinstance(action, Take)
        asked.append((action.pod, action.term))
        found = proceed(record, world.situation(), Failed(action, "it lags")).record
        assert found is not None
        record = found
        world.write(record)
    assert [("p-b", 8), ("p-c", 9), ("p-b", 10)] == asked
    assert (FailoverPhase.ABORTED, "aborted at step Fence: p-b does not take over: it lags") == (
        record.phase,
        record.message,
    )


def test_a_writer_that_goes_back_is_moved_again() -> None:
    """A standby may have taken over while writes were paused; but not for ever."""
    world = World()
    record = begin(SWITCH, world.situation())
    rounds = 0
    while record.running and rounds < 10:
        while record.running and record.step is not FailoverStep.VERIFY:
            record = run(world, record, 1)
        if record.running:
            rounds += 1
            world.writer, world.terms = dict.fromkeys(SYMBOLS, "p-a"), dict.fromkeys(SYMBOLS, world.written + 1)
            record = run(world, record, 1)
    assert ROUNDS_MAX == rounds
    assert FailoverPhase.ABORTED is record.phase


def test_a_writer_that_does_not_answer_once_has_not_gone_back() -> None:
    """It is waited for; the move is done only when it answers, and writes from where it should."""
    world = World()
    record = begin(SWITCH, world.situation())
    while record.step is not FailoverStep.VERIFY:
        record = run(world, record, 1)
    now = replace(world.situation(), sound_slot=record.after_slot + 2)
    silent = replace(now, processors=tuple(one for one in now.processors if one.pod != "p-b"))
    assert Decision(record) == proceed(record, silent)
    done = proceed(record, now).record
    assert done is not None
    assert FailoverPhase.DONE is done.phase


def test_a_master_in_a_zone_that_is_lost_is_left_to_the_sentinels() -> None:
    """It is not asked for anything; the step goes on when another one is the master."""
    world = World()
    record = begin(SWITCH, world.situation())
    while record.step is not FailoverStep.REDIS:
        record = run(world, record, 1)
    world.lost.add("a")
    assert Decision(record) == proceed(record, world.situation())
    world.master = "c"
    assert FailoverPhase.DONE is run(world, record).phase


def test_a_master_that_does_not_hand_over_is_asked_again_after_a_while() -> None:
    """Every five seconds, since Sentinels do one failover after another; six times, and then it is given up."""
    world = World()
    record = begin(SWITCH, world.situation())
    while record.step is not FailoverStep.REDIS:
        record = run(world, record, 1)
    begun_us, asked = record.steps[-1].started_us, []
    failed: Failed | None = None
    while record.running:
        decision = proceed(record, world.situation(), failed)
        failed = None
        if decision.action is not None:
            asked.append((world.now_us - begun_us) // SECOND)
            failed = Failed(decision.action, "no other node was promoted")
        assert decision.record is not None
        record = decision.record
        world.now_us += SECOND
    assert [1, 5, 10, 15, 20, 25] == asked
    assert "redis-a does not hand over: no other node was promoted" in record.message


@pytest.mark.parametrize("step", [FailoverStep.FENCE, FailoverStep.REDIS, FailoverStep.READERS, FailoverStep.VERIFY])
def test_a_step_that_does_not_end_is_given_up(step: FailoverStep) -> None:
    """After its time, with what it has waited for."""
    world = World()
    record = begin(EVACUATE, world.situation())
    while record.step is not step:
        record = run(world, record, 1)
    now = replace(world.situation(), sound_slot=0)
    at_us = record.steps[-1].started_us + LIMITS_US[step]
    on_time = proceed(record, replace(now, now_us=at_us)).record
    late = proceed(record, replace(now, now_us=at_us + 1)).record
    assert on_time is not None
    assert on_time.running
    assert late is not None
    assert FailoverPhase.ABORTED is late.phase
    assert f"aborted at step {step}: not done within {LIMITS_US[step] // SECOND} s: " in late.message


EVENTS = st.sampled_from(
    [
        "go on",
        "go on",
        "go on",
        "crash",
        "lose b",
        "lose c",
        "lose a",
        "heal",
        "drift",
        "master back",
        "unsound",
        "wait",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([SWITCH, ANYWHERE, EVACUATE]), st.lists(EVENTS, max_size=60))
def test_whatever_happens_terms_rise_and_the_move_ends(request_: Request, events: list[str]) -> None:
    """Crashes between any two steps, zones that go and come, writers and masters that move by themselves.

    A term is asked for only once it is written, and never one below any that was seen or written before; nothing is
    asked of a zone that is lost; the zone that is left is not the one that is gone to; in the end it is done or given
    up, and done only if it is so.
    """
    world = World()
    record = begin(request_, world.situation())
    world.write(record)
    failed: Failed | None = None
    for event in [*events, "heal", *["go on"] * 60]:
        world.meet(event)
        decision = proceed(record, world.situation(), failed)
        assert decision.record is not None
        assert decision.action is None or decision.record == record, "what is asked for is written already"
        world.check(record, decision.action)
        # An operator that crashes may have sent its request before.
        heard = decision.action is not None and (event != "crash" or len(events) % 2 == 1)
        outcome = world.do(decision.action) if heard and decision.action is not None else None
        failed = outcome if event != "crash" else None
        assert decision.record.term >= record.term
        record = decision.record
        world.write(record)
        if record.phase is FailoverPhase.DONE:
            assert all(pod[2:] != record.from_zone for pod in world.writer.values())
            assert world.master != record.from_zone
            return
    assert not record.running, record

"""Which invariants a history violates, and what a reader lost. Pure.

A history is what was seen from outside: every answer of every replica, every server's hot state, the exchange's own
book. Nothing here asks the pipeline whether it is well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isclose

from faults.history import Answer, FaultEdge, Levels, Look, Played, Rebuilt, Record, Request
from faults.truth import Truth
from sheetanchor.contract import SLOT_MS, STALE_AFTER_US, slot_of, slot_start_us

SLOT_US = SLOT_MS * 1_000

READ_SLACK_US = 1_000_000
"""A slot is read up to half a second after it begins; the rest is for a busy machine."""

CURED_WITHIN_US = 60_000_000
"""A state that is suspect for longer at the end of a history is a violation: the slowest rebuild ends within this."""

SAME_PRICE = 1e-9


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never be seen.

    Attributes:
        invariant: Its name in `INVARIANTS`.
        at_us: When it was seen.
        text: What was seen.
    """

    invariant: str
    at_us: int
    text: str


@dataclass(slots=True)
class History:
    """A history by kinds, each in the order of time."""

    requests: list[Request] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    played: list[Played] = field(default_factory=list)
    rebuilt: list[Rebuilt] = field(default_factory=list)
    edges: list[FaultEdge] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[Record]) -> History:
        """Sort records by kind and time; what was read from the store keeps its order."""
        history = cls()
        places: dict[type[Record], list[Record]] = {
            Request: history.requests,  # type: ignore[dict-item]
            Answer: history.answers,  # type: ignore[dict-item]
            Look: history.looks,  # type: ignore[dict-item]
            Played: history.played,  # type: ignore[dict-item]
            Rebuilt: history.rebuilt,  # type: ignore[dict-item]
            FaultEdge: history.edges,  # type: ignore[dict-item]
        }
        for record in sorted(records, key=lambda record: record.at_us):
            places[type(record)].append(record)
        return history

    @property
    def end_us(self) -> int:
        """When the last thing was seen."""
        kinds: Sequence[Sequence[Record]] = (self.requests, self.answers, self.looks, self.played, self.edges)
        return max((records[-1].at_us for records in kinds if records), default=0)

    @property
    def written(self) -> list[Look]:
        """Observations in the order of the writes that they show: a server that was rolled back shows an old one again.

        A swap writes no heartbeat, so the epoch orders those of one.
        """
        held = [look for look in self.looks if look.beat_us]
        return sorted(held, key=lambda look: (look.beat_us, look.epoch, look.at_us))


STORE = "store"


def check(history: History, truth: Truth) -> list[Violation]:
    """Name everything that a history shows and that must never be seen."""
    return [violation for test in INVARIANTS.values() for violation in test(history, truth)]


def one_answer(history: History, _: Truth) -> Iterator[Violation]:
    """For each slot, at most one prediction is shown as kept, over all replicas."""
    kept: dict[int, Answer] = {}
    for answer in history.answers:
        if answer.committed and kept.setdefault(answer.slot, answer).content != answer.content:
            first = kept[answer.slot]
            yield Violation("one_answer", answer.at_us, f"slot {answer.slot}: {_short(first)}, then {_short(answer)}")


def never_back(history: History, _: Truth) -> Iterator[Violation]:
    """A prediction that a replica has shown as kept is its answer to every later request for that slot."""
    kept: dict[tuple[str, int], Answer] = {}
    for answer in history.answers:
        place = answer.source, answer.slot
        before = kept.get(place)
        if before is not None and not (answer.committed and answer.content == before.content):
            yield Violation("never_back", answer.at_us, f"slot {answer.slot}: {_short(before)}, then {_short(answer)}")
        elif answer.committed:
            kept[place] = answer


def committed_kept(history: History, _: Truth) -> Iterator[Violation]:
    """Predictions that were shown as kept are in the store at the end."""
    stored = {answer.slot for answer in history.answers if answer.source == STORE}
    if not stored:
        return
    lost = {a.slot: a for a in history.answers if a.committed and a.slot not in stored and a.slot >= min(stored)}
    for slot, answer in sorted(lost.items()):
        yield Violation("committed_kept", answer.at_us, f"slot {slot}: {_short(answer)} is not in the store")


def slots_rise(history: History, _: Truth) -> Iterator[Violation]:
    """Slots rise strictly in the store."""
    newest: dict[str, int] = {}
    for answer in history.answers:
        last = newest.get(answer.source, -1)
        if answer.source == STORE and answer.slot <= last:
            yield Violation("slots_rise", answer.at_us, f"the store has slot {answer.slot} after {last}")
        newest[answer.source] = max(last, answer.slot)


def terms_rise(history: History, _: Truth) -> Iterator[Violation]:
    """No server accepts a write of a term after one of a later term was kept, and a term that is kept has one writer.

    Kept is what a second server has: what a master that was cut off has taken alone is lost with its next resync.
    """
    servers: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    for look in history.written:
        servers[look.term, look.writer].add(look.server)
    alone = len({look.server for look in history.written}) == 1
    kept = {who for who, seen in servers.items() if alone or len(seen) > 1}
    newest: Look | None = None
    writers: dict[int, str] = {}
    for look in history.written:
        if newest is not None and look.term < newest.term and look.beat_us > newest.beat_us:
            late_ms = (look.beat_us - newest.beat_us) / 1000
            text = f"{look.server}: {look.writer} of term {look.term} wrote {late_ms:.0f} ms after term {newest.term}"
            yield Violation("terms_rise", look.at_us, text)
        if (look.term, look.writer) not in kept:
            continue
        if newest is None or look.term > newest.term:
            newest = look
        if writers.setdefault(look.term, look.writer) != look.writer:
            text = f"term {look.term} was {writers[look.term]}'s and is {look.writer}'s"
            yield Violation("terms_rise", look.at_us, text)
            writers[look.term] = look.writer


def epochs_chain(history: History, _: Truth) -> Iterator[Violation]:
    """Epochs never fall, each has one receipt, and each receipt stands for one epoch while it is anchored."""
    before: Look | None = None
    receipts: dict[int, str] = {}
    epochs: dict[str, int] = {}
    for look in history.written:
        if before is not None and look.epoch < before.epoch and look.beat_us > before.beat_us:
            text = f"{look.server}: epoch {look.epoch} of {look.receipt!r} after {before.epoch} of {before.receipt!r}"
            yield Violation("epochs_chain", look.at_us, text)
        before = look
        if look.state != "anchored":
            continue
        if receipts.setdefault(look.epoch, look.receipt) != look.receipt:
            text = f"epoch {look.epoch} was of {receipts[look.epoch]!r} and is of {look.receipt!r}"
            yield Violation("epochs_chain", look.at_us, text)
            receipts[look.epoch] = look.receipt
        if epochs.setdefault(look.receipt, look.epoch) != look.epoch:
            text = f"{look.receipt!r} was epoch {epochs[look.receipt]} and is {look.epoch}"
            yield Violation("epochs_chain", look.at_us, text)
            epochs[look.receipt] = look.epoch


def roots_known(history: History, _: Truth) -> Iterator[Violation]:
    """Every anchored state descends from a rebuild from the exchange that was seen before it."""
    rebuilt = {one.receipt for one in history.rebuilt if one.result == "swapped"}
    known: set[str] = set()
    for look in history.written:
        if look.state != "anchored":
            continue
        if look.receipt == look.root:
            known.add(look.root)
        elif look.root not in known | rebuilt and known:
            text = f"{look.receipt!r} descends from {look.root!r}, which was not observed"
            yield Violation("roots_known", look.at_us, text)
            known.add(look.root)


def states_true(history: History, truth: Truth) -> Iterator[Violation]:
    """No state that is stored as anchored differs from the exchange's at its update."""
    done: set[tuple[int, int, str]] = set()
    for look in history.looks:
        place = look.update_id, look.best_id, look.receipt
        if look.state != "anchored" or not look.update_id or place in done:
            continue
        done.add(place)
        expected = truth.levels(look.update_id)
        if expected is None or not _same_sides(expected, (look.bids, look.asks)):
            yield Violation("states_true", look.at_us, f"{look.server}: levels at update {look.update_id}")
        if look.best not in truth.best(max(look.best_id, look.update_id)):
            text = f"{look.server}: best prices {look.best} at update {max(look.best_id, look.update_id)}"
            yield Violation("states_true", look.at_us, text)


def predictions_true(history: History, truth: Truth) -> Iterator[Violation]:
    """No sound prediction is of a price that differs from the exchange's at its update."""
    done: set[tuple[int, float | None, int | None]] = set()
    for answer in history.answers:
        place = answer.slot, answer.price, answer.update_id
        if answer.degraded or place in done:
            continue
        done.add(place)
        mids = [(bid + ask) / 2 for bid, ask in truth.best(answer.update_id or 0)]
        if not any(answer.price is not None and isclose(mid, answer.price, rel_tol=SAME_PRICE) for mid in mids):
            text = f"slot {answer.slot}: price {answer.price} at update {answer.update_id}, the exchange's is {mids}"
            yield Violation("predictions_true", answer.at_us, text)


def predictions_fresh(history: History, _: Truth) -> Iterator[Violation]:
    """No sound prediction is of a state that was replaced at the exchange longer ago than a state may be old."""
    done: set[tuple[int, int | None]] = set()
    at = 0
    for answer in sorted(history.answers, key=lambda answer: answer.update_id or 0):
        place = answer.slot, answer.update_id
        if answer.degraded or place in done:
            continue
        done.add(place)
        begun_us = slot_start_us(answer.slot)
        if answer.update_id is not None:
            while at < len(history.played) and history.played[at].update_id <= answer.update_id:
                at += 1
            if at < len(history.played) and begun_us - history.played[at].at_us > STALE_AFTER_US + READ_SLACK_US:
                old_s = (begun_us - history.played[at].at_us) / 1e6
                text = f"slot {answer.slot}: update {answer.update_id} was replaced {old_s:.1f} s before"
                yield Violation("predictions_fresh", answer.at_us, text)
        if answer.feature_us is not None and begun_us - answer.feature_us > STALE_AFTER_US + READ_SLACK_US:
            old_s = (begun_us - answer.feature_us) / 1e6
            text = f"slot {answer.slot}: its last market event is {old_s:.1f} s old"
            yield Violation("predictions_fresh", answer.at_us, text)


def doubts_answered(history: History, _: Truth) -> Iterator[Violation]:
    """A suspect state becomes anchored again only with another receipt, and within a bounded time."""
    doubted: dict[str, Look] = {}
    told: set[str] = set()
    for look in history.written:
        doubt = doubted.get(look.receipt)
        if look.state != "anchored":
            doubted.setdefault(look.receipt, look)
        elif doubt is not None and look.beat_us > doubt.beat_us and look.receipt not in told:
            told.add(look.receipt)
            text = f"{look.server}: {look.receipt!r} was doubted at {doubt.at_us} and is anchored again"
            yield Violation("doubts_answered", look.at_us, text)
    last = history.written[-1] if history.written else None
    if last is None or last.state == "anchored":
        return
    since_us = min(look.at_us for look in history.written if (look.receipt, look.state) == (last.receipt, last.state))
    quiet_us = max((edge.at_us for edge in history.edges), default=0)
    if history.end_us - max(since_us, quiet_us) > CURED_WITHIN_US:
        yield Violation(
            "doubts_answered", history.end_us, f"{last.receipt!r} is doubted since {since_us}, without a cure"
        )


INVARIANTS: dict[str, Callable[[History, Truth], Iterator[Violation]]] = {
    test.__name__: test
    for test in (
        one_answer,
        never_back,
        committed_kept,
        slots_rise,
        terms_rise,
        epochs_chain,
        roots_known,
        states_true,
        predictions_true,
        predictions_fresh,
        doubts_answered,
    )
}
"""Each invariant by its name; its docstring is the sentence that reports print."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What a reader of the Service has lost.

    Attributes:
        slots: Slots that count.
        missed_in_a_row: Longest run of slots for which no answer was read by their end.
        unsound: Longest run of slots for which no sound answer was read by their end, missing ones too.
        missed: Slots for which no answer was read by their end.
        degraded: Slots for which only a degraded one was.
        failed: Requests without an answer.
        failed_us: From the first of them to the last.
        asked: All requests.
        latencies_ms: Of those with an answer, sorted.
    """

    slots: int
    missed_in_a_row: int
    unsound: int
    missed: int
    degraded: int
    failed: int
    failed_us: int
    asked: int
    latencies_ms: tuple[float, ...] = ()

    @property
    def p99_ms(self) -> float:
        """Time that 99 in a hundred answers took at most."""
        return self.latencies_ms[int(0.99 * (len(self.latencies_ms) - 1))] if self.latencies_ms else 0.0


def losses(history: History, begin_us: int, end_us: int) -> Losses:
    """Count what was lost in the slots that begin and end between two moments."""
    in_time = [
        answer
        for answer in history.answers
        if answer.source != STORE and answer.at_us <= slot_start_us(answer.slot + 1)
    ]
    read = {answer.slot for answer in in_time}
    sound = {answer.slot for answer in in_time if not answer.degraded}
    slots = range(slot_of(begin_us + SLOT_US - 1), slot_of(end_us))
    asked = [request for request in history.requests if begin_us <= request.at_us < end_us]
    failed = [request.at_us for request in asked if request.error]
    return Losses(
        slots=len(slots),
        missed_in_a_row=_longest(slot not in read for slot in slots),
        unsound=_longest(slot not in sound for slot in slots),
        missed=sum(slot not in read for slot in slots),
        degraded=sum(slot in read and slot not in sound for slot in slots),
        failed=len(failed),
        failed_us=max(failed) - min(failed) if failed else 0,
        asked=len(asked),
        latencies_ms=tuple(sorted(request.took_us / 1000 for request in asked if not request.error)),
    )


def _longest(bad: Iterable[bool]) -> int:
    longest = run = 0
    for one in bad:
        run = run + 1 if one else 0
        longest = max(longest, run)
    return longest


def counted(violations: Iterable[Violation]) -> dict[str, int]:
    """Count violations by invariant."""
    return dict(Counter(violation.invariant for violation in violations))


def by_invariant(violations: Iterable[Violation], most: int = 3) -> dict[str, list[str]]:
    """Give the first texts of each invariant's violations."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for violation in violations:
        if len(texts[violation.invariant]) < most:
            texts[violation.invariant].append(violation.text)
    return dict(texts)


def _same_sides(expected: tuple[Levels, Levels], found: tuple[Levels, Levels]) -> bool:
    return all(
        len(wanted) == len(held)
        and all(isclose(a[0], b[0]) and isclose(a[1], b[1]) for a, b in zip(wanted, held, strict=True))
        for wanted, held in zip(expected, found, strict=True)
    )


def _short(answer: Answer) -> str:
    state = "kept" if answer.committed else "alone"
    doubt = ", degraded" if answer.degraded else ""
    return f"{answer.source} shows {answer.made_by}'s at {answer.price} ({answer.receipt[-12:]}, {state}{doubt})"

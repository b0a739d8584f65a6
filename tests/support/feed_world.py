"""The way from a small exchange to a reader, in simulated time, with every fault that can happen on it.

Two lines carry the exchange's messages into Redis streams, a follower (the processor's own) reads them, and a reader
(inference's own code) judges what was written. Each state that it judges to be sound is compared with the exchange's
own.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from sheetanchor._decoder import Market
from sheetanchor.contract import STALE_AFTER_US, STREAM_TYPES, pack_frames
from sheetanchor.infer.prediction import SlotState, WriterHeartbeat, doubts_of
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, IMMEDIATE, SCHEDULED, VALIDATION, Finding, Thresholds
from sheetanchor.policy.soundness import ANSWER_US, LATE_US, OWED_AFTER_US
from sheetanchor.process.market.gap_detector import GapDetector
from sheetanchor.process.market.market_follower import Follower
from sheetanchor.store.server_clock import RedisClock
from support.feed_market import EXPONENTS, FIRST_ID, SYMBOL, Message, Truth, truth

SECOND = 1_000_000
TICK_US = 80_000
DURATION_US = 52 * SECOND
WALL_US = 1_700_000_000 * SECOND
EXCHANGE_OFF_US = -7 * SECOND
READ_COUNT = 256
REPLAY_US = 10 * SECOND
SLACK_US = 600_000
"""Delivery, ticks and the distance of diffs, all together."""

KINDS = ("stop", "lag", "loss", "repeat", "reorder", "exchange_clock", "redis_clock", "odd_time", "empty", "pause")
ALONE = ("exchange_clock", "redis_clock", "empty", "pause")
"""Faults that are of no stream and no line."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong for a while; `size` is seconds, or a share for losses."""

    kind: str
    streams: frozenset[str]
    lines: frozenset[int]
    start_us: int
    end_us: int
    size: float

    def touches(self, message: Message, line: int) -> bool:
        return self.start_us <= message.at_us < self.end_us and message.stream in self.streams and line in self.lines


def random_fault(rate: random.Random, kind: str) -> Fault:
    """Make a fault of a kind: of some streams (or the whole symbol) and one line or both."""
    streams = rate.choice([*(frozenset([name]) for name in STREAM_TYPES), frozenset(STREAM_TYPES)])
    if rate.random() < 0.2:
        streams = frozenset(rate.sample(STREAM_TYPES, 2))
    lines = rate.choice([frozenset([0]), frozenset([1]), frozenset([0, 1]), frozenset([0, 1])])
    start_us = round(rate.uniform(12, 17) * SECOND)
    length_us = round(rate.choice([0.2, 1, 2.5, 6, 12]) * rate.uniform(0.5, 1.1) * SECOND)
    size = {
        "lag": rate.choice([0.3, 1.5, 2.5, 4, 9]),
        "loss": rate.choice([0.02, 0.2, 0.7]),
        "repeat": rate.choice([0.1, 2, 5]),
        "reorder": rate.choice([0.05, 0.15, 0.5]),
        "exchange_clock": rate.choice([-3600, -5, -2.5, 2.5, 5, 3600]),
        "redis_clock": rate.choice([-600, -5, -1.5, 1.5, 5, 600]),
        "odd_time": rate.choice([-3600, -30, 30, 3600]),
        "empty": rate.randrange(2),
    }.get(kind, 0.0)
    return Fault(kind, streams, lines, start_us, start_us + length_us, size)


def random_faults(seed: int) -> tuple[Fault, ...]:
    """Give the faults of a feed: every kind alone and every pair of kinds in turn, some feeds clean."""
    rate = random.Random(seed)
    plans = [(), *((kind,) for kind in KINDS), *((kind, kind) for kind in KINDS), *combinations(KINDS, 2)]
    return tuple(random_fault(rate, kind) for kind in plans[seed % len(plans)])


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a line's stream, as the follower reads it; `at_us` is when it was appended, which it cannot know."""

    line: str
    stamp_us: int
    frames: bytes
    at_us: int
    last_id: int
    stream: str


def stepped_us(faults: tuple[Fault, ...], kind: str, at_us: int) -> int:
    """How far a clock is off by the faults of a kind; it is set at the beginning of each and set back at its end."""
    return sum(
        round(fault.size * SECOND) for fault in faults if fault.kind == kind and fault.start_us <= at_us < fault.end_us
    )


@dataclass(slots=True)
class Delivery:
    """One message on one line: when it is appended, how far its event time is off, and how often it comes."""

    at_us: int
    off_us: int
    copies: int = 1
    in_order: bool = True

    def suffer(self, fault: Fault, rate: random.Random) -> None:
        size_us = round(fault.size * SECOND)
        if fault.kind == "stop" or (fault.kind == "loss" and rate.random() < fault.size):
            self.copies = 0
        elif fault.kind == "lag":
            self.at_us += size_us
        elif fault.kind == "repeat":
            self.copies += self.copies > 0
        elif fault.kind == "reorder":
            self.at_us += rate.randrange(size_us)
            self.in_order = False
        elif fault.kind == "odd_time" and rate.random() < 0.1:
            self.off_us += size_us


def delivered(feed: Truth, faults: tuple[Fault, ...], line: int, rate: random.Random) -> list[Entry]:
    """What a line appends, in the order of appending; a stream keeps its order unless a fault takes it."""
    arrivals: list[tuple[int, int, Message, int]] = []
    last_us = dict.fromkeys(STREAM_TYPES, 0)
    for number, message in enumerate(feed.messages):
        off_us = EXCHANGE_OFF_US + stepped_us(faults, "exchange_clock", message.at_us)
        delivery = Delivery(message.at_us + rate.randrange(5_000, 40_000), off_us)
        for fault in faults:
            if fault.touches(message, line):
                delivery.suffer(fault, rate)
        if delivery.in_order:
            delivery.at_us = last_us[message.stream] = max(delivery.at_us, last_us[message.stream] + 1)
        for copy in range(delivery.copies):
            at_us = delivery.at_us + (rate.randrange(1, 3 * SECOND) if copy else 0)
            arrivals.append((at_us, number, message, delivery.off_us))
    entries, last_ms = [], 0
    for at_us, _, message, off_us in sorted(arrivals, key=lambda arrival: arrival[:2]):
        last_ms = max(last_ms, redis_us(faults, at_us) // 1_000)
        frame = bytearray(message.frame)
        struct.pack_into("<q", frame, 8, WALL_US + message.at_us + off_us)
        if message.stream == "trade":
            struct.pack_into("<q", frame, 16, WALL_US + message.at_us + off_us)
        packed = pack_frames([(0, bytes(frame))])
        entries.append(Entry("ab"[line], last_ms * 1_000, packed, at_us, message.last_id, message.stream))
    return entries


def redis_us(faults: tuple[Fault, ...], at_us: int) -> int:
    return WALL_US + at_us + stepped_us(faults, "redis_clock", at_us)


@dataclass(slots=True)
class Written:
    """What was last written, and what the reader needs of it."""

    at_us: int
    stamp_us: int
    heartbeat_us: int
    until_us: int
    unsound: str
    sides: tuple[list[tuple[int, int]], list[tuple[int, int]]] = field(default_factory=lambda: ([], []))
    fields: dict[str, str] = field(default_factory=dict)
    windows: dict[int, tuple[int, float]] = field(default_factory=dict)
    update_id: int = 0
    bba_id: int = -1
    trade_id: int = -1
    end_us: int = 0
    quiet_after_us: int = 0


@dataclass(slots=True)
class Outcome:
    """The result of a feed.

    Attributes:
        wrong: Times at which a state that differs from the exchange's was judged sound, and how it differs.
        doubted_us: How long the state was unsound for the reader, after the first three seconds.
        kinds: Kinds of reasons for that.
        sound_at_end: Whether it was sound at the end.
        looks: How often it was judged sound and compared.
    """

    wrong: list[tuple[float, str]] = field(default_factory=list)
    doubted_us: int = 0
    kinds: set[str] = field(default_factory=set)
    sound_at_end: bool = False
    looks: int = 0


def _newest_us(entries: list[Entry], stream: str, now_us: int) -> int:
    """When the newest message of a stream came first."""
    of_stream = [entry for entry in entries if entry.stream == stream]
    newest_id = max((entry.last_id for entry in of_stream), default=0)
    return min((entry.at_us for entry in of_stream if entry.last_id == newest_id), default=now_us)


class World:
    """Plays one feed.

    Args:
        seed: Of all that is random.
        faults: What goes wrong; None to choose by the seed.
    """

    def __init__(self, seed: int, faults: tuple[Fault, ...] | None = None, duration_us: int = DURATION_US) -> None:
        self.faults = random_faults(seed) if faults is None else faults
        self.duration_us = duration_us
        empties = tuple((f.start_us, f.end_us, int(f.size)) for f in self.faults if f.kind == "empty")
        self.truth = truth(seed % 16, duration_us, empties)
        self.rate = random.Random(seed)
        self.lines = [delivered(self.truth, self.faults, line, self.rate) for line in (0, 1)]
        self.places = [0, 0]
        self.clock = RedisClock()
        self.clock.learn(0, 0, redis_us(self.faults, 0))
        self.follower = Follower(Market(SYMBOL), GapDetector(Thresholds(), 0), self.clock)
        self.follower.begin(self._snapshot(0), 0)
        self.suspect = False
        self.cure_id = 0
        self.runs: list[tuple[int, str]] = []
        self.rebuild: tuple[int, int, Market] | None = None
        self.validated_us = -(10**12)
        self.written: Written | None = None
        self.heard = WriterHeartbeat()
        self.outcome = Outcome()
        self.log: list[tuple[float, str, str]] = []

    def run(self) -> Outcome:
        now_us = 0
        while now_us < self.duration_us:
            now_us += self.rate.randrange(TICK_US // 2, TICK_US * 3 // 2)
            if not any(f.kind == "pause" and f.start_us <= now_us < f.end_us for f in self.faults):
                self._turn(now_us)
            self._read(now_us)
        return self.outcome

    # The processor

    def _turn(self, now_us: int) -> None:
        counts = []
        for line, entries in enumerate(self.lines):
            place = self.places[line]
            end = min(place + READ_COUNT, bisect_right(entries, now_us, lo=place, key=lambda entry: entry.at_us))
            for entry in entries[place:end]:
                self.follower.take(entry, now_us)
            self.places[line] = end
            counts.append(end - place)
        self.follower.read(now_us, "ab", complete=max(counts) < READ_COUNT)
        for finding in self.follower.apply_rules(now_us):
            self._heed(finding, now_us)
        self._coordinate(now_us)
        self._write(now_us)

    def _heed(self, finding: Finding, now_us: int) -> None:
        rule = GAP_DETECTION_RULES[finding.rule]
        self.log.append((now_us / SECOND, finding.rule, finding.reason))
        if rule.suspects:
            self.suspect, self.cure_id = True, max(self.cure_id, finding.cure_id)
        waits = {IMMEDIATE: 1, SCHEDULED: 3, VALIDATION: 3}
        kind = "validate" if rule.action == VALIDATION else "rebuild"
        if not any(known == kind for _, known in self.runs):
            self.runs.append((now_us + waits.get(rule.action, 1) * SECOND, kind))

    def _write(self, now_us: int) -> None:
        follower, market = self.follower, self.follower.market
        (ob, tr_1s, tr_5s, _), unwritten = follower.hot(now_us)
        verdict = follower.verdict(now_us, unwritten)
        steady_us, here_us = self.clock.steady_us(now_us), redis_us(self.faults, now_us)
        until_us = min(self.clock.of_steady(verdict.until_us), here_us + max(0, verdict.until_us - steady_us))
        before = self.written
        self.written = Written(
            at_us=now_us,
            stamp_us=follower.event_redis_us() or (before.stamp_us if before else 0),
            heartbeat_us=here_us,
            until_us=until_us if verdict.sound else 0,
            unsound="; ".join(str(reason).replace(";", ",") for reason in verdict.reasons),
        )
        sent_us = now_us - 200
        self.clock.learn(sent_us, now_us + 200, here_us)
        if unwritten:
            return
        fields = dict(zip(ob[::2], ob[1::2], strict=True))
        self.written.fields = fields
        for seconds, flat in ((1, tr_1s), (5, tr_5s)):
            window = dict(zip(flat[::2], flat[1::2], strict=True))
            self.written.windows[seconds] = int(window["count"]), float(window["vol"])
        self.written.sides = market.top(10)
        self.written.update_id, self.written.bba_id = market.update_id, market.bba_id
        self.written.trade_id = market.trade_id
        self.written.end_us = market.event_us + max(0, steady_us - market.stamp_us)
        self.written.quiet_after_us = follower.detector.memory.paces["trade"].quiet_after_us

    # The coordinator and its runs

    def _snapshot(self, now_us: int) -> Market:
        update_id, bids, asks = self.truth.snapshot_at(now_us)
        market = Market(SYMBOL)
        market.load_snapshot(update_id, *EXPONENTS, list(bids.items()), list(asks.items()), WALL_US + now_us)
        newest = self.truth.trade_at(now_us)
        trades = [trade for trade in self.truth.trades if trade.id <= newest][-1:]
        seeds = [(t.id, t.price, t.qty, WALL_US + t.at_us + EXCHANGE_OFF_US, t.is_buyer_maker) for t in trades]
        market.seed_trades(seeds, *EXPONENTS)
        loaded = Market(SYMBOL)
        loaded.load_book(market.pack_book(1, {}))
        return loaded

    def _coordinate(self, now_us: int) -> None:
        for run in [run for run in self.runs if run[0] <= now_us]:
            if run[1] == "validate" and now_us - self.validated_us < 10 * SECOND:
                continue  # its turn comes
            self.runs.remove(run)
            if run[1] == "rebuild":
                self._begin_rebuild(now_us)
            else:
                self.validated_us = now_us
                self._validate(now_us)
        if self.rebuild is not None:
            self._try_to_swap(now_us)

    def _validate(self, now_us: int) -> None:
        """Compare with what REST says, once the live state has had the time to reach it."""
        market = self.follower.market
        then_us = now_us - 2 * SECOND
        newest_book, _, _ = self.truth.snapshot_at(then_us)
        if not self.suspect and market.trade_id >= self.truth.trade_at(then_us) and market.update_id >= newest_book:
            self.follower.validated(redis_us(self.faults, now_us) - 2 * SECOND, 2 * SECOND)
        else:
            self.log.append((now_us / SECOND, "validation", "differs"))
            self._begin_rebuild(now_us)

    def _begin_rebuild(self, now_us: int) -> None:
        if self.rebuild is None:
            self.rebuild = (now_us, self.truth.snapshot_at(now_us)[0], self._snapshot(now_us))

    def _try_to_swap(self, now_us: int) -> None:
        """Swap once the lines have reached the snapshot; give up and start over after ten seconds."""
        assert self.rebuild is not None
        began_us, update_id, market = self.rebuild
        reached = any(
            entry.stream == "depth" and entry.last_id >= update_id
            for line, entries in enumerate(self.lines)
            for entry in entries[max(0, self.places[line] - READ_COUNT) : self.places[line]]
        )
        if not reached:
            if now_us - began_us > 10 * SECOND:
                self.rebuild = None
                self.runs.append((now_us + 5 * SECOND, "rebuild"))
            return
        self.rebuild = None
        self.follower.begin(market, now_us)
        for line, entries in enumerate(self.lines):
            first_us = redis_us(self.faults, now_us) - REPLAY_US
            self.places[line] = bisect_left(entries, first_us, hi=self.places[line], key=lambda entry: entry.stamp_us)
        if update_id >= self.cure_id:
            self.suspect, self.cure_id = False, 0
        else:
            self.runs.append((now_us + SECOND, "rebuild"))

    # The reader

    def _read(self, now_us: int) -> None:
        written = self.written
        if written is None:
            return
        self.heard = self.heard.again(written.heartbeat_us, now_us)
        state = SlotState(
            now_us=redis_us(self.faults, now_us),
            epoch=1,
            anchored=not self.suspect,
            suspect_reason="",
            incomplete="",
            stamp_us=written.stamp_us,
            hashes={},
            heartbeat_us=written.heartbeat_us,
            sound_until_us=written.until_us,
            unsound=written.unsound,
            unmoved_us=now_us - self.heard.at_us,
        )
        doubts = doubts_of(state)
        self.outcome.sound_at_end = not doubts
        if doubts:
            if now_us > 3 * SECOND:
                self.outcome.doubted_us += TICK_US
                self.outcome.kinds |= {doubt.kind for doubt in doubts}
            return
        self.outcome.looks += 1
        for difference in self._differences(written, now_us):
            self.outcome.wrong.append((now_us / SECOND, difference))

    def _differences(self, written: Written, now_us: int) -> Iterator[str]:
        """Name how a written state differs from the exchange's by more than the documented delays."""
        feed = self.truth
        known = feed.sides_at(written.update_id)
        if tuple(map(tuple, written.sides)) != known:
            yield f"levels at update {written.update_id}"
        best = feed.sides_at(max(written.update_id, written.bba_id))
        told = float(written.fields["best_bid"]), float(written.fields["best_ask"])
        if not best[0] or not best[1] or told != (best[0][0][0] / 100, best[1][0][0] / 100):
            yield f"best prices {told} at update {max(written.update_id, written.bba_id)}"
        book_delay_us = LATE_US + OWED_AFTER_US + SLACK_US
        if written.update_id < feed.update_at(now_us - book_delay_us) and not self._goes_on_without_depth(now_us):
            book_delay_us = LATE_US + STALE_AFTER_US + SLACK_US
        if written.update_id < (owed := feed.update_at(now_us - book_delay_us)):
            yield f"book at update {written.update_id}, the exchange at {owed} {book_delay_us / SECOND:g} s ago"
        trade_delay_us = max(book_delay_us, written.quiet_after_us + ANSWER_US + SLACK_US)
        if written.trade_id < (owed := feed.trade_at(now_us - trade_delay_us)):
            yield f"trades up to {written.trade_id}, the exchange at {owed} {trade_delay_us / SECOND:g} s ago"
        yield from self._window_differences(written)

    def _goes_on_without_depth(self, now_us: int) -> bool:
        """Whether trades have come for long enough since the newest diff: then it is missed sooner than by its age."""
        read = [
            entry
            for line, entries in enumerate(self.lines)
            for entry in entries[max(0, self.places[line] - READ_COUNT) : self.places[line]]
        ]
        depth_us = _newest_us(read, "depth", now_us)
        known_id = max((e.last_id for e in read if e.stream == "trade" and e.at_us <= depth_us), default=0)
        newest_id = max((e.last_id for e in read if e.stream == "depth"), default=FIRST_ID)
        known_id = max(known_id, self.truth.trade_at(self.truth.id_times[newest_id - FIRST_ID]))
        trades_us = [e.at_us for e in read if e.stream == "trade" and e.last_id > known_id]
        return min(trades_us, default=now_us) <= now_us - OWED_AFTER_US - SLACK_US

    def _steps_since_read(self, at_us: int) -> set[int]:
        """By how much the exchange's clock has been off within a second, or since anything came that could show it."""
        newest_us = [e[place - 1].at_us for e, place in zip(self.lines, self.places, strict=True) if place]
        since_us = min(at_us - SECOND, max(newest_us, default=at_us))
        sets = [f for f in self.faults if f.kind == "exchange_clock"]
        edges = [edge_us for f in sets for edge_us in (f.start_us, f.end_us) if since_us <= edge_us <= at_us]
        return {stepped_us(self.faults, "exchange_clock", moment_us) for moment_us in (since_us, at_us, *edges)}

    def _window_differences(self, written: Written) -> Iterator[str]:
        """Windows hold exactly the trades before their end, which is about now."""
        feed = self.truth
        offs = {EXCHANGE_OFF_US + step_us for step_us in self._steps_since_read(written.at_us)}
        found = ""
        for off_us in offs:
            end_us = written.end_us - WALL_US - off_us
            found = ""
            if not written.at_us - LATE_US - SLACK_US - STALE_AFTER_US <= end_us <= written.at_us + LATE_US:
                found = f"windows end {(end_us - written.at_us) / SECOND:+.1f} s from now"
                continue
            for seconds, (count, volume) in written.windows.items():
                first = bisect_left(feed.trades, end_us - seconds * SECOND, key=lambda trade: trade.at_us)
                inside = [trade for trade in feed.trades[first:] if trade.id <= written.trade_id]
                expected = len(inside), sum(trade.qty for trade in inside) / 1000
                if expected[0] != count or abs(expected[1] - volume) > 1e-6:
                    found = f"window of {seconds} s holds {count}, {volume}; expected {expected}"
                    break
            if not found:
                return
        yield found

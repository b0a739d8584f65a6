"""Whether a symbol's state agrees with the exchange: observations and time in, reasons and a deadline out. Pure.

`observe` folds an observation into what has to be remembered, `judge` says what is wrong at a moment. A later call of
`judge` with the same memory finds what has become due meanwhile: no fault waits for another message to be noticed.
What has to hold, and why the limits are what they are, is in docs/gaps.md.

All times are microseconds on one steady clock that never jumps; event times are the exchange's and only ever compared
with each other, through a baseline of their own per stream.

One module, since each reason for unsoundness has its half in `observe` and its half in `judge`: apart, a new one is
easily put into one of them only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from sheetanchor.contract import STALE_AFTER_US, STREAM_TYPES

MISSING_AFTER_US: Final = 1_000_000
"""Best prices ahead of the book, or a book that has left them, for this long: diffs come every 20 to 100 ms."""

OWED_AFTER_US: Final = 2_000_000
"""Trades without a diff for this long. A trade moves the book, but a refilled iceberg order may leave it as it was."""

LATE_US: Final = 2_000_000
"""How far a stream may fall behind its own baseline."""

STEP_US: Final = 1_000_000
"""Event times that differ by more than this from what they can be show a clock that was set."""

DRIFT_PPM: Final = 200
"""How fast a baseline may rise: what two quartz clocks differ by at worst. A feed that is late stays late for hours."""

WINDOW_US: Final = 5_000_000
"""The longest window: after a step of the exchange's clock it needs this long to hold nothing from before."""

REFILL_US: Final = WINDOW_US + 3_000_000
"""And the clock that windows end by follows within some frames and a second or two."""

RANGE_US: Final = 10_000_000
RANGE_MARGIN: Final = 0.01
"""A large order trades through some levels; beyond one per cent of where the book has been is another market."""

MOMENT_US: Final = 1_000_000
"""Trades come in bursts: those within a second are one moment, or a lively second would make a quiet minute long."""

MOMENTS_MIN: Final = 10
QUIET_UNKNOWN_US: Final = 60_000_000
ASK_UNKNOWN_US: Final = 15_000_000
"""While the rhythm is not known, a short silence is worth a comparison with the exchange, but not yet a doubt."""

QUIET_MIN_US: Final = 5_000_000
QUIET_MAX_US: Final = 600_000_000
QUIET_FACTOR: Final = 10
"""Ten times the mean distance: by chance that happens once in 22,000 distances."""

RECHECK_US: Final = 60_000_000
"""A confirmed silence is confirmed again after this, after the silence's own limit, or, up to `QUIET_MAX_US`, after as
long as it had lasted: a market at rest must not use up the budget of requests, and be doubted for want of them."""

ANSWER_US: Final = 15_000_000
"""How long a validation may take before the silence it was asked about counts as a doubt."""

LATE_RECHECK_US: Final = 15_000_000
"""Lateness is compared with the exchange again after this, and after as long as it has lasted: a clock that is set
while a stream is late can leave a baseline that messages in time never reach, and one validation may come too early."""

BEHIND_US: Final = 1_000_000
"""Reading what has been appended takes milliseconds; a second shows that this process does not keep up."""

VOUCH_US: Final = 2_000_000
"""Longest time for which a state is declared sound without a further write of its writer."""

REASON_KINDS: Final = ("missing", "windows", "late", "clock", "disagree", "unvalidated", "behind", "unwritten")

AHEAD_MAX: Final = 64
AHEAD_EVERY_US: Final = 100_000


@dataclass(frozen=True, slots=True)
class NewestMessage:
    """The newest message of a stream by id.

    Attributes:
        count: Messages so far that brought a new highest id.
        id: Its id; -1 before the first.
        event_us: The exchange's time in it.
        arrival_us: When it was appended, on the steady clock.
    """

    count: int = 0
    id: int = -1
    event_us: int = -1
    arrival_us: int = 0


@dataclass(frozen=True, slots=True)
class MarketObservation:
    """What can be seen of a symbol at a moment.

    Attributes:
        now_us: The moment.
        newest_messages: Newest message per stream type.
        update_id: Update of the book.
        bba_id: Update of the newest bestBidAsk; -1 for none.
        book_best: The book's own best bid and ask; None while a side is empty.
        streamed_best: Best bid and ask of the newest bestBidAsk, 0 for a side without orders; None before the first.
        levels: What is wrong with the best levels, "" if nothing.
        best_confirmed: How many bestBidAsk the book has come to agree with.
        trade_id: Newest trade with no missing range before it.
        trades_missing: Trades that the longest window lacks, or holds though they are not of it.
        end_us: The event time that windows end at; None before a loaded market was fed anything.
        clock_steps: How often the market has found the exchange's clock to have been set, and followed it.
        clock_untrusted: Whether it does not believe the newest event times.
        misdated_trades: Frames of trades whose time was far off: they are in the wrong window or in none.
        trade_price: Price of the last trade; None before the first.
        has_book: Whether there is a book at all.
        read_us: Until when all that had been appended has been read.
        undated: Whether the newest entries cannot be dated, because their ids are ahead of Redis' clock.
        validated_us: When the last validation began that found the exchange's trade ids to be ours; 0 for never.
    """

    now_us: int
    newest_messages: Mapping[str, NewestMessage]
    update_id: int = 0
    bba_id: int = -1
    book_best: tuple[float, float] | None = None
    streamed_best: tuple[float, float] | None = None
    levels: str = ""
    best_confirmed: int = 0
    trade_id: int = -1
    trades_missing: int = 0
    end_us: int | None = 0
    clock_steps: int = 0
    clock_untrusted: bool = False
    misdated_trades: int = 0
    trade_price: float | None = None
    has_book: bool = True
    read_us: int = 0
    undated: bool = False
    validated_us: int = 0


@dataclass(frozen=True, slots=True)
class StreamPace:
    """How a stream keeps time.

    Attributes:
        message: Its newest message.
        baseline_us: Smallest arrival less event time, let rise by what clocks drift; None before the first message.
        late_us: How far the newest message is above the baseline.
        jumped_us: When its event time last jumped; 0 for never.
        jump_us: By how much.
        moment_us: When the present burst began.
        moments: Bursts seen.
        gap_us: Mean distance of bursts.
        resumed: Ids begin again, as after a load: the next message is not compared with the one before.
    """

    message: NewestMessage = NewestMessage()
    baseline_us: int | None = None
    late_us: int = 0
    jumped_us: int = 0
    jump_us: int = 0
    moment_us: int = 0
    moments: int = 0
    gap_us: float = 0.0
    resumed: bool = False

    @property
    def quiet_after_us(self) -> int:
        """Silence that is far longer than this stream's own rhythm."""
        if self.moments < MOMENTS_MIN:
            return QUIET_UNKNOWN_US
        return round(min(max(QUIET_FACTOR * self.gap_us, QUIET_MIN_US), QUIET_MAX_US))

    @property
    def ask_after_us(self) -> int:
        """Silence that is worth asking the exchange about."""
        return self.quiet_after_us if self.moments >= MOMENTS_MIN else ASK_UNKNOWN_US


@dataclass(frozen=True, slots=True)
class Memory:
    """What has to be remembered between two observations.

    Attributes:
        began_us: When watching began.
        paces: Per stream type.
        ahead: Best prices that the book has not reached yet: id and arrival, the earliest first.
        owed_us: Arrival of the first trade since the last diff; 0 for none.
        stray_us: When the book's own best prices left those of the newest bestBidAsk; 0 while they agree.
        unheard: Per stream since when a rebuilt book or its trades are beyond what any line has brought.
        first_best: The book's own best prices before any bestBidAsk.
        heard_us: When anything last came that was new.
        moved_us: When the state was last known to be up to what had come: a trade or best prices that the book has not
            reached do not make it fresh.
        trades_lost_us: When trades were last given up for lost; 0 for never.
        followed_us: When the market last followed a clock that was set, or doubted event times; 0 for never.
        resumed_us: When something came again after a silence of the whole feed; 0 for never.
        ranges: Per second its beginning, lowest bid and highest ask.
        latest: The last observation.
    """

    began_us: int = 0
    paces: Mapping[str, StreamPace] = field(default_factory=lambda: dict.fromkeys(STREAM_TYPES, StreamPace()))
    ahead: tuple[tuple[int, int], ...] = ()
    owed_us: int = 0
    stray_us: int = 0
    unheard: Mapping[str, int] = field(default_factory=dict)
    first_best: tuple[float, float] | None = None
    heard_us: int = 0
    moved_us: int = 0
    trades_lost_us: int = 0
    followed_us: int = 0
    resumed_us: int = 0
    ranges: tuple[tuple[int, float, float], ...] = ()
    latest: MarketObservation | None = None


@dataclass(frozen=True, slots=True)
class UnsoundReason:
    """One thing that does not hold.

    Attributes:
        kind: One of `REASON_KINDS`.
        text: One line for people.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class Soundness:
    """What is to be thought of a state.

    Attributes:
        reasons: Why it is not sound; none if it is.
        until_us: Until when it is sound if nothing more is heard; in the past when it is not.
        quiet: What is reported but is no fault: trades that have been away for long, "" if they have not.
        ask: Why a validation is wanted, "" if none is.
    """

    reasons: tuple[UnsoundReason, ...]
    until_us: int
    quiet: str = ""
    ask: str = ""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons


def levels_fault(bids: Sequence[tuple[int, int]], asks: Sequence[tuple[int, int]]) -> str:
    """Say what is wrong with the best levels of a book, "" if nothing.

    Args:
        bids: Price and quantity, best first.
        asks: Price and quantity, best first.
    """
    if not bids or not asks:
        return f"the book has no {'asks' if bids else 'bids' if asks else 'levels'}"
    if bids[0][0] >= asks[0][0]:
        return f"crossed: best bid {bids[0][0]} at or above best ask {asks[0][0]} (mantissas)"
    for name, side, sign in (("bids", bids, -1), ("asks", asks, 1)):
        if any(price <= 0 or qty <= 0 for price, qty in side):
            return f"{name} hold a price or a quantity that is not above 0"
        if any(sign * (after[0] - before[0]) <= 0 for before, after in pairwise(side)):
            return f"{name} are not in order"
    return ""


def reloaded(memory: Memory, trade_id: int, now_us: int) -> Memory:
    """Go on with a rebuilt or loaded market: ids begin again, what was learnt about time stays.

    Args:
        memory: What was remembered before.
        trade_id: Newest trade that the market was loaded with.
        now_us: The moment.
    """
    if (
        0 <= memory.paces["trade"].message.id < trade_id
    ):  # no line has brought those: windows are made of what they bring
        memory = trades_lost(memory, now_us)
    paces = {name: replace(pace, resumed=True) for name, pace in memory.paces.items()}
    return replace(
        memory, paces=paces, ahead=(), owed_us=0, stray_us=0, unheard={}, first_best=None, ranges=(), latest=None
    )


def trades_lost(memory: Memory, now_us: int) -> Memory:
    """Record that trades are given up for lost."""
    return replace(memory, trades_lost_us=now_us)


def shown_in_time(memory: Memory, now_us: int) -> Memory:
    """Record that the feed was shown to be in time: what passed for late was a clock set while it was silent.

    Windows may hold what its old reading dated, as after any other clock that was set.
    """
    return replace(memory, paces={name: _in_time(pace, now_us) for name, pace in memory.paces.items()})


def _in_time(pace: StreamPace, now_us: int) -> StreamPace:
    if pace.baseline_us is None:
        return pace
    after = replace(pace, baseline_us=pace.baseline_us + pace.late_us, late_us=0)
    return replace(after, jumped_us=now_us, jump_us=-pace.late_us) if pace.late_us > LATE_US else after


def observe(memory: Memory, seen: MarketObservation) -> Memory:
    """Take in an observation."""
    if seen.undated:  # what is not known to be new must not pass for it, nor for something that came late
        return replace(memory, began_us=memory.began_us or seen.now_us, latest=seen)
    paces = {name: follow(pace, seen.newest_messages[name], seen.now_us) for name, pace in memory.paces.items()}
    newest_us = max(pace.message.arrival_us for pace in paces.values())
    resumed = memory.heard_us > 0 and newest_us - memory.heard_us > STALE_AFTER_US
    ahead, owed_us = _ahead(memory.ahead, paces, seen), _owed(memory, paces)
    known_us = paces["depth"].message.arrival_us if ahead or owed_us else newest_us
    if seen.update_id < paces["depth"].message.id or seen.trade_id < paces["trade"].message.id:
        known_us = memory.moved_us  # what has come waits beyond a missing range
    after = replace(
        memory,
        began_us=memory.began_us or seen.now_us,
        paces=paces,
        heard_us=max(memory.heard_us, newest_us),
        moved_us=max(memory.moved_us, known_us),
        ahead=ahead,
        owed_us=owed_us,
        followed_us=seen.now_us if _follows(memory.latest, seen) else memory.followed_us,
        resumed_us=newest_us if resumed else memory.resumed_us,
        ranges=_ranges(memory.ranges, seen),
        first_best=memory.first_best or (seen.book_best if seen.streamed_best is None else None),
        latest=seen,
    )
    return replace(
        after,
        stray_us=_stray(memory, after.first_best, seen),
        unheard=_unheard(memory.unheard, paces, seen),
    )


def _follows(before: MarketObservation | None, seen: MarketObservation) -> bool:
    """Say whether the clock that trades are dated by has moved, or may have to, or a trade is not dated by it."""
    known = (before.clock_steps, before.misdated_trades) if before else (0, 0)
    return seen.clock_untrusted or (seen.clock_steps, seen.misdated_trades) != known


def follow(pace: StreamPace, message: NewestMessage, now_us: int) -> StreamPace:
    """Take in the newest message of a stream."""
    if message.id < 0 or (message == pace.message and not pace.resumed):
        return pace
    lag_us = message.arrival_us - message.event_us
    after = _rhythm(replace(pace, message=message, resumed=False), message.arrival_us)
    if pace.baseline_us is None:
        return replace(after, baseline_us=lag_us, late_us=0)
    passed_us = max(0, message.arrival_us - pace.message.arrival_us)
    baseline_us = pace.baseline_us + passed_us * DRIFT_PPM // 1_000_000
    # Of messages with rising ids a later one has a later time, or their clock was set back; and none comes before it
    # was sent, or their clock was set ahead. What the stream was late by before it is late by still.
    back = not pace.resumed and message.id > pace.message.id and message.event_us < pace.message.event_us - STEP_US
    if back or lag_us < baseline_us - STEP_US:
        rebased_us = lag_us - pace.late_us
        return replace(after, baseline_us=rebased_us, jumped_us=now_us, jump_us=baseline_us - rebased_us)
    baseline_us = min(baseline_us, lag_us)
    after = replace(after, baseline_us=baseline_us, late_us=lag_us - baseline_us)
    if pace.late_us > LATE_US and pace.late_us - after.late_us > STEP_US:
        # It was late and is so no more at once; or a clock was set in a silence and is now set back.
        return replace(after, jumped_us=now_us, jump_us=pace.late_us - after.late_us)
    return after


def _rhythm(pace: StreamPace, arrival_us: int) -> StreamPace:
    gap_us = arrival_us - pace.moment_us
    if gap_us < MOMENT_US:
        return pace
    if pace.moment_us == 0:
        return replace(pace, moment_us=arrival_us)
    # An outage is no rhythm: what it adds is bounded.
    gap_us = min(gap_us, pace.quiet_after_us)
    share = max(0.05, 1 / (pace.moments + 1))
    mean_us = pace.gap_us + share * (gap_us - pace.gap_us)
    return replace(pace, moment_us=arrival_us, moments=pace.moments + 1, gap_us=mean_us)


def _ahead(
    ahead: tuple[tuple[int, int], ...], paces: Mapping[str, StreamPace], seen: MarketObservation
) -> tuple[tuple[int, int], ...]:
    """Keep the best prices that are beyond the book, so that the age of the earliest one is known."""
    left = tuple(entry for entry in ahead if entry[0] > seen.update_id)
    arrival_us = paces["bestBidAsk"].message.arrival_us
    if paces["bestBidAsk"].message.id != seen.bba_id:
        arrival_us = seen.now_us  # it came with a loaded book: nothing says when it was sent
    if not seen.has_book or seen.bba_id <= seen.update_id or len(left) >= AHEAD_MAX:
        return left
    if left and arrival_us - left[-1][1] < AHEAD_EVERY_US:
        return left
    return (*left, (seen.bba_id, arrival_us))


def _owed(memory: Memory, paces: Mapping[str, StreamPace]) -> int:
    """Give the arrival of the first trade since the last diff."""
    trade_us, depth_us = paces["trade"].message.arrival_us, paces["depth"].message.arrival_us
    if trade_us <= depth_us:
        return 0
    before_us = memory.owed_us
    return before_us if before_us > depth_us else trade_us


def _stray(memory: Memory, first_best: tuple[float, float] | None, seen: MarketObservation) -> int:
    """Note since when the book's own best prices are not what the newest bestBidAsk says, though it is not newer.

    Only a bestBidAsk that the book agrees with ends it: prices may come back, the message that said so has not come.
    """
    agreed = memory.latest is not None and seen.best_confirmed > memory.latest.best_confirmed
    since_us = 0 if agreed else memory.stray_us
    if since_us or seen.book_best is None or seen.bba_id > seen.update_id:
        return since_us
    best = seen.streamed_best or first_best
    return seen.now_us if best is not None and best != seen.book_best else 0


def _unheard(unheard: Mapping[str, int], paces: Mapping[str, StreamPace], seen: MarketObservation) -> dict[str, int]:
    """Note what is known from elsewhere of a stream that no line has brought."""
    held = {"depth": seen.update_id, "trade": seen.trade_id}
    return {
        name: unheard.get(name, seen.now_us)
        for name, known_id in held.items()
        if 0 <= paces[name].message.id < known_id
    }


def _ranges(
    ranges: tuple[tuple[int, float, float], ...], seen: MarketObservation
) -> tuple[tuple[int, float, float], ...]:
    best = [prices for prices in (seen.book_best, seen.streamed_best) if prices is not None and min(prices) > 0]
    if not best:
        return ranges
    second_us = seen.now_us - seen.now_us % MOMENT_US
    low, high = min(prices[0] for prices in best), max(prices[1] for prices in best)
    if ranges and ranges[-1][0] == second_us:
        _, known_low, known_high = ranges[-1]
        return (*ranges[:-1], (second_us, min(low, known_low), max(high, known_high)))
    kept = tuple(entry for entry in ranges if 0 <= second_us - entry[0] <= RANGE_US)
    return (*kept, (second_us, low, high))


def judge(memory: Memory, now_us: int, unwritten: str = "") -> Soundness:
    """Say what is wrong at a moment, which may be later than the last observation.

    Args:
        memory: What has been seen.
        now_us: The moment.
        unwritten: Why the state cannot be written, "" if it can.
    """
    seen = memory.latest
    if seen is None or not seen.has_book:
        return Soundness((UnsoundReason("behind", "nothing has been read yet"),), 0)
    reasons: list[UnsoundReason] = []
    due = [now_us + VOUCH_US, memory.moved_us + STALE_AFTER_US]
    for since_us, limit_us, reason in _missing(memory, seen, now_us):
        due.append(since_us + limit_us)
        if now_us - since_us >= limit_us:
            reasons.append(reason)
    reasons += _late(memory, seen, now_us)
    reasons += _disagreeing(memory, seen, now_us)
    if seen.trades_missing or (memory.trades_lost_us and now_us - memory.trades_lost_us < WINDOW_US):
        reasons.append(UnsoundReason("windows", "they are incomplete: trades were lost or have wrong times"))
    if seen.undated:
        reasons.append(
            UnsoundReason("clock", "the newest entries' ids are ahead of Redis' clock: their age is not known")
        )
    due.append(seen.read_us + BEHIND_US)
    if now_us - seen.read_us >= BEHIND_US:
        reasons.append(
            UnsoundReason("behind", "the processor has not read all that has been appended for over a second")
        )
    if unwritten:
        reasons.append(UnsoundReason("unwritten", unwritten))
    quiet, ask, doubted_us = _quiet(memory, seen, now_us)
    due.append(doubted_us)
    if now_us >= doubted_us:
        reasons.append(UnsoundReason("unvalidated", f"{quiet}, and no validation has confirmed it"))
    return Soundness(tuple(reasons), min(due) if not reasons else 0, quiet, ask)


def _missing(memory: Memory, seen: MarketObservation, now_us: int) -> list[tuple[int, int, UnsoundReason]]:
    """Give what a stream owes: since when, how long it may, and the reason then."""
    owed: list[tuple[int, int, UnsoundReason]] = []
    if memory.ahead:
        since_us = memory.ahead[0][1]
        text = f"depth: best prices are at update {seen.bba_id}, the book is at {seen.update_id}"
        owed.append((since_us, MISSING_AFTER_US, UnsoundReason("missing", f"{text} {_for(since_us, now_us)}")))
    if memory.owed_us:
        text = f"depth: trades have come without a diff {_for(memory.owed_us, now_us)}"
        owed.append((memory.owed_us, OWED_AFTER_US, UnsoundReason("missing", text)))
    if memory.stray_us:
        since_us = memory.stray_us
        text = f"bestBidAsk: the book's own best prices have moved, and none has come {_for(since_us, now_us)}"
        owed.append((since_us, MISSING_AFTER_US, UnsoundReason("missing", text)))
    for name, since_us in memory.unheard.items():
        text = f"{name}: no line has delivered what a rebuild contains, {_for(since_us, now_us)}"
        owed.append((since_us, 0, UnsoundReason("missing", text)))
    return owed


def _for(since_us: int, now_us: int) -> str:
    return f"for {max(0, now_us - since_us) / 1e6:.1f} s"


def _late(memory: Memory, seen: MarketObservation, now_us: int) -> list[UnsoundReason]:
    reasons = []
    for name, pace in memory.paces.items():
        if pace.late_us > LATE_US:
            reasons.append(
                UnsoundReason("late", f"{name} has fallen {pace.late_us / 1e6:.1f} s behind its own baseline")
            )
        if pace.jumped_us and now_us - pace.jumped_us < REFILL_US:
            jump_s = pace.jump_us / 1e6
            reasons.append(
                UnsoundReason("clock", f"the event time of {name} jumped by {jump_s:+.1f} s, windows refill")
            )
    if memory.followed_us and now_us - memory.followed_us < REFILL_US:
        reasons.append(
            UnsoundReason("clock", "event times are not trusted, or were not until recently: windows refill")
        )
    newest = max(memory.paces.values(), key=lambda pace: pace.message.arrival_us)
    # What came while this process was stopped in its read may be newer than the moment that it judges.
    passed_us = max(0, seen.now_us - newest.message.arrival_us)
    ahead_us = 0 if seen.end_us is None else seen.end_us - newest.message.event_us - passed_us
    # Windows may end ahead of a message that is late, by as much; all the rest is a clock that they should not go by.
    in_time = newest.message.event_us >= 0 and newest.late_us <= LATE_US
    if in_time and not -LATE_US - STEP_US <= ahead_us <= newest.late_us + STEP_US:
        ahead_s = ahead_us / 1e6
        reasons.append(UnsoundReason("clock", f"windows end {ahead_s:+.1f} s from the newest message"))
    return reasons


def _disagreeing(memory: Memory, seen: MarketObservation, now_us: int) -> list[UnsoundReason]:
    reasons = []
    if seen.levels:
        reasons.append(UnsoundReason("disagree", seen.levels))
    if seen.streamed_best is not None and seen.bba_id > seen.update_id:
        bid, ask = seen.streamed_best
        if min(bid, ask) <= 0:
            reasons.append(UnsoundReason("disagree", "by the newest bestBidAsk a side of the book is empty"))
        elif bid >= ask:
            reasons.append(UnsoundReason("disagree", f"best bid {bid} at or above best ask {ask}"))
    trade_us = memory.paces["trade"].message.arrival_us
    if seen.trade_price is not None and memory.ranges and now_us - trade_us <= WINDOW_US:
        low = min(entry[1] for entry in memory.ranges) * (1 - RANGE_MARGIN)
        high = max(entry[2] for entry in memory.ranges) * (1 + RANGE_MARGIN)
        if not low <= seen.trade_price <= high:
            text = f"the last trade at {seen.trade_price:g} is outside of {low:g} to {high:g}, where the book has been"
            reasons.append(UnsoundReason("disagree", text))
    return reasons


def _quiet(memory: Memory, seen: MarketObservation, now_us: int) -> tuple[str, str, int]:
    """Give what is reported of trades that stay away, why to validate it, and when that becomes a doubt."""
    pace = memory.paces["trade"]
    last_us = max(pace.message.arrival_us, memory.resumed_us, memory.began_us if pace.message.id < 0 else 0)
    quiet_us, ask_us = last_us + pace.quiet_after_us, last_us + pace.ask_after_us
    confirmed = seen.validated_us > last_us
    lasted_us = min(seen.validated_us - last_us, QUIET_MAX_US)
    recheck_us = seen.validated_us + max(RECHECK_US, pace.quiet_after_us, lasted_us) if confirmed else ask_us
    doubted_us = max(quiet_us, recheck_us) + ANSWER_US
    # With the whole feed silent there is nothing to compare trades with: the state is stale by then.
    if now_us < ask_us or now_us - memory.heard_us > STALE_AFTER_US:
        return "", "", doubted_us if now_us < ask_us else max(doubted_us, now_us + 1)
    usual = f"usual are {pace.gap_us / 1e6:.1f} s" if pace.moments >= MOMENTS_MIN else "what is usual is not known yet"
    quiet = f"trade: none has come {_for(last_us, now_us)}, {usual}"
    return quiet, quiet if now_us >= recheck_us else "", doubted_us

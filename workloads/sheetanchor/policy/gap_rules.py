"""The gap rules: data, and pure functions that apply them to what a processor has read.

A rule finds that something is missing or wrong, says how bad that is and what it asks for. Rules whose `suspects` is
true also make the hot state suspect at once; the others only ask, because what is held may well be right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from sheetanchor.contract import Gap

IMMEDIATE: Final = "immediate_reanchor"
SCHEDULED: Final = "scheduled_reanchor"
VALIDATION: Final = "validation_reanchor"
EMERGENCY: Final = "emergency_reanchor"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a finding means.

    Attributes:
        condition: When it applies, in words; thresholds are settings.
        severity: low, medium, high or critical.
        action: What is asked for: emergency goes before everything, immediate starts now, scheduled waits for others,
            validation compares with the exchange and rebuilds only on a difference.
        suspects: Whether the state is suspect from that moment.
    """

    condition: str
    severity: str
    action: str
    suspects: bool


GAP_DETECTION_RULES: Final[dict[str, Rule]] = {
    "sequence_gap": Rule("an update or trade id is missing on every live line", "high", IMMEDIATE, True),
    "sequence_reset": Rule("frames arrive but their ids are below what is held", "high", IMMEDIATE, True),
    "time_gap": Rule("no event on any line for more than time_gap_s", "medium", SCHEDULED, False),
    "stream_missing": Rule("a stream is silent while others move", "high", VALIDATION, False),
    "feed_late": Rule("a stream falls behind its own baseline by more than 2 s", "medium", VALIDATION, False),
    "clock_jump": Rule("the exchange's or Redis' clock was set", "low", VALIDATION, False),
    "trades_quiet": Rule("no trade for far longer than their own rhythm", "low", VALIDATION, False),
    "volume_anomaly": Rule(
        "volume of five seconds more than volume_sigmas standard deviations from its mean", "low", VALIDATION, False
    ),
    "price_discontinuity": Rule("the mid price jumps by more than price_jump", "high", IMMEDIATE, True),
    "connection_loss": Rule("a line has no connection for more than connection_loss_s", "critical", EMERGENCY, False),
    "redis_failover": Rule("Redis has lost writes that it had acknowledged", "high", IMMEDIATE, True),
    "book_crossed": Rule("best bid at or above best ask after an update", "high", IMMEDIATE, True),
    "book_mismatch": Rule("a top-20 snapshot of the feed disagrees with the book", "high", IMMEDIATE, True),
    "book_edge": Rule("the price nears levels that the last snapshot did not hold", "medium", IMMEDIATE, False),
    "book_beyond": Rule("the hot levels lie beyond what the last snapshot held", "high", IMMEDIATE, True),
    "book_unreadable": Rule("the stored book is missing, damaged or of another epoch", "high", IMMEDIATE, True),
}

CONSEQUENCES: Final = frozenset({"book_crossed", "book_mismatch"})
"""What a book in doubt may well show: it deepens the doubt, but is no gap of its own."""

SILENT_LINE_US: Final = 10_000_000
"""A line without an entry for this long is not waited for. In a quiet market both lines may say nothing for seconds; to
wait 200 ms for a line that is closed costs little, not to wait for one that is open would be a false gap."""

RESET_AFTER_US: Final = 2_000_000
"""Frames that move nothing for this long are not late duplicates any more: lines differ by milliseconds."""

SILENCE_COUNTS_US: Final = 500_000
"""What a silence between two such frames counts at most: while nothing arrives, nothing can move an id."""

VOLUME_BUCKET_US: Final = 5_000_000
VOLUME_BUCKETS_MIN: Final = 60
VOLUME_BUCKETS_MAX: Final = 120
"""Volume is compared with the last ten minutes, and not before there are five: volumes are so unevenly spread that in a
minute's worth one busy moment of a sound market passes for an anomaly, six times in the six minutes of the recording.
"""

PRICE_REFERENCE_US: Final = 5_000_000
"""A price that is older than this is no reference: the time gap rule has reported by then."""

MissingRange = tuple[int, int, int, int]
"""Expected id, found id, stamp of the first frame beyond it, bit per line that is beyond it."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When the rules apply.

    Attributes:
        gap_threshold: Missing ranges in a row that make a sequence gap.
        gap_wait_us: How long a missing range may wait for another line to fill it.
        time_gap_us: Longest silence.
        volume_sigmas: Standard deviations.
        price_jump: Relative change.
        suppressed: Rules that are ignored.
    """

    gap_threshold: int = 1
    gap_wait_us: int = 200_000
    time_gap_us: int = 5_000_000
    volume_sigmas: float = 3.0
    price_jump: float = 0.01
    suppressed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule applies.

    Attributes:
        reason: One line for people.
        cure_id: A rebuild below this update id does not help; 0 if any does.
    """

    rule: str
    reason: str
    cure_id: int = 0


EDGE_LEVELS: Final = 20
"""Known levels a side below which a new snapshot is asked for: twice what the hot state shows, while it is still right.
REST gives at most 5,000 levels a side, and what lies beyond is unknown until it changes."""

EDGE_CUT_OFF_MIN: Final = 50
"""With a snapshot of fewer levels the edge is always near, and a rebuild no cure: the rules about it do not apply."""

HOT_LEVELS: Final = 10
"""Levels a side that the hot state shows and features read."""


def gap_of(finding: Finding, symbol: str, source: str, at_us: int, epoch: int) -> Gap:
    """Render a finding as the event that goes to the stream of gaps."""
    rule = GAP_DETECTION_RULES[finding.rule]
    return Gap(symbol, finding.rule, rule.severity, rule.action, finding.reason, source, at_us, epoch)


def is_final(missing: MissingRange, live_lines: int, now_us: int, wait_us: int) -> bool:
    """Say whether no line can be expected to fill a missing range any more.

    Args:
        missing: Expected id, found id, stamp of the first frame beyond it, bit per line that is beyond it.
        live_lines: Bit per line that brings entries.
        now_us: Redis' clock.
        wait_us: How long to wait for a line that has not passed.
    """
    _, _, since_us, lines_past = missing
    return live_lines & ~lines_past == 0 or now_us - since_us >= wait_us


@dataclass(frozen=True, slots=True)
class Sequence:
    """Missing ranges in the ids of one stream: how many in a row. A message in sequence begins again."""

    in_a_row: int = 0

    def missing(self, stream: str, missing: MissingRange, threshold: int) -> tuple[Sequence, Finding | None]:
        """Take in a final missing range."""
        expected, found, _, _ = missing
        after = Sequence(self.in_a_row + 1)
        if after.in_a_row < threshold:
            return after, None
        reason = f"Sequence gap detected: {stream} {expected - 1} → {found}"
        return Sequence(), Finding("sequence_gap", reason, found - 1 if stream == "depth" else 0)

    def sound(self) -> Sequence:
        """Take in messages in sequence."""
        return Sequence() if self.in_a_row else self


@dataclass(frozen=True, slots=True)
class Silence:
    """How long nothing has come, and whether that has been reported."""

    reported: bool = False

    def check(self, last_us: int, now_us: int, limit_us: int) -> tuple[Silence, Finding | None]:
        """Compare the last event's stamp with Redis' clock."""
        quiet_us = now_us - last_us
        if quiet_us <= limit_us:
            return Silence(), None
        if self.reported:
            return self, None
        return Silence(reported=True), Finding("time_gap", f"Time gap detected: {quiet_us / 1e6:.2f} seconds")


@dataclass(frozen=True, slots=True)
class Price:
    """The last price seen and when; a jump is reported once, the new price is the reference from then on."""

    last: float = 0.0
    at_us: int = 0

    def check(self, price: float | None, at_us: int, limit: float) -> tuple[Price, Finding | None]:
        """Compare a price with the one before."""
        if price is None or price <= 0 or not math.isfinite(price):
            return self, None
        after = Price(price, at_us)
        if self.last <= 0 or at_us - self.at_us > PRICE_REFERENCE_US:
            return after, None
        change = price / self.last - 1
        if abs(change) <= limit:
            return after, None
        return after, Finding("price_discontinuity", f"price {self.last:.2f} → {price:.2f} ({change:+.3%})")


@dataclass(frozen=True, slots=True)
class Edge:
    """What has been found about the end of a book; each rule reports once, however the price swings about it."""

    reported: frozenset[str] = frozenset()

    def check(self, known: int) -> tuple[Edge, Finding | None]:
        """Take in the number of known levels among the best `EDGE_LEVELS` of the side that has fewer."""
        rule = "book_edge" if known >= HOT_LEVELS else "book_beyond"
        if known >= EDGE_LEVELS or rule in self.reported:
            return self, None
        reason = f"of the best {EDGE_LEVELS} levels of a side only {known} are within what the last snapshot held"
        return Edge(self.reported | {rule}), Finding(rule, reason)


@dataclass(frozen=True, slots=True)
class Volume:
    """Volumes of the last five-second spans."""

    history: tuple[float, ...] = ()
    reported: bool = False

    def check(self, volume: float, sigmas: float) -> tuple[Volume, Finding | None]:
        """Compare the volume of a complete span with those before it."""
        after = replace(self, history=(*self.history[-(VOLUME_BUCKETS_MAX - 1) :], volume))
        if not is_anomalous(volume, self.history, sigmas):
            return replace(after, reported=False), None
        if self.reported:
            return after, None
        mean = sum(self.history) / len(self.history)
        reason = f"volume {volume:.4g} in 5 s, expected about {mean:.4g}"
        return replace(after, reported=True), Finding("volume_anomaly", reason)


def is_anomalous(volume: float, history: Iterable[float], sigmas: float) -> bool:
    """Say whether a volume is more than so many standard deviations off the mean of its history."""
    past = tuple(history)
    if len(past) < VOLUME_BUCKETS_MIN:
        return False
    mean = sum(past) / len(past)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in past) / len(past))
    return deviation > 0 and abs(volume - mean) > sigmas * deviation


@dataclass(frozen=True, slots=True)
class Progress:
    """Whether the ids move while frames arrive.

    Attributes:
        marks: Update id, best-price id and trade id when they last moved.
        frames_us: Stamp of the newest entry at that moment.
        stuck_us: Stamp of the newest entry since then that moved nothing; 0 before there is one.
        spent_us: For how long entries have moved nothing; a silence between two of them counts as `SILENCE_COUNTS_US`.
    """

    marks: tuple[int, int, int] = (-1, -1, -1)
    frames_us: int = 0
    stuck_us: int = 0
    spent_us: int = 0
    reported: bool = False

    def check(self, marks: tuple[int, int, int], frames_us: int) -> tuple[Progress, Finding | None]:
        """Compare the ids held with those held before.

        Args:
            marks: Update id, best-price id and trade id.
            frames_us: Stamp of the newest entry that brought frames.
        """
        if marks != self.marks:
            return Progress(marks, frames_us), None
        if frames_us <= max(self.frames_us, self.stuck_us) or self.reported:
            return self, None
        # Another line's copy is the last entry before a pause of Redis, and old frames that are appended again are the
        # first ones after it: in between nothing has arrived.
        passed_us = min(frames_us - self.stuck_us, SILENCE_COUNTS_US) if self.stuck_us else 0
        after = replace(self, stuck_us=frames_us, spent_us=self.spent_us + passed_us)
        if after.spent_us < RESET_AFTER_US:
            return after, None
        reason = f"frames have arrived for {after.spent_us / 1e6:.1f} s with ids at or below {marks[0]}"
        return replace(after, reported=True), Finding("sequence_reset", reason)

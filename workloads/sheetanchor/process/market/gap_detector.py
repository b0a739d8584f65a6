"""Applies the gap rules and the rules of soundness to a market as it moves. Pure; time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sheetanchor._decoder import Market
from sheetanchor.policy import soundness
from sheetanchor.policy.gap_rules import (
    EDGE_CUT_OFF_MIN,
    EDGE_LEVELS,
    SILENT_LINE_US,
    VOLUME_BUCKET_US,
    Edge,
    Finding,
    Price,
    Progress,
    Sequence,
    Silence,
    Thresholds,
    Volume,
    is_final,
)

DAY_US: Final = 86_400_000_000

LEVELS_CHECKED: Final = 10
"""Levels a side that are checked for order and sign: those that the hot state shows."""

RULES_OF_REASONS: Final = {"missing": "stream_missing", "late": "feed_late", "clock": "clock_jump"}
"""Gap rules that report reasons for unsoundness; others have rules of their own or concern this process alone."""

EDGE_EVERY_US: Final = 100_000
"""Levels are counted this often: diffs come no more often than that in bulk, and counting at each would cost more."""


@dataclass(frozen=True, slots=True)
class DetectorContext:
    """What surrounds a market at a moment, on a steady clock.

    Attributes:
        now_us: The moment.
        frames_us: Stamp of the newest entry of any line; 0 before the first.
        live_lines: Bit per line that has delivered an entry recently.
        caught_up: False while entries of some line may still be unread: one of them may fill a missing range.
        undated: Whether it is not known when the newest entries were appended.
        validated_us: When the last validation began that found the exchange's trade ids to be ours; 0 for never.
        clock_jumps: How often Redis' clock was found to have jumped.
        awaits_lines: Whether lines still bring what was lost in a failover or has waited for its end: it may fill a
            missing range, and when it came says nothing about the feed.
    """

    now_us: int
    frames_us: int
    live_lines: int
    caught_up: bool
    undated: bool = False
    validated_us: int = 0
    clock_jumps: int = 0
    awaits_lines: bool = False


def observed(market: Market, context: DetectorContext) -> soundness.MarketObservation:
    """Give what the soundness of a market is judged by."""
    newest_messages = {
        name: soundness.NewestMessage(*message[:4]) for name, message in market.newest_messages().items()
    }
    bids, asks = market.top(LEVELS_CHECKED)
    unit = 10.0**market.price_exponent
    reported = market.quoted_best
    return soundness.MarketObservation(
        now_us=context.now_us,
        newest_messages=newest_messages,
        update_id=market.update_id,
        bba_id=market.bba_id,
        book_best=(bids[0][0] * unit, asks[0][0] * unit) if bids and asks else None,
        streamed_best=(reported[0] * unit, reported[1] * unit) if reported else None,
        levels=soundness.levels_fault(bids, asks),
        best_confirmed=market.best_confirmed,
        trade_id=market.trade_id,
        trades_missing=market.missing_trades(context.now_us, soundness.WINDOW_US),
        # A market that was loaded and has been fed nothing since has no windows whose end could be compared.
        end_us=market.event_us + max(0, context.now_us - market.stamp_us) if market.stamp_us else None,
        clock_steps=market.clock_steps,
        clock_untrusted=market.clock_untrusted,
        misdated_trades=market.misdated_trades,
        trade_price=market.last_trade_price,
        has_book=market.has_book,
        read_us=context.now_us,
        undated=context.undated,
        validated_us=context.validated_us,
    )


def live_lines(last_entry_us: dict[int, int], now_us: int) -> int:
    """Give a bit per line that has brought an entry recently."""
    return sum(1 << line for line, at_us in last_entry_us.items() if now_us - at_us <= SILENT_LINE_US)


@dataclass(slots=True)
class GapDetector:
    """The state of all rules for one symbol.

    Args:
        thresholds: When the rules apply.
        since_us: When watching began; silence is counted from here.

    Attributes:
        event_stamp_us: When the newest message came that moved any id.
        memory: What soundness is judged by.
        verdict: What was last found of it.
        behind: Per line and stream that lags behind another line, since when.
        passed: Missing ranges that were skipped in the market since it was loaded, also those that made no gap.
    """

    thresholds: Thresholds
    since_us: int
    event_stamp_us: int = 0
    memory: soundness.Memory = field(default_factory=soundness.Memory)
    verdict: soundness.Soundness = field(default_factory=lambda: soundness.judge(soundness.Memory(), 0))
    behind: dict[tuple[int, str], int] = field(default_factory=dict)
    passed: int = 0
    _lines: set[int] = field(default_factory=set)
    _line_stamps: dict[tuple[int, str], int] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)
    _asked_us: int = 0
    _late_since_us: int = 0
    _late_asked_us: int = 0
    _clock_jumps: int = 0
    _gaps_today: int = 0
    _day: int = 0
    _depth: Sequence = field(default_factory=Sequence)
    _trades: Sequence = field(default_factory=Sequence)
    _silence: Silence = field(default_factory=Silence)
    _price: Price = field(default_factory=Price)
    _edge: Edge = field(default_factory=Edge)
    _edge_at_us: int = 0
    _volume: Volume = field(default_factory=Volume)
    _progress: Progress = field(default_factory=Progress)
    _bucket_end_us: int = 0
    _crossed: bool = False
    _mismatches: int = 0

    def reload(self, market: Market, now_us: int) -> None:
        """Begin again with a rebuilt or loaded market; what was learnt about volume stays."""
        self._depth, self._trades = Sequence(), Sequence()
        self._price, self._progress = Price(), Progress()
        self._edge, self._edge_at_us = Edge(), 0
        self._crossed = False
        self.passed = 0
        self._mismatches = market.counters()["depth20_mismatches"]
        self.since_us = now_us
        self.memory = soundness.reloaded(self.memory, market.trade_id, now_us)
        self._lines.clear()
        self._line_stamps.clear()
        self.behind.clear()

    def apply_rules(self, market: Market, context: DetectorContext) -> list[Finding]:
        """Apply every rule.

        Missing ranges that are final are skipped in the market, whether they make a gap or not.

        Returns:
            What was found, the suppressed rules left out.
        """
        marks = (market.update_id, market.bba_id, market.trade_id)
        found = self._missing_ranges(market, context)
        if market.has_book:  # before the first anchor there is nothing that could be lost or stand still
            found += [
                self._check_time(marks, context),
                self._check_silence(context),
                self._check_price(market, context),
            ]
            found += [self._check_crossing(market), self._check_top(market), self._check_edge(market, context)]
        found.append(self._check_volume(market))
        found += self._check_soundness(market, context)
        return [finding for finding in found if finding and finding.rule not in self.thresholds.suppressed]

    def _missing_ranges(self, market: Market, context: DetectorContext) -> list[Finding | None]:
        if not context.caught_up or context.awaits_lines:
            return []
        found: list[Finding | None] = []
        self._depth = self._follow("depth", self._depth, market, context, found)
        self._trades = self._follow("trade", self._trades, market, context, found)
        return found

    def _follow(
        self, stream: str, sequence: Sequence, market: Market, context: DetectorContext, found: list[Finding | None]
    ) -> Sequence:
        """Skip every final missing range of a stream; behind one there may be another."""
        passed = False
        while missing := market.depth_gap if stream == "depth" else market.trade_gap:
            if not is_final(missing, context.live_lines, context.now_us, self.thresholds.gap_wait_us):
                return sequence
            sequence, finding = sequence.missing(stream, missing, self.thresholds.gap_threshold)
            found.append(finding)
            if stream == "depth":
                market.skip_depth_gap()
            else:
                market.skip_trade_gap()
                self.memory = soundness.trades_lost(self.memory, context.now_us)
            passed = True
            self.passed += 1
        return sequence if passed else sequence.sound()

    def _check_time(self, marks: tuple[int, int, int], context: DetectorContext) -> Finding | None:
        if context.awaits_lines:  # what comes again has known ids, and what waited for Redis comes all at once
            self._progress = Progress()
            return None
        if not context.caught_up:  # a replay after a rebuild brings seconds of frames whose ids are known
            return None
        self._progress, finding = self._progress.check(marks, context.frames_us)
        return finding

    def _check_silence(self, context: DetectorContext) -> Finding | None:
        if not context.caught_up:  # there is more to read; during a replay the last entry read is an old one
            return None
        last_us = max(context.frames_us, self.since_us)
        self._silence, finding = self._silence.check(last_us, context.now_us, self.thresholds.time_gap_us)
        return finding

    def _check_price(self, market: Market, context: DetectorContext) -> Finding | None:
        self._price, finding = self._price.check(market.mid, context.now_us, self.thresholds.price_jump)
        return finding

    def _check_crossing(self, market: Market) -> Finding | None:
        before, self._crossed = self._crossed, market.crossed
        if not self._crossed or before:
            return None
        (bid,), (ask,) = market.top(1)
        return Finding("book_crossed", f"book crossed: best bid {bid[0]} at or above best ask {ask[0]} (mantissas)")

    def _check_top(self, market: Market) -> Finding | None:
        mismatches = market.counters()["depth20_mismatches"]
        before, self._mismatches = self._mismatches, mismatches
        if mismatches <= before:
            return None
        return Finding("book_mismatch", f"the top 20 levels of the feed differ from the book at {market.update_id}")

    def _check_edge(self, market: Market, context: DetectorContext) -> Finding | None:
        if market.cut_off < EDGE_CUT_OFF_MIN or 0 <= context.now_us - self._edge_at_us < EDGE_EVERY_US:
            return None
        self._edge_at_us = context.now_us
        self._edge, finding = self._edge.check(market.known_levels(EDGE_LEVELS))
        return finding

    def _check_volume(self, market: Market) -> Finding | None:
        event_us = market.event_us
        if event_us < self._bucket_end_us or event_us < 0:
            return None
        last_end_us = self._bucket_end_us
        self._bucket_end_us = event_us - event_us % VOLUME_BUCKET_US + VOLUME_BUCKET_US
        if last_end_us == 0 or self._bucket_end_us - last_end_us > VOLUME_BUCKET_US:
            return None  # the first span is cut short, and one that was not watched to its end has no volume
        volume = market.volume_between(last_end_us - VOLUME_BUCKET_US, last_end_us)
        self._volume, finding = self._volume.check(volume, self.thresholds.volume_sigmas)
        return finding

    def _check_soundness(self, market: Market, context: DetectorContext) -> list[Finding]:
        """Take in an observation; report each kind of reason once until it has gone."""
        if context.awaits_lines:  # frames that waited for Redis are late by its absence, not by the feed's
            self.judge(context.now_us)
            return []
        if context.caught_up:  # half a replay is no state of the market
            self.memory = soundness.observe(self.memory, observed(market, context))
            if not context.undated:
                self.event_stamp_us = max(self.event_stamp_us, self.memory.moved_us)
            self._check_lines(market, context.now_us)
        self.judge(context.now_us)
        if not market.has_book:
            return []
        found = {
            RULES_OF_REASONS[reason.kind]: Finding(RULES_OF_REASONS[reason.kind], reason.text)
            for reason in reversed(self.verdict.reasons)
            if reason.kind in RULES_OF_REASONS
        }
        if context.clock_jumps > self._clock_jumps:
            found["clock_jump"] = Finding("clock_jump", "Redis' clock was set, or a server with another clock answers")
        self._clock_jumps = context.clock_jumps
        reported, self._reported = self._reported, set(found)
        new = [finding for rule, finding in found.items() if rule not in reported]
        if "feed_late" in found and self._is_late_again(context.now_us, first="feed_late" not in reported):
            new.append(found["feed_late"])
        if self.verdict.ask and (not self._asked_us or context.now_us - self._asked_us >= soundness.RECHECK_US):
            self._asked_us = context.now_us
            new.append(Finding("trades_quiet", self.verdict.ask))
        return new

    def _is_late_again(self, now_us: int, *, first: bool) -> bool:
        """Decide whether lateness that has been reported is worth another comparison."""
        if first:
            self._late_since_us = self._late_asked_us = now_us
            return False
        wait_us = max(soundness.LATE_RECHECK_US, self._late_asked_us - self._late_since_us)
        if now_us - self._late_asked_us < wait_us:
            return False
        self._late_asked_us = now_us
        return True

    def judge(self, now_us: int, unwritten: str = "") -> soundness.Soundness:
        """Say what is wrong at a moment.

        Args:
            now_us: The moment.
            unwritten: Why the state cannot be written, "" if it can.
        """
        self.verdict = soundness.judge(self.memory, now_us, unwritten)
        return self.verdict

    def _check_lines(self, market: Market, now_us: int) -> None:
        """Note since when a line has brought nothing of a stream that has moved on another line."""
        newest_messages = market.newest_messages()
        self._lines |= {
            line for *_, stamps in newest_messages.values() for line, stamp_us in enumerate(stamps) if stamp_us
        }
        for name, (_, _, _, newest_us, stamps) in newest_messages.items():
            for line in self._lines:
                place = (line, name)
                if stamps[line] >= newest_us:
                    self.behind.pop(place, None)
                elif stamps[line] != self._line_stamps.get(place, -1):
                    self.behind[place] = now_us
                self._line_stamps[place] = stamps[line]

    def count_gap(self, now_us: int) -> None:
        """Count a gap that has been published; the count begins again at midnight UTC."""
        self._gaps_today = self._reported_today(now_us) + 1
        self._day = now_us // DAY_US

    def _reported_today(self, now_us: int) -> int:
        return self._gaps_today if now_us // DAY_US == self._day else 0

    def report(self, market: Market, now_us: int) -> dict[str, Any]:
        """Describe the detector for health answers."""
        checked = datetime.fromtimestamp(now_us / 1e6, UTC)
        return {
            "status": "monitoring",
            "last_check_time": checked.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "gaps_detected_today": self._reported_today(now_us),
            "last_sequence_id": market.update_id,
        }

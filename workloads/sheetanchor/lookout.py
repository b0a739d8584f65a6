"""What a processor looks out for: the gap rules applied to a market as it moves. Pure; time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sheetanchor._decoder import Market
from sheetanchor.gaps import (
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
    hole_is_final,
)

DAY_US: Final = 86_400_000_000

EDGE_EVERY_US: Final = 100_000
"""Levels are counted this often: diffs come no more often than that in bulk, and counting at each would cost more."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What surrounds a market at a moment, on Redis' clock.

    Attributes:
        now_us: Redis' clock.
        frames_us: Stamp of the newest entry of any line; 0 before the first.
        live_lines: Bit per line that has spoken lately.
        caught_up: False while entries of some line may still be unread: a hole may be filled by one of them.
    """

    now_us: int
    frames_us: int
    live_lines: int
    caught_up: bool


def live_lines(last_entry_us: dict[int, int], now_us: int) -> int:
    """Give a bit per line that has brought an entry of late."""
    return sum(1 << line for line, at_us in last_entry_us.items() if now_us - at_us <= SILENT_LINE_US)


@dataclass(slots=True)
class Lookout:
    """The state of all rules for one symbol.

    Args:
        thresholds: When the rules apply.
        since_us: Redis' clock when watching began; silence is counted from here.
    """

    thresholds: Thresholds
    since_us: int
    event_stamp_us: int = 0
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
        """Begin anew with a rebuilt or loaded market; what was learnt about volume stays."""
        self._depth, self._trades = Sequence(), Sequence()
        self._price, self._progress = Price(), Progress()
        self._edge, self._edge_at_us = Edge(), 0
        self._crossed = False
        self._mismatches = market.counters()["depth20_mismatches"]
        self.since_us = now_us

    def look(self, market: Market, scene: Scene) -> list[Finding]:
        """Apply every rule.

        Final holes are skipped in the market, whether they make a gap or not.

        Returns:
            What was found, the suppressed rules left out.
        """
        marks = (market.update_id, market.bba_id, market.trade_id)
        if marks != self._progress.marks and scene.frames_us:
            self.event_stamp_us = max(self.event_stamp_us, market.stamp_us)
        found = self._holes(market, scene)
        if market.has_book:  # before the first anchor there is nothing that could be lost or stand still
            found += [
                self._look_at_time(marks, scene),
                self._look_at_silence(scene),
                self._look_at_price(market, scene),
            ]
            found += [self._look_at_crossing(market), self._look_at_top(market), self._look_at_edge(market, scene)]
        found.append(self._look_at_volume(market))
        return [finding for finding in found if finding and finding.rule not in self.thresholds.suppressed]

    def _holes(self, market: Market, scene: Scene) -> list[Finding | None]:
        if not scene.caught_up:
            return []
        found: list[Finding | None] = []
        self._depth = self._follow("depth", self._depth, market, scene, found)
        self._trades = self._follow("trade", self._trades, market, scene, found)
        return found

    def _follow(
        self, stream: str, sequence: Sequence, market: Market, scene: Scene, found: list[Finding | None]
    ) -> Sequence:
        """Pass every final hole of a stream; behind one there may be another."""
        passed = False
        while hole := market.depth_hole if stream == "depth" else market.trade_hole:
            if not hole_is_final(hole, scene.live_lines, scene.now_us, self.thresholds.gap_wait_us):
                return sequence
            sequence, finding = sequence.hole(stream, hole, self.thresholds.gap_threshold)
            found.append(finding)
            if stream == "depth":
                market.skip_depth_hole()
            else:
                market.skip_trade_hole()
            passed = True
        return sequence if passed else sequence.sound()

    def _look_at_time(self, marks: tuple[int, int, int], scene: Scene) -> Finding | None:
        if not scene.caught_up:  # a replay after a rebuild brings seconds of frames whose ids are known
            return None
        self._progress, finding = self._progress.look(marks, scene.frames_us)
        return finding

    def _look_at_silence(self, scene: Scene) -> Finding | None:
        last_us = max(scene.frames_us, self.since_us)
        self._silence, finding = self._silence.look(last_us, scene.now_us, self.thresholds.time_gap_us)
        return finding

    def _look_at_price(self, market: Market, scene: Scene) -> Finding | None:
        self._price, finding = self._price.look(market.mid, scene.now_us, self.thresholds.price_jump)
        return finding

    def _look_at_crossing(self, market: Market) -> Finding | None:
        before, self._crossed = self._crossed, market.crossed
        if not self._crossed or before:
            return None
        (bid,), (ask,) = market.top(1)
        return Finding("book_crossed", f"book crossed: best bid {bid[0]} at or above best ask {ask[0]} (mantissas)")

    def _look_at_top(self, market: Market) -> Finding | None:
        mismatches = market.counters()["depth20_mismatches"]
        before, self._mismatches = self._mismatches, mismatches
        if mismatches <= before:
            return None
        return Finding("book_mismatch", f"the top 20 levels of the feed differ from the book at {market.update_id}")

    def _look_at_edge(self, market: Market, scene: Scene) -> Finding | None:
        if market.cut_off < EDGE_CUT_OFF_MIN or 0 <= scene.now_us - self._edge_at_us < EDGE_EVERY_US:
            return None
        self._edge_at_us = scene.now_us
        self._edge, finding = self._edge.look(market.known_levels(EDGE_LEVELS))
        return finding

    def _look_at_volume(self, market: Market) -> Finding | None:
        event_us = market.event_us
        if event_us < self._bucket_end_us or event_us < 0:
            return None
        last_end_us = self._bucket_end_us
        self._bucket_end_us = event_us - event_us % VOLUME_BUCKET_US + VOLUME_BUCKET_US
        if last_end_us == 0 or self._bucket_end_us - last_end_us > VOLUME_BUCKET_US:
            return None  # the first span is cut short, and spans without a view say nothing
        volume = market.volume_between(last_end_us - VOLUME_BUCKET_US, last_end_us)
        self._volume, finding = self._volume.look(volume, self.thresholds.volume_sigmas)
        return finding

    def count_gap(self, now_us: int) -> None:
        """Take note that a gap has been told; the count begins anew at midnight UTC."""
        self._gaps_today = self._told_today(now_us) + 1
        self._day = now_us // DAY_US

    def _told_today(self, now_us: int) -> int:
        return self._gaps_today if now_us // DAY_US == self._day else 0

    def report(self, market: Market, now_us: int) -> dict[str, Any]:
        """Describe the detector for health answers."""
        checked = datetime.fromtimestamp(now_us / 1e6, UTC)
        return {
            "status": "monitoring",
            "last_check_time": checked.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "gaps_detected_today": self._told_today(now_us),
            "last_sequence_id": market.update_id,
        }

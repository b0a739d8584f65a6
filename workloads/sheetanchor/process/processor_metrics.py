"""What one symbol's processor shows on `/metrics`, and the log lines that go with a counter that has risen."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from sheetanchor.contract import STREAM_TYPES
from sheetanchor.policy.soundness import REASON_KINDS, Soundness
from sheetanchor.runtime import metrics

log = logging.getLogger(__name__)

LEFT_OUT = frozenset({"bad_value", "foreign_symbol", "pending_overflow"})
"""Counters of the market that count frames it could not use, besides those of decoding errors."""


def left_out(counters: Mapping[str, int]) -> int:
    """Count the frames that a market could not use since it was loaded."""
    return sum(count for name, count in counters.items() if name.startswith("decode_error.") or name in LEFT_OUT)


class ProcessorMetrics:
    """Exports counters of the market, which begin again with every loaded book, as counters that only rise.

    Args:
        symbol: Trading pair, the label of each series.
    """

    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._counted: Mapping[str, int] = {}
        self._clock_jumps = 0
        self._lacking: Mapping[str, Sequence[str]] = {}

    def begin(self) -> None:
        """Begin again with a loaded market, whose counters are zero."""
        self._counted = {}

    def count(self, counters: Mapping[str, int], clock_jumps: int) -> None:
        """Export what the market and the clock have counted since the last call.

        Args:
            counters: Of the market.
            clock_jumps: How often Redis' clock was found to have jumped since this process began.
        """
        for name, count in counters.items():
            if name.startswith("decode_error.") or name in LEFT_OUT:
                grown, kind = max(0, count - self._counted.get(name, 0)), name.removeprefix("decode_error.")
                metrics.DECODE_ERRORS.labels(self._symbol, kind).inc(grown)  # by zero too: a series begins there
                if grown:
                    log.warning("%s: %d frames left out: %s", self._symbol, grown, kind)
        self._counted = counters
        metrics.CLOCK_JUMPS.labels(self._symbol).inc(clock_jumps - self._clock_jumps)
        self._clock_jumps = clock_jumps

    def show_ownership(self, epoch: int, term: int, *, writes: bool) -> None:
        """Show which rebuild the market belongs to, and whether this process writes."""
        metrics.EPOCH.labels(self._symbol).set(epoch)
        metrics.TERM.labels(self._symbol).set(term)
        metrics.WRITER.labels(self._symbol).set(writes)

    def show_lines(self, lines: Collection[str], lacking: Mapping[str, Sequence[str]]) -> None:
        """Show which line is covered by another one: nothing is lost yet, but the other is the last that brings it.

        Args:
            lines: All lines.
            lacking: Lines that have long lacked a stream which another line brings, and the streams.
        """
        for line in lines:
            for stream in STREAM_TYPES:
                metrics.LINE_BEHIND.labels(self._symbol, line, stream).set(stream in lacking.get(line, ()))
        for line in lacking.keys() - self._lacking.keys():
            streams = ", ".join(lacking[line])
            log.warning("%s: line %s no longer delivers %s; another line does", self._symbol, line, streams)
        self._lacking = lacking

    def show_soundness(self, verdict: Soundness) -> None:
        """Show each kind of reason for which what is written is not sound."""
        for kind in REASON_KINDS:
            metrics.UNSOUND.labels(self._symbol, kind).set(any(reason.kind == kind for reason in verdict.reasons))

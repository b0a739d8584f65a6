"""Frames as they arrive: checked, counted, and queued per symbol. Nothing here waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import Counter

from sheetanchor._decoder import validate_frame
from sheetanchor.ingest.connection_policy import SequenceWatch
from sheetanchor.ingest.send_buffer import RESEND_BYTES_MAX, SendBuffer
from sheetanchor.runtime import metrics
from sheetanchor.sbe import (
    BEST_BID_ASK_TEMPLATE,
    DECODE_ERROR_KINDS,
    DEPTH_DIFF_TEMPLATE,
    DEPTH_SNAPSHOT_TEMPLATE,
    TRADES_TEMPLATE,
    DecodeError,
)

log = logging.getLogger(__name__)

STREAM_NAMES: Final = {
    TRADES_TEMPLATE: "trade",
    BEST_BID_ASK_TEMPLATE: "bestBidAsk",
    DEPTH_SNAPSHOT_TEMPLATE: "depth20",
    DEPTH_DIFF_TEMPLATE: "depth",
    0: "unreadable",
}
CHAINED: Final = frozenset({TRADES_TEMPLATE, DEPTH_DIFF_TEMPLATE})
"""Templates whose ids follow each other; the exchange skips best prices under load, so their ids jump."""

SHED_STREAMS: Final = ("bestBidAsk", "other")

RATE_SPAN_S: Final = 10.0

REFUSED_MAX: Final = 10
"""So many refused frames in a row are no single damaged ones: the exchange sends another schema."""


@dataclass(slots=True)
class LineCounts:
    """Counters of the line, for health and `/stats`."""

    messages: int = 0
    decode_errors: int = 0
    refused_in_row: int = 0
    decode_s: float = 0.0
    last_message_s: float | None = None
    sequence_gaps: int = 0
    reconnects: int = 0
    sent: int = 0
    failed: int = 0
    send_s: float = 0.0
    shed: int = 0
    foreign: int = 0
    rate_per_s: float = 0.0


@dataclass(slots=True)
class Channel:
    """The send buffer of one symbol, with its counters looked up once."""

    symbol: str
    buffer: SendBuffer
    received: dict[int, Counter] = field(default_factory=dict)
    shedding: bool = False

    def count(self, template: int) -> None:
        """Count a frame."""
        counter = self.received.get(template)
        if counter is None:
            counter = self.received[template] = metrics.SBE_MESSAGES.labels(self.symbol, STREAM_NAMES[template])
        counter.inc()


class FrameReceiver:
    """Takes frames from connections, checks and counts them, and queues them per symbol.

    Args:
        symbols: Trading pairs that are subscribed to.
        bytes_max: Bytes that may wait for Redis, all symbols together.
    """

    def __init__(self, symbols: Sequence[str], bytes_max: int) -> None:
        self.send_buffers = {
            symbol: SendBuffer(bytes_max // len(symbols), RESEND_BYTES_MAX // len(symbols)) for symbol in symbols
        }
        self.numbers = LineCounts()
        self.arrived = asyncio.Event()
        self._channels = {symbol: Channel(symbol, buffer) for symbol, buffer in self.send_buffers.items()}
        self._first = symbols[0]
        self._show_zeros()

    def _show_zeros(self) -> None:
        """Export every series from zero: otherwise the first event would not count as an increase."""
        for kind in DECODE_ERROR_KINDS:
            metrics.SBE_DECODE_ERRORS.labels(kind)
        for symbol in self._channels:
            for stream in SHED_STREAMS:
                metrics.FRAMES_SHED.labels(symbol, stream)
            for template in CHAINED:
                metrics.SBE_SEQUENCE_GAPS.labels(symbol, STREAM_NAMES[template])

    def take(self, frame: bytes, received_us: int, watch: SequenceWatch) -> None:
        """Check, count and queue one frame.

        A frame that cannot be decoded is passed on all the same, so that what was received can be replayed exactly. Its
        symbol is unknown: it is queued for the line's first symbol.

        Args:
            frame: The frame as received.
            received_us: Time of receipt, µs since 1970.
            watch: The ids of the connection that received it.
        """
        numbers = self.numbers
        numbers.messages += 1
        numbers.last_message_s = time.monotonic()
        started = time.perf_counter()
        try:
            template, symbol, _, first_id, last_id, count = validate_frame(frame)
        except DecodeError as error:
            numbers.decode_errors += 1
            numbers.refused_in_row += 1
            metrics.SBE_DECODE_ERRORS.labels(error.kind).inc()
            template, symbol, first_id, last_id, count = 0, self._first, 0, 0, 0
        else:
            numbers.refused_in_row = 0
        spent_s = time.perf_counter() - started
        numbers.decode_s += spent_s
        metrics.SBE_DECODE_DURATION.observe(spent_s)
        channel = self._channels.get(symbol)
        if channel is None:
            self._count_foreign(symbol)
            return
        channel.count(template)
        if watch.streams is not None and template:
            watch.streams.note(symbol, STREAM_NAMES[template], numbers.last_message_s)
        if template in CHAINED and count and watch.jumped(symbol, template, first_id, last_id):
            numbers.sequence_gaps += 1
            metrics.SBE_SEQUENCE_GAPS.labels(symbol, STREAM_NAMES[template]).inc()
        self._put(channel, frame, received_us, template)
        self.arrived.set()

    def _count_foreign(self, symbol: str) -> None:
        self.numbers.foreign += 1
        metrics.FOREIGN_FRAMES.inc()
        if self.numbers.foreign == 1:
            log.warning("a frame of %s, which is not subscribed to, was dropped; further ones are only counted", symbol)

    def _put(self, channel: Channel, frame: bytes, received_us: int, template: int) -> None:
        shed = channel.buffer.put(received_us, frame, template == BEST_BID_ASK_TEMPLATE)
        if not shed.spare and not shed.other:
            channel.shedding = channel.shedding and 2 * channel.buffer.bytes_waiting > channel.buffer.bytes_max
            return
        if not channel.shedding:
            log.error(
                "%s: the queue is full, since Redis does not accept frames fast enough: best prices are dropped first, "
                "then the oldest frames",
                channel.symbol,
            )
        channel.shedding = True
        self.numbers.shed += shed.spare + shed.other
        for stream, count in zip(SHED_STREAMS, (shed.spare, shed.other), strict=True):
            metrics.FRAMES_SHED.labels(channel.symbol, stream).inc(count)


async def measure_rate(numbers: LineCounts) -> None:
    """Keep the rate of messages up to date; until cancelled."""
    while True:
        before, began_s = numbers.messages, time.monotonic()
        await asyncio.sleep(1.0)
        rate_per_s = (numbers.messages - before) / (time.monotonic() - began_s)
        share = 1.0 / RATE_SPAN_S if numbers.rate_per_s else 1.0
        numbers.rate_per_s += share * (rate_per_s - numbers.rate_per_s)

"""Keeps a line connected: one healthy connection to the exchange, two while one replaces the other.

What to do is decided in `connection_policy`; this does it. The tries never end. An outage is reported once, as a gap,
while the tries go on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sheetanchor.contract import STREAM_TYPES, Gap
from sheetanchor.errors import ExchangeError, ExchangeRefused, RateLimited
from sheetanchor.ingest.connection_policy import (
    ConnectionAction,
    ConnectionPolicy,
    Outage,
    Replacing,
    SequenceWatch,
    Stage,
    StreamWatch,
    Tries,
    judge,
    pause_s,
)
from sheetanchor.ingest.frame_receiver import FrameReceiver
from sheetanchor.policy.gap_rules import Finding, gap_of
from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import TokenBucket
from sheetanchor.venue import TradingVenue, VenueConnection
from sheetanchor.web.server import Health

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
"""How often connections are judged; silence is measured in seconds."""

LATE_S: Final = 0.5
"""A turn that comes later than this has delayed reading too: frames that are not read yet are no silence."""

GAPS_MAX: Final = 100
"""Gap events that wait for Redis; each outage makes one per symbol, and the newest matter."""

_ENDED_HERE: Final = frozenset(
    {ConnectionAction.RETIRE, ConnectionAction.IDLE, ConnectionAction.NO_FIRST_MESSAGE, ConnectionAction.NO_PONG}
)


@dataclass(eq=False, slots=True)
class LiveConnection:
    """A connection and the task that runs it."""

    connection: VenueConnection
    task: asyncio.Task[str]
    watch: StreamWatch
    welcomed: bool = False


@dataclass(slots=True)
class ConnectionSupervisor:
    """Keeps the connection of one line.

    Attributes:
        venue: The venue to connect to.
        origin: Its address, for instance `wss://host:port`.
        gaps: Gap events to publish, oldest first.
        connected: Whether there is a healthy connection.
        streams: Stream types that are subscribed to, of every symbol.
        lacking: `(symbol, stream)` pairs of which a live connection brings nothing.
        last_error: Why the last try failed; "" after a successful one.
    """

    venue: TradingVenue
    origin: str
    line: str
    symbols: Sequence[str]
    api_key: str
    receiver: FrameReceiver
    policy: ConnectionPolicy
    streams: Sequence[str] = STREAM_TYPES
    lacking: tuple[tuple[str, str], ...] = ()
    gaps: deque[Gap] = field(default_factory=lambda: deque(maxlen=GAPS_MAX))
    connected: bool = False
    last_error: str = ""
    tries: Tries = field(default_factory=Tries)
    _outage: Outage = field(default_factory=Outage)
    _live: list[LiveConnection] = field(default_factory=list)
    _closing: set[asyncio.Task[str]] = field(default_factory=set)
    _budget: TokenBucket = field(init=False)
    _next_try_s: float = 0.0
    _pause_s: float = 0.0
    _ever_healthy: bool = False
    _heard_s: float | None = None
    _turned_s: float = 0.0
    _replacing: Replacing = field(default_factory=Replacing)

    def __post_init__(self) -> None:
        self._budget = self.venue.attempt_budget(time.monotonic)

    @property
    def degraded(self) -> bool:
        """Whether the tries before degraded mode have failed; further tries follow."""
        return not self.connected and self.tries.stage(self.policy) is Stage.DEGRADED

    async def run(self, stop: asyncio.Event, health: Health) -> None:
        """Keep the line connected until `stop` is set, then close the connection."""
        self._outage = self._outage.begin(time.monotonic())
        metrics.SBE_CONNECTION_STATUS.labels(self.line).set(0)
        metrics.ALERTS.labels("SBE_RECONNECTION_FAILED")  # from 0: the first one is an increase
        try:
            while not stop.is_set():
                health.heartbeat()
                self._turn(time.monotonic())
                await asyncio.sleep(TICK_S)
        finally:
            for live in list(self._live):
                self._end(live)
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _turn(self, now_s: float) -> None:
        late, self._turned_s = now_s - self._turned_s > LATE_S, now_s
        for live in list(self._live):
            self._heard_s = max(self._heard_s or 0.0, live.connection.state.heard_s or 0.0) or None
            if live.connection.state.healthy and not live.welcomed:
                self._on_first_frame(live, now_s)
        for live in [live for live in self._live if live.task.done()]:
            self._on_closed(live, now_s)
        self._reinstate()
        replacing = not late and self._judge_all(now_s)
        replacing = self._check_lacking_streams(now_s) or replacing
        self._note_loss(now_s)
        wanted = not self._live or (replacing and len(self._live) == 1)
        if wanted and now_s >= self._next_try_s and self._budget.take():
            self._open()
        self._report_loss(now_s)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self.tries.count or self._ever_healthy:
            stage = self.tries.stage(self.policy)
            number, most = self.tries.count + 1, self.policy.immediate_tries + self.policy.backoff_tries
            level = logging.DEBUG if stage is Stage.DEGRADED or self.connected else logging.INFO
            log.log(level, "SBE connection attempt %d/%d after %.1f s delay", number, most, self._pause_s)
        streams = StreamWatch([(symbol, name) for symbol in self.symbols for name in self.streams], time.monotonic())
        watch = SequenceWatch(streams)
        connection = self.venue.connection(
            self.origin,
            self.symbols,
            self.streams,
            self.api_key,
            self.line,
            lambda frame, at_us: self.receiver.take(frame, at_us, watch),
            ask_after_s=self.policy.ask_after_s,
        )
        self._live.append(LiveConnection(connection, asyncio.create_task(connection.run()), streams))

    def _on_first_frame(self, live: LiveConnection, now_s: float) -> None:
        """Let a connection replace any other, now that the first frame was received on it."""
        live.welcomed = True
        for other in self._live:
            if other is not live and other.connection.replaced_s is None:
                other.connection.replaced_s = now_s
        if self.connected:
            log.info("SBE connection replaced by a new one")
        elif self._ever_healthy:
            self.receiver.numbers.reconnects += 1
            metrics.RECONNECTION_ATTEMPTS.labels("sbe", "success").inc()
            log.info("SBE reconnection successful")
        else:
            log.info("SBE WebSocket connected")
        self.tries, self._outage, self.last_error = Tries(), Outage(), ""
        self._next_try_s = self._pause_s = 0.0
        self.connected = self._ever_healthy = True
        metrics.SBE_CONNECTION_STATUS.labels(self.line).set(1)

    # -- closing ------------------------------------------------------------------------------------------------------

    def _judge_all(self, now_s: float) -> bool:
        """Close connections that the policy gives up.

        Returns:
            Whether a connection has to be replaced.
        """
        replacing = False
        for live in list(self._live):
            action = judge(live.connection.state, now_s, self.policy)
            if action in _ENDED_HERE:
                self._end(live)
                level = logging.INFO if action is ConnectionAction.RETIRE else logging.WARNING
                log.log(level, "connection ended: %s", action.value)
            if action is ConnectionAction.NO_FIRST_MESSAGE:
                self._failed(now_s, ExchangeError(action.value))
            replacing = replacing or action is ConnectionAction.REPLACE
        return replacing

    def _check_lacking_streams(self, now_s: float) -> bool:
        """Report which streams a live connection lacks, and which have resumed.

        Returns:
            Whether another connection is to be tried beside it: closing this one first would interrupt the others.
        """
        newest = next((live for live in reversed(self._live) if live.welcomed), None)
        if newest is None:
            return False
        lacking = tuple(newest.watch.lacking(now_s))
        for symbol, stream in lacking:
            if (symbol, stream) not in self.lacking:
                silent_s = newest.watch.silent_s(symbol, stream, now_s)
                log.warning("%s: no %s message for %.0f s, while other streams continue", symbol, stream, silent_s)
        for symbol, stream in self.lacking:
            if (symbol, stream) not in lacking:
                log.info("%s: the stream %s has resumed, or another connection is tried for it", symbol, stream)
        if lacking != self.lacking:
            self.lacking = lacking
            for symbol in self.symbols:
                for stream in self.streams:
                    metrics.SBE_STREAM_LACKING.labels(symbol, stream).set((symbol, stream) in lacking)
        if not lacking or len(self._live) > 1 or not self._replacing.due(now_s):
            return False
        self._replacing = self._replacing.done(now_s)
        return True

    def _end(self, live: LiveConnection) -> None:
        """Close a connection; its task sends the CLOSE frame."""
        self._live.remove(live)
        self._closing.add(live.task)
        live.task.add_done_callback(self._closing.discard)
        live.task.cancel()

    def _reinstate(self) -> None:
        """Keep a connection whose replacement has ended meanwhile."""
        if self._live and all(live.connection.replaced_s is not None for live in self._live):
            self._live[-1].connection.replaced_s = None

    def _on_closed(self, live: LiveConnection, now_s: float) -> None:
        """Handle a connection that has ended by itself."""
        self._live.remove(live)
        error = live.task.exception()
        if error is None:
            log.info("connection ended: %s", live.task.result())
            if not live.welcomed:
                self._failed(
                    now_s, ExchangeError(f"the connection ended before anything was received: {live.task.result()}")
                )
        elif isinstance(error, ExchangeError):
            self._failed(now_s, error)
        else:
            raise error

    def _failed(self, now_s: float, error: ExchangeError) -> None:
        """Note a failed try."""
        metrics.RECONNECTION_ATTEMPTS.labels("sbe", "failure").inc()
        if str(error) != self.last_error:  # the same error in the log every minute would hide others
            log.error("%s", error) if isinstance(error, ExchangeRefused) else log.warning("%s", error)
        self.last_error = str(error)
        self.tries = self.tries.failed()
        if self.tries.exhausted(self.policy) and not self.connected:
            log.error("All SBE reconnection attempts exhausted")
            log.error("SBE reconnection failed, entering degraded mode")
            metrics.ALERTS.labels("SBE_RECONNECTION_FAILED").inc()
        asked_s = error.retry_after_s if isinstance(error, RateLimited) else 0.0
        refused = isinstance(error, ExchangeRefused)
        self._pause_s = pause_s(self.tries, self.policy, random.random(), refused=refused, asked_s=asked_s)
        self._next_try_s = now_s + self._pause_s

    def _note_loss(self, now_s: float) -> None:
        if not self.connected or any(live.connection.state.healthy for live in self._live):
            return
        self.connected = False
        self.tries = Tries()
        self._next_try_s = self._pause_s = 0.0
        # The loss began with the last frame, not when it was noticed.
        self._outage = self._outage.begin(now_s if self._heard_s is None else self._heard_s)
        metrics.SBE_CONNECTION_STATUS.labels(self.line).set(0)
        log.warning("SBE WebSocket disconnected")
        log.info("SBE connection lost, starting recovery procedure")

    def _report_loss(self, now_s: float) -> None:
        if not self._outage.due(now_s, self.policy) or self._outage.since_s is None:
            return
        reason = f"line {self.line} has had no connection for {now_s - self._outage.since_s:.0f} s"
        log.error("connection_loss: %s", reason)
        self._outage = self._outage.mark_reported()
        for symbol in self.symbols:
            finding = Finding("connection_loss", reason)
            gap = gap_of(finding, symbol, f"ingest/{self.line}", time.time_ns() // 1_000, 0)
            self.gaps.append(gap)
            metrics.GAPS.labels(symbol, gap.rule, gap.action).inc()

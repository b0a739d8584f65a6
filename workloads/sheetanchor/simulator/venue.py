"""The exchange itself: its markets, its connections, its faults, and the tick that moves them all.

One tick takes the messages that are due, decides what each connection gets, and writes once to each; REST requests are
answered between two ticks, so from exactly the book of the last diff that was sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from sheetanchor.simulator.faults import Client, Edit, Fault, FaultBoard
from sheetanchor.simulator.limits import WeightBudget
from sheetanchor.simulator.playback.market import MarketEvent, PlaybackMarket
from sheetanchor.simulator.sessions import Session
from sheetanchor.simulator.wire import BINARY, wire_frame

log = logging.getLogger(__name__)

EVENTS_PER_TICK_MAX = 1_000
"""After so many messages of one market others get their turn; at the usual tick of 2 ms that is 500,000 a second."""


def wall_clock() -> Callable[[], int]:
    """Make a clock of wall-clock µs that never steps: today's time at the start, moved on by the monotonic clock."""
    offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
    return lambda: time.monotonic_ns() // 1000 + offset_us


class Venue:
    """The state that the server serves from.

    Args:
        markets: Markets by symbol.
        now_us: Wall clock in µs.
        start_us: When playing begins.
        weight_limit: REST weight per minute and address.
    """

    def __init__(
        self, markets: Mapping[str, PlaybackMarket], now_us: Callable[[], int], start_us: int, weight_limit: int
    ) -> None:
        self.markets = dict(markets)
        self.now_us = now_us
        self.board = FaultBoard(start_us)
        self.budget = WeightBudget(weight_limit)
        self.sessions: dict[int, Session] = {}
        self.sent = 0
        self._numbers = 0

    def next_number(self) -> int:
        """Number a new connection."""
        self._numbers += 1
        return self._numbers

    def next_due_us(self) -> int | None:
        """When the next message of any market is due; None after the last of all."""
        due = [market.next_due_us for market in self.markets.values() if market.next_due_us is not None]
        return min(due, default=None)

    def tick(self, now_us: int) -> None:
        """Begin and end faults, send due messages, and maintain connections."""
        self.tick_faults(now_us)
        events: list[MarketEvent] = []
        for market in self.markets.values():
            top = any(market.top_stream in session.streams for session in self.sessions.values())
            events += market.advance(now_us, count_max=EVENTS_PER_TICK_MAX, top=top)
        holding, silenced = self.board.active("hold"), self.board.active("silence")
        for session in list(self.sessions.values()):
            session.hold(any(fault.picks(session.client) for fault in holding))
            session.silent = any(fault.picks(session.client) for fault in silenced)
        if events:
            self.sent += len(events)
            self._broadcast(events)

    def tick_faults(self, now_us: int) -> None:
        """Begin and end faults by time."""
        for fault in self.board.tick(now_us):
            log.info("fault %d begins: %s", fault.id, fault.report())
            self._begin(fault, now_us)

    def _begin(self, fault: Fault, now_us: int) -> None:
        picked = [session for session in self.sessions.values() if fault.picks(session.client)]
        if fault.kind in ("disconnect", "shutdown"):
            for session in picked:
                if fault.kind == "disconnect":
                    session.abort("scripted disconnect")
                else:
                    session.announce_shutdown(now_us, fault.number("seconds"))
            fault.applied = len(picked)
        elif fault.kind == "hold":
            fault.applied = len(picked)
        elif fault.kind == "price_jump":
            for market in self.markets.values():
                if fault.text("symbol") in ("", market.symbol):
                    market.jump(int(fault.number("n")), fault.number("percent"))
            fault.applied = int(fault.number("n"))
        if fault.kind in ("shutdown", "price_jump") or (fault.kind == "disconnect" and fault.until_us is None):
            self.board.finish(fault)

    def _broadcast(self, events: list[MarketEvent]) -> None:
        plan = self._plan(events)
        wires = [wire_frame(BINARY, event.frame) for event in events]
        shared: dict[frozenset[str], bytes] = {}
        for session in list(self.sessions.values()):
            edits = plan.get(session.number)
            if edits or session.is_special():
                session.send_each(events, wires, edits or {})
                continue
            streams = session.streams
            if streams not in shared:
                shared[streams] = b"".join(
                    wire for wire, event in zip(wires, events, strict=True) if event.stream in streams
                )
            session.send(shared[streams])

    def _plan(self, events: list[MarketEvent]) -> dict[int, dict[int, Edit]]:
        if not self.board.live:
            return {}
        subscribers: dict[str, list[Client]] = {}
        for session in self.sessions.values():
            for stream in session.streams:
                subscribers.setdefault(stream, []).append(session.client)
        return self.board.edits(events, subscribers)

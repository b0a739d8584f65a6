"""The state of a local run, and its `Status` for the view and the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sheetanchor.local.coordinator import Coordinator
from sheetanchor.local.dashboard.probe import Probe, role_status
from sheetanchor.local.dashboard.status import StageLatency, Status, SymbolPanel, anchor_status, symbol_status
from sheetanchor.local.dashboard.tally import Tally, percentile, summary
from sheetanchor.local.processes import Child
from sheetanchor.local.relay import Relay
from sheetanchor.store.hot_records import Anchor
from sheetanchor.web.server import CheckResult

LATENCY_SLOTS: Final = 30
"""Thirty slots, a minute as for the other stages."""


@dataclass(slots=True)
class ProcessRun:
    """The progress of a run.

    Attributes:
        phase: starting, running or ending.
        stop: Set when the run has to end.
        failure: Why it has failed, "" if it has not.
        end_us: When it ends by itself, by Redis' clock; None while that is not known.
        started: When it began, on the monotonic clock, in seconds.
        clock_offset_us: Redis' clock minus ours.
    """

    phase: str = "starting"
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str = ""
    end_us: int | None = None
    started: float = field(default_factory=time.monotonic)
    clock_offset_us: int = 0

    def now_us(self) -> int:
        """Give Redis' clock as it was last observed."""
        return time.time_ns() // 1_000 + self.clock_offset_us


def slot_stage(tallies: Sequence[Tally]) -> StageLatency:
    """Give the time from slot to commit over the last minute, as recorded in the predictions."""
    latest = [list(tally.history.values())[-LATENCY_SLOTS:] for tally in tallies]
    values = [prediction.latency_ms for history in latest for prediction in history]
    p50, p95, p99 = (percentile(values, share) for share in (0.5, 0.95, 0.99))
    return StageLatency("slot to commit", p50, p95, p99, len(values))


def why_no_prediction(children: Sequence[Child], unready: Mapping[str, str], reanchor_message: str) -> str:
    """Say which process is not up, and its last error.

    Args:
        children: All processes.
        unready: Why a role is not ready, by its name.
        reanchor_message: Message of the last rebuild.
    """
    for child in children:
        if child.state != "running" or child.restarts:
            return f"{child.spec.name} is not up: {child.last_error or 'it ended without a message'}"
    if unready:
        name = next(iter(unready))
        return f"{name} is not ready: {unready[name]}"
    return f"all processes are up and ready; the last re-anchor reports: {reanchor_message or 'nothing'}"


class Board:
    """The state of a run.

    Args:
        run: Its progress.
        tallies: One per symbol.
        relay: Holds the last warnings.
        market: Kind of market: local, external or live.
    """

    def __init__(self, run: ProcessRun, tallies: list[Tally], relay: Relay, market: str) -> None:
        self.run = run
        self.tallies = tallies
        self.children: list[Child] = []
        self.coordinators: list[Coordinator] = []
        self.probe: Probe | None = None
        self.page_url = ""
        self.skill_note = ""
        self.redis_name = "external"
        self._relay = relay
        self._market = market

    @property
    def sound(self) -> bool:
        """Whether every symbol is anchored."""
        return bool(self.coordinators) and all(coordinator.anchored for coordinator in self.coordinators)

    def unsound_reason(self) -> str:
        """Say why not every symbol is anchored."""
        for coordinator in self.coordinators:
            if not coordinator.anchored:
                reason = coordinator.observed.anchor.reason if coordinator.observed is not None else ""
                return f"{coordinator.symbol}: {coordinator.last_message or reason or 'not anchored yet'}"
        return "nothing was started yet"

    def observe_clock(self) -> None:
        """Update the clock from the coordinators' last reads."""
        for coordinator in self.coordinators:
            if coordinator.clock_offset_us is not None:
                self.run.clock_offset_us = coordinator.clock_offset_us

    def summary(self) -> dict[str, Any]:
        """Build the summary as of now."""
        epochs = [c.observed.anchor.epoch for c in self.coordinators if c.observed is not None]
        return summary(self.tallies, epochs, self.run.now_us())

    def _symbols(self, now_us: int) -> list[SymbolPanel]:
        coordinators = {coordinator.symbol: coordinator for coordinator in self.coordinators}
        symbols = []
        for tally in self.tallies:
            coordinator = coordinators.get(tally.symbol)
            observed = coordinator.observed if coordinator is not None else None
            anchor = observed.anchor if observed is not None else Anchor()
            rebuilding = observed is not None and bool(observed.lock_holder)
            lines = self.probe.lines[tally.symbol] if self.probe is not None else []
            symbols.append(symbol_status(tally, anchor_status(anchor, rebuilding, now_us), lines, now_us))
        return symbols

    def status(self) -> Status:
        """Build the status for the view and the page."""
        now_us, probe = self.run.now_us(), self.probe
        measured = probe.latency.stages() if probe is not None else []
        return Status(
            now_us=now_us,
            phase=self.run.phase,
            market=self._market,
            uptime_s=time.monotonic() - self.run.started,
            ends_in_s=None if self.run.end_us is None else max(0.0, (self.run.end_us - now_us) / 1e6),
            summary=self.summary(),
            symbols=self._symbols(now_us),
            stages=[*measured, slot_stage(self.tallies)],
            roles=[role_status(child) for child in self.children],
            redis=self.redis_name,
            redis_memory_mb=None if probe is None else probe.redis_memory_mb,
            notices=list(self._relay.notices),
            page_url=self.page_url,
            skill_note=self.skill_note,
            dropped_log_lines=self._relay.dropped,
        )

    async def check_processes(self) -> CheckResult:
        """Check that every process runs."""
        states = {child.spec.name: child.state for child in self.children}
        down = [name for name, state in states.items() if state not in ("running", "starting")]
        sound = self.run.phase == "ending" or not down
        return CheckResult("healthy" if sound else "unhealthy", {"states": states})

    async def check_anchor(self) -> CheckResult:
        """Check that every symbol is anchored."""
        states = {c.symbol: c.observed.anchor.state if c.observed else "unknown" for c in self.coordinators}
        return CheckResult("healthy" if self.sound else "degraded", {"states": states})

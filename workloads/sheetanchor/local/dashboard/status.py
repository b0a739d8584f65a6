"""The status that the live view and the page show: one record of plain values, built by the supervisor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sheetanchor.contract import HORIZON_MS, Gap, Receipt, slot_start_us
from sheetanchor.local.dashboard.tally import ShownPrediction, Tally
from sheetanchor.local.relay import Notice
from sheetanchor.store.hot_records import Anchor

CHART_SLOTS: Final = 150
"""Five minutes of predictions."""


@dataclass(frozen=True, slots=True)
class LineStatus:
    """One line of ingestors.

    Attributes:
        age_ms: Time since its last entry in Redis, by Redis' clock; None if it has none.
        connected: Whether its ingestor is connected to the exchange; None if that is not known.
    """

    line: str
    age_ms: float | None
    messages_per_s: float | None
    connected: bool | None


@dataclass(frozen=True, slots=True)
class StageLatency:
    """Recent latency of one stage, in milliseconds."""

    stage: str
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    count: int


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """One process.

    Attributes:
        port: Port of its HTTP server on 127.0.0.1, 0 if it has none.
        memory_mb: Resident memory in MiB, None where the system does not say.
    """

    name: str
    pid: int
    port: int
    state: str
    restarts: int
    memory_mb: float | None


@dataclass(frozen=True, slots=True)
class AnchorStatus:
    """Whether the state can be relied on.

    Attributes:
        age_ms: Time since the last market event, by Redis' clock; None before the first.
        rebuilding: Whether a re-anchor is running.
    """

    state: str
    epoch: int
    term: int
    writer: str
    reason: str
    age_ms: float | None
    update_id: int
    rebuilding: bool


@dataclass(frozen=True, slots=True)
class SymbolPanel:
    """One symbol."""

    symbol: str
    anchor: AnchorStatus
    predictions: list[ShownPrediction]
    missed_slots: list[int]
    gaps: list[Gap]
    receipts: list[Receipt]
    lines: list[LineStatus]


@dataclass(frozen=True, slots=True)
class Status:
    """The status of the whole run at one moment.

    Attributes:
        phase: starting, running or ending.
        ends_in_s: Seconds until the run ends by itself, None if it runs on.
        summary: The summary that the run would print if it ended now.
        skill_note: Caveat about the share of right directions, "" for none.
    """

    now_us: int
    phase: str
    market: str
    uptime_s: float
    ends_in_s: float | None
    summary: dict[str, Any]
    symbols: list[SymbolPanel]
    stages: list[StageLatency]
    roles: list[RoleStatus]
    redis: str
    redis_memory_mb: float | None
    notices: list[Notice]
    page_url: str = ""
    skill_note: str = ""
    dropped_log_lines: int = 0

    def to_json(self) -> dict[str, Any]:
        """Render as plain JSON values; slots get their time in milliseconds beside their number."""
        body = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        for name in ("stages", "roles", "notices"):
            body[name] = [asdict(item) for item in body[name]]
        body["symbols"] = [_symbol_json(symbol) for symbol in self.symbols]
        return body


_PREDICTION_FIELDS: Final = tuple(spec.name for spec in fields(ShownPrediction))


def _prediction_json(prediction: ShownPrediction) -> dict[str, Any]:
    # `asdict` copies deeply, which for hundreds of flat records takes longer than everything else.
    body = {name: getattr(prediction, name) for name in _PREDICTION_FIELDS}
    time_ms = slot_start_us(prediction.slot) // 1_000
    return body | {"time_ms": time_ms, "target_ms": time_ms + HORIZON_MS}


def _symbol_json(symbol: SymbolPanel) -> dict[str, Any]:
    return {
        "symbol": symbol.symbol,
        "anchor": asdict(symbol.anchor),
        "predictions": [_prediction_json(prediction) for prediction in symbol.predictions],
        "missed": [{"slot": slot, "time_ms": slot_start_us(slot) // 1_000} for slot in symbol.missed_slots],
        "gaps": [asdict(gap) for gap in symbol.gaps],
        "receipts": [asdict(receipt) for receipt in symbol.receipts],
        "lines": [asdict(line) for line in symbol.lines],
    }


def anchor_status(anchor: Anchor, rebuilding: bool, now_us: int) -> AnchorStatus:
    """Give the status of an anchor."""
    return AnchorStatus(
        state=anchor.state,
        epoch=anchor.epoch,
        term=anchor.term,
        writer=anchor.writer,
        reason=anchor.reason,
        age_ms=max(0.0, (now_us - anchor.stamp_us) / 1_000) if anchor.stamp_us else None,
        update_id=anchor.update_id,
        rebuilding=rebuilding,
    )


def symbol_status(tally: Tally, anchor: AnchorStatus, lines: Sequence[LineStatus], now_us: int) -> SymbolPanel:
    """Give the status of a symbol, newest events first."""
    predictions = list(tally.history.values())[-CHART_SLOTS:]
    oldest = predictions[0].slot if predictions else 0
    return SymbolPanel(
        symbol=tally.symbol,
        anchor=anchor,
        predictions=predictions,
        missed_slots=[slot for slot in tally.missed_slots(now_us) if slot >= oldest],
        gaps=list(reversed(tally.recent_gaps)),
        receipts=list(reversed(tally.recent_receipts)),
        lines=list(lines),
    )

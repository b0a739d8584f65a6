"""What a processor answers to `GET /state`: the state of its symbols, from what it holds in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sheetanchor.policy.restatement import rebuild_due_us
from sheetanchor.process.ownership.writer_election import WriteRole
from sheetanchor.process.symbol_processor import SymbolProcessor


def symbol_state(processor: SymbolProcessor, lock_holder: str) -> dict[str, Any]:
    """Give the state of a symbol.

    Args:
        processor: Its processor.
        lock_holder: Who held the lock when it was last read; "" for no one.
    """
    known = processor.connected and processor.clock.known
    now_us = processor.now_us if known else 0
    anchor, active = processor.anchor, processor.role is WriteRole.WRITER
    heartbeat_us = processor.last_write_us if active else anchor.heartbeat_us
    event_age_us = processor.event_age_us if known else None
    suspect = anchor.state == "suspect"
    return {
        "active": active,
        "state": anchor.state if known else "unknown",
        "reason": anchor.reason if suspect else "",
        "unsound": "; ".join(str(reason) for reason in processor.detector.verdict.reasons) if known else "",
        "quiet": processor.detector.verdict.quiet if known else "",
        "epoch": anchor.epoch,
        "term": anchor.term,
        "writer": anchor.writer,
        "suspect_since_us": rebuild_due_us(anchor.doubt, anchor.suspect_at) if suspect else 0,
        "event_age_ms": None if event_age_us is None else event_age_us // 1_000,
        "beat_age_ms": _age_ms(heartbeat_us, now_us),
        "lock_held": bool(lock_holder),
        "lock_holder": lock_holder,
        "connected": processor.connected,
        "now_us": now_us,
    }


def _age_ms(stamp_us: int, now_us: int) -> int | None:
    return max(0, now_us - stamp_us) // 1_000 if stamp_us and now_us else None


def state_route(
    replica: str, processors: Sequence[SymbolProcessor], lock_holders: Mapping[str, str]
) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Make the function behind the route."""

    async def state() -> dict[str, Any]:
        symbols = {
            processor.symbol: symbol_state(processor, lock_holders.get(processor.symbol, ""))
            for processor in processors
        }
        return {"replica": replica, "symbols": symbols}

    return state

"""Records of a made-up run, for tests of what is counted and shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sheetanchor.contract import Gap, Receipt, slot_start_us
from sheetanchor.local.dashboard.status import AnchorStatus, LineStatus, RoleStatus, StageLatency, Status, symbol_status
from sheetanchor.local.dashboard.tally import ShownPrediction, Tally, summary
from sheetanchor.local.relay import Notice

FIRST_SLOT = 900_000_000


def prediction(slot: int, **changes: Any) -> ShownPrediction:
    """Make a sound prediction, committed 8 ms after its slot."""
    sound = ShownPrediction(
        slot=slot,
        committed_us=slot_start_us(slot) + 8_000,
        price_now=61_837.63,
        predicted_price=61_838.0,
        direction=1,
        confidence=0.6,
        mode="model",
        degraded=False,
        reason="",
        latency_ms=8.0,
        epoch=1,
    )
    return replace(sound, **changes)


def gap(action: str = "immediate_reanchor", rule: str = "sequence_gap", at_us: int = 0) -> Gap:
    """Make a gap record."""
    return Gap("BTCUSDT", rule, "high", action, "depth: expected 124, found 131", "process", at_us, 1)


def receipt(result: str = "swapped", exit_code: int = 0, at_us: int = 0, message: str = "") -> Receipt:
    """Make a receipt of a run of 1.2 s."""
    return Receipt(
        id="r",
        symbol="BTCUSDT",
        reason="start",
        trigger="start",
        result=result,
        started_at_us=at_us - 1_200_000,
        finished_at_us=at_us,
        epoch_before=0,
        epoch_after=1,
        snapshot_id=100,
        update_id=120,
        exit_code=exit_code,
        message=message,
        phases={"lock": 0.01, "fetch": 0.3},
    )


def full_tally(slots: int, symbol: str = "BTCUSDT") -> Tally:
    """Make a tally with every second direction right, one slot missed, one gap and one rebuild."""
    tally = Tally(symbol)
    for number in range(slots):
        if number != slots // 2:
            price = 61_800.0 + number
            direction = 1 if number % 2 else -1
            tally.add_prediction(prediction(FIRST_SLOT + number, price_now=price, direction=direction))
    tally.add_gap(gap(at_us=slot_start_us(FIRST_SLOT + 1)))
    tally.add_receipt(receipt(at_us=slot_start_us(FIRST_SLOT) - 1))
    return tally


def full_status(slots: int = 60, symbols: tuple[str, ...] = ("BTCUSDT",), text: str = "connection lost") -> Status:
    """Make a status with something in every part of it.

    Args:
        slots: Length of the run.
        symbols: Trading pairs.
        text: What the last warning says.
    """
    now_us = slot_start_us(FIRST_SLOT + slots)
    tallies = [full_tally(slots, symbol) for symbol in symbols]
    anchor = AnchorStatus("anchored", 3, 2, "host:1234", "", 42.0, 51_234_567, False)
    lines = [LineStatus("a", 12.0, 431.2, True), LineStatus("b", 1_800.0, 0.0, False)]
    names = ("redis", "exchange", "ingest/a", "ingest/b", "process", "infer/1", "infer/2")
    return Status(
        now_us=now_us,
        phase="running",
        market="local",
        uptime_s=3_725.0,
        ends_in_s=57.0,
        summary=summary(tallies, [3], now_us),
        symbols=[symbol_status(tally, anchor, lines, now_us) for tally in tallies],
        stages=[StageLatency("frame to hot keys", 2.3, 7.0, 12.0, 900)],
        roles=[RoleStatus(name, 1_000 + i, 40_000 + i, "running", i % 2, 50.0) for i, name in enumerate(names)],
        redis="valkey 9.1.0",
        redis_memory_mb=81.2,
        notices=[Notice(now_us - 5_000_000, "ingest/b", "warning", text)],
        page_url="http://127.0.0.1:8080/",
        skill_note="the model was trained on this recording",
    )

"""A recording prepared to be played, once or in a loop. Pure.

Played in a loop, the market must not jump: at the seam one diff changes the final book into the starting book, and ids
of the next pass continue those of the last, so that a client only sees an unusually large diff.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from sheetanchor import sbe
from sheetanchor.errors import BadRecording
from sheetanchor.recording.recording_file import Recording
from sheetanchor.simulator.playback.book import Book, changes

Kind = Literal["trade", "bestBidAsk", "depth", "depth20"]
KINDS: Final[tuple[Kind, ...]] = ("trade", "bestBidAsk", "depth", "depth20")

SEAM_US: Final = 25_000
"""Pause before and after the seam's diff: about the distance of two ordinary diffs."""

_ONE = struct.Struct("<q")
_TWO = struct.Struct("<qq")
_THREE = struct.Struct("<qqq")
_TRADE = struct.Struct("<qqqB")
_BODY_AT = 8
_TRADES_AT = 32
_LEVELS_MAX = 65_534


@dataclass(frozen=True, slots=True)
class ScriptStep:
    """One message of the script.

    Attributes:
        due_us: When it is sent, µs since the script's beginning.
        event_us: Its event time on the same scale.
        first_id: First update or trade id in it.
        last_id: Last update or trade id in it; equal to the first for a best bid and ask.
        lag_us: Event time less transact time, for trades.
    """

    kind: Kind
    due_us: int
    event_us: int
    first_id: int
    last_id: int
    lag_us: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Script:
    """All messages in order, and how ids and times move from one pass to the next.

    Attributes:
        start: Book that the steps continue from.
        duration_us: Length of one pass with its seam.
        seam: The messages that end a pass when another follows.
        id_shift: How much update ids rise from pass to pass.
        trade_shift: The same for trade ids.
    """

    symbol: str
    price_exponent: int
    qty_exponent: int
    start: Book
    steps: tuple[ScriptStep, ...]
    seam: tuple[ScriptStep, ...]
    duration_us: int
    id_shift: int
    trade_shift: int


def begin_at(recording: Recording, at_us: int) -> Recording:
    """Give the part of a recording from a moment on, with the book of that moment as its start.

    Args:
        recording: The whole recording.
        at_us: µs on the recorder's clock; up to the snapshot's own time nothing is cut.

    Raises:
        BadRecording: Nothing was recorded after that moment.
    """
    if at_us <= recording.snapshot_us:
        return recording
    snapshot = recording.snapshot
    book = Book(snapshot.bids, snapshot.asks, snapshot.book_update_id)
    event_us, rest = snapshot.event_time_us, []
    for received_us, frame in recording.events:
        if received_us >= at_us:
            rest.append((received_us, frame))
            continue
        message = sbe.decode(frame)
        if isinstance(message, sbe.DepthDiff):
            book.apply(frame, message.last_update_id)
            event_us = message.event_time_us
    kept = [(received_us, frame) for received_us, frame in rest if _is_later(sbe.decode(frame), book.update_id)]
    if not kept:
        raise BadRecording(
            f"begin_at = {at_us / 1e6:.3f}: expected a moment within the recording of {recording.symbol}"
        )
    bids, asks = book.top(max(len(book.bids), len(book.asks)))
    start = replace(snapshot, event_time_us=event_us, book_update_id=book.update_id, bids=tuple(bids), asks=tuple(asks))
    return replace(recording, snapshot=start, snapshot_us=at_us, events=kept)


def _is_later(message: sbe.Message, update_id: int) -> bool:
    return not isinstance(message, sbe.BestBidAsk) or message.book_update_id > update_id


def prepare(recording: Recording) -> Script:
    """Prepare a recording to be played.

    Raises:
        BadRecording: Its exponents change on the way, a trades frame is empty, or the books at both ends are too
            different for one diff.
    """
    snapshot = recording.snapshot
    start = Book(snapshot.bids, snapshot.asks, snapshot.book_update_id)
    decoded = [(at_us, frame, sbe.decode(frame)) for at_us, frame in recording.events]
    # The recorder's clock may be off: times are shifted so that no message is sent before its event time.
    lead_us = max(message.event_time_us - at_us for at_us, _, message in decoded)
    begin_us = min(at_us for at_us, _, _ in decoded) + lead_us
    steps = []
    joined = False
    for at_us, frame, message in decoded:
        _check(message, snapshot)
        step = _step(message, frame, at_us + lead_us - begin_us, message.event_time_us - begin_us)
        if step.kind == "depth" and not joined:
            joined = True
            if step.first_id <= start.update_id:
                # The first diff may begin before the snapshot; every later pass has to join without overlap.
                step = replace(step, first_id=start.update_id + 1)
        steps.append(step)
    return _with_seam(snapshot, start, tuple(steps))


def _check(message: sbe.Message, snapshot: sbe.DepthSnapshot) -> None:
    expected = (snapshot.price_exponent, snapshot.qty_exponent)
    found = (message.price_exponent, message.qty_exponent)
    if expected != found:
        raise BadRecording(f"{message.symbol}: expected exponents {expected} in every frame, found {found}")
    if isinstance(message, sbe.Trades) and not message.trades:
        raise BadRecording(f"{message.symbol}: expected at least one trade in every trades frame, found none")


def _step(message: sbe.Message, frame: bytes, due_us: int, event_us: int) -> ScriptStep:
    if isinstance(message, sbe.Trades):
        lag_us = max(0, message.event_time_us - message.transact_time_us)
        return ScriptStep("trade", due_us, event_us, message.trades[0][0], message.trades[-1][0], lag_us, frame)
    if isinstance(message, sbe.BestBidAsk):
        return ScriptStep("bestBidAsk", due_us, event_us, message.book_update_id, message.book_update_id, 0, frame)
    if isinstance(message, sbe.DepthDiff):
        return ScriptStep("depth", due_us, event_us, message.first_update_id, message.last_update_id, 0, frame)
    raise BadRecording(f"{message.symbol}: expected no second DepthSnapshot among the frames")


def _with_seam(snapshot: sbe.DepthSnapshot, start: Book, steps: tuple[ScriptStep, ...]) -> Script:
    end = start.copy()
    for step in steps:
        if step.kind == "depth":
            end.apply(step.frame, step.last_id)
    bids, asks = changes(end.bids, start.bids), changes(end.asks, start.asks)
    if max(len(bids), len(asks)) > _LEVELS_MAX:
        raise BadRecording(f"{snapshot.symbol}: expected at most {_LEVELS_MAX} changed levels between end and start")
    highest_id = max(step.last_id for step in steps if step.kind != "trade")
    seam_id = max(highest_id, end.update_id) + max(1, len(bids) + len(asks))
    due_us = max(step.due_us for step in steps) + SEAM_US
    diff = sbe.DepthDiff(
        event_time_us=0,
        symbol=snapshot.symbol,
        price_exponent=snapshot.price_exponent,
        qty_exponent=snapshot.qty_exponent,
        first_update_id=end.update_id + 1,
        last_update_id=seam_id,
        bids=tuple(bids),
        asks=tuple(asks),
    )
    seam = [ScriptStep("depth", due_us, due_us, diff.first_update_id, seam_id, 0, sbe.encode(diff))]
    if start.bids and start.asks:
        best = _best(snapshot, start, seam_id)
        seam.append(ScriptStep("bestBidAsk", due_us, due_us, seam_id, seam_id, 0, sbe.encode(best)))
    trade_ids = [step for step in steps if step.kind == "trade"]
    return Script(
        symbol=snapshot.symbol,
        price_exponent=snapshot.price_exponent,
        qty_exponent=snapshot.qty_exponent,
        start=start,
        steps=steps,
        seam=tuple(seam),
        duration_us=due_us + SEAM_US,
        id_shift=seam_id - start.update_id,
        trade_shift=trade_ids[-1].last_id - trade_ids[0].first_id + 1 if trade_ids else 0,
    )


def _best(snapshot: sbe.DepthSnapshot, book: Book, update_id: int) -> sbe.BestBidAsk:
    bids, asks = book.top(1)
    return sbe.BestBidAsk(
        event_time_us=0,
        symbol=snapshot.symbol,
        price_exponent=snapshot.price_exponent,
        qty_exponent=snapshot.qty_exponent,
        book_update_id=update_id,
        bid_price=bids[0][0],
        bid_qty=bids[0][1],
        ask_price=asks[0][0],
        ask_qty=asks[0][1],
    )


def passes(script: Script, *, loop: bool) -> Iterator[tuple[int, ScriptStep]]:
    """Yield `(number of the pass, step)` in the order of sending; without end when looping."""
    number = 0
    while True:
        for step in script.steps:
            yield number, step
        if not loop:
            return
        for step in script.seam:
            yield number, step
        number += 1


def moved(step: ScriptStep, event_us: int, made_us: int, id_shift: int) -> bytearray:
    """Give a step's frame with other times and shifted ids; `made_us` is when its trades were made."""
    frame = bytearray(step.frame)
    if step.kind == "bestBidAsk":
        _TWO.pack_into(frame, _BODY_AT, event_us, step.last_id + id_shift)
    elif step.kind == "depth":
        _THREE.pack_into(frame, _BODY_AT, event_us, step.first_id + id_shift, step.last_id + id_shift)
    else:
        _TWO.pack_into(frame, _BODY_AT, event_us, made_us)
        if id_shift:
            for at in range(_TRADES_AT, _trades_end(frame), _TRADE.size):
                _ONE.pack_into(frame, at, _ONE.unpack_from(frame, at)[0] + id_shift)
    return frame


def scale_prices(frame: bytearray, factor: float) -> None:
    """Multiply the prices of a trades frame, in place."""
    for at in range(_TRADES_AT, _trades_end(frame), _TRADE.size):
        price = _ONE.unpack_from(frame, at + 8)[0]
        _ONE.pack_into(frame, at + 8, max(1, round(price * factor)))


def trades_in(frame: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    """Yield `(id, price, qty, is_buyer_maker)` of a trades frame of schema version 0."""
    return _TRADE.iter_unpack(memoryview(frame)[_TRADES_AT : _trades_end(frame)])


def _trades_end(frame: bytes | bytearray) -> int:
    return _TRADES_AT + _TRADE.size * int.from_bytes(frame[28:32], "little")

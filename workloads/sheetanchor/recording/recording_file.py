"""Recorded markets: files in, frames out, and back.

Two kinds of files are read. The JSON kind (hftbacktest's examples) has one line per message, `<receive time in ns> <raw
JSON>`, with `@depth`, `@bookTicker` and `@trade` messages and one REST depth snapshot. The frames kind is what
`sheetanchor capture` writes: per frame u32 length, i64 receive time in µs, frame, all little-endian, the first frame a
DepthSnapshot that carries the whole starting book. It holds every frame unchanged; frames that cannot be decoded or add
nothing are skipped when it is read. Either may be compressed with gzip.

A recording is read into memory: the shipped one is six minutes in four megabytes of frames.
"""

from __future__ import annotations

import gzip
import json
import statistics
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sheetanchor import sbe
from sheetanchor.contract import pack_frames, unpack_frames
from sheetanchor.errors import BadRecording

EXPONENT: Final = -8
"""Both exponents of every frame made from JSON: those of the exchange's own frames."""

FRAME_HEADER_BYTES: Final = 12
"""Length and receive time before each frame of a file of frames."""

_DIGITS: Final = 8
_SURE_DIGITS: Final = 18
"""Every number of so many digits fits the wire's 64-bit mantissas."""

_MANTISSA_MAX: Final = 2**63 - 1
_NUMBER_DIGITS_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class Recording:
    """A starting book and the frames after it.

    Attributes:
        symbol: Upper-case name of the market.
        snapshot: The whole known book that the events continue from.
        snapshot_us: When the snapshot was received, µs on the recorder's clock.
        events: `(receive time in µs, frame)` in recorded order; no diff in it is older than the snapshot.
    """

    symbol: str
    snapshot: sbe.DepthSnapshot
    snapshot_us: int
    events: list[tuple[int, bytes]]


def default_path() -> Path:
    """Give the recording that ships with the package: BTCUSDT, 8 August 2024."""
    return Path(__file__).parents[1] / "data" / "btcusdt_spot_20240808.gz"


def load(path: Path) -> Recording:
    """Read a recording of either kind.

    Raises:
        BadRecording: Names the file, the place in it, and what was expected.
    """
    content = _read(path)
    if not content:
        raise BadRecording(f"{path}: the file is empty")
    if content[:1].isdigit():
        return _from_json_lines(path, content)
    return _from_frames(path, content)


def save(recording: Recording, path: Path) -> None:
    """Write a recording as frames, compressed when the name ends in `.gz`; an existing file is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    first = (recording.snapshot_us, sbe.encode(recording.snapshot))
    content = pack_frames([first, *recording.events])
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content)
    partial.replace(path)


def rename(recording: Recording, symbol: str) -> Recording:
    """Give the same market under another symbol."""
    events = [(at_us, sbe.encode(replace(sbe.decode(frame), symbol=symbol))) for at_us, frame in recording.events]
    return replace(recording, symbol=symbol, snapshot=replace(recording.snapshot, symbol=symbol), events=events)


def mantissa(text: str) -> int:
    """Turn a decimal number into an integer count of 10**-8.

    Raises:
        ValueError: It is no plain decimal number, or has digits beyond the eighth decimal.
    """
    fixed = text[:-9] + text[-8:]
    if text[-9:-8] == "." and fixed.isdigit() and fixed.isascii() and _DIGITS < len(fixed) <= _SURE_DIGITS:
        return int(fixed)  # the exchange's own format; the rest handles other recorders' files
    whole, _, decimals = text.partition(".")
    digits = whole + decimals.ljust(_DIGITS, "0")
    excess = len(decimals) - _DIGITS
    if excess > 0:
        if digits[-excess:].strip("0"):
            raise ValueError(f"expected at most {_DIGITS} decimals, found {text!r}")
        digits = digits[:-excess]
    if not (digits.isascii() and digits.isdigit()) or not whole or len(digits) > _NUMBER_DIGITS_MAX:
        raise ValueError(f"expected a decimal number, found {text!r}")
    if int(digits) > _MANTISSA_MAX:
        raise ValueError(f"expected a decimal number of at most 92233720368.54775807, found {text!r}")
    return int(digits)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise BadRecording(f"{path}: cannot be read: {error}") from error


def _from_frames(path: Path, content: bytes) -> Recording:
    offset = 0
    snapshot: tuple[int, sbe.DepthSnapshot] | None = None
    events: list[tuple[int, bytes]] = []
    try:
        for received_us, frame in unpack_frames(content):
            if snapshot is None:
                snapshot = received_us, _as_snapshot(sbe.decode(frame))
            else:
                events += _playable(received_us, frame, snapshot[1])
            offset += FRAME_HEADER_BYTES + len(frame)
    except (ValueError, TypeError) as error:
        raise BadRecording(f"{path}: frame at byte {offset}: {error}") from error
    if snapshot is None or not events:
        raise BadRecording(
            f"{path}: expected a DepthSnapshot and at least one frame after it{_first_unreadable(content)}"
        )
    return Recording(snapshot[1].symbol, snapshot[1], snapshot[0], events)


def _playable(received_us: int, frame: bytes, snapshot: sbe.DepthSnapshot) -> list[tuple[int, bytes]]:
    """Give the frame if it can be played; a capture holds every received frame unchanged.

    Raises:
        ValueError: It is of another symbol.
    """
    try:
        message = sbe.decode(frame)
    except sbe.DecodeError:
        return []
    _check_symbol(snapshot.symbol, message.symbol)
    return [(received_us, sbe.encode(message))] if _belongs(message, snapshot.book_update_id) else []


def _first_unreadable(content: bytes) -> str:
    """Name the first frame that cannot be decoded, for the error about a file without usable frames; "" if all can."""
    offset = 0
    for _, frame in unpack_frames(content):
        try:
            sbe.decode(frame)
        except sbe.DecodeError as error:
            return f"; frame at byte {offset}: {error}"
        offset += FRAME_HEADER_BYTES + len(frame)
    return ""


def _as_snapshot(message: sbe.Message) -> sbe.DepthSnapshot:
    if not isinstance(message, sbe.DepthSnapshot):
        raise TypeError(f"expected a DepthSnapshot with the starting book, found {type(message).__name__}")
    return message


def _check_symbol(expected: str, found: str) -> None:
    if expected not in ("", found):
        raise ValueError(f"expected symbol {expected}, found {found}")


def _belongs(message: sbe.Message, snapshot_id: int) -> bool:
    """Say whether a message is newer than the snapshot; top-20 snapshots can be derived and are left out."""
    if isinstance(message, sbe.DepthDiff):
        return message.last_update_id > snapshot_id
    if isinstance(message, sbe.BestBidAsk):
        return message.book_update_id > snapshot_id
    return isinstance(message, sbe.Trades) and bool(message.trades)


@dataclass(slots=True)
class _Lines:
    """The messages read from a JSON file, in the order of its lines until the snapshot is known."""

    number: int = 0
    symbol: str = ""
    snapshot: tuple[int, sbe.DepthSnapshot] | None = None
    messages: list[tuple[int, sbe.Message]] = field(default_factory=list)
    leads_us: list[int] = field(default_factory=list)
    grouping: bool = False


def _from_json_lines(path: Path, content: bytes) -> Recording:
    lines = _Lines()
    try:
        for line in content.splitlines():
            lines.number += 1
            if line:
                _take_line(lines, line)
    except KeyError as error:
        raise BadRecording(f"{path}: line {lines.number}: field {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadRecording(f"{path}: line {lines.number}: {error}") from error
    if lines.snapshot is None:
        raise BadRecording(f"{path}: expected a line with a depth snapshot (lastUpdateId, bids, asks), found none")
    if not lines.leads_us:
        raise BadRecording(f"{path}: expected at least one @depth or @trade message, found none")
    return _assemble(lines, lines.snapshot)


def _take_line(lines: _Lines, line: bytes) -> None:
    received, _, text = line.partition(b" ")
    if not received.isdigit():
        raise ValueError("expected '<receive time in ns> <JSON>'")
    received_us = int(received) // 1000
    body = json.loads(text)
    if not isinstance(body, dict):
        raise TypeError(f"expected a JSON object, found {type(body).__name__}")
    if "lastUpdateId" in body:
        lines.snapshot = lines.snapshot or (received_us, _snapshot(body))
        return
    stream, data = str(body["stream"]), body["data"]
    _check_symbol(lines.symbol, str(data["s"]))
    lines.symbol = str(data["s"])
    kind = stream.split("@")[1] if "@" in stream else ""
    grouping, lines.grouping = lines.grouping, kind == "trade"
    if kind == "trade":
        _take_trade(lines, received_us, data, grouping=grouping)
    elif kind == "depth":
        _note_lead(lines, received_us, data)
        lines.messages.append((received_us, _diff(data)))
    elif kind == "bookTicker":
        lines.messages.append((received_us, _best(data)))
    else:
        raise ValueError(f"expected a stream @depth, @bookTicker or @trade, found {stream!r}")


def _note_lead(lines: _Lines, received_us: int, data: dict[str, Any]) -> None:
    lines.leads_us.append(int(data["E"]) * 1000 - received_us)


def _take_trade(lines: _Lines, received_us: int, data: dict[str, Any], *, grouping: bool) -> None:
    """Append a trade; it joins the frame before it if that holds the previous trade, of the same time."""
    _note_lead(lines, received_us, data)
    event_us, transact_us = int(data["E"]) * 1000, int(data["T"]) * 1000
    trade = (int(data["t"]), mantissa(data["p"]), mantissa(data["q"]), bool(data["m"]))
    if grouping:
        first_us, last = lines.messages[-1]
        if (
            isinstance(last, sbe.Trades)
            and (last.event_time_us, last.transact_time_us) == (event_us, transact_us)
            and last.trades[-1][0] + 1 == trade[0]
        ):
            lines.messages[-1] = first_us, replace(last, trades=(*last.trades, trade))
            return
    lines.messages.append((received_us, sbe.Trades(event_us, data["s"], EXPONENT, EXPONENT, transact_us, (trade,))))


def _levels(levels: Iterable[Iterable[str]]) -> tuple[tuple[int, int], ...]:
    return tuple((mantissa(price), mantissa(qty)) for price, qty in levels)


def _diff(data: dict[str, Any]) -> sbe.DepthDiff:
    return sbe.DepthDiff(
        event_time_us=int(data["E"]) * 1000,
        symbol=data["s"],
        price_exponent=EXPONENT,
        qty_exponent=EXPONENT,
        first_update_id=int(data["U"]),
        last_update_id=int(data["u"]),
        bids=_levels(data["b"]),
        asks=_levels(data["a"]),
    )


def _best(data: dict[str, Any]) -> sbe.BestBidAsk:
    """Build a best bid and ask; the JSON form has no event time, so that is set once all lines are known."""
    return sbe.BestBidAsk(
        event_time_us=0,
        symbol=data["s"],
        price_exponent=EXPONENT,
        qty_exponent=EXPONENT,
        book_update_id=int(data["u"]),
        bid_price=mantissa(data["b"]),
        bid_qty=mantissa(data["B"]),
        ask_price=mantissa(data["a"]),
        ask_qty=mantissa(data["A"]),
    )


def _snapshot(body: dict[str, Any]) -> sbe.DepthSnapshot:
    """Build the starting book; the REST form has neither symbol nor time, so those are set once all lines are known."""
    return sbe.DepthSnapshot(
        event_time_us=0,
        symbol="",
        price_exponent=EXPONENT,
        qty_exponent=EXPONENT,
        book_update_id=int(body["lastUpdateId"]),
        bids=_levels(body["bids"]),
        asks=_levels(body["asks"]),
    )


def _assemble(lines: _Lines, found: tuple[int, sbe.DepthSnapshot]) -> Recording:
    # Converts receive time to exchange time: the recorder's clock may be off by seconds, but by a constant.
    lead_us = int(statistics.median(lines.leads_us))
    snapshot_us, snapshot = found
    snapshot = replace(snapshot, symbol=lines.symbol, event_time_us=snapshot_us + lead_us)
    events = []
    for received_us, message in lines.messages:
        if not _belongs(message, snapshot.book_update_id):
            continue
        if isinstance(message, sbe.BestBidAsk):
            message = replace(message, event_time_us=received_us + lead_us)
        events.append((received_us, sbe.encode(message)))
    return Recording(lines.symbol, snapshot, snapshot_us, events)

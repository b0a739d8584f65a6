"""What processes share: names of keys, records, and numbers that roles agree on: slot length, take-over time.

Nothing here does I/O. Times are integers in microseconds unless a name says otherwise; Redis' clock is the one
that ages and slots are measured with.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

SLOT_MS: Final = 2_000
"""A prediction is made every two seconds; slot `s` is read at wall time `s * SLOT_MS`."""

HORIZON_MS: Final = 10_000
"""A prediction is of the price this long after its slot."""

HORIZON_SLOTS: Final = HORIZON_MS // SLOT_MS

RETURN_MAX: Final = 0.1
"""A tenth in ten seconds, ten times what counts as a price discontinuity: a model that predicts more has failed."""

STALE_AFTER_US: Final = 5_000_000
"""A state whose last market event is older than this degrades predictions."""

BEAT_INTERVAL_US: Final = 100_000
"""The processor writes at least this often, if only its heartbeat."""

TAKEOVER_AFTER_US: Final = 1_000_000
"""A standby takes over when the writer's heartbeat is older than this."""

LOCK_TTL_S: Final = 300

STREAM_AGE_MAX_MS: Final = 15 * 60 * 1000
STREAM_BYTES_MAX: Final = 256 * 1024 * 1024
GAPS_LENGTH_MAX: Final = 1_000
RECEIPTS_LENGTH_MAX: Final = 100
PREDICTIONS_LENGTH_MAX: Final = 50_000
"""Slightly more than a day of two-second slots (43,200), the longest window that accuracy is reported over."""

TRADE_WINDOWS_S: Final = (1, 5)

SYMBOL_PATTERN: Final = re.compile(
    "[A-Z0-9"
    "\u00a1-\u00ac\u00ae-\u167f\u1681-\u180d\u180f-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u2fff\u3001-\ud7ff"
    "\uf900-\ufefe\uff00-\uffef\U00010000-\U0003fffd]{2,20}"
)
"""Capital letters and digits, and beyond ASCII whatever is neither white space nor invisible: the exchange lists such
symbols, in UTF-8. A symbol is part of Redis keys and of addresses, so it has no braces, slashes or control characters.
The custom resources have the same pattern, as the characters themselves, which Python, Go and Rust all understand."""

LINE_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
SYMBOLS_MAX: Final = 10
LINES_MAX: Final = 16
"""Lines of a symbol that are read: the merging of lines has a bit for each."""

TIME_LIMIT_US: Final = 2**52
"""Times end in the year 2112: a larger number is no time."""

CHECK_OF_TRADES: Final = "live_trades"
"""Name of a validation's check that the exchange's newest trade is held live; a processor goes by it."""

EXIT_FAILED: Final = 1
EXIT_BAD_SETTINGS: Final = 2
EXIT_EXCHANGE: Final = 3
EXIT_VALIDATION: Final = 4
EXIT_REDIS: Final = 5
EXIT_LOCK_HELD: Final = 6
EXIT_SUPERSEDED: Final = 7
EXIT_STOPPED: Final = 143
"""Exit codes, by which supervisor and operator decide what comes next; from 3 on those of a re-anchor's run. The
last is 128 + SIGTERM, that of a process which this signal ends."""

STREAM_TYPES: Final = ("trade", "bestBidAsk", "depth")


def stream_id_order(entry_id: str) -> tuple[int, int]:
    """Give a stream id as something that compares: milliseconds of Redis' clock, then the number within them."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Keys:
    """The Redis keys of one symbol.

    The braces are literal: they are the Redis Cluster hash tag, so that all keys of a symbol share a slot and one
    function can touch them together.
    """

    symbol: str
    ob: str
    book: str
    tr_1s: str
    tr_5s: str
    feat: str
    anchor: str
    lock: str
    ob_new: str
    book_new: str
    tr_1s_new: str
    tr_5s_new: str
    feat_new: str
    pred: str
    preds: str
    gaps: str
    receipts: str
    lines: str


def keys(symbol: str) -> Keys:
    """Name the keys of a symbol, for instance `ob:{BTCUSDT}`."""
    tag = "{" + symbol + "}"
    return Keys(
        symbol=symbol,
        ob=f"ob:{tag}",
        book=f"book:{tag}",
        tr_1s=f"tr:{tag}:1s",
        tr_5s=f"tr:{tag}:5s",
        feat=f"feat:{tag}",
        anchor=f"anchor:{tag}",
        lock=f"reanchor:{tag}",
        ob_new=f"ob:new:{tag}",
        book_new=f"book:new:{tag}",
        tr_1s_new=f"tr:new:{tag}:1s",
        tr_5s_new=f"tr:new:{tag}:5s",
        feat_new=f"feat:new:{tag}",
        pred=f"pred:{tag}",
        preds=f"preds:{tag}",
        gaps=f"gaps:{tag}",
        receipts=f"receipts:{tag}",
        lines=f"lines:{tag}",
    )


_LOWER: Final = str.maketrans({letter: letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"})


def stream_symbol(symbol: str) -> str:
    """Give a symbol as the exchange's stream names have it: the letters A to Z in lower case, all others as they are.

    Other scripts have no lower case, or one that is not the same everywhere.
    """
    return symbol.translate(_LOWER)


def line_stream(symbol: str, line: str) -> str:
    """Name the stream of raw frames that one ingestor line appends to."""
    return f"sbe:{{{symbol}}}:{line}"


_FRAME_HEADER = struct.Struct("<Iq")
"""Per frame: u32 length of the frame in bytes, i64 receive time in µs, then the frame; little-endian."""


def pack_frames(frames: Iterable[tuple[int, bytes]]) -> bytes:
    """Pack `(receive time in µs, frame)` pairs into the field `f` of a stream entry."""
    parts: list[bytes] = []
    for received_us, frame in frames:
        parts.append(_FRAME_HEADER.pack(len(frame), received_us))
        parts.append(frame)
    return b"".join(parts)


def unpack_frames(batch: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the `(receive time in µs, frame)` pairs of a stream entry's field `f`.

    Raises:
        ValueError: If the batch ends inside a frame; says at which byte.
    """
    offset = 0
    while offset < len(batch):
        start = offset + _FRAME_HEADER.size
        if start > len(batch):
            raise ValueError(f"batch ends inside a frame header at byte {offset} of {len(batch)}")
        length, received_us = _FRAME_HEADER.unpack_from(batch, offset)
        if start + length > len(batch):
            raise ValueError(
                f"batch ends inside a frame at byte {offset}: expected {length} bytes, found {len(batch) - start}"
            )
        yield received_us, batch[start : start + length]
        offset = start + length


_WHOLE_NUMBER: Final = re.compile(rb"[0-9]{1,16}")
_REPLICATION_ID: Final = re.compile(rb"[0-9a-f]{1,64}")
_ENTRY_ID: Final = re.compile(rb"([0-9]{1,16})-[0-9]{1,20}")


class Entry(NamedTuple):
    """One entry of a line's stream, its envelope checked; see `unpack_frames` for what is in it.

    Attributes:
        id: Its id in the stream.
        frame_count: Frames in it, as its writer says.
        first_received_us: When the first of them arrived, by the ingestor's clock, in µs.
        frames: Packed frames; their lengths are checked where they are unpacked.
        again: Replication id of Redis if this is the last entry that the line has appended again in that replication
            history, else "".
    """

    id: str
    frame_count: int
    first_received_us: int
    frames: bytes
    again: str = ""


def parse_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Read the envelope of an entry of a line's stream.

    Raises:
        ValueError: Names the field, its value and what was expected.
    """
    placed = _ENTRY_ID.fullmatch(entry_id)
    if placed is None or int(placed[1]) * 1_000 >= TIME_LIMIT_US:
        raise ValueError(f"id = {_shown(entry_id)}: expected milliseconds before the year 2112 and a number")
    frames = fields.get(b"f")
    if frames is None:
        raise ValueError("f is missing: expected packed frames")
    count = _number_in(fields, b"n", 2**32)
    again = fields.get(b"again", b"")
    marked = again.decode() if _REPLICATION_ID.fullmatch(again) else ""
    return Entry(entry_id.decode(), count, _number_in(fields, b"t", TIME_LIMIT_US), frames, marked)


def _number_in(fields: Mapping[bytes, bytes], name: bytes, limit: int) -> int:
    text = fields.get(name, b"")
    if _WHOLE_NUMBER.fullmatch(text) is None or int(text) >= limit:
        raise ValueError(f"{name.decode()} = {_shown(text)}: expected a whole number below {limit}")
    return int(text)


def _shown(raw: bytes) -> str:
    return repr(raw if len(raw) <= 40 else raw[:40] + b"...")


def line_names(members: Iterable[bytes | str]) -> list[str]:
    """Give the names of lines among the members of `lines:{S}`, sorted; any other member is left out."""
    texts = (member.decode("utf-8", "replace") if isinstance(member, bytes) else member for member in members)
    return sorted(name for name in texts if LINE_PATTERN.fullmatch(name))


@dataclass(frozen=True, slots=True)
class Gap:
    """One entry of the stream `gaps:{S}`: what a gap rule found and what it asks for.

    Attributes:
        rule: Name of the rule, one of `policy.gap_rules.GAP_DETECTION_RULES`, or `request` for what a person asked for.
        severity: low, medium, high or critical.
        action: immediate_reanchor, scheduled_reanchor, validation_reanchor or emergency_reanchor.
        reason: One line for people, for instance `depth: expected 124, found 131`.
        source: Role and line that found it, for instance `process` or `ingest/a`.
        at_us: When, in µs since the epoch.
        epoch: The epoch of the state that is in doubt; 0 where there is none.
    """

    symbol: str
    rule: str
    severity: str
    action: str
    reason: str
    source: str
    at_us: int
    epoch: int = 0

    def fields(self) -> dict[str, str]:
        """Render for XADD."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def parse(cls, entry: dict[str, str]) -> Gap:
        """Read back what `fields` rendered.

        Raises:
            KeyError: If a field is missing.
            ValueError: If a number is not one.
        """
        return cls(
            symbol=entry["symbol"],
            rule=entry["rule"],
            severity=entry["severity"],
            action=entry["action"],
            reason=entry["reason"],
            source=entry["source"],
            at_us=int(entry["at_us"]),
            epoch=int(entry.get("epoch", "0")),
        )


Call = tuple[str, str, float]
"""Endpoint, status and seconds of a REST request."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one re-anchor run did; the last thing it writes, also when it failed.

    Attributes:
        id: Unique id of the run; also the owner of the lock.
        result: swapped, validated (nothing to do), dry_run, repeated (answered before), failed, lock_held or
            superseded; restated if a processor has written its memory back after a failover of Redis.
        phases: Phase name to its duration in seconds.
        exit_code: What the process exits with.
        checks: Names of the checks that passed.
        message: One line for people.
        request_id: Id of the request, "" if it had none.
        retry_at_us: Make no request to the exchange before this time, as it has demanded; 0 if it has not.
        exchange: Origin of the exchange's REST interface.
        warnings: What is unusual about the market, though valid; it refuses nothing.
        calls: Each REST request as endpoint, status (a number, `timeout` or `error`) and seconds. The process that is
            scraped counts them from here, once: locally the supervisor, on Kubernetes the operator.
        retries: Tries of REST requests after the first one.
        breaker: State of the breaker of REST at the end: 0 closed, 1 half-open, 2 open.
        weight_remaining: Request weight left in the minute that the run ended in, -1 if no request was made.
        alert: Code of the condition that needs a person, "" if there is none.
        source: What the state was made from: rest, or memory for a restatement.
    """

    id: str
    symbol: str
    reason: str
    trigger: str
    result: str
    started_at_us: int
    finished_at_us: int
    epoch_before: int
    epoch_after: int
    snapshot_id: int
    update_id: int
    exit_code: int
    message: str
    phases: dict[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    request_id: str = ""
    retry_at_us: int = 0
    exchange: str = ""
    warnings: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    retries: int = 0
    breaker: int = 0
    weight_remaining: int = -1
    alert: str = ""
    source: str = "rest"

    def to_json(self) -> str:
        """Render as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """Read back what `to_json` rendered; fields of a later version are left out.

        Raises:
            ValueError: If the text is not a receipt.
        """
        try:
            return _RECEIPTS.validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "text"
            raise ValueError(f"not a receipt: {where}: {first['msg']}") from error
        except UnicodeEncodeError as error:  # half a surrogate pair
            raise ValueError(f"not a receipt: {error.reason}") from error


_RECEIPTS: Final = TypeAdapter(Receipt)
"""Entries of a wrong type, deep nesting and numbers beyond any type end as one kind of error."""


def slot_of(now_us: int) -> int:
    """Give the slot that a moment lies in."""
    return now_us // (SLOT_MS * 1_000)


def slot_start_us(slot: int) -> int:
    """Give the moment a slot is read at."""
    return slot * SLOT_MS * 1_000


def is_usable(predicted_return: float) -> bool:
    """Say whether a model's output can be a return over ten seconds."""
    return math.isfinite(predicted_return) and abs(predicted_return) <= RETURN_MAX

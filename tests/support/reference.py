"""The decoder once more, in plain Python: slow, obvious, and written from the wire format alone.

Tests run the same cases against this and against the native module; where they differ, one of them is wrong. The market
is in `reference_market`.
"""

from __future__ import annotations

import struct

from sheetanchor import sbe

GROUP_COUNT_MAX = 65534
KINDS = (
    "truncated",
    "schema_mismatch",
    "unknown_template",
    "bad_block_length",
    "bad_enum",
    "bad_utf8",
    "too_large",
)
COUNTERS = [
    "frames",
    "diffs_applied",
    "diffs_duplicate",
    "diffs_before_book",
    "trades_applied",
    "trades_duplicate",
    "trades_late",
    "bba_applied",
    "bba_stale",
    "depth20_checked",
    "depth20_mismatches",
    "depth20_ignored",
    "foreign_symbol",
    "trailing_bytes",
    "pending_overflow",
    "bad_value",
    *(f"decode_error.{kind}" for kind in KINDS),
]
ROOT_BYTES = {10000: 18, 10001: 50, 10002: 18, 10003: 26}

Pair = tuple[int, int]


def fail(kind: str, offset: int) -> sbe.DecodeError:
    return sbe.DecodeError(kind, offset, f"{kind} at offset {offset}")


class Reader:
    """A place in a frame; reading beyond the end is `truncated` there."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.frame) - self.at:
            raise fail("truncated", self.at)
        self.at += size
        return self.frame[self.at - size : self.at]

    def group(self, header: str, known: int) -> list[tuple[int, bytes]]:
        start = self.at
        length, count = struct.unpack(header, self.take(struct.calcsize(header)))
        if count and length < known:
            raise fail("bad_block_length", start)
        if count > GROUP_COUNT_MAX:
            raise fail("too_large", start + 2)
        entries = self.take(length * count)
        first = self.at - len(entries)
        return [(first + length * i, entries[length * i : length * i + known]) for i in range(count)]

    def symbol(self) -> str:
        (length,) = self.take(1)
        start = self.at
        raw = self.take(length)
        if length == 255:
            raise fail("too_large", start - 1)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise fail("bad_utf8", start + error.start) from None


def read_trades(reader: Reader) -> tuple[tuple[int, int, int, bool], ...]:
    trades = []
    for place, raw in reader.group("<HI", 25):
        trade_id, price, qty, flag = struct.unpack("<qqqB", raw)
        if flag > 1:
            raise fail("bad_enum", place + 24)
        trades.append((trade_id, price, qty, flag == 1))
    return tuple(trades)


def read_levels(reader: Reader) -> tuple[Pair, ...]:
    levels = [struct.unpack("<qq", raw) for _, raw in reader.group("<HH", 16)]
    return tuple((price, qty) for price, qty in levels)


def read_header(reader: Reader) -> tuple[int, bytes]:
    length, template, schema, _version = struct.unpack("<HHHH", reader.take(8))
    if schema != 1:
        raise fail("schema_mismatch", 4)
    if template not in ROOT_BYTES:
        raise fail("unknown_template", 2)
    if length < ROOT_BYTES[template]:
        raise fail("bad_block_length", 0)
    return template, reader.take(length)[: ROOT_BYTES[template]]


def decode(frame: bytes) -> sbe.Message:
    """Read one frame."""
    reader = Reader(bytes(frame))
    template, root = read_header(reader)
    if template == 10000:
        event, transact, price_exp, qty_exp = struct.unpack("<qqbb", root)
        trades = read_trades(reader)
        symbol = reader.symbol()
        return sbe.Trades(event, symbol, price_exp, qty_exp, transact, trades, len(frame) - reader.at)
    if template == 10001:
        event, update, price_exp, qty_exp, bid, bid_qty, ask, ask_qty = struct.unpack("<qqbbqqqq", root)
        symbol = reader.symbol()
        left = len(frame) - reader.at
        return sbe.BestBidAsk(event, symbol, price_exp, qty_exp, update, bid, bid_qty, ask, ask_qty, left)
    bids, asks = read_levels(reader), read_levels(reader)
    symbol = reader.symbol()
    left = len(frame) - reader.at
    if template == 10002:
        event, update, price_exp, qty_exp = struct.unpack("<qqbb", root)
        return sbe.DepthSnapshot(event, symbol, price_exp, qty_exp, update, bids, asks, left)
    event, first, last, price_exp, qty_exp = struct.unpack("<qqqbb", root)
    return sbe.DepthDiff(event, symbol, price_exp, qty_exp, first, last, bids, asks, left)


def write_levels(levels: tuple[Pair, ...]) -> bytes:
    return struct.pack("<HH", 16, len(levels)) + b"".join(struct.pack("<qq", *level) for level in levels)


def encode(message: sbe.Message) -> bytes:
    """Write one frame."""
    m = message
    name = m.symbol.encode()
    tail = bytes([len(name)]) + name
    exponents = struct.pack("<bb", m.price_exponent, m.qty_exponent)
    event = struct.pack("<q", m.event_time_us)
    if isinstance(m, sbe.Trades):
        entries = b"".join(struct.pack("<qqqB", *trade) for trade in m.trades)
        head = struct.pack("<HHHH", 18, 10000, 1, 0)
        group = struct.pack("<HI", 25, len(m.trades)) + entries
        return head + event + struct.pack("<q", m.transact_time_us) + exponents + group + tail
    if isinstance(m, sbe.BestBidAsk):
        head = struct.pack("<HHHH", 50, 10001, 1, 0)
        prices = struct.pack("<qqqq", m.bid_price, m.bid_qty, m.ask_price, m.ask_qty)
        return head + event + struct.pack("<q", m.book_update_id) + exponents + prices + tail
    levels = write_levels(m.bids) + write_levels(m.asks)
    if isinstance(m, sbe.DepthSnapshot):
        head = struct.pack("<HHHH", 18, 10002, 1, 0)
        return head + event + struct.pack("<q", m.book_update_id) + exponents + levels + tail
    head = struct.pack("<HHHH", 26, 10003, 1, 0)
    ids = struct.pack("<qq", m.first_update_id, m.last_update_id)
    return head + event + ids + exponents + levels + tail


def validate_frame(frame: bytes) -> tuple[int, str, int, int, int, int]:
    """Summarise one frame as the ingestor sees it."""
    m = decode(frame)
    if isinstance(m, sbe.Trades):
        ids = [trade[0] for trade in m.trades] or [0]
        return 10000, m.symbol, m.event_time_us, ids[0], ids[-1], len(m.trades)
    if isinstance(m, sbe.BestBidAsk):
        return 10001, m.symbol, m.event_time_us, m.book_update_id, m.book_update_id, 1
    count = len(m.bids) + len(m.asks)
    if isinstance(m, sbe.DepthSnapshot):
        return 10002, m.symbol, m.event_time_us, m.book_update_id, m.book_update_id, count
    return 10003, m.symbol, m.event_time_us, m.first_update_id, m.last_update_id, count

"""The plain Python market's book as one string of bytes, and back."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from support.reference_windows import FeedClock


def pack(market: Any, epoch: int, line_ids: dict[str, str]) -> bytes:
    """Pack as `Market.pack_book`."""
    if not market.has_book:
        raise ValueError("no book")
    (bid, bid_qty), (ask, ask_qty) = market.bba
    bba_id = market.bba_id
    if not (bid_qty and ask_qty):
        bba_id, bid, bid_qty, ask, ask_qty = -1, 0, 0, 0, 0
    numbers = (epoch, market.update_id, bba_id, bid, bid_qty, ask, ask_qty)
    numbers += (market.trade_id, market.event_us, market.stamp_us, market.bid_edge, market.ask_edge, market.cut_off)
    bids, asks = market.levels()
    out = b"SAbk" + struct.pack("<Hbb13q", 2, market.price_exponent, market.qty_exponent, *numbers)
    out += struct.pack("<IIH", len(bids), len(asks), len(line_ids))
    texts = [market.symbol, *(text for pair in sorted(line_ids.items()) for text in pair)]
    for raw in (text.encode() for text in texts):
        out += bytes([len(raw)]) + raw
    out += b"".join(struct.pack("<qq", *level) for level in [*bids, *asks])
    return out + struct.pack("<I", zlib.crc32(out))


def load(fresh: Any, blob: bytes) -> tuple[int, dict[str, str]]:
    """Load into a market without a past."""
    body = blob[:-4]
    if len(blob) < 12 or body[:4] != b"SAbk" or struct.pack("<I", zlib.crc32(body)) != blob[-4:]:
        raise ValueError("book")
    layout, fresh.price_exponent, fresh.qty_exponent = struct.unpack_from("<Hbb", body, 4)
    count = {1: 10, 2: 13}[layout]
    numbers = struct.unpack_from(f"<{count}q", body, 8)
    bids_n, asks_n, lines = struct.unpack_from("<IIH", body, 8 + 8 * count)
    at = 18 + 8 * count
    texts = []
    for _ in range(1 + 2 * lines):
        size = body[at]
        texts.append(body[at + 1 : at + 1 + size].decode())
        at += 1 + size
    if texts[0] != fresh.symbol:
        raise ValueError("symbol")
    pairs = list(struct.iter_unpack("<qq", body[at:]))
    assert len(pairs) == bids_n + asks_n
    epoch, fresh.update_id, fresh.bba_id, bid, bid_qty, ask, ask_qty = numbers[:7]
    fresh.trade_id = numbers[7]
    fresh.clock = FeedClock(*numbers[8:10])
    fresh.bid_edge, fresh.ask_edge, fresh.cut_off = numbers[10:] or (0, 0, 0)
    fresh.last_seen_update_id = fresh.update_id
    fresh.refill_bba_id, fresh.book_event_us = fresh.bba_id, fresh.event_us
    fresh.bba = (bid, bid_qty), (ask, ask_qty)
    fresh.bids, fresh.asks = dict(pairs[:bids_n]), dict(pairs[bids_n:])
    return epoch, dict(zip(texts[1::2], texts[2::2], strict=True))

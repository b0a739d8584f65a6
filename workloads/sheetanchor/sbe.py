"""The frames of the pipeline as frozen records, and back to bytes.

Streams, recordings and the decoder use this one format. It is the schema of Binance's binary market data (SBE schema
1), so that Binance's frames are kept unchanged; frames of any other venue are made with `encode`.

Prices and quantities are the integers of the wire: the value is `mantissa * 10**exponent`, with one exponent for all
prices of a message and one for all quantities. Every integer is passed on unchanged; the schema's null sentinels
(-2**63, exponent -128) are such integers too, although no required field should have them.

The work is done in C++ (`sheetanchor._decoder`); this module gives it types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sheetanchor.errors import DECODER_MISSING, DECODER_MODULE, SheetAnchorError

try:
    from sheetanchor import _decoder
except ImportError as error:
    raise ImportError(DECODER_MISSING, name=DECODER_MODULE) from error

TRADES_TEMPLATE: Final = _decoder.TRADES
BEST_BID_ASK_TEMPLATE: Final = _decoder.BEST_BID_ASK
DEPTH_SNAPSHOT_TEMPLATE: Final = _decoder.DEPTH_SNAPSHOT
DEPTH_DIFF_TEMPLATE: Final = _decoder.DEPTH_DIFF

DECODE_ERROR_KINDS: Final = _decoder.ERROR_KINDS
"""What can be wrong with a frame, in the decoder's words."""


class DecodeError(SheetAnchorError, ValueError):
    """A frame is not one of the four known messages.

    Args:
        kind: One of `DECODE_ERROR_KINDS`.
        offset: Bytes from the start of the frame to what is wrong.
        message: Kind, offset, field, what was expected and what was found.
    """

    def __init__(self, kind: str, offset: int, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.offset = offset

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, int, str]]:
        """Make the error survive a process boundary."""
        return type(self), (self.kind, self.offset, str(self))


class EncodeError(SheetAnchorError, ValueError):
    """A message holds what the wire cannot carry; the text names the field, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Trades:
    """One or more trades that happened at one moment (`<symbol>@trade`).

    Args:
        event_time_us: When the exchange sent the message, microseconds since 1970 UTC.
        symbol: Upper-case name of the market.
        price_exponent: Power of ten of every price, -128..127.
        qty_exponent: Power of ten of every quantity, -128..127.
        transact_time_us: When the trades happened, microseconds since 1970 UTC.
        trades: Tuples `(id, price, qty, is_buyer_maker)` in the order of the wire.
        trailing_bytes: Bytes found after the symbol; only decoding sets it, and `encode` does not write them.
    """

    event_time_us: int
    symbol: str
    price_exponent: int
    qty_exponent: int
    transact_time_us: int
    trades: tuple[tuple[int, int, int, bool], ...]
    trailing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class BestBidAsk:
    """The best bid and ask after one book update (`<symbol>@bestBidAsk`); updates may be left out under load.

    Args:
        event_time_us: When the exchange sent the message, microseconds since 1970 UTC.
        symbol: Upper-case name of the market.
        price_exponent: Power of ten of both prices, -128..127.
        qty_exponent: Power of ten of both quantities, -128..127.
        book_update_id: The book update that these prices belong to.
        bid_price: Mantissa of the best bid.
        bid_qty: Mantissa of the quantity at the best bid.
        ask_price: Mantissa of the best ask.
        ask_qty: Mantissa of the quantity at the best ask.
        trailing_bytes: Bytes found after the symbol; only decoding sets it, and `encode` does not write them.
    """

    event_time_us: int
    symbol: str
    price_exponent: int
    qty_exponent: int
    book_update_id: int
    bid_price: int
    bid_qty: int
    ask_price: int
    ask_qty: int
    trailing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DepthSnapshot:
    """The top of the book at one update (`<symbol>@depth20`).

    Args:
        event_time_us: When the exchange sent the message, microseconds since 1970 UTC.
        symbol: Upper-case name of the market.
        price_exponent: Power of ten of every price, -128..127.
        qty_exponent: Power of ten of every quantity, -128..127.
        book_update_id: The book update that these levels belong to.
        bids: Tuples `(price, qty)`, best first.
        asks: Tuples `(price, qty)`, best first.
        trailing_bytes: Bytes found after the symbol; only decoding sets it, and `encode` does not write them.
    """

    event_time_us: int
    symbol: str
    price_exponent: int
    qty_exponent: int
    book_update_id: int
    bids: tuple[tuple[int, int], ...]
    asks: tuple[tuple[int, int], ...]
    trailing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DepthDiff:
    """The changes of the book from one update to another (`<symbol>@depth`).

    Args:
        event_time_us: When the exchange sent the message, microseconds since 1970 UTC.
        symbol: Upper-case name of the market.
        price_exponent: Power of ten of every price, -128..127.
        qty_exponent: Power of ten of every quantity, -128..127.
        first_update_id: First book update in the message (`U` in the JSON form).
        last_update_id: Last book update in the message (`u` in the JSON form).
        bids: Tuples `(price, qty)`; a quantity of 0 removes the level.
        asks: Tuples `(price, qty)`; a quantity of 0 removes the level.
        trailing_bytes: Bytes found after the symbol; only decoding sets it, and `encode` does not write them.
    """

    event_time_us: int
    symbol: str
    price_exponent: int
    qty_exponent: int
    first_update_id: int
    last_update_id: int
    bids: tuple[tuple[int, int], ...]
    asks: tuple[tuple[int, int], ...]
    trailing_bytes: int = 0


Message = Trades | BestBidAsk | DepthSnapshot | DepthDiff

_TYPES: dict[int, type[Trades] | type[BestBidAsk] | type[DepthSnapshot] | type[DepthDiff]] = {
    TRADES_TEMPLATE: Trades,
    BEST_BID_ASK_TEMPLATE: BestBidAsk,
    DEPTH_SNAPSHOT_TEMPLATE: DepthSnapshot,
    DEPTH_DIFF_TEMPLATE: DepthDiff,
}
_TEMPLATES = {kind: template for template, kind in _TYPES.items()}


def decode(frame: bytes | bytearray | memoryview) -> Message:
    """Turn one frame into the message it holds.

    Longer root blocks and group entries than this version knows are read and their additions skipped, as the schema's
    rules for newer versions require. An empty group may have any entry length. A symbol's length byte of 255 (null) is
    refused as `too_large`, and so is a group of more than 65,534 entries.

    Args:
        frame: One WebSocket binary message, starting with the SBE message header.

    Returns:
        `Trades`, `BestBidAsk`, `DepthSnapshot` or `DepthDiff`.

    Raises:
        DecodeError: The frame is none of them; `kind` and `offset` say why and where.
    """
    template, fields = _decoder.decode(frame)
    return _TYPES[template](*fields)


def encode(message: Message) -> bytes:
    """Turn a message into the frame that `decode` reads back, at schema version 0.

    `trailing_bytes` is a count, not content, so nothing is written for it: the frame ends with the symbol.

    Args:
        message: One of the four message types.

    Returns:
        The frame.

    Raises:
        EncodeError: A value does not fit its field, a group has over 65,534 entries, or the symbol over 254 bytes.
    """
    template = _TEMPLATES.get(type(message))
    if template is None:
        names = ", ".join(kind.__name__ for kind in _TEMPLATES)
        raise EncodeError(f"message: expected one of {names}, found {type(message).__name__}")
    return _decoder.encode(template, message)

"""The messages of the exchange's binary stream, for programs that use the decoder by itself: see `binance.sbe`.

The native decoder looks its exceptions up here, so the name stays whatever moves inside the package.
"""

from __future__ import annotations

from sheetanchor.binance.sbe import (
    DECODE_ERROR_KINDS,
    BestBidAsk,
    DecodeError,
    DepthDiff,
    DepthSnapshot,
    EncodeError,
    Message,
    Trades,
    decode,
    encode,
)

__all__ = [
    "DECODE_ERROR_KINDS",
    "BestBidAsk",
    "DecodeError",
    "DepthDiff",
    "DepthSnapshot",
    "EncodeError",
    "Message",
    "Trades",
    "decode",
    "encode",
]

"""Types of the native module built from `decoder/`."""

from typing import Any

def decode(frame: bytes | bytearray | memoryview) -> tuple[int, tuple[Any, ...]]: ...
def encode(template_id: int, message: object) -> bytes: ...
def validate_frame(frame: bytes | bytearray | memoryview) -> tuple[int, str, int, int, int, int]:
    """Check one frame completely without making objects of its entries.

    Returns:
        Template id, symbol, event time in microseconds, first and last id (trade ids, or book update ids; both 0 when a
        trades message is empty), and the number of entries (trades, or levels of both sides; 1 for bestBidAsk).

    Raises:
        sheetanchor.sbe.DecodeError: The frame is none of the four messages.
    """

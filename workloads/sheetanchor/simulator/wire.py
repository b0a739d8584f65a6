"""WebSocket frames as a server writes them: never masked, never split. Pure.

aiohttp writes one frame per call; at thousands of messages a second the calls cost more than the messages. So all
frames of a tick are put together here and written at once.
"""

from __future__ import annotations

import struct
from typing import Final

TEXT: Final = 0x1
BINARY: Final = 0x2
PING: Final = 0x9
PONG: Final = 0xA

_FINAL: Final = 0x80
_MEDIUM = struct.Struct("!BBH")
_LARGE = struct.Struct("!BBQ")


def wire_frame(opcode: int, payload: bytes) -> bytes:
    """Give one whole frame with its header (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return bytes((_FINAL | opcode, length)) + payload
    if length < 65_536:
        return _MEDIUM.pack(_FINAL | opcode, 126, length) + payload
    return _LARGE.pack(_FINAL | opcode, 127, length) + payload

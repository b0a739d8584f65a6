"""What a line's stream and its list of lines may hold when a foreign or broken-in program has written there."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor.contract import keys, line_stream

SOUND: Final[dict[bytes, bytes]] = {b"n": b"0", b"t": b"5", b"f": b""}

MALFORMED: Final[dict[str, dict[bytes, bytes]]] = {
    "no number": SOUND | {b"n": b"x", b"t": b"y", b"f": b"abc"},
    "no count": {b"t": b"5", b"f": b""},
    "no time": {b"n": b"0", b"f": b""},
    "no frames": {b"n": b"0", b"t": b"5"},
    "none of the fields": {b"a": b"b"},
    "an empty count": SOUND | {b"n": b""},
    "a count below zero": SOUND | {b"n": b"-1"},
    "a count beyond any": SOUND | {b"n": b"9" * 30},
    "more digits than Python reads": SOUND | {b"n": b"9" * 5_000},
    "a fraction": SOUND | {b"t": b"1.5"},
    "a time below zero": SOUND | {b"t": b"-5"},
    "a time beyond the year 2112": SOUND | {b"t": str(2**52).encode()},
    "a number that only Python reads": SOUND | {b"t": b"1_000"},
    "digits of another script": SOUND | {b"t": "\u0661\u0662".encode()},
    "blanks": SOUND | {b"t": b" 5 "},
    "bytes that are no text": SOUND | {b"t": b"\xff\xfe"},
}
"""Fields of entries whose envelope is none, by what is wrong with it."""

BROKEN_FRAMES: Final[dict[str, bytes]] = {
    "half a header": b"abc",
    "a frame that is cut off": b"\x05\x00\x00\x00" + bytes(8) + b"1234",
    "a length beyond any": b"\xff\xff\xff\xff" + bytes(8),
}
"""Contents of the field `f` whose lengths do not add up; the envelope itself is sound."""

BAD_IDS: Final = (b"4503599627371-0", b"18446744073709551615-5")
"""Ids of entries that no clock gives: from the year 2112 on."""

BAD_NAMES: Final = (b"\xff\xfe", b"", b"A", b"-a", b"a b", b"{a}", b"a" * 300, "\u00e4".encode())
"""Members of `lines:{S}` that name no line."""


async def spoil(redis: Redis, symbol: str, line: str) -> int:
    """Write every malformed entry into a line's stream; give how many there are."""
    stream = line_stream(symbol, line)
    entries: list[dict[Any, Any]] = [dict(fields) for fields in MALFORMED.values()]
    for fields in entries:
        await redis.xadd(stream, fields)
    return len(entries)


async def spoil_lines(redis: Redis, symbol: str) -> None:
    """Register lines that are none: by their name, by what their key is, and by their number."""
    named = keys(symbol).lines
    await redis.sadd(named, *BAD_NAMES)
    for name in ("strange-1", "strange-2"):
        await redis.sadd(named, name)
    await redis.set(line_stream(symbol, "strange-1"), "text")
    await redis.sadd(line_stream(symbol, "strange-2"), "member")
    for number in range(300):
        await redis.sadd(named, f"x{number}")
        await redis.xadd(line_stream(symbol, f"x{number}"), dict(SOUND))

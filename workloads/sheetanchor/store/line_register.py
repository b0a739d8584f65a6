"""Which lines of a symbol there are: the members of `lines:{S}` that name a stream.

Ingestors write that set, and what they write is not trusted: whatever is no line is left out and reported once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from redis import exceptions
from redis.asyncio import Redis

from sheetanchor.contract import LINES_MAX, keys, line_names, line_stream

log = logging.getLogger(__name__)


class LineRegister:
    """Looks lines up; errors of the client pass through.

    Args:
        redis: Client to ask with.
        symbol: Trading pair.
    """

    def __init__(self, redis: Redis, symbol: str) -> None:
        self._redis = redis
        self._symbol = symbol
        self._key = keys(symbol).lines
        self._warned: set[str] = set()

    async def lines(self, known: Collection[str]) -> list[str]:
        """Name the lines to read: those known and those that have come since, no more in all than are read.

        Lines that have gone for good make room: over the years they may have many names.
        """
        fresh = [name for name in await self._registered() if name not in known]
        read = list(known) if len(known) + len(fresh) <= LINES_MAX else await self.streams(known)
        for line in fresh:
            if not await self._is_stream(line):
                continue
            if len(read) >= LINES_MAX:
                self.warn_once(self._key, f"line {line} is not read: expected at most {LINES_MAX} lines")
                break
            read.append(line)
        return read

    async def streams(self, lines: Collection[str]) -> list[str]:
        """Give those of some lines whose key is a stream."""
        return [line for line in lines if await self._is_stream(line)]

    async def _registered(self) -> list[str]:
        try:
            members: set[bytes | str] = set(await self._redis.smembers(self._key))
        except exceptions.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            self.warn_once(self._key, "the registered lines cannot be read: expected a set")
            return []
        names = line_names(members)
        if len(names) < len(members):
            self.warn_once(
                self._key, f"{len(members) - len(names)} registered lines are not read: their names are malformed"
            )
        return names

    async def _is_stream(self, line: str) -> bool:
        stream = line_stream(self._symbol, line)
        raw: bytes | str = await self._redis.type(stream)
        kind = raw.decode() if isinstance(raw, bytes) else raw
        if kind not in ("stream", "none"):
            self.warn_once(stream, f"not read: expected a stream, found a {kind}")
        return kind == "stream"

    def warn_once(self, key: str, text: str) -> None:
        """Log what is wrong with a key, once: its writer may go on for ever."""
        if key not in self._warned:
            self._warned.add(key)
            log.error("%s: %s", key, text)

"""A real ingestor line inside the test's own event loop, and a WebSocket peer whose behaviour a test defines."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis
from websockets.asyncio.server import ServerConnection, serve

from conftest import free_port_number
from sheetanchor import sbe
from sheetanchor.contract import Gap, keys, line_stream, unpack_frames
from sheetanchor.errors import BadSettings
from sheetanchor.ingest.command import run_line
from sheetanchor.runtime.settings import IngestSettings
from sheetanchor.store.redis_client import redis_client
from sheetanchor.venue import TradingVenue
from sheetanchor.venue_lookup import BINANCE
from support.exchange_fixture import API_KEY, eventually
from support.patience import PATIENT


class Line:
    """A running line: its health pages and what it has put into Redis."""

    def __init__(self, settings: IngestSettings, redis: Redis) -> None:
        self.settings = settings
        self.redis = redis
        self.stop = asyncio.Event()

    async def page(self, path: str) -> str:
        """Fetch a page of the line, whatever its status."""

        def fetch() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.http_port}{path}", timeout=5) as answer:
                    return str(answer.read().decode())
            except urllib.error.HTTPError as answer:
                with answer:
                    return str(answer.read().decode())

        return await asyncio.to_thread(fetch)

    async def stats(self) -> Any:
        """Give `sbe_stats`."""
        return json.loads(await self.page("/stats"))["sbe_stats"]

    async def entries(self, symbol: str = "BTCUSDT") -> list[dict[bytes, bytes]]:
        """Give all entries of the line's stream of a symbol."""
        return [fields for _, fields in await self.redis.xrange(line_stream(symbol, self.settings.line))]

    async def frames(self, symbol: str = "BTCUSDT") -> list[bytes]:
        """Give all frames of the line's stream of a symbol, in order."""
        return [frame for entry in await self.entries(symbol) for _, frame in unpack_frames(entry[b"f"])]

    async def gaps(self, symbol: str = "BTCUSDT") -> list[Gap]:
        """Give the gap events of a symbol."""
        entries = await self.redis.xrange(keys(symbol).gaps)
        return [Gap.parse({name.decode(): value.decode() for name, value in fields.items()}) for _, fields in entries]

    async def more(self, count: int, *, within_s: float = 10.0) -> None:
        """Wait until so many more frames are in Redis."""
        wanted = len(await self.frames()) + count

        async def there() -> bool:
            return len(await self.frames()) >= wanted

        await eventually(there, within_s=within_s, what=f"{count} more frames in Redis")

    async def shows(self, part: str, name: str, wanted: Callable[[Any], bool], *, within_s: float = 10.0) -> None:
        """Wait until a number of `/stats` is as wanted."""

        async def looks() -> bool:
            return bool(wanted((await self.stats())[part].get(name)))

        await eventually(looks, within_s=within_s, what=f"{part}.{name} is as wanted")

    async def connected(self) -> None:
        """Wait until the line is connected and its first frame is in Redis."""

        async def up() -> bool:
            return bool(await self.redis.exists(line_stream(self.settings.symbol[0], self.settings.line)))

        await eventually(up, within_s=10, what="the first frame is in Redis")


@asynccontextmanager
async def line(redis_url: str, ws_url: str, venue: TradingVenue = BINANCE, **settings: Any) -> AsyncIterator[Line]:
    """Run a line while the block runs; it ends in good order at the block's end."""
    chosen = {
        "redis_url": redis_url,
        "ws_url": ws_url,
        "http_host": "127.0.0.1",
        "http_port": free_port_number(),
        "api_key": SecretStr(API_KEY),
    } | settings
    redis = redis_client(redis_url, **PATIENT)
    running = Line(IngestSettings(**chosen), redis)
    task = asyncio.create_task(run_line(running.settings, running.stop, venue))

    async def answers() -> bool:
        if task.done():
            await task
            raise BadSettings("the line has ended")
        try:
            await running.page("/health/live")
        except OSError:
            return False
        return True

    try:
        await eventually(answers, within_s=10, what="the line answers")
        yield running
    finally:
        running.stop.set()
        await asyncio.gather(task, return_exceptions=True)
        await redis.aclose()
    await task


@asynccontextmanager
async def peer(speak: Callable[[ServerConnection], Awaitable[None]], **options: Any) -> AsyncIterator[str]:
    """Run a WebSocket server that handles each connection as the test defines.

    Yields:
        Its origin.
    """
    async with serve(speak, "127.0.0.1", 0, compression=None, ping_interval=None, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


def best(update_id: int, symbol: str = "BTCUSDT") -> bytes:
    """Make a best-price frame."""
    return sbe.encode(
        sbe.BestBidAsk(
            event_time_us=1_700_000_000_000_000 + update_id,
            symbol=symbol,
            price_exponent=-8,
            qty_exponent=-8,
            book_update_id=update_id,
            bid_price=6_000_000_000_000,
            bid_qty=100,
            ask_price=6_000_001_000_000,
            ask_qty=100,
        )
    )


def holes(frames: list[bytes]) -> int:
    """Count the places where the ids of book updates do not follow each other, frames that came twice left out."""
    found, last = 0, 0
    for frame in frames:
        message = sbe.decode(frame)
        if not isinstance(message, sbe.DepthDiff) or message.last_update_id <= last:
            continue
        found += bool(last) and message.first_update_id > last + 1
        last = message.last_update_id
    return found

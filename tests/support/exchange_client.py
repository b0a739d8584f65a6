"""A client of the exchange's streams for tests, on the independent `websockets` library."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sheetanchor import sbe
from support.exchange_fixture import KEY_HEADER, LocalExchange
from support.patience import PATIENCE_S, patience

ALL = "/stream?streams=btcusdt@trade/btcusdt@bestBidAsk/btcusdt@depth"


@asynccontextmanager
async def client(
    exchange: LocalExchange, path: str = ALL, *, line: str = "", **options: Any
) -> AsyncIterator[ClientConnection]:
    async with connect(
        exchange.ws_url + path,
        additional_headers=KEY_HEADER,
        user_agent_header=f"test (line={line})" if line else "test",
        compression=None,
        max_queue=None,  # a full queue would stop the library from reading, and from ending in good order
        **options,
    ) as opened:
        yield opened


async def messages(socket: ClientConnection, count: int) -> list[sbe.Message]:
    """Receive so many binary messages."""
    found: list[sbe.Message] = []
    while len(found) < count:
        frame = await asyncio.wait_for(socket.recv(), PATIENCE_S)
        if isinstance(frame, bytes):
            found.append(sbe.decode(frame))
    return found


async def until(
    socket: ClientConnection, wanted: Callable[[sbe.Message], bool], *, most: int = 20_000
) -> list[sbe.Message]:
    """Receive up to and including the first message that is wanted."""
    found: list[sbe.Message] = []
    while not found or not wanted(found[-1]):
        found += await messages(socket, 1)
        assert len(found) < most
    return found


async def until_now(socket: ClientConnection, exchange: LocalExchange, symbol: str = "BTCUSDT") -> list[sbe.Message]:
    """Receive all that the exchange had due before this call, however much that is, and some that came after it."""
    sent = (await exchange.checkpoint(symbol))["update_id"]
    return await until(
        socket, lambda message: isinstance(message, sbe.DepthDiff) and message.first_update_id > sent, most=10**6
    )


async def ended(socket: ClientConnection) -> None:
    """Receive until the connection has ended."""
    with contextlib.suppress(ConnectionClosed):
        async with patience():
            async for _ in socket:
                pass
    await socket.wait_closed()


async def ask(socket: ClientConnection, **request: Any) -> Any:
    """Send a control message and give the next text message."""
    await socket.send(json.dumps(request))
    while True:
        reply = await asyncio.wait_for(socket.recv(), PATIENCE_S)
        if isinstance(reply, str):
            return json.loads(reply)


def diffs_of(found: list[sbe.Message]) -> list[sbe.DepthDiff]:
    return [message for message in found if isinstance(message, sbe.DepthDiff)]


def missing_updates(diffs: list[sbe.DepthDiff]) -> int:
    """Count the places where the chain of diffs is broken."""
    return sum(later.first_update_id != diff.last_update_id + 1 for diff, later in itertools.pairwise(diffs))


class ClientBook:
    """A book kept by the exchange's published rules: buffer, snapshot, drop what is older, apply without a gap."""

    def __init__(self, snapshot: dict[str, Any], buffered: list[sbe.DepthDiff]) -> None:
        self.update_id = int(snapshot["lastUpdateId"])
        self.bids = {mantissa(price): mantissa(qty) for price, qty in snapshot["bids"]}
        self.asks = {mantissa(price): mantissa(qty) for price, qty in snapshot["asks"]}
        for diff in buffered:
            self.apply(diff)

    def apply(self, diff: sbe.DepthDiff) -> None:
        if diff.last_update_id <= self.update_id:
            return
        assert diff.first_update_id <= self.update_id + 1
        for side, levels in ((self.bids, diff.bids), (self.asks, diff.asks)):
            side.update(levels)
            for price in [price for price, qty in levels if qty == 0]:
                del side[price]
        self.update_id = diff.last_update_id


def mantissa(text: str) -> int:
    return int(Decimal(text).scaleb(8))


async def follow(socket: ClientConnection, book: ClientBook, checkpoint: dict[str, Any]) -> None:
    """Receive up to a checkpoint and compare."""
    while book.update_id < checkpoint["update_id"]:
        for diff in diffs_of(await messages(socket, 1)):
            book.apply(diff)
    expected = {mantissa(price): mantissa(qty) for price, qty in checkpoint["bids"]}
    assert checkpoint["update_id"] == book.update_id
    assert expected == book.bids
    assert {mantissa(price): mantissa(qty) for price, qty in checkpoint["asks"]} == book.asks


async def follow_more(socket: ClientConnection, book: ClientBook, count: int) -> None:
    for diff in diffs_of(await messages(socket, count)):
        book.apply(diff)

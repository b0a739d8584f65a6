"""An exchange unlike the one that the pipeline knows: JSON lines over a WebSocket, names and numbers of its own.

Several messages come in one, a line each; pings are messages too; prices are in dollars, times in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from aiohttp import web

TOY_KEY = "toy-key"


def price_of(cents: int) -> str:
    """Write a price."""
    return f"{cents / 100:.2f}"


class ToyExchange:
    """One market that moves at the test's command, and its subscribers.

    Attributes:
        buys, sells: Quantity by price in cents; all of the book.
        seq: Number of the last change.
        fill: Number of the last trade.
    """

    def __init__(self, market: str = "XBT-USD", seed: int = 1) -> None:
        self.market = market
        self.origin = ""
        self.seq, self.fill = 70_000, 900
        self.buys = {6_000_000 - at: 100 + at for at in range(60)}
        self.sells = {6_000_001 + at: 100 + at for at in range(60)}
        self.asked: list[str] = []
        self._fills: list[dict[str, Any]] = []
        self._listeners: list[tuple[web.WebSocketResponse, list[str], frozenset[str]]] = []
        self._random = random.Random(seed)
        self._trade()

    @property
    def listeners(self) -> int:
        """How many connections there are."""
        return len(self._listeners)

    @property
    def levels(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The book, best first, as mantissas of the pipeline."""
        sides = sorted(self.buys.items(), reverse=True), sorted(self.sells.items())
        bids, asks = ([(price * 10**6, qty * 10**5) for price, qty in side] for side in sides)
        return bids, asks

    async def move(self, *, lost: bool = False) -> None:
        """Change the book, trade, and send the messages to all subscribers.

        Args:
            lost: The change of the book happens, but no message is sent.
        """
        change, fill = self._change(), self._trade()
        best = {"buy": self._entry(self.buys, max(self.buys)), "sell": self._entry(self.sells, min(self.sells))}
        await self.say([*([] if lost else [change]), fill, {"k": "top", "seq": self.seq, **best}])

    async def say(self, messages: list[dict[str, Any]]) -> None:
        """Send messages, a line each, to the subscribers of their kind."""
        at = time.time_ns() // 1_000_000
        for socket, markets, kinds in list(self._listeners):
            lines = [json.dumps({"m": self.market, "at": at, **one}) for one in messages if one["k"] in kinds]
            if self.market in markets and not socket.closed:
                await socket.send_str("\n".join(lines))

    def _change(self) -> dict[str, Any]:
        first = self.seq + 1
        self.seq += self._random.randrange(1, 4)
        changed: dict[str, Any] = {"k": "chg", "seq": [first, self.seq], "buy": [], "sell": []}
        for side, book, away in (("buy", self.buys, -1), ("sell", self.sells, 1)):
            best = max(self.buys) if side == "buy" else min(self.sells)
            price = best + away * self._random.randrange(1, 40)  # the best price stays, so that no book crosses
            qty = self._random.randrange(0, 500)
            book[price] = qty
            changed[side] = [self._entry(book, price)]
            if not qty:
                del book[price]
        return changed

    def _trade(self) -> dict[str, Any]:
        self.fill += 1
        side = self._random.choice(["buy", "sell"])
        price = min(self.sells) if side == "buy" else max(self.buys)
        fill = {
            "k": "fill",
            "no": self.fill,
            "px": price_of(price),
            "sz": f"{self._random.randrange(1, 90)}e-3",
            "taker": side,
            "at": time.time_ns() // 1_000_000,
        }
        self._fills.append(fill)
        return fill

    @staticmethod
    def _entry(book: dict[int, int], price: int) -> dict[str, str]:
        return {"px": price_of(price), "sz": f"{book[price]}e-3"}

    # What it serves

    async def feed(self, request: web.Request) -> web.StreamResponse:
        """Serve the stream: the first message says what is wanted, pings come as messages."""
        if request.headers.get("Toy-Key") != TOY_KEY:
            return web.Response(status=401, text="who are you?")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        wanted = await socket.receive_json()
        listener = (socket, list(wanted["markets"]), frozenset(wanted["kinds"]))
        self._listeners.append(listener)
        try:
            async for message in socket:
                if json.loads(message.data) == {"k": "ping"}:
                    await socket.send_str('{"k": "pong"}')
        finally:
            self._listeners.remove(listener)
        return socket

    async def rest(self, request: web.Request) -> web.Response:
        """Serve the four questions."""
        endpoint, most = request.match_info["endpoint"], int(request.query.get("most", 1))
        self.asked.append(endpoint)
        if request.query.get("m", self.market) != self.market:
            return web.Response(status=404, text="no such market")
        now_ms = time.time_ns() // 1_000_000
        prices = [Decimal(fill["px"]) for fill in self._fills]
        if endpoint == "book":
            buys = [self._entry(self.buys, price) for price in sorted(self.buys, reverse=True)[:most]]
            sells = [self._entry(self.sells, price) for price in sorted(self.sells)[:most]]
            return web.json_response({"seq": self.seq, "buy": buys, "sell": sells})
        if endpoint == "fills":
            return web.json_response(self._fills[: -most - 1 : -1])  # the newest first
        if endpoint == "bars":
            bar = {"from": now_ms - 30_000, "to": now_ms + 30_000, "o": prices[0], "h": max(prices), "l": min(prices)}
            return web.json_response([{name: str(one) for name, one in {**bar, "c": prices[-1]}.items()}])
        if endpoint == "quote":
            buy, sell = price_of(max(self.buys)), price_of(min(self.sells))
            return web.json_response({"last": str(prices[-1]), "buy": buy, "sell": sell, "at": now_ms})
        return web.json_response({"up": True})


@asynccontextmanager
async def toy_exchange() -> AsyncIterator[ToyExchange]:
    """Run the exchange on a port of its own."""
    exchange = ToyExchange()
    app = web.Application()
    app.add_routes([web.get("/feed", exchange.feed), web.get("/ask/{endpoint}", exchange.rest)])
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    exchange.origin = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield exchange
    finally:
        await runner.cleanup()


@asynccontextmanager
async def moving(exchange: ToyExchange, every_s: float = 0.02) -> AsyncIterator[None]:
    """Let the market move while the block runs."""
    done = asyncio.Event()

    async def move() -> None:
        while not done.is_set():
            await exchange.move()
            await asyncio.sleep(every_s)

    task = asyncio.create_task(move())
    try:
        yield
    finally:
        done.set()
        await task

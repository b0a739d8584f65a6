"""An exchange's REST interface with answers that a test defines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Answers = dict[str, Any]


class Venue:
    """A server that gives the answers that a test defines, and records its requests."""

    def __init__(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        self.now_ms = now_ms
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.refusal: Callable[[str], web.Response | None] = lambda name: None
        self.answers: Answers = {
            "depth": {
                "lastUpdateId": 500,
                "bids": [[f"{100 - rank * 0.01:.8f}", "1.00000000"] for rank in range(50)],
                "asks": [[f"{100.01 + rank * 0.01:.8f}", "2.00000000"] for rank in range(50)],
            },
            "trades": [
                {"id": i, "price": "100.00", "qty": "0.5", "time": now_ms - 400 + i, "isBuyerMaker": i % 2 == 0}
                for i in range(10)
            ],
            "klines": [[now_ms - 60_000, "99", "101", "99", "100", "5", now_ms, "500", 10, "1", "1", "0"]],
            "ticker/24hr": {
                "lastPrice": "100.00",
                "bidPrice": "100.00",
                "askPrice": "100.01",
                "closeTime": now_ms,
            },
        }

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request of the REST interface."""
        name = request.match_info["name"]
        self.asked.append((name, dict(request.query)))
        self.headers.append(dict(request.headers))
        return self.refusal(name) or web.json_response(self.answers.get(name, {}))


@asynccontextmanager
async def running_venue() -> AsyncIterator[Venue]:
    """A running venue whose answers are sound."""
    running = Venue()
    app = web.Application()
    app.router.add_get("/api/v3/{name:.*}", running.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield running
    finally:
        await runner.cleanup()

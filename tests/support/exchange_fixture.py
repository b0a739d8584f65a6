"""A real simulated exchange inside the test's own event loop, on a free port, and small clients for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sheetanchor.recording import recording_file
from sheetanchor.runtime.settings import ExchangeSettings
from sheetanchor.simulator.app import ExchangeSimulator, serving
from sheetanchor.simulator.sessions import Terms
from support.patience import limit_s

API_KEY = "test-key"
KEY_HEADER = {"X-MBX-APIKEY": API_KEY}


class LocalExchange:
    """A running exchange as tests use it."""

    def __init__(self, server: ExchangeSimulator, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http
        self.port = server.port
        self.rest_url = f"http://127.0.0.1:{server.port}"
        self.ws_url = f"ws://127.0.0.1:{server.port}"

    async def get(self, path: str, **params: Any) -> Any:
        """GET a page and give its JSON; fails on any status but 200."""
        async with self.http.get(self.rest_url + path, params=params) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def fault(self, kind: str, **params: Any) -> int:
        """Put up a fault; gives its id. `for_` stands for `for`."""
        body = {"kind": kind} | {name.rstrip("_"): value for name, value in params.items()}
        async with self.http.post(self.rest_url + "/faults", json=body) as response:
            answer = await response.json()
            assert response.status == 201, answer
            return int(answer["id"])

    async def end_fault(self, fault_id: int) -> None:
        """Take down a fault that has not ended yet."""
        async with self.http.delete(f"{self.rest_url}/faults/{fault_id}") as response:
            assert response.status == 200, await response.text()

    async def fault_done(self, fault_id: int, *, within_s: float = 10.0) -> dict[str, Any]:
        """Wait until a fault has done its work; gives its report with `applied`."""
        found: list[dict[str, Any]] = []

        async def is_done() -> bool:
            found[:] = [item for item in (await self.get("/faults"))["done"] if item["id"] == fault_id]
            return bool(found)

        await eventually(is_done, within_s=within_s, what=f"fault {fault_id} is done")
        return found[0]

    async def checkpoint(self, symbol: str = "BTCUSDT") -> dict[str, Any]:
        """Give the exchange's whole book and its ids at this moment."""
        answer: dict[str, Any] = await self.get("/checkpoint", symbol=symbol)
        return answer

    async def connections(self) -> list[dict[str, Any]]:
        """List the open WebSocket connections."""
        answer: list[dict[str, Any]] = (await self.get("/connections"))["connections"]
        return answer


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float, what: str) -> None:
    """Poll a condition until it holds; fail with what was awaited when the deadline passes."""
    deadline = time.monotonic() + limit_s(within_s)
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def local_exchange(*, terms: Terms | None = None, **settings: Any) -> AsyncIterator[LocalExchange]:
    """Run an exchange with some settings of `ExchangeSettings`; unless they say otherwise it loops, on a free port."""
    chosen = ExchangeSettings(**({"http_port": 0, "loop": True} | settings))
    async with serving(chosen, terms=terms) as server, aiohttp.ClientSession() as http:
        yield LocalExchange(server, http)


StartExchange = Callable[..., AbstractAsyncContextManager[LocalExchange]]


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    """A running exchange that plays the shipped recording at its own pace, round and round."""
    async with local_exchange() as running:
        yield running


@pytest.fixture(scope="session")
def short_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 3,000 messages of the shipped recording as frames: quick to load and quick to go round."""
    whole = recording_file.load(recording_file.default_path())
    path = tmp_path_factory.mktemp("recording") / "short.frames.gz"
    recording_file.save(
        recording_file.Recording(whole.symbol, whole.snapshot, whole.snapshot_us, whole.events[:3_000]), path
    )
    return path


@pytest.fixture
async def fast_exchange(short_recording: Path) -> AsyncIterator[LocalExchange]:
    """An exchange that plays 2,000 messages a second, so that tests need not wait for the market."""
    async with local_exchange(recording=[short_recording], warmup_s=5, rate=2_000) as running:
        yield running

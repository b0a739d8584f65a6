"""A symbol beyond ASCII from the exchange's stream and REST interface to the anchored state."""

from __future__ import annotations

from pathlib import Path

from sheetanchor import sbe
from sheetanchor.contract import line_stream
from sheetanchor.reanchor.command import run
from sheetanchor.runtime.settings import ReanchorSettings
from sheetanchor.store.hot_state import HotState
from support.exchange_fixture import eventually, local_exchange
from support.line import line

SYMBOL = "\u8fd9\u662f\u6d4b\u8bd5\u5e01456"


async def test_such_a_symbol_is_fed_and_anchored(short_recording: Path, redis_url: str) -> None:
    """The local exchange serves it, a line subscribes to its percent-encoded name, and a re-anchor swaps it in."""
    symbols = [SYMBOL, "BTCUSDT"]
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, rate=300, symbol=symbols) as exchange,
        line(redis_url, exchange.ws_url, symbol=symbols) as running,
    ):
        await running.connected()
        await eventually(lambda: _has(running.frames, SYMBOL), within_s=10, what="frames of the symbol")
        code = await run(ReanchorSettings(redis_url=redis_url, rest_url=exchange.rest_url, symbol=[SYMBOL]))
        anchor = await HotState(running.redis, SYMBOL).anchor()
        frames = await running.frames(SYMBOL)
        [connection] = await exchange.connections()

    assert (0, "anchored", 1) == (code, anchor.state, anchor.epoch)
    assert {SYMBOL} == {sbe.decode(frame).symbol for frame in frames}
    assert f"{SYMBOL}@depth" in connection["streams"]
    assert f"sbe:{{{SYMBOL}}}:a" == line_stream(SYMBOL, "a")


async def _has(frames: object, symbol: str) -> bool:
    return len(await frames(symbol)) > 20  # type: ignore[operator]  # a bound method


async def test_rest_shows_it(short_recording: Path) -> None:
    """The exchange's own list has it."""
    async with local_exchange(recording=[short_recording], warmup_s=5, symbol=[SYMBOL]) as exchange:
        body = await exchange.get("/api/v3/exchangeInfo", symbol=SYMBOL)

    assert [(SYMBOL, "TRADING")] == [(one["symbol"], one["status"]) for one in body["symbols"]]

"""The exchange's own client library against the local exchange: it asks and takes answers apart as for the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from binance_common.errors import BadRequestError
from binance_sdk_spot.spot import ConfigurationRestAPI, Spot

from support.exchange_fixture import local_exchange

SYMBOL = "BTCUSDT"


@pytest.fixture
async def api(short_recording: Path) -> AsyncIterator[Callable[..., Any]]:
    """Calls of the library's REST interface, by name, outside the event loop that the exchange runs in."""
    async with local_exchange(recording=[short_recording], warmup_s=5, rate=500) as running:
        rest = Spot(config_rest_api=ConfigurationRestAPI(base_path=running.rest_url, retries=0)).rest_api

        async def call(name: str, **params: Any) -> Any:
            return (await asyncio.to_thread(getattr(rest, name), **params)).data()

        yield call


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ping", {}),
        ("time", {}),
        ("depth", {"symbol": SYMBOL, "limit": 5}),
        ("get_trades", {"symbol": SYMBOL}),
        ("historical_trades", {"symbol": SYMBOL, "limit": 3}),
        ("agg_trades", {"symbol": SYMBOL}),
        ("klines", {"symbol": SYMBOL, "interval": "1m", "time_zone": "-1:00"}),
        ("ui_klines", {"symbol": SYMBOL, "interval": "1s", "limit": 2}),
        ("avg_price", {"symbol": SYMBOL}),
        ("ticker24hr", {"symbol": SYMBOL}),
        ("ticker24hr", {"symbols": [SYMBOL]}),
        ("ticker24hr", {"type": "MINI"}),
        ("ticker", {"symbol": SYMBOL, "window_size": "5m"}),
        ("ticker", {"symbols": [SYMBOL], "type": "MINI"}),
        ("ticker_price", {"symbol": SYMBOL}),
        ("ticker_price", {}),
        ("ticker_book_ticker", {"symbols": [SYMBOL], "symbol_status": "TRADING"}),
        ("exchange_info", {"symbols": [SYMBOL]}),
        ("exchange_info", {"permissions": "SPOT", "show_permission_sets": False}),
    ],
)
async def test_the_exchanges_own_library_understands_every_answer(
    api: Callable[..., Any], name: str, params: dict[str, Any]
) -> None:
    """It parses each answer into its models without an error, and finds data in it."""
    found = await api(name, **params)

    assert found is not None


async def test_the_library_finds_the_rules_of_a_market(api: Callable[..., Any]) -> None:
    """What a trading program looks at before it orders: filters, limits of orders, what kinds of orders there are."""
    info = await api("exchange_info", symbol=SYMBOL)

    [symbol] = info.symbols
    filters = {getattr(one, "actual_instance", one).filter_type for one in symbol.filters}
    assert {"PRICE_FILTER", "LOT_SIZE", "NOTIONAL"} <= filters
    limits = {getattr(one, "actual_instance", one).rate_limit_type for one in info.rate_limits}
    assert {"REQUEST_WEIGHT", "ORDERS", "RAW_REQUESTS"} == limits
    assert (True, True, True) == (symbol.iceberg_allowed, symbol.oco_allowed, symbol.quote_order_qty_market_allowed)
    assert "STOP_LOSS_LIMIT" in symbol.order_types


@pytest.mark.parametrize(
    ("name", "params", "code"),
    [
        ("depth", {"symbol": "NOPE"}, -1121),
        ("ticker_price", {"symbols": [SYMBOL, SYMBOL]}, -1151),
        ("klines", {"symbol": SYMBOL, "interval": "1m", "time_zone": "15:00"}, -1130),
        ("exchange_info", {"symbol": SYMBOL, "permissions": "SPOT"}, -1128),
    ],
)
async def test_the_library_raises_its_own_errors(
    api: Callable[..., Any], name: str, params: dict[str, Any], code: int
) -> None:
    """An error's body is what it expects of one."""
    with pytest.raises(BadRequestError) as caught:
        await api(name, **params)

    assert str(code) in f"{vars(caught.value)} {caught.value}"

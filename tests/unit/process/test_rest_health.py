"""The health of the exchange's REST interface, as reported by a process that sends no request to it."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import REGISTRY

from sheetanchor.process.rest_health import RestHealth
from support.local_samples import receipt


async def test_it_is_healthy_until_a_run_says_otherwise() -> None:
    """Before the first receipt the exchange counts as healthy; then the newest receipt of each symbol counts."""
    standing = RestHealth()
    before = await standing.check()
    standing.take(replace(receipt(), weight_remaining=5_000))
    good = await standing.check()
    standing.take(replace(receipt("failed", 3, at_us=9, message="GET … answered 503"), breaker=2))
    bad = await standing.check()

    assert ["healthy", "healthy", "degraded"] == [before.status, good.status, bad.status]
    told = bad.details["symbols"]["BTCUSDT"]
    assert ("open", None, "GET … answered 503") == (told["breaker"], told["weight_remaining"], told["last_error"])


async def test_gauges_show_the_newest_run_of_any_symbol() -> None:
    """One exchange serves all symbols: the newest run knows best."""
    standing = RestHealth()
    standing.take(replace(receipt(at_us=20), weight_remaining=4_000, breaker=1))
    standing.take(replace(receipt(at_us=10), symbol="ETHUSDT", weight_remaining=5_000, breaker=0))

    assert 1 == REGISTRY.get_sample_value("circuit_breaker_state", {"dependency": "rest"})
    assert 4_000 == REGISTRY.get_sample_value("sheetanchor_rest_weight_remaining")

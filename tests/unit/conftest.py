"""Fixtures of the pure tests."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor import _decoder
from support import reference_market
from support.market_parts import ASKS, BIDS, Market


@pytest.fixture(params=["native", "reference"])
def make(request: pytest.FixtureRequest) -> Any:
    return _decoder.Market if request.param == "native" else reference_market.Market


@pytest.fixture
def market(make: Any) -> Market:
    """A market of two levels a side at update 100."""
    market = make("BTCUSDT")
    market.load_snapshot(100, -2, -5, BIDS, ASKS, 500)
    return market

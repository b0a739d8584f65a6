"""The venue of a process: the only module that imports the packages behind `sheetanchor.venue`."""

from __future__ import annotations

from typing import Final

from sheetanchor.binance.venue import Binance
from sheetanchor.runtime.settings import IngestSettings, ReanchorSettings
from sheetanchor.venue import TradingVenue

BINANCE: Final = Binance()


def venue_of(_: IngestSettings | ReanchorSettings) -> TradingVenue:
    """Give the venue of a role: there is one so far, so no setting chooses."""
    return BINANCE

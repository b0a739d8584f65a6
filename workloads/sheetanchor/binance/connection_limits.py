"""How often the exchange lets itself be connected to, and how often a connection may be written to. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sheetanchor.runtime.reliability import TokenBucket

CLIENT_MESSAGES_PER_S: Final = 2
CLIENT_MESSAGES_BURST: Final = 3
"""The exchange closes a connection that sends more than five in a second, pings and pongs counted: in no second more
than the burst and what comes back meanwhile."""

ATTEMPTS_PER_S: Final = 0.4
ATTEMPTS_BURST: Final = 20
"""The exchange allows 300 connections in five minutes from an address; two lines on one host stay below that."""


def message_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of messages that a client may send on one connection."""
    return TokenBucket(CLIENT_MESSAGES_PER_S, CLIENT_MESSAGES_BURST, clock=clock)


def attempt_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of connections."""
    return TokenBucket(ATTEMPTS_PER_S, ATTEMPTS_BURST, clock=clock)

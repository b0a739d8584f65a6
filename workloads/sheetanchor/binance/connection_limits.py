"""How many connections the exchange allows, and how many messages a client may send on one. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sheetanchor.runtime.reliability import TokenBucket

CLIENT_MESSAGES_PER_S: Final = 2
CLIENT_MESSAGES_BURST: Final = 3
"""The exchange closes a connection on which a client sends more than five messages in a second, with pings and pongs:
burst and refill together stay below that in every second."""

ATTEMPTS_PER_S: Final = 0.4
ATTEMPTS_BURST: Final = 20
"""The exchange allows 300 connections in five minutes from an address; two lines on one host stay below that."""


def message_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of messages that a client may send on one connection."""
    return TokenBucket(CLIENT_MESSAGES_PER_S, CLIENT_MESSAGES_BURST, clock=clock)


def attempt_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of connections."""
    return TokenBucket(ATTEMPTS_PER_S, ATTEMPTS_BURST, clock=clock)

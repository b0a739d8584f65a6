"""SIGTERM and SIGINT, on which a role ends in an orderly way."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""The signals of Kubernetes and supervisors, and of Ctrl-C."""


def stop_event() -> asyncio.Event:
    """Make an event that the first of these signals sets.

    The signals no longer end the process from here on: the caller has to wait for the event.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    return stop

"""SIGTERM and SIGINT, which tell a role to end in good order."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What Kubernetes and supervisors send, and a Ctrl-C."""


def stop_event() -> asyncio.Event:
    """Make an event that the first of these signals sets.

    The signals no longer end the process from here on: whoever asks for the event has to heed it.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    return stop

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from sheetanchor.runtime.stop_signals import STOP_SIGNALS, stop_event
from support.patience import PATIENCE_S


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Give the signals back to pytest."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_either_signal_sets_the_event(number: signal.Signals) -> None:
    """The process goes on; who waits for the event is woken."""
    stop = stop_event()

    os.kill(os.getpid(), number)

    await asyncio.wait_for(stop.wait(), PATIENCE_S)


async def test_the_event_is_not_set_before() -> None:
    """To ask for it ends nothing."""
    assert not stop_event().is_set()

"""How long a thread was ready to run and got no CPU, as the kernel counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

_THREAD: Final = Path("/proc/thread-self/schedstat")


def processor_wait_s() -> float:
    """Give the seconds that the calling thread has waited for a CPU; 0 where the kernel does not count them."""
    with suppress(OSError):
        return int(_THREAD.read_text().split()[1]) / 1e9
    return 0.0

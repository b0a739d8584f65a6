"""Work beside a role's main work: it goes on after a fault, which is logged, counted and seen in the health answers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from sheetanchor.runtime import metrics
from sheetanchor.runtime.reliability import Backoff
from sheetanchor.web.server import CheckResult

log = logging.getLogger(__name__)

BACKOFF: Final = Backoff(initial_s=0.5, max_s=30.0)
SOUND_AFTER_S: Final = 60.0
"""A task that has run for so long without a fault is well again."""


@dataclass(slots=True)
class RestartedTasks:
    """Tasks that are begun again when they end by a defect, and what befell them.

    Attributes:
        sleep: Waits for seconds.
        clock: Monotonic seconds.
    """

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    _faults: dict[str, tuple[float, str]] = field(default_factory=dict)

    async def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> NoReturn:
        """Do endless work, and begin it again after a fault; until cancelled.

        Args:
            name: What it is, for people and as a label.
            work: Begins it; what it awaits should never end.
        """
        metrics.TASK_FAULTS.labels(name)  # from zero: the first one is an increase
        delays = BACKOFF.delays(random.random)
        while True:
            begun_s = self.clock()
            try:
                await work()
                message = "ended, though it never should"
                log.error("%s: %s", name, message)
            except Exception as error:  # whatever it is: this work must not end for good by one defect
                message = f"{type(error).__name__}: {error}"
                log.exception("%s has failed and is begun again", name)
            metrics.TASK_FAULTS.labels(name).inc()
            self._faults[name] = (self.clock(), message)
            if self.clock() - begun_s > SOUND_AFTER_S:
                delays = BACKOFF.delays(random.random)
            await self.sleep(next(delays))

    async def check(self) -> CheckResult:
        """Say which tasks have failed within the last minute."""
        now_s = self.clock()
        failing = {name: message for name, (at_s, message) in self._faults.items() if now_s - at_s <= SOUND_AFTER_S}
        return CheckResult("degraded" if failing else "healthy", {"failing": failing})

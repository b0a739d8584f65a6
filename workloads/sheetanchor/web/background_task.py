"""Background tasks of a role: restarted after a fault, which is logged, counted and shown in the health answers."""

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
"""A task that has run for this long without a fault counts as healthy again."""


@dataclass(slots=True)
class RestartedTasks:
    """Tasks that are restarted when they end by a defect, and their faults.

    Attributes:
        sleep: Waits for seconds.
        clock: Monotonic seconds.
    """

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    _faults: dict[str, tuple[float, str]] = field(default_factory=dict)

    async def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> NoReturn:
        """Run endless work, and restart it after a fault; until cancelled.

        Args:
            name: Name of the task, in logs and as a label.
            work: Starts it; the awaitable should never end.
        """
        metrics.TASK_FAULTS.labels(name)  # from 0: the first one is an increase
        delays = BACKOFF.delays(random.random)
        while True:
            begun_s = self.clock()
            try:
                await work()
                message = "ended, although it should never end"
                log.error("%s: %s", name, message)
            except Exception as error:  # any error: this task must not end for good by one defect
                message = f"{type(error).__name__}: {error}"
                log.exception("the task %s has failed and is restarted", name)
            metrics.TASK_FAULTS.labels(name).inc()
            self._faults[name] = (self.clock(), message)
            if self.clock() - begun_s > SOUND_AFTER_S:
                delays = BACKOFF.delays(random.random)
            await self.sleep(next(delays))

    async def check(self) -> CheckResult:
        """Report the tasks that have failed within the last minute."""
        now_s = self.clock()
        failing = {name: message for name, (at_s, message) in self._faults.items() if now_s - at_s <= SOUND_AFTER_S}
        return CheckResult("degraded" if failing else "healthy", {"failing": failing})

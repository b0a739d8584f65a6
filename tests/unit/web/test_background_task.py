"""Work beside a role's main work goes on after a fault, and that is seen."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from sheetanchor.web.background_task import SOUND_AFTER_S, RestartedTasks


async def test_a_task_that_fails_is_begun_again_and_seen() -> None:
    """Each end is counted, reported in the health answer for a minute, and followed by a restart."""
    now_s, begun, slept = [0.0], [], []
    done = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    async def work() -> None:
        begun.append(now_s[0])
        if len(begun) == 3:
            done.set()
            await asyncio.Event().wait()
        if len(begun) == 1:
            raise KeyError("no such thing")

    kept = RestartedTasks(sleep, lambda: now_s[0])
    before = await kept.check()
    task = asyncio.create_task(kept.keep("asking", work))
    await done.wait()
    failing = await kept.check()
    now_s[0] = SOUND_AFTER_S + 1
    later = await kept.check()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["healthy", "degraded", "healthy"] == [before.status, failing.status, later.status]
    assert {"asking": "ended, although it should never end"} == failing.details["failing"]
    assert 2 == REGISTRY.get_sample_value("sheetanchor_task_faults_total", {"task": "asking"})
    assert 2 == len(slept)
    assert 0 < slept[0] < slept[1] < 2

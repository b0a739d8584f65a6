"""A reconcile starts no write that can wait after its time is over, and still makes progress."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.controller.plan_writes import AT_ONCE, write_some
from sheetanchor_operator.controller.processor_wait import processor_wait_s
from sheetanchor_operator.events import Event
from sheetanchor_operator.kube.api_client import ApiRefused, ApiUnavailable
from sheetanchor_operator.kube.event_queue import WAITING_MAX, EventQueue
from sheetanchor_operator.kube.reconcile_timer import AT_LEAST, BEGIN_WITHIN_S, LONG_S, ReconcileTimer
from sheetanchor_operator.names import EventReason
from support.reanchor_world import SYMBOL, World


@given(st.floats(0, 2), st.lists(st.floats(0, 1), max_size=200))
def test_no_write_begins_late_but_the_first_ones(planned_s: float, took_s: list[float]) -> None:
    """However long planning and each write take: after half a second only writes that cannot wait start."""
    now_s, begun_s, look = 1000.0 + planned_s, [], ReconcileTimer(1000.0)

    for seconds in took_s:
        if not look.may_begin(now_s):
            break
        begun_s.append(now_s - 1000.0)
        now_s += seconds

    assert all(at_s < BEGIN_WITHIN_S for at_s in begun_s[AT_LEAST:])
    assert len(begun_s) >= min(AT_LEAST, len(took_s))


def test_what_cannot_wait_takes_the_first_places() -> None:
    """Late in a reconcile urgent writes all start; those that can wait only among the first `AT_LEAST`."""
    look = ReconcileTimer(0.0)

    begun = [look.may_begin(1.0, can_wait=number >= 5) for number in range(AT_LEAST + 2)]

    assert [*[True] * AT_LEAST, False, False] == begun
    assert look.may_begin(1.0, can_wait=False)


@given(st.lists(st.floats(0.001, 0.4), min_size=1, max_size=60), st.floats(0, 1))
def test_whatever_the_server_takes_a_look_ends_with_its_last_answer(took_s: list[float], planned_s: float) -> None:
    """Writes of a reconcile end at most one answer after its time; after some reconciles each item is written once."""
    written, looks, items = Counter[int](), 0, list(range(len(took_s)))

    async def looked() -> None:
        nonlocal items, looks
        loop = asyncio.get_running_loop()
        while items:
            looks += 1
            look = ReconcileTimer(loop.time())
            await asyncio.sleep(planned_s)

            async def write(item: int) -> None:
                await asyncio.sleep(took_s[item])
                written[item] += 1

            left = await write_some(write, items, lambda _, look=look: look.may_begin(loop.time()))
            assert loop.time() - look.begun_s <= max(BEGIN_WITHIN_S, planned_s) + max(took_s) + 0.001
            items = list(left.items)

    with asyncio.Runner(loop_factory=TimelessLoop) as runner:
        runner.run(looked())

    assert dict.fromkeys(range(len(took_s)), 1) == written
    assert looks <= -(-len(took_s) // AT_LEAST)


class TimelessLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing to do."""

    _now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now_s = max(self._now_s, self._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


async def test_a_refusal_ends_the_writing_and_names_what_is_left() -> None:
    """Writes in progress end, no further one starts, and the refusal's message names what was not written."""
    ended = []

    async def write(item: int) -> None:
        await asyncio.sleep(0)
        if item == 3:
            raise ApiRefused(403, "Forbidden", "no")
        ended.append(item)

    left = await write_some(write, list(range(100)), lambda _: True)

    assert left.refusal is not None
    assert list(range(100)) == sorted([*ended, *left.items])
    assert {3} < set(left.items)
    assert len(ended) <= 2 * AT_ONCE


@pytest.mark.parametrize("error", [ApiUnavailable("busy"), RuntimeError("a defect")])
async def test_a_failure_is_raised_once_all_has_ended(error: Exception) -> None:
    """The next reconcile tries again."""
    running = 0

    async def write(item: int) -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.sleep(0.001 * item)
            if item == 1:
                raise error
        finally:
            running -= 1

    with pytest.raises(type(error)):
        await write_some(write, list(range(20)), lambda _: True)

    assert 0 == running


def test_a_long_reconcile_reports_its_longest_wait() -> None:
    """A short one reports nothing."""
    timer = ReconcileTimer(10.0, starved_s=0.3)
    timer.answered("GET /a", 0.2)
    timer.answered("PATCH /b", 0.9)
    timer.answered("GET /c", 0.1)

    assert "" == timer.message(10.0 + LONG_S)
    report = "this reconcile took 1.500 s; for 0.300 s it got no CPU; its longest wait for the API server was 0.900 s"
    assert f"{report}: PATCH /b" == timer.message(11.5)
    assert "it sent no request" in ReconcileTimer(0.0).message(2.0)


def test_waiting_for_a_processor_is_counted() -> None:
    """With more busy threads than CPUs, this one waits for a CPU, at most for the time that has passed."""
    before_s, begun_s = processor_wait_s(), time.monotonic()
    end_s = begun_s + 0.2
    code = "import time; end = time.monotonic() + 0.4\nwhile time.monotonic() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2 * (os.cpu_count() or 1))]
    while any(one.poll() is None for one in busy) or time.monotonic() < end_s:
        pass

    waited_s, took_s = processor_wait_s() - before_s, time.monotonic() - begun_s
    assert 0.0 < waited_s <= took_s


# What is put off


@given(st.randoms(use_true_random=False))
def test_what_is_put_off_comes_to_the_same_end(chance: random.Random) -> None:
    """With any time limits, phases, runs and reports are finally those of a reconcile that has time for everything."""

    def ended(world: World, share: float) -> tuple[dict[str, str], list[str], Counter[str]]:
        world.suspect()
        for number in range(6):
            world.add(f"gap-{number}")
        world.add("stranger", symbol="NONE")
        world.add("comparison", trigger="manual", action="validation_reanchor")
        for _ in range(100):
            made = world.step(has_time=lambda: chance.random() < share)
            for job in world.at_work():
                world.ends(job)
                world.anchored(SYMBOL, 2)
            if not made.patch and not made.start and made.wake_at_us != world.now_us:
                break
        else:
            raise AssertionError("it never settles")
        phases = {name: world.of(name).get("phase", "") for name in world.reanchors}
        return phases, [name for _, name in world.started], Counter(world.reasons)

    whole, partial = ended(World(), 1.0), ended(World(), 0.4)

    assert whole == partial


# Events


def event(number: int) -> Event:
    return Event("ReAnchor", f"one-{number}", f"uid-{number}", "Normal", EventReason.REANCHOR_SKIPPED, "words")


def test_each_namespace_has_its_turn() -> None:
    """One Event of a quiet namespace is published before the second of one that floods."""
    queue = EventQueue()
    for number in range(50):
        queue.put("flooded", event(number))
    queue.put("quiet", event(0))

    taken = [queue.take() for _ in range(3)]

    assert ["flooded", "quiet", "flooded"] == [one[0] for one in taken if one]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=900))
def test_no_namespace_has_more_than_its_places(steps: list[tuple[str, bool]]) -> None:
    """In whatever order Events come and go: what was let in comes out once, in its namespace's order."""
    queue, let_in, out = EventQueue(), [], []
    for number, (namespace, takes) in enumerate(steps):
        if takes and (one := queue.take()) is not None:
            out.append((one[0], one[1].name))
        elif queue.put(namespace, event(number)):
            let_in.append((namespace, f"one-{number}"))
        assert len(queue) <= 3 * WAITING_MAX
    while (one := queue.take()) is not None:
        out.append((one[0], one[1].name))

    for namespace in "abc":
        assert [one for one in let_in if one[0] == namespace] == [one for one in out if one[0] == namespace]


def test_what_has_no_place_is_refused() -> None:
    queue = EventQueue()

    let_in = [queue.put("a", event(number)) for number in range(WAITING_MAX + 1)]

    assert [*[True] * WAITING_MAX, False] == let_in
    assert queue.put("b", event(0))

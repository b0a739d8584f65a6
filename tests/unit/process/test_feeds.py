"""Feeds in which any part stops, lags, jumps, empties or repeats: no wrong state is ever reported as sound.

The exchange's own book and trades are what is compared with; `make soak-feeds` plays ten thousand.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.contract import STREAM_TYPES
from support.feed_world import ALONE, KINDS, SECOND, Fault, Outcome, World
from support.soak_feeds import clean_doubts

CHUNK = 38
"""Of every kind of fault alone, of every pair of kinds, and of none there is one in 76 seeds."""


def wrong_of(world: World, outcome: Outcome) -> list[object]:
    """What a feed must not show."""
    wrong: list[object] = list(outcome.wrong[:3])
    if not world.faults and outcome.doubted_us:
        wrong.append(f"doubted without a fault: {outcome.kinds}")
    if not outcome.sound_at_end:
        wrong.append("not sound again at the end")
    return [(world.faults, *wrong)] if wrong else []


@pytest.mark.parametrize("first", range(0, 6 * CHUNK, CHUNK))
def test_no_wrong_state_is_told_as_sound(first: int) -> None:
    """Alone and in pairs, on streams, lines and the whole symbol; and what was wrong heals."""
    worlds = [World(seed) for seed in range(first, first + CHUNK)]

    wrong = [what for world in worlds for what in wrong_of(world, world.run())]

    assert [] == wrong


@pytest.mark.parametrize(
    "seed", [1443, 1778, 2367, 2897, 3340, 3844, 4318, 5437, 5821, 6428, 7427, 7719, 8572, 9009, 9331]
)
def test_feeds_that_once_were_wrong_or_never_healed(seed: int) -> None:
    """An odd time on the line read last, a lasting wrong clock, a side reported as empty, a loss at an edge,
    a processor that stops right before Redis' clock is set back, a clock set in a silence or while a stream is late."""
    world = World(seed)

    assert [] == wrong_of(world, world.run())


def test_lateness_that_stays_is_compared_again_and_again() -> None:
    """After a quarter of a minute and then after as long as it has lasted: one comparison may have come too early."""
    late = Fault("lag", frozenset(STREAM_TYPES), frozenset((0, 1)), 12 * SECOND, 120 * SECOND, 3.0)
    world = World(0, (late,), 110 * SECOND)

    world.run()

    found_s = [at_s for at_s, rule, _ in world.log if rule == "feed_late"]
    waits_s = [after - before for before, after in pairwise(found_s)]
    assert [15, 15, 30] == [round(wait_s) for wait_s in waits_s[:3]]


def sizes(kind: str) -> st.SearchStrategy[float]:
    bounds = {"lag": (0.1, 12), "loss": (0.01, 1), "reorder": (0.01, 0.9), "redis_clock": (-900, 900)}
    if kind in bounds:
        return st.floats(*bounds[kind])
    # What a clock is set by while nothing comes passes for lateness if it is below two seconds.
    far = st.one_of(st.floats(-4000, -2.5), st.floats(2.5, 4000))
    return {"exchange_clock": far, "odd_time": far, "empty": st.sampled_from([0.0, 1.0])}.get(kind, st.just(0.0))


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    kind = draw(st.sampled_from(KINDS))
    streams = frozenset(draw(st.sets(st.sampled_from(STREAM_TYPES), min_size=1)))
    lines = frozenset(draw(st.sets(st.sampled_from((0, 1)), min_size=1)))
    start_us = round(draw(st.floats(12, 18)) * SECOND)
    length_us = round(draw(st.floats(0.05, 12)) * SECOND)
    if kind in ALONE:
        streams, lines = frozenset(STREAM_TYPES), frozenset((0, 1))
    return Fault(kind, streams, lines, start_us, start_us + length_us, draw(sizes(kind)))


@given(seed=st.integers(0, 15), together=st.lists(faults(), min_size=1, max_size=2))
@settings(max_examples=20)
def test_no_mixture_of_faults_makes_a_wrong_state_sound(seed: int, together: list[Fault]) -> None:
    """Two at once, of any size within the bounds, at any time."""
    world = World(seed, tuple(together))

    outcome = world.run()

    assert [] == outcome.wrong[:3], world.faults


def test_a_clean_market_is_never_doubted() -> None:
    """One pass of the recording and a half, with the seam between; an hour of it with `make soak-feeds`."""
    frames, found = clean_doubts(600)

    assert frames > 50_000
    assert {} == {what: count for what, count in found.items() if not what.startswith("rule volume_anomaly")}

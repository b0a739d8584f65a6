"""What a process knows of Redis' clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.store.server_clock import KEEP_US, RedisClock

OFFSET_US = 1_700_000_000_000_000


def learnt(*samples: tuple[int, int, int]) -> RedisClock:
    clock = RedisClock()
    for sent_us, received_us, redis_us in samples:
        clock.learn(sent_us, received_us, redis_us)
    return clock


def test_nothing_is_known_before_the_first_reply() -> None:
    """Rules that need the time wait until then."""
    assert not RedisClock().known
    assert learnt((0, 10, OFFSET_US)).known


def test_the_shortest_round_trip_is_trusted() -> None:
    """A slow reply after a quick one says less about the time, not more."""
    clock = learnt((1_000, 1_100, OFFSET_US + 1_050), (2_000, 12_000, OFFSET_US + 11_900))

    assert OFFSET_US + 20_000 == clock.now_us(20_000)


def test_a_sample_that_is_better_replaces_one_that_is_worse() -> None:
    """The first reply of a connection is slow."""
    clock = learnt((0, 10_000, OFFSET_US + 9_000), (20_000, 20_200, OFFSET_US + 20_100))

    assert OFFSET_US + 30_000 == clock.now_us(30_000)


def test_an_old_sample_gives_way_to_any() -> None:
    """Clocks drift."""
    later = KEEP_US + 2_000
    clock = learnt((0, 10, OFFSET_US + 5), (later, later + 1_000, OFFSET_US + later + 700))

    assert OFFSET_US + later + 200 == clock.now_us(later)


def test_a_clock_that_was_set_is_followed_at_once() -> None:
    """Also when another server answers whose clock differs, and the reply was slow."""
    clock = learnt((0, 10, OFFSET_US + 5), (1_000, 3_000, OFFSET_US + 2_000 - 60_000_000))

    assert OFFSET_US - 60_000_000 + 5_000 == clock.now_us(5_000)


@given(st.lists(st.tuples(st.integers(1, 50_000), st.floats(0, 1), st.integers(1, 1_000_000)), min_size=1, max_size=30))
def test_the_error_is_at_most_half_the_shortest_trip(trips: list[tuple[int, float, int]]) -> None:
    """Wherever in its trip the server looked at its clock."""
    clock, now_us = RedisClock(), 0
    for trip_us, share, pause_us in trips:
        looked_us = now_us + int(trip_us * share)
        clock.learn(now_us, now_us + trip_us, OFFSET_US + looked_us)
        now_us += trip_us + pause_us

    error_us = abs(clock.now_us(now_us) - (OFFSET_US + now_us))
    assert error_us <= max(trip for trip, _, _ in trips) / 2 + 1
    if now_us < KEEP_US:
        assert error_us <= min(trip for trip, _, _ in trips) / 2 + 1


@given(st.integers(0, 10**15), st.integers(0, 10**12))
def test_both_directions_agree(redis_us: int, monotonic_us: int) -> None:
    """A moment of one clock is the same moment of the other."""
    clock = learnt((0, 10, OFFSET_US))

    assert redis_us == clock.now_us(clock.monotonic_us(redis_us))
    assert monotonic_us == clock.monotonic_us(clock.now_us(monotonic_us))

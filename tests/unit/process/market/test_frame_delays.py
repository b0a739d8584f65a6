"""Which entries count for the time from frame to hot keys."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.process.market.frame_delays import WAITING_MAX, FrameDelays

S = 1_000_000


@dataclass(frozen=True)
class Entry:
    line: str
    stamp_us: int
    first_received_us: int


NOW = 1_700_000_000 * S


def test_what_was_there_before_is_not_counted_however_late_it_is_read() -> None:
    """A start finds ten seconds of entries; those that come while they are read wait for the replay, not for us."""
    delays = FrameDelays()
    delays.replay()
    for back in range(100, 0, -1):
        delays.take(Entry("a", NOW - back * S // 10, NOW - back * S // 10 - 500))

    delays.keeps_up(NOW)
    delays.take(Entry("a", NOW - 1, NOW - 700_000))
    delays.take(Entry("a", NOW + 10, NOW + 5))

    assert [pytest.approx(0.002)] == delays.written(NOW + 2_005)
    assert [] == delays.written(NOW + 3_000)


def test_what_an_ingestor_appends_again_is_not_counted() -> None:
    """After a failover the last 15 s come a second time; what is new between them does count."""
    delays = FrameDelays()
    delays.keeps_up(NOW)
    received = [NOW + number * 1_000 for number in range(1, 11)]
    for at_us in received:
        delays.take(Entry("a", at_us + 100, at_us))
    delays.written(NOW + 20_000)

    for at_us in received:
        delays.take(Entry("a", NOW + 15 * S, at_us))
    delays.take(Entry("a", NOW + 15 * S, NOW + 15 * S - 3_000))
    delays.take(Entry("b", NOW + 15 * S, NOW + 15 * S - 4_000))

    assert [pytest.approx(0.003), pytest.approx(0.004)] == delays.written(NOW + 15 * S)


def test_a_warm_processor_counts_nothing_and_knows_what_it_has_seen() -> None:
    """When it takes over, only what comes then is its own."""
    delays = FrameDelays()
    delays.keeps_up(NOW)
    delays.take(Entry("a", NOW + 100, NOW + 50), writes=False)

    delays.take(Entry("a", NOW + 200, NOW + 50))
    delays.take(Entry("a", NOW + 300, NOW + 250))

    assert [pytest.approx(0.00015)] == delays.written(NOW + 400)


def test_while_nothing_can_be_written_it_waits_within_bounds() -> None:
    """A book with an empty side lets frames wait: that is their delay, but not without end in memory."""
    delays = FrameDelays()
    delays.keeps_up(NOW)
    for number in range(1, WAITING_MAX + 500):
        delays.take(Entry("a", NOW + number, NOW + number))

    assert WAITING_MAX == len(delays.written(NOW + S))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 9)), max_size=60), st.integers(0, 60)
)
def test_every_entry_counts_at_most_once_and_none_from_before(entries: list[tuple[str, int, int]], since: int) -> None:
    """In whatever order old and repeated ones come: as many delays as there are entries that are new to their line."""
    delays = FrameDelays()
    delays.keeps_up(since)
    newest: dict[str, int] = {}
    expected = 0
    for line, stamp_us, age_us in entries:
        received_us = stamp_us - age_us
        expected += stamp_us > since and received_us > newest.get(line, -1)
        newest[line] = max(received_us, newest.get(line, -1))
        delays.take(Entry(line, stamp_us, received_us))

    found = delays.written(100)

    assert expected == len(found)
    assert all(delay <= (100 - since + 10) / 1e6 for delay in found)

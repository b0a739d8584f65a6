"""When a processor reads and writes next."""

from __future__ import annotations

import pytest

from sheetanchor.contract import BEAT_INTERVAL_US
from sheetanchor.process.market.write_timer import MISSING_RANGE_POLL_US, STANDBY_READ_US, Cadence, WriteTimer

NOW = 1_700_000_000_000_000
FLUSH_US = 10_000


def timer(since_us: int, *, dirty: bool = False) -> WriteTimer:
    """A timer whose last write was that long ago."""
    return WriteTimer(Cadence(FLUSH_US, 1_000_000), applied_us=NOW - since_us, dirty=dirty)


@pytest.mark.parametrize(("since_us", "wait_us"), [(0, FLUSH_US), (FLUSH_US - 1, 1), (FLUSH_US, 0), (10 * FLUSH_US, 0)])
def test_a_writer_leaves_entries_until_it_may_write(since_us: int, wait_us: int) -> None:
    """One read then does the work of many."""
    assert wait_us == timer(since_us).batch_wait_us(NOW, writes=True)


def test_a_standby_reads_at_its_own_interval() -> None:
    """It has nothing to write."""
    assert STANDBY_READ_US == timer(0).batch_wait_us(NOW, writes=False)


@pytest.mark.parametrize(
    ("since_us", "dirty", "incomplete", "block_ms"),
    [
        (0, False, False, BEAT_INTERVAL_US // 1_000),
        (BEAT_INTERVAL_US, False, False, 1),
        (0, True, False, 1),
        (0, False, True, MISSING_RANGE_POLL_US // 1_000),
        (BEAT_INTERVAL_US, False, True, 1),
    ],
)
def test_a_read_of_the_writer_ends_before_its_heartbeat_is_due(
    since_us: int, dirty: bool, incomplete: bool, block_ms: int
) -> None:
    """And at once if something is unwritten; a missing range times out without a message."""
    assert block_ms == timer(since_us, dirty=dirty).block_ms(NOW, writes=True, incomplete=incomplete)


def test_a_read_of_a_standby_depends_on_no_write() -> None:
    """It has none; it only has to check the writer."""
    assert BEAT_INTERVAL_US // 1_000 == timer(3_600_000_000).block_ms(NOW, writes=False, incomplete=False)


@pytest.mark.parametrize(
    ("since_us", "dirty", "caught_up", "due"),
    [
        (FLUSH_US, True, True, True),
        (FLUSH_US - 1, True, True, False),
        (FLUSH_US, False, True, False),
        (BEAT_INTERVAL_US * 9 // 10, False, True, True),
        (BEAT_INTERVAL_US * 9 // 10, True, False, False),
        (BEAT_INTERVAL_US, False, False, True),
    ],
)
def test_what_is_read_is_written_after_the_flush_interval_and_the_heartbeat_in_any_case(
    since_us: int, dirty: bool, caught_up: bool, due: bool
) -> None:
    """During a replay only the heartbeat is due: the market is of the past."""
    assert due == timer(since_us, dirty=dirty).write_due(NOW, caught_up=caught_up)


def test_the_book_is_due_at_its_own_interval() -> None:
    """Zero has it written with the next write."""
    one = timer(0)

    assert one.book_due(NOW)
    one.booked_us = NOW - 999_999
    assert not one.book_due(NOW)
    one.booked_us -= 1
    assert one.book_due(NOW)

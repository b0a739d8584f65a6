"""What the next write of a symbol contains, and update ids that the exchange has reset."""

from __future__ import annotations

from sheetanchor._decoder import Market
from sheetanchor.policy.gap_rules import Thresholds
from sheetanchor.process.market.gap_detector import GapDetector
from sheetanchor.process.market.hot_write import BEHIND_MAX_US, ResetDetector, compose
from sheetanchor.process.market.market_follower import NOTHING, Follower
from sheetanchor.store.server_clock import RedisClock

NOW = 1_700_000_000_000_000


def follower(update_id: int) -> Follower:
    """A market whose book ends at an update; without one at 0."""
    market = Market("BTCUSDT")
    if update_id:
        market.load_snapshot(update_id, -2, -2, [(100, 1)], [(101, 1)], NOW)
    return Follower(market, GapDetector(Thresholds(), NOW), RedisClock())


def test_a_book_that_is_not_before_what_is_stored_is_written() -> None:
    """Hot keys and book, under its own update id."""
    write = compose(follower(1_000), 1_000, NOW)

    assert (1_000, False, True, "") == (write.update_id, write.behind, write.has_book, write.unwritten)
    assert "sbe" in write.lists[0]


def test_before_what_is_stored_only_a_heartbeat_is_written() -> None:
    """Under the stored update id: an older one would be refused, and the stored state stays as it is."""
    write = compose(follower(999), 1_000, NOW)

    assert (NOTHING, 1_000, 0) == (write.lists, write.update_id, write.stamp_us)
    assert (True, False, True) == (write.behind, write.has_book, bool(write.unwritten))


def test_without_a_book_only_a_heartbeat_is_written() -> None:
    """Before the first rebuild nothing is known of the market."""
    write = compose(follower(0), 0, NOW)

    assert (NOTHING, False, False) == (write.lists, write.behind, write.has_book)


def test_lines_that_end_before_what_is_stored_are_a_reset_once_a_replay_would_be_done() -> None:
    """Found once, and again only after the same time."""
    resets = ResetDetector()

    assert resets.observe(9, 10, NOW, caught_up=True) is None
    assert resets.observe(9, 10, NOW + BEHIND_MAX_US, caught_up=True) is None
    assert resets.observe(9, 10, NOW + BEHIND_MAX_US + 1, caught_up=False) is None
    found = resets.observe(9, 10, NOW + BEHIND_MAX_US + 2, caught_up=True)
    assert resets.observe(9, 10, NOW + BEHIND_MAX_US + 3, caught_up=True) is None

    assert found is not None
    assert ("sequence_reset", "the lines end at update 9, the stored state at 10") == (found.rule, found.reason)


def test_a_market_that_catches_up_was_not_reset() -> None:
    """The time counts from when it fell behind last."""
    resets = ResetDetector()

    resets.observe(9, 10, NOW, caught_up=True)
    resets.observe(10, 10, NOW + BEHIND_MAX_US, caught_up=True)

    assert resets.observe(9, 10, NOW + 2 * BEHIND_MAX_US, caught_up=True) is None
    assert resets.observe(9, 10, NOW + 2 * BEHIND_MAX_US + 1, caught_up=True) is None

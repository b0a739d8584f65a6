"""What has to hold for a state to be sound: each part that stops, lags, jumps or contradicts is a reason of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from sheetanchor.contract import STALE_AFTER_US, STREAM_TYPES
from sheetanchor.policy import soundness
from sheetanchor.policy.soundness import (
    MarketObservation,
    Memory,
    NewestMessage,
    judge,
    levels_fault,
    observe,
    shown_in_time,
)
from sheetanchor.process.market.arrival_clock import Arrivals
from sheetanchor.store.server_clock import RedisClock

MS = 1_000
SECOND = 1_000_000
T0 = 1_700_000_000 * SECOND
OFF = 7 * SECOND
"""How far the exchange's clock is behind ours."""


class Feed:
    """A market in which every stream moves ten times a second, unless the test stops one."""

    def __init__(self) -> None:
        self.now_us = T0
        self.event_off_us = -OFF
        self.ids = {"trade": 500, "bestBidAsk": 1_000, "depth": 1_000}
        self.newest_messages = dict.fromkeys(STREAM_TYPES, NewestMessage())
        self.sent_us = dict.fromkeys(STREAM_TYPES, 0)
        self.agreed = 0
        self.best = (100.0, 101.0)
        self.told = self.best
        self.seen = self.observed()
        self.memory = Memory()

    def observed(self, **other: object) -> MarketObservation:
        seen = MarketObservation(
            now_us=self.now_us,
            newest_messages=dict(self.newest_messages),
            update_id=self.ids["depth"],
            bba_id=self.ids["bestBidAsk"],
            trade_id=self.ids["trade"],
            book_best=self.best,
            streamed_best=self.told,
            best_confirmed=self.agreed,
            end_us=self.end_us(),
            trade_price=100.0,
            read_us=self.now_us,
        )
        return replace(seen, **other)

    def end_us(self) -> int:
        newest = max(self.newest_messages.values(), key=lambda message: message.arrival_us)
        return newest.event_us + self.now_us - newest.arrival_us

    def run(self, seconds: float, without: tuple[str, ...] = (), late_us: int = 0, **other: object) -> Feed:
        """Let time pass while all streams but some go on."""
        for _ in range(round(seconds * 10)):
            self.now_us += 100 * MS
            for name in STREAM_TYPES:
                if name not in without:
                    self.ids[name] = max(self.ids[name] + 3, self.ids["bestBidAsk"] if name == "depth" else 0)
                    before = self.newest_messages[name]
                    self.sent_us[name] = max(self.sent_us[name], self.now_us - late_us)
                    event_us = self.sent_us[name] + self.event_off_us
                    self.newest_messages[name] = NewestMessage(
                        before.count + 1, self.ids[name], event_us, self.now_us - 5 * MS
                    )
            self.agreed += "bestBidAsk" not in without and self.told == self.best
            self.memory = observe(self.memory, self.observed(**other))
        return self

    def kinds(self, later_us: int = 0, unwritten: str = "") -> list[str]:
        return [reason.kind for reason in judge(self.memory, self.now_us + later_us, unwritten).reasons]


def sound() -> Feed:
    feed = Feed().run(20)
    assert [] == feed.kinds()
    return feed


def test_a_clean_feed_is_sound_for_as_long_as_a_writer_may_be_silent() -> None:
    """Whatever the exchange's clock says; and no longer than two seconds without a further write."""
    feed = sound()

    verdict = judge(feed.memory, feed.now_us)

    assert verdict.sound
    assert 0 < verdict.until_us - feed.now_us <= soundness.VOUCH_US


@pytest.mark.parametrize(
    ("without", "seconds", "kind", "names"),
    [
        (("depth",), 1.2, "missing", "depth: best prices are at update"),
        (("depth", "bestBidAsk"), 2.5, "missing", "depth: trades have come without a diff"),
    ],
)
def test_a_part_that_is_silent_while_others_move_is_missing(
    without: tuple[str, ...], seconds: float, kind: str, names: str
) -> None:
    """Within seconds, and by name."""
    feed = sound().run(seconds, without)

    reasons = judge(feed.memory, feed.now_us).reasons
    assert any(reason.kind == kind and reason.text.startswith(names) for reason in reasons), reasons
    assert "missing" not in feed.run(1).kinds()


def test_best_prices_that_stay_away_are_missed_only_when_the_book_s_own_have_moved() -> None:
    """A book whose top does not change sends none; once it has moved, its coming back does not stand for a message."""
    feed = sound().run(30, ("bestBidAsk",))
    assert [] == feed.kinds()

    feed.best = (100.5, 101.0)
    feed.run(0.5, ("bestBidAsk",))
    feed.best = feed.told
    feed.run(1, ("bestBidAsk",))

    assert ["missing"] == feed.kinds()
    assert [] == feed.run(1).kinds()


def test_nothing_waits_for_another_message() -> None:
    """What the last observation began is found without a further one, and `until_us` has said when."""
    feed = sound().run(0.2, ("depth",))
    verdict = judge(feed.memory, feed.now_us)

    late_us = verdict.until_us - feed.now_us

    assert verdict.sound
    assert 0 < late_us < 1_000 * MS
    assert [] == feed.kinds(late_us - 1)
    assert ["missing"] == feed.kinds(late_us)


def test_a_feed_that_falls_behind_its_own_baseline_is_late_however_fast_it_flows() -> None:
    """By arrival everything is fresh; by event time it is three seconds old."""
    assert [] == sound().run(4, late_us=1_900 * MS).kinds()

    feed = sound().run(4, late_us=3 * SECOND)

    assert ["late"] * 3 == feed.kinds()
    assert ["late"] * 3 == feed.run(1_200, late_us=3 * SECOND).kinds()  # nor does habit make it good
    assert {"clock"} == set(feed.run(1).kinds())  # or a clock was set in a silence, and set back: the windows show it
    assert [] == feed.run(8).kinds()


@pytest.mark.parametrize("step_us", [-3_600 * SECOND, -5 * SECOND, 5 * SECOND, 3_600 * SECOND])
def test_a_clock_that_is_set_moves_the_baseline_and_is_told(step_us: int) -> None:
    """Unsound while the windows refill, sound after that; lateness is detected as before."""
    feed = sound()
    feed.event_off_us += step_us

    feed.run(0.1)

    assert {"clock"} == set(feed.kinds())
    assert [] == feed.run(8.2).kinds()
    assert ["late"] * 3 == feed.run(4, late_us=3 * SECOND).kinds()


def test_a_validation_that_was_quick_shows_that_a_feed_is_in_time() -> None:
    """A clock that was set back in a silence looks like lateness; one that took long shows nothing."""
    feed = sound()
    feed.run(4, STREAM_TYPES)
    feed.event_off_us -= 3 * SECOND
    feed.run(1)
    assert ["late"] * 3 == feed.kinds()

    feed.memory = shown_in_time(feed.memory, feed.now_us)
    assert {"clock"} == set(feed.kinds())  # windows hold what the old reading dated
    assert [] == feed.run(8.2).kinds()
    feed.memory = shown_in_time(feed.memory, feed.now_us)
    assert [] == feed.kinds()
    assert ["late"] * 3 == feed.run(4, late_us=3 * SECOND).kinds()


def test_what_came_during_a_pause_of_the_processor_is_no_jump() -> None:
    """It was stopped inside a read: what it finds then is newer than the moment at which it asked."""
    feed = sound()
    asked_us = feed.now_us
    feed.run(6)
    newest = max(feed.newest_messages.values(), key=lambda message: message.arrival_us)

    memory = observe(sound().memory, feed.observed(now_us=asked_us, read_us=asked_us, end_us=newest.event_us))

    assert () == judge(memory, asked_us).reasons


def test_one_odd_time_passes_by() -> None:
    """An hour ahead once, then well: there and back again."""
    feed = sound()
    feed.event_off_us += 3_600 * SECOND
    feed.run(0.1)
    feed.event_off_us -= 3_600 * SECOND

    assert [] == feed.run(8.2).kinds()


def test_trades_that_stay_away_are_quiet_then_asked_about_then_doubted() -> None:
    """A silence is reported; without a validation it degrades the state; a validation holds for a minute."""
    feed = sound()
    limit_s = feed.memory.paces["trade"].quiet_after_us / SECOND
    feed.run(limit_s + 0.1, ("trade",))
    verdict = judge(feed.memory, feed.now_us)
    assert (True, True) == (verdict.sound, bool(verdict.ask and verdict.quiet))

    feed.run(soundness.ANSWER_US / SECOND, ("trade",))
    assert ["unvalidated"] == feed.kinds()

    began_us = feed.now_us - SECOND
    feed.run(soundness.RECHECK_US / SECOND - 2, ("trade",), validated_us=began_us)
    verdict = judge(feed.memory, feed.now_us)
    assert (True, True, "") == (verdict.sound, bool(verdict.quiet), verdict.ask)
    feed.run(3, ("trade",), validated_us=began_us)
    assert judge(feed.memory, feed.now_us).ask
    feed.run(soundness.ANSWER_US / SECOND, ("trade",), validated_us=began_us)
    assert ["unvalidated"] == feed.kinds()


def test_a_silence_soon_after_the_start_is_asked_about() -> None:
    """The mean interval of trades is not known yet: 15 s request a validation, a minute degrades the state."""
    feed = Feed().run(4).run(soundness.ASK_UNKNOWN_US / SECOND - 1, ("trade",))
    assert "" == judge(feed.memory, feed.now_us).ask

    feed.run(2, ("trade",))
    verdict = judge(feed.memory, feed.now_us)
    assert (True, True) == (verdict.sound, "not known yet" in verdict.ask)

    feed.run((soundness.QUIET_UNKNOWN_US - soundness.ASK_UNKNOWN_US + soundness.ANSWER_US) / SECOND, ("trade",))
    assert ["unvalidated"] == feed.kinds()


def test_a_market_at_rest_asks_ever_less() -> None:
    """Three hours without a trade are sound all along; a budget of sixty runs an hour has room for ten such symbols."""
    feed = sound()
    asked_s: list[float] = []
    validated_us = 0
    for second in range(3 * 3_600):
        feed.run(1, ("trade",), validated_us=validated_us)
        verdict = judge(feed.memory, feed.now_us)
        assert verdict.sound, (second, verdict.reasons)
        if verdict.ask and validated_us < feed.now_us - 5 * SECOND:
            asked_s.append(second)
            validated_us = feed.now_us

    assert len(asked_s) <= 12 + 2 * 6
    assert len([at_s for at_s in asked_s if at_s >= 3_600]) <= 2 * 6
    assert max(after - before for before, after in pairwise(asked_s)) <= soundness.QUIET_MAX_US / SECOND + 2


def test_a_silent_market_asks_nobody() -> None:
    """With nothing at all there is nothing to compare trades with: the state is stale."""
    feed = sound().run(300, STREAM_TYPES)

    verdict = judge(feed.memory, feed.now_us)

    assert ("", "", ()) == (verdict.quiet, verdict.ask, verdict.reasons)
    assert verdict.until_us == feed.memory.moved_us + STALE_AFTER_US


@pytest.mark.parametrize(
    ("other", "unwritten", "kind"),
    [
        ({"levels": "the book has no asks"}, "", "disagree"),
        ({"trade_price": 102.1}, "", "disagree"),
        ({"trade_price": 98.9}, "", "disagree"),
        ({"undated": True}, "", "clock"),
        ({}, "Empty order book data", "unwritten"),
    ],
)
def test_parts_agree_and_can_be_dated_and_written(other: dict[str, object], unwritten: str, kind: str) -> None:
    """Each by itself is a reason."""
    assert [kind] == sound().run(0.1, **other).kinds(unwritten=unwritten)


def test_best_prices_that_cross_disagree() -> None:
    """Also while the book has not reached them yet."""
    feed = sound()
    feed.ids["bestBidAsk"] += 10
    feed.told = (101.0, 101.0)

    assert ["disagree"] == feed.run(0.1, ("depth",)).kinds()


@pytest.mark.parametrize("told", [(0.0, 101.0), (100.0, 0.0), (0.0, 0.0)])
def test_an_empty_side_that_the_book_has_not_reached_disagrees(told: tuple[float, float]) -> None:
    """And where the book has been is not widened by it."""
    feed = sound()
    feed.ids["bestBidAsk"] += 10
    feed.told = told

    assert ["disagree"] == feed.run(0.1, ("depth",)).kinds()
    assert min(low for _, low, _ in feed.memory.ranges) > 0


@pytest.mark.parametrize(
    ("late_us", "ahead_us", "kinds"),
    [
        (0, 900_000, []),
        (0, 1_200_000, ["clock"]),
        (0, -2_900_000, []),
        (0, -3_200_000, ["clock"]),
        (1_500_000, 2_300_000, []),
        (1_500_000, 2_700_000, ["clock"]),
    ],
)
def test_windows_end_where_the_newest_message_says(late_us: int, ahead_us: int, kinds: list[str]) -> None:
    """Ahead of it by what it is late and a second; behind by what a stream may be late."""
    feed = sound().run(2.5, late_us=late_us)

    feed.memory = observe(feed.memory, feed.observed(end_us=feed.end_us() + ahead_us))

    assert kinds == feed.kinds()


def test_a_processor_that_does_not_keep_up_says_so() -> None:
    """A second after all that was appended had last been read."""
    feed = sound()

    assert [] == feed.kinds(999 * MS)
    assert ["behind"] == feed.kinds(1_000 * MS)


@pytest.mark.parametrize(
    ("bids", "asks", "fault"),
    [
        ([(5, 1), (4, 1)], [(6, 1), (7, 1)], ""),
        ([], [(6, 1)], "no bids"),
        ([(5, 1)], [], "no asks"),
        ([], [], "no levels"),
        ([(5, 1)], [(5, 1)], "crossed"),
        ([(4, 1), (5, 1)], [(6, 1)], "bids are not in order"),
        ([(5, 1)], [(7, 1), (6, 1)], "asks are not in order"),
        ([(5, 0)], [(6, 1)], "not above 0"),
        ([(5, 1)], [(6, -1)], "not above 0"),
        ([(5, 1), (-1, 1)], [(6, 1)], "not above 0"),
    ],
)
def test_levels_are_sorted_positive_and_apart(
    bids: list[tuple[int, int]], asks: list[tuple[int, int]], fault: str
) -> None:
    """What is wrong is said in words."""
    found = levels_fault(bids, asks)

    assert fault in found if fault else found == ""


# Dating entries


def clock_at(redis_us: int, now_us: int) -> RedisClock:
    clock = RedisClock()
    clock.learn(now_us, now_us, redis_us)
    return clock


def test_an_entry_is_as_old_as_its_id_unless_that_cannot_be() -> None:
    """Ids ahead of Redis' clock make nothing fresh: what was not there at the last complete read came after it."""
    clock, arrivals = clock_at(T0, 50), Arrivals()
    arrivals.complete(T0 - 100 * MS, frozenset("a"))

    assert (T0 - 40 * MS, True) == tuple_of(arrivals.date("a", T0 - 40 * MS, T0, clock))
    assert (T0 - 100 * MS, True) == tuple_of(arrivals.date("a", T0 + 600 * SECOND, T0, clock))
    assert (T0 - 100 * MS, True) == tuple_of(arrivals.date("a", T0 - 600 * SECOND, T0, clock))
    assert (T0 + SECOND, False) == tuple_of(arrivals.date("a", T0 - 600 * SECOND, T0 + SECOND, clock))
    assert (T0 - 9 * SECOND, True) == tuple_of(arrivals.date("b", T0 - 9 * SECOND, T0, clock))
    assert (T0, False) == tuple_of(arrivals.date("b", T0 + 600 * SECOND, T0, clock))
    arrivals.forget()
    assert (T0, False) == tuple_of(arrivals.date("a", T0 + 600 * SECOND, T0, clock))


def tuple_of(dated: object) -> tuple[int, bool]:
    return dated.at_us, dated.known


def test_a_redis_clock_that_is_set_leaves_the_steady_one_alone() -> None:
    """Ages are kept through a step of any size; the step is counted."""
    clock = clock_at(T0, 0)
    then_us = clock.steady_us(10)

    clock.learn(20, 20, T0 + 20 - 600 * SECOND)

    assert 10 == clock.steady_us(20) - then_us
    assert T0 + 10 - 600 * SECOND == clock.of_steady(then_us)
    assert then_us == clock.steady_of(T0 + 10 - 600 * SECOND)
    assert (1, -600 * SECOND) == (clock.jumps, clock.jump_us)

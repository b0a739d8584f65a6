"""The work queue: which pipeline is looked at next. Time and chance are arguments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.controller.work_queue import BACKOFF_MAX_S, GAP_S, SETTLE_S, Schedule

Queue = Schedule[str]


def failures(queue: Queue, count: int, *, jitter: float = 0.5) -> list[float]:
    """Let an item fail again and again, each time when it is due; gives the delays."""
    delays, now_s = [], 0.0
    for _ in range(count):
        queue.at("btc", now_s)
        assert "btc" == queue.take(now_s)
        delays.append(queue.failed("btc", now_s, jitter))
        now_s += delays[-1]
    return delays


def test_changes_in_a_burst_are_one_look() -> None:
    """However often an item changes before it is looked at, it is looked at once."""
    queue = Queue()
    for step in range(100):
        queue.wake("btc", step / 1000)

    taken = [queue.take(10.0), queue.take(10.0)]

    assert ["btc", None] == taken


def test_what_settles_is_soon_looked_at() -> None:
    """A change is looked at after a tenth of a second, not before."""
    queue = Queue()
    queue.wake("btc", 5.0)

    early, late = queue.take(5.0 + SETTLE_S / 2), queue.take(5.0 + SETTLE_S)

    assert (None, "btc") == (early, late)


def test_an_item_is_in_one_hand_only() -> None:
    """What is being looked at is not given to another worker, and what happens meanwhile is not lost."""
    queue = Queue()
    queue.at("btc", 0.0)
    assert "btc" == queue.take(0.0)
    queue.wake("btc", 0.1)

    meanwhile = queue.take(5.0)
    queue.done("btc", 100.0)

    assert None is meanwhile
    assert "btc" == queue.take(5.0)


def test_a_busy_item_leaves_room() -> None:
    """An item that changes all the time is looked at no more often than the gap allows."""
    queue, looks = Queue(), 0
    for step in range(1000):
        now_s = step / 100
        queue.wake("btc", now_s)
        if queue.take(now_s) is not None:
            looks += 1
            queue.done("btc", now_s + 30)

    assert looks <= 10 / GAP_S + 1


def test_who_waits_longest_is_next() -> None:
    """Items are taken in the order in which they became due."""
    queue = Queue()
    for due_s, name in ((3.0, "sol"), (1.0, "btc"), (2.0, "eth")):
        queue.at(name, due_s)

    taken = [queue.take(4.0) for _ in range(3)]

    assert ["btc", "eth", "sol"] == taken


def test_the_earliest_wish_counts() -> None:
    """A later due time does not postpone an earlier one."""
    queue = Queue()
    queue.at("btc", 1.0)
    queue.at("btc", 50.0)

    assert 1.0 == queue.next_s()


def test_failures_wait_ever_longer() -> None:
    """Each failure in a row doubles the wait, up to a cap."""
    delays = failures(Queue(), 12)

    assert delays == sorted(delays)
    assert 2.0 * delays[0] == delays[1]
    assert BACKOFF_MAX_S == delays[-1]


def test_news_do_not_end_a_backoff() -> None:
    """What fails is not tried again the sooner because it goes on changing."""
    queue = Queue()
    delay_s = failures(queue, 5)[-1]
    at_s = queue.next_s()
    assert at_s is not None
    started_s = at_s - delay_s

    queue.wake("btc", started_s + 0.1)

    assert None is queue.take(at_s - 0.01)
    assert "btc" == queue.take(at_s)


def test_a_success_ends_the_backoff() -> None:
    """After a success the next failure waits as briefly as the first one."""
    queue = Queue()
    first_s = failures(queue, 6)[0]
    at_s = queue.next_s()
    assert at_s is not None
    assert "btc" == queue.take(at_s)
    queue.done("btc", at_s + 1)

    assert "btc" == queue.take(at_s + 1)
    assert first_s == queue.failed("btc", at_s + 1, 0.5)


def test_a_server_that_asks_for_time_gets_it() -> None:
    """The wait is at least what the server has asked for."""
    queue = Queue()
    queue.at("btc", 0.0)
    queue.take(0.0)

    assert 17.0 == queue.failed("btc", 0.0, 0.5, 17.0)
    assert BACKOFF_MAX_S == queue.failed("btc", 20.0, 0.5, 86_400.0)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 80))
def test_jitter_stays_in_bounds(jitter: float, count: int) -> None:
    """Whatever chance says, a wait is at most a fifth off."""
    plain, moved = failures(Queue(), count)[-1], failures(Queue(), count, jitter=jitter)[-1]

    assert 0.8 * plain - 1e-9 <= moved <= 1.2 * plain + 1e-9


def test_one_that_fails_does_not_hold_up_others() -> None:
    """While an item waits for its next try, others are taken."""
    queue = Queue()
    failures(queue, 8)
    queue.at("eth", 1.0)

    assert "eth" == queue.take(1.0)


def test_what_is_gone_is_forgotten() -> None:
    """An item that is no more is not taken and counts no more."""
    queue = Queue()
    queue.at("btc", 0.0)

    queue.forget("btc")

    assert (None, None, 0) == (queue.take(1.0), queue.next_s(), queue.waiting(1.0))


def test_what_returns_while_it_is_forgotten_is_looked_at() -> None:
    """An item that was made again while its end was worked on is looked at."""
    queue = Queue()
    queue.at("btc", 0.0)
    queue.take(0.0)
    queue.wake("btc", 0.1)

    queue.forget("btc")

    assert "btc" == queue.take(10.0)


@given(st.lists(st.tuples(st.sampled_from(["btc", "eth", "sol"]), st.floats(0, 1)), max_size=60))
def test_nothing_is_ever_lost(news: list[tuple[str, float]]) -> None:
    """Every item that has changed is looked at after its last change."""
    queue, now_s = Queue(), 0.0
    last_change: dict[str, float] = {}
    last_look: dict[str, float] = {}
    for name, step_s in news:
        now_s += step_s
        queue.wake(name, now_s)
        last_change[name] = now_s
        taken = queue.take(now_s)
        if taken is not None:
            last_look[taken] = now_s
            queue.done(taken, now_s + 1e6)
    now_s += 60
    while (taken := queue.take(now_s)) is not None:
        last_look[taken] = now_s
        queue.done(taken, now_s + 1e6)

    assert {name for name, at_s in last_change.items() if last_look.get(name, -1.0) < at_s} == set()

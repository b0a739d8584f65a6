from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from sheetanchor.errors import (
    BadSettings,
    CircuitOpen,
    ExchangeRefused,
    ExchangeUnavailable,
    MaxRetriesExceeded,
    OperationFailed,
    RateLimited,
    RedisOutOfMemory,
    RedisRefused,
    RedisUnavailable,
    ValidationFailed,
    is_retryable,
)
from sheetanchor.runtime.reliability import Backoff, CircuitBreaker, CircuitState, RetryPolicy, TokenBucket, retry

shares = st.floats(min_value=0, max_value=1)


class Clock:
    """Seconds that move when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Dependency:
    """A dependency that fails as configured, and counts calls."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return "answer"


def down() -> ExchangeUnavailable:
    return ExchangeUnavailable("no connection")


def recorder() -> tuple[list[float], Callable[[float], Awaitable[None]]]:
    """Give a list of delays and a sleep that takes no time."""
    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)

    return delays, sleep


# -- backoff ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (Backoff(), [1, 2, 4, 8, 10, 10]),
        (Backoff(1.0, 60.0), [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]),
        (Backoff(1.0, 30.0), [1, 2, 4, 8, 16, 30, 30]),
        (Backoff(0.1, 1.0, 3.0), [0.1, 0.3, 0.9, 1.0]),
    ],
)
def test_delays_grow_up_to_their_cap(backoff: Backoff, expected: list[float]) -> None:
    """Without jitter each delay is the one before times the multiplier, and never more than the cap."""
    found = [backoff.delay_s(attempt) for attempt in range(1, len(expected) + 1)]

    assert pytest.approx(expected) == found


@given(attempt=st.integers(1, 10**9), draw=shares, initial_s=st.floats(0.001, 60), max_s=st.floats(60, 3600))
def test_jitter_stays_within_its_share_and_below_the_cap(
    attempt: int, draw: float, initial_s: float, max_s: float
) -> None:
    """Whatever is drawn, and however many tries there were, a delay is within a fifth of the plain one."""
    backoff = Backoff(initial_s, max_s)

    plain_s, found_s = backoff.delay_s(attempt), backoff.delay_s(attempt, draw)

    assert 0.8 * plain_s <= found_s * 1.000001
    assert found_s <= min(1.2 * plain_s * 1.000001, max_s)


def test_clients_that_failed_together_come_back_apart() -> None:
    """A hundred first delays are spread over the whole width of the jitter."""
    delays = [next(Backoff(10.0, 100.0).delays()) for _ in range(100)]

    assert statistics.pstdev(delays) > 0.5
    assert 8 <= min(delays) < 9 < 11 < max(delays) <= 12


# -- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ExchangeUnavailable("503"), True),
        (RateLimited("429", retry_after_s=1), True),
        (RedisUnavailable("LOADING"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (ExchangeRefused("401"), False),
        (RedisRefused("WRONGPASS"), False),
        (RedisOutOfMemory("OOM"), False),
        (ValidationFailed("crossed"), False),
        (BadSettings("symbol"), False),
        (ValueError("number"), False),
        (asyncio.CancelledError(), False),
    ],
)
async def test_only_what_may_pass_by_itself_is_tried_again(error: BaseException, expected: bool) -> None:
    """A refusal is raised after one call; what is temporary is called four times."""
    delays, sleep = recorder()
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(MaxRetriesExceeded if expected else type(error)):
        await retry(fail, "test", sleep=sleep)

    assert expected == is_retryable(error)
    assert (4 if expected else 1) == calls
    assert calls - 1 == len(delays)


async def test_a_retry_that_succeeds_gives_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Two failures, two logged delays of about 1 s and 2 s, two counts, then the answer."""
    delays, sleep = recorder()
    before = REGISTRY.get_sample_value("retry_attempts_total", {"operation": "unit-test"}) or 0

    with caplog.at_level(logging.WARNING):
        answer = await retry(Dependency(down(), down()), "unit-test", sleep=sleep)

    assert "answer" == answer
    assert [pytest.approx(1, rel=0.2), pytest.approx(2, rel=0.2)] == delays
    assert 2 == sum("retrying in" in message for message in caplog.messages)
    assert before + 2 == (REGISTRY.get_sample_value("retry_attempts_total", {"operation": "unit-test"}) or 0)


async def test_the_last_error_is_reported_when_all_tries_fail() -> None:
    """Four failing calls take 7 s of waiting, and the error names their number and the last cause."""
    delays, sleep = recorder()
    last = ExchangeUnavailable("the fourth")

    with pytest.raises(MaxRetriesExceeded) as raised:
        await retry(Dependency(down(), down(), down(), last), "test", sleep=sleep, draw=lambda: 0.5)

    assert (4, last) == (raised.value.attempts, raised.value.last_error)
    assert [1.0, 2.0, 4.0] == delays


@pytest.mark.parametrize(("asked_s", "expected"), [(7.0, [7.0]), (0.0, [1.0]), (60.0, [60.0])])
async def test_the_other_side_may_ask_for_a_longer_wait(asked_s: float, expected: list[float]) -> None:
    """The delay is what was asked for, but never less than the own one."""
    delays, sleep = recorder()

    await retry(Dependency(RateLimited("429", retry_after_s=asked_s)), "test", sleep=sleep, draw=lambda: 0.5)

    assert expected == delays


async def test_a_wait_of_an_hour_is_not_waited_for() -> None:
    """Who asks for more than the longest wait ends the tries."""
    delays, sleep = recorder()

    with pytest.raises(MaxRetriesExceeded):
        await retry(Dependency(RateLimited("418", retry_after_s=3600)), "test", sleep=sleep)

    assert [] == delays


@given(retries=st.integers(0, 10), failures=st.integers(0, 15))
@settings(max_examples=60)
def test_calls_are_bounded(retries: int, failures: int) -> None:
    """Never more than one call and the retries, and an answer exactly if one of them succeeds."""
    dependency = Dependency(*(down() for _ in range(failures)))
    _, sleep = recorder()

    async def run() -> bool:
        try:
            return await retry(dependency, "test", RetryPolicy(retries), sleep=sleep) == "answer"
        except MaxRetriesExceeded:
            return False

    assert (failures <= retries) == asyncio.run(run())
    assert min(failures, retries) + 1 == dependency.calls


# -- circuit breaker --------------------------------------------------------------------------------------------------


async def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(OperationFailed):
            await breaker.call(Dependency(down()))


async def test_failures_in_a_row_open_the_breaker() -> None:
    """Nine failures leave it closed, the tenth opens it; open, it calls nothing and its metric says so."""
    clock, untouched = Clock(), Dependency()
    breaker = CircuitBreaker("unit", 10, 60, 5, clock=clock)

    await fail(breaker, 9)
    before = breaker.state
    await fail(breaker, 1)
    with pytest.raises(CircuitOpen):
        await breaker.call(untouched)

    assert (CircuitState.CLOSED, CircuitState.OPEN) == (before, breaker.state)
    assert (0, 10, clock.now_s) == (untouched.calls, breaker.failure_count, breaker.last_failure_s)
    assert CircuitState.OPEN.value == REGISTRY.get_sample_value("circuit_breaker_state", {"dependency": "unit"})


async def test_a_success_between_begins_the_row_anew() -> None:
    """Nine failures, a success and nine failures leave it closed."""
    breaker = CircuitBreaker("unit", 10, 60, 5, clock=Clock())

    await fail(breaker, 9)
    await breaker.call(Dependency())
    await fail(breaker, 9)

    assert CircuitState.CLOSED is breaker.state


@pytest.mark.parametrize(
    ("calls", "seconds_apart", "expected"),
    [(19, 1.0, CircuitState.CLOSED), (20, 1.0, CircuitState.OPEN), (40, 4.0, CircuitState.CLOSED)],
)
async def test_half_of_twenty_calls_in_a_minute_open_it(
    calls: int, seconds_apart: float, expected: CircuitState
) -> None:
    """Every other call fails: it opens once twenty lie within a minute, never when they are spread over more."""
    clock = Clock()
    breaker = CircuitBreaker("unit", 10, 60, 5, clock=clock)

    for number in range(calls):
        clock.now_s += seconds_apart
        await (fail(breaker, 1) if number % 2 else breaker.call(Dependency()))

    assert expected is breaker.state


async def test_the_breaker_closes_after_five_successes() -> None:
    """It half-opens after its time, not before; four successes leave it so, the fifth closes it."""
    clock = Clock()
    breaker = CircuitBreaker("unit", 10, 60, 5, clock=clock)
    await fail(breaker, 10)

    clock.now_s += 59.9
    states = [breaker.state]
    clock.now_s += 0.1
    for _ in range(5):
        states.append(breaker.state)
        assert "answer" == await breaker.call(Dependency())
    states.append(breaker.state)

    assert [CircuitState.OPEN, *[CircuitState.HALF_OPEN] * 5, CircuitState.CLOSED] == states
    assert 0 == breaker.failure_count


async def test_a_failure_while_half_open_opens_it_again() -> None:
    """Four successes do not help: after a failure it is open for its whole time, and five are wanted afterwards."""
    clock = Clock()
    breaker = CircuitBreaker("unit", 10, 60, 5, clock=clock)
    await fail(breaker, 10)
    clock.now_s += 60
    for _ in range(4):
        await breaker.call(Dependency())

    await fail(breaker, 1)
    clock.now_s += 59.9
    reopened = breaker.state
    clock.now_s += 0.1
    for _ in range(4):
        await breaker.call(Dependency())

    assert (CircuitState.OPEN, CircuitState.HALF_OPEN) == (reopened, breaker.state)


async def test_one_probe_at_a_time_while_half_open() -> None:
    """A second call while the first probe is under way is not made."""
    clock, gate = Clock(), asyncio.Event()
    breaker = CircuitBreaker("unit", 10, 60, 5, clock=clock)
    await fail(breaker, 10)
    clock.now_s += 60

    async def wait() -> bool:
        return await gate.wait()

    probe = asyncio.create_task(breaker.call(wait))
    await asyncio.sleep(0)
    second = Dependency()
    with pytest.raises(CircuitOpen):
        await breaker.call(second)
    gate.set()

    assert await probe
    assert 0 == second.calls


async def test_a_refusal_says_nothing_about_the_dependency() -> None:
    """Bad input is raised as it is and leaves the breaker closed, however often."""
    breaker = CircuitBreaker("unit", 10, 60, 5, clock=Clock())

    for _ in range(30):
        with pytest.raises(ExchangeRefused):
            await breaker.call(Dependency(ExchangeRefused("400")))

    assert CircuitState.CLOSED is breaker.state


async def test_the_cause_of_a_failed_call_is_kept() -> None:
    """The error names the dependency and carries what it raised."""
    cause = ExchangeUnavailable("connection reset")

    with pytest.raises(OperationFailed, match="unit: connection reset") as raised:
        await CircuitBreaker("unit").call(Dependency(cause))

    assert cause is raised.value.__cause__


@given(steps=st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=200))
@settings(max_examples=50)
def test_an_open_breaker_never_calls(steps: list[tuple[bool, float]]) -> None:
    """Whatever comes when: no call while open, and never open for longer than its time."""
    clock = Clock()
    breaker = CircuitBreaker("unit", 3, 20, 2, clock=clock)

    async def run() -> None:
        for good, seconds in steps:
            clock.now_s += seconds
            state, dependency = breaker.state, Dependency(*([] if good else [down()]))
            with contextlib.suppress(CircuitOpen, OperationFailed):
                await breaker.call(dependency)
            assert (state is not CircuitState.OPEN) == bool(dependency.calls)
            if state is CircuitState.OPEN:
                assert clock.now_s - breaker.last_failure_s < 20

    asyncio.run(run())


# -- token bucket -----------------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    """Five at once, then none, and after 400 ms two more of five a second."""
    clock = Clock()
    bucket = TokenBucket(5, 5, clock=clock)

    burst = sum(bucket.take() for _ in range(10))
    clock.now_s += 0.41
    later = sum(bucket.take() for _ in range(10))

    assert (5, 2) == (burst, later)


@given(
    rate=st.floats(0.1, 100),
    capacity=st.floats(1, 50),
    steps=st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_a_bucket_never_gives_more_than_burst_and_rate(rate: float, capacity: float, steps: list[float]) -> None:
    """Over any time: at most the capacity and what the rate brings."""
    clock = Clock()
    bucket = TokenBucket(rate, capacity, clock=clock)
    given_out = 0

    for seconds in steps:
        clock.now_s += seconds
        while bucket.take():
            given_out += 1

    assert given_out <= capacity + rate * sum(steps) + 1e-6


@given(rate=st.floats(0.1, 100), capacity=st.floats(1, 50), spent=st.integers(0, 60), wanted=st.floats(0.1, 60))
def test_a_bucket_says_how_long_to_wait(rate: float, capacity: float, spent: int, wanted: float) -> None:
    """After the time it names the tokens are there, unless it can never hold so many."""
    clock = Clock()
    bucket = TokenBucket(rate, capacity, clock=clock)
    for _ in range(spent):
        bucket.take()

    clock.now_s += bucket.wait_s(wanted) + 1e-6

    assert bucket.available >= min(wanted, capacity) - 1e-6

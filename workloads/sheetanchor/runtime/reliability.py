"""Fault tolerance, each policy once: backoff, retry, circuit breaker, token bucket.

Clocks, sleeps and randomness are arguments, so that every rule here can be tested in microseconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from sheetanchor.errors import CircuitOpen, MaxRetriesExceeded, OperationFailed, RateLimited, is_retryable
from sheetanchor.runtime import metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

JITTER: Final = 0.2
"""Each delay is moved by up to a fifth either way, so that clients that failed together do not return together."""

RATE_WINDOW_S: Final = 60.0
RATE_SAMPLE_MIN: Final = 20
"""The share of failures among fewer calls than this is not significant."""

RATE_SAMPLES_MAX: Final = 10_000
PROBES_MAX: Final = 1
"""Calls allowed at a time while half-open: one is enough to find out whether a dependency works again."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays with jitter and a cap.

    Attributes:
        initial_s: First delay in seconds.
        max_s: Longest delay in seconds, jitter included.
        multiplier: Factor from one delay to the next.
        jitter: Share by which a delay may be moved either way.
    """

    initial_s: float = 1.0
    max_s: float = 10.0
    multiplier: float = 2.0
    jitter: float = JITTER

    def delay_s(self, attempt: int, draw: float = 0.5) -> float:
        """Give the delay before a try.

        Args:
            attempt: 1 for the first delayed try.
            draw: Uniform random number from 0 to 1; one half is no jitter.
        """
        exponent = min(attempt - 1, 64)  # beyond that every delay is the cap anyway, and floats would overflow
        plain = min(self.initial_s * self.multiplier**exponent, self.max_s)
        return min(plain * (1 + self.jitter * (2 * draw - 1)), self.max_s)

    def delays(self, draw: Callable[[], float] = random.random) -> Iterator[float]:
        """Yield the delays of the first, second, … delayed try, without end."""
        attempt = 1
        while True:
            yield self.delay_s(attempt, draw())
            attempt += 1


DEFAULT_BACKOFF: Final = Backoff()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when to try again.

    Attributes:
        retries: Tries after the first one.
        backoff: Delays between them.
        retry_after_max_s: Longest Retry-After that is waited for; a longer one ends the tries.
    """

    retries: int = 3
    backoff: Backoff = DEFAULT_BACKOFF
    retry_after_max_s: float = 60.0


DEFAULT_RETRY: Final = RetryPolicy()


async def retry(
    operation: Callable[[], Awaitable[T]],
    name: str,
    policy: RetryPolicy = DEFAULT_RETRY,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    draw: Callable[[], float] = random.random,
) -> T:
    """Call an operation until it succeeds, at most `1 + policy.retries` times.

    Only errors that `is_retryable` allows are tried again; any other is raised at once.

    Args:
        operation: Makes one try.
        name: Name of the operation, for logs and metrics.
        policy: Number and delays of the tries.
        sleep: Waits for seconds.
        draw: Uniform random numbers from 0 to 1.

    Raises:
        MaxRetriesExceeded: The last try failed too.
    """
    for attempt in range(1, policy.retries + 2):
        try:
            return await operation()
        except Exception as error:
            if not is_retryable(error):
                raise
            delay_s = _delay_s(error, attempt, policy, draw())
            if attempt > policy.retries or delay_s is None:
                raise MaxRetriesExceeded(attempt, error) from error
            metrics.RETRIES.labels(name).inc()
            log.warning("%s: attempt %d failed, retrying in %.2f s: %s", name, attempt, delay_s, error)
            await sleep(delay_s)
    raise AssertionError("unreachable: the last try returns or raises")


def _delay_s(error: Exception, attempt: int, policy: RetryPolicy, draw: float) -> float | None:
    """Give the delay before the next try; None when the server's Retry-After is longer than the policy allows."""
    delay_s = policy.backoff.delay_s(attempt, draw)
    if not isinstance(error, RateLimited):
        return delay_s
    return max(delay_s, error.retry_after_s) if error.retry_after_s <= policy.retry_after_max_s else None


class CircuitState(Enum):
    """State of a breaker; the value is what its metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitBreaker:
    """Stops calling a dependency that keeps failing, and finds out when it works again.

    Opens after `failure_threshold` failures in a row, or when half of at least twenty calls within a minute have
    failed. While open it refuses calls for `recovery_timeout_s`; then it allows single calls, and closes after
    `success_threshold` successes in a row. Any failure meanwhile opens it again.

    Args:
        name: The dependency, for metrics and messages.
        failure_threshold: Failures in a row that open it.
        recovery_timeout_s: Seconds that it stays open.
        success_threshold: Successes that close it again.
        clock: Monotonic seconds.
        counts: Whether an error counts as a failure of the dependency; a refusal of bad input does not.
    """

    def __init__(
        self,
        name: str,
        failure_threshold: int = 10,
        recovery_timeout_s: float = 60.0,
        success_threshold: int = 5,
        *,
        clock: Callable[[], float] = time.monotonic,
        counts: Callable[[BaseException], bool] = is_retryable,
    ) -> None:
        self.name = name
        self.failure_threshold = failure_threshold
        self.recovery_timeout_s = recovery_timeout_s
        self.success_threshold = success_threshold
        self.failure_count = 0
        self.last_failure_s = 0.0
        self._clock = clock
        self._counts = counts
        self._opened_s = 0.0
        self._successes = 0
        self._probes = 0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=RATE_SAMPLES_MAX)
        self._move(CircuitState.CLOSED)

    @property
    def state(self) -> CircuitState:
        """State of the breaker; open becomes half-open by itself as time passes."""
        if self._state is CircuitState.OPEN and self._clock() - self._opened_s >= self.recovery_timeout_s:
            self._successes = 0
            self._move(CircuitState.HALF_OPEN)
        return self._state

    def recall(self, failures: int) -> None:
        """Start with failures in a row that an earlier process has seen; one more may be enough to open it."""
        self.failure_count = max(self.failure_count, min(failures, self.failure_threshold - 1))

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Make a call if the breaker allows it.

        Raises:
            CircuitOpen: The call was not made.
            OperationFailed: The call failed in a way that counts against the dependency; the cause is chained.
        """
        state = self.state
        if state is CircuitState.OPEN or (state is CircuitState.HALF_OPEN and self._probes >= PROBES_MAX):
            raise CircuitOpen(f"{self.name} failed {self.failure_count} times in a row: its circuit breaker is open")
        self._probes += 1
        try:
            result = await operation()
        except Exception as error:
            if not self._counts(error):
                raise
            self._failed()
            raise OperationFailed(f"{self.name}: {error}") from error
        finally:
            self._probes -= 1
        self._succeeded()
        return result

    def _succeeded(self) -> None:
        self.failure_count = 0
        self._recent.append((self._clock(), True))
        if self._state is CircuitState.HALF_OPEN:
            self._successes += 1
            if self._successes >= self.success_threshold:
                self._recent.clear()
                self._move(CircuitState.CLOSED)

    def _failed(self) -> None:
        now_s = self._clock()
        self.failure_count += 1
        self.last_failure_s = now_s
        self._recent.append((now_s, False))
        too_many = self.failure_count >= self.failure_threshold or self._half_failed(now_s)
        if self._state is CircuitState.HALF_OPEN or too_many:
            self._opened_s = now_s
            self._move(CircuitState.OPEN)

    def _half_failed(self, now_s: float) -> bool:
        while self._recent and now_s - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        failures = sum(1 for _, good in self._recent if not good)
        return len(self._recent) >= RATE_SAMPLE_MIN and 2 * failures >= len(self._recent)

    def _move(self, state: CircuitState) -> None:
        self._state = state
        metrics.CIRCUIT_STATE.labels(self.name).set(state.value)


class TokenBucket:
    """Allows a bounded number of events per time, with a bounded burst.

    Args:
        rate_per_s: Tokens that come back per second.
        capacity: Most tokens that the bucket holds.
        clock: Monotonic seconds.
    """

    def __init__(self, rate_per_s: float, capacity: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate_per_s = rate_per_s
        self.capacity = capacity
        self._clock = clock
        self._tokens = capacity
        self._at_s = clock()

    @property
    def available(self) -> float:
        """Tokens that could be taken now."""
        now_s = self._clock()
        self._tokens = min(self.capacity, self._tokens + (now_s - self._at_s) * self.rate_per_s)
        self._at_s = now_s
        return self._tokens

    def take(self, tokens: float = 1.0) -> bool:
        """Take tokens if there are enough; else take none."""
        if self.available < tokens:
            return False
        self._tokens -= tokens
        return True

    def wait_s(self, tokens: float = 1.0) -> float:
        """Seconds until that many tokens are available; 0 if they are."""
        return max(0.0, (min(tokens, self.capacity) - self.available) / self.rate_per_s)

"""When to connect, when to give a connection up, and when to say that it is lost.

Pure; clocks and chance are arguments. Three tries at once, ten with growing delays, then degraded but still trying: a
feed is never given up for good. All that time an outage of more than 30 s is told once, whatever the tries are doing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sheetanchor.reliability import Backoff, TokenBucket

HEALTHY_WITHIN_S: Final = 10.0
"""A new connection that has brought no message by then is as good as none."""

CLIENT_MESSAGES_PER_S: Final = 5
"""The exchange closes a connection that sends more, pings and pongs counted."""

ATTEMPTS_PER_S: Final = 0.9
ATTEMPTS_BURST: Final = 20
"""The exchange allows 300 connections in five minutes from an address; all lines of a host share that."""


DEFAULT_BACKOFF: Final = Backoff(initial_s=1.0, max_s=60.0)


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of the policy, in seconds.

    Attributes:
        immediate_tries: Tries without delay after a loss.
        backoff_tries: Delayed tries before degraded mode.
        backoff: Their delays.
        loss_s: Outage that is told as a connection loss.
        silence_s: Longest time without a message.
        rotate_after_s: Age at which a connection is replaced.
    """

    immediate_tries: int = 3
    backoff_tries: int = 10
    backoff: Backoff = DEFAULT_BACKOFF
    loss_s: float = 30.0
    silence_s: float = 5.0
    rotate_after_s: float = 23 * 3600.0


class Stage(Enum):
    """How far the tries of an outage have come."""

    IMMEDIATE = "immediate"
    BACKOFF = "backoff"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class Tries:
    """Tries made since the last healthy connection."""

    count: int = 0

    def stage(self, policy: Policy) -> Stage:
        """Name the stage of the next try."""
        if self.count < policy.immediate_tries:
            return Stage.IMMEDIATE
        if self.count < policy.immediate_tries + policy.backoff_tries:
            return Stage.BACKOFF
        return Stage.DEGRADED

    def delay_s(self, policy: Policy, draw: float) -> float:
        """Give the delay before the next try.

        Args:
            policy: The numbers.
            draw: Uniform random number from 0 to 1.
        """
        if self.stage(policy) is Stage.IMMEDIATE:
            return 0.0
        return policy.backoff.delay_s(self.count - policy.immediate_tries + 1, draw)

    def made(self) -> Tries:
        """Count a try."""
        return Tries(self.count + 1)


@dataclass(frozen=True, slots=True)
class Outage:
    """Since when no healthy connection has been there, and whether it has been told."""

    since_s: float | None = None
    told: bool = False

    def begin(self, at_s: float) -> Outage:
        """Take note of a loss; one that lasts keeps its beginning."""
        return self if self.since_s is not None else Outage(at_s)

    def due(self, now_s: float, policy: Policy) -> bool:
        """Say whether the loss has to be told now."""
        return self.since_s is not None and not self.told and now_s - self.since_s > policy.loss_s

    def tell(self) -> Outage:
        """Take note that it has been told."""
        return Outage(self.since_s, told=True)


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of one connection, in monotonic seconds.

    Attributes:
        opened_s: When it was open; None while connecting.
        begun_s: When connecting began.
        last_message_s: When its last market message came; None before the first.
        leaving: The exchange has announced that it will close it.
    """

    begun_s: float
    opened_s: float | None = None
    last_message_s: float | None = None
    leaving: bool = False

    @property
    def healthy(self) -> bool:
        """Whether it has brought anything."""
        return self.last_message_s is not None


class Verdict(Enum):
    """What to do with a connection."""

    KEEP = "keep"
    REPLACE = "replace"  # open another beside it; close it when that one is healthy
    SILENT = "silent"  # close it: nothing has come for too long
    MUTE = "mute"  # close it: nothing has ever come


def judge(vitals: Vitals, now_s: float, policy: Policy) -> Verdict:
    """Decide about one connection."""
    if vitals.opened_s is None:
        return Verdict.KEEP  # the connect call has its own time-out
    if vitals.last_message_s is None:
        return Verdict.MUTE if now_s - vitals.opened_s > HEALTHY_WITHIN_S else Verdict.KEEP
    if now_s - vitals.last_message_s > policy.silence_s:
        return Verdict.SILENT
    if vitals.leaving or now_s - vitals.opened_s > policy.rotate_after_s:
        return Verdict.REPLACE
    return Verdict.KEEP


@dataclass(slots=True)
class SequenceWatch:
    """Jumps of ids on one connection, by symbol and stream. Only counted: another line may have what this one lacks."""

    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    def jumped(self, symbol: str, stream: str, first_id: int, last_id: int) -> bool:
        """Take in a message and say whether ids are missing before it."""
        key = (symbol, stream)
        last = self._last.get(key)
        if last is None or last_id > last:
            self._last[key] = last_id
        return last is not None and first_id > last + 1


def message_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of messages that a client may send on one connection."""
    return TokenBucket(CLIENT_MESSAGES_PER_S, CLIENT_MESSAGES_PER_S, clock=clock)


def attempt_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of connections."""
    return TokenBucket(ATTEMPTS_PER_S, ATTEMPTS_BURST, clock=clock)

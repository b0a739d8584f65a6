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

OVERLAP_S: Final = 2.0
"""A connection is kept this long beside the one that replaces it: what is on its way would be lost otherwise."""

PING_INTERVAL_S: Final = 180.0
PONG_WITHIN_S: Final = 10.0
"""The exchange pings every 20 s and speaks all the time; these pings only find a peer that speaks but does not hear."""

CLIENT_MESSAGES_PER_S: Final = 2
CLIENT_MESSAGES_BURST: Final = 3
"""The exchange closes a connection that sends more than five in a second, pings and pongs counted: in no second more
than the burst and what comes back meanwhile."""

ATTEMPTS_PER_S: Final = 0.4
ATTEMPTS_BURST: Final = 20
"""The exchange allows 300 connections in five minutes from an address; two lines on one host stay below that."""


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

    def failed(self) -> Tries:
        """Count a try that came to nothing."""
        return Tries(self.count + 1)

    def exhausted(self, policy: Policy) -> bool:
        """Say whether the last try before degraded mode has just failed."""
        return self.count == policy.immediate_tries + policy.backoff_tries


def pause_s(tries: Tries, policy: Policy, draw: float, *, refused: bool = False, asked_s: float = 0.0) -> float:
    """Give the seconds from the end of a failed try to the next one.

    Args:
        tries: Tries made, the failed one included.
        policy: The numbers.
        draw: Uniform random number from 0 to 1.
        refused: The exchange will not have us, for instance because of the key: coming back soon would not change that.
        asked_s: Seconds that the exchange has asked to be left alone for.
    """
    if refused:
        return policy.backoff.max_s * (1 - policy.backoff.jitter * draw)
    return max(asked_s, tries.delay_s(policy, draw))


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
    """What is known of one connection, in monotonic seconds; None for what has not happened.

    Attributes:
        opened_s: When it was open.
        last_message_s: When its last market message came.
        unanswered_s: When the ping was sent that no pong has answered.
        replaced_s: When another connection took over from it.
        leaving: The exchange has announced that it will close it.
    """

    opened_s: float | None = None
    last_message_s: float | None = None
    unanswered_s: float | None = None
    replaced_s: float | None = None
    leaving: bool = False

    @property
    def healthy(self) -> bool:
        """Whether it has brought anything."""
        return self.last_message_s is not None


class Verdict(Enum):
    """What to do with a connection; the values of those that end it say why."""

    KEEP = "all is well"
    REPLACE = "open another beside it"
    RETIRE = "replaced by another connection"
    SILENT = "no message for too long"
    MUTE = "never a message since it was opened"
    DEAF = "no pong came back"


def judge(vitals: Vitals, now_s: float, policy: Policy) -> Verdict:
    """Decide about one connection."""
    if vitals.opened_s is None:
        return Verdict.KEEP  # the connect call has its own time-out
    if vitals.replaced_s is not None and now_s - vitals.replaced_s > OVERLAP_S:
        return Verdict.RETIRE
    if vitals.last_message_s is None:
        return Verdict.MUTE if now_s - vitals.opened_s > HEALTHY_WITHIN_S else Verdict.KEEP
    if now_s - vitals.last_message_s > policy.silence_s:
        return Verdict.SILENT
    if vitals.unanswered_s is not None and now_s - vitals.unanswered_s > PONG_WITHIN_S:
        return Verdict.DEAF
    old = vitals.leaving or now_s - vitals.opened_s > policy.rotate_after_s
    return Verdict.REPLACE if old and vitals.replaced_s is None else Verdict.KEEP


@dataclass(slots=True)
class SequenceWatch:
    """Jumps of ids on one connection, by symbol and kind of message.

    They are only counted: another line may have what this one lacks.
    """

    _last: dict[tuple[str, int], int] = field(default_factory=dict)

    def jumped(self, symbol: str, template: int, first_id: int, last_id: int) -> bool:
        """Take in a message of a template and say whether ids are missing before it."""
        key = (symbol, template)
        last = self._last.get(key)
        if last is None or last_id > last:
            self._last[key] = last_id
        return last is not None and first_id > last + 1


def message_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of messages that a client may send on one connection."""
    return TokenBucket(CLIENT_MESSAGES_PER_S, CLIENT_MESSAGES_BURST, clock=clock)


def attempt_budget(clock: Callable[[], float]) -> TokenBucket:
    """Make the budget of connections."""
    return TokenBucket(ATTEMPTS_PER_S, ATTEMPTS_BURST, clock=clock)

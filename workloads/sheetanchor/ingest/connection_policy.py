"""When to connect, when to close a connection, and when to report a loss.

A connection is alive while anything arrives on it: a market message, a ping, or the pong to a ping of ours. A quiet
market is no broken connection, and a live connection may lack a stream, which is reported of that stream. Pure; clocks
and random numbers are arguments. Three tries at once, ten with growing delays, then degraded mode, in which the tries
go on for ever. An outage of more than 30 s is reported once, independently of the tries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sheetanchor.runtime.reliability import Backoff
from sheetanchor.venue import ConnectionState

HEALTHY_WITHIN_S: Final = 10.0
"""A new connection on which nothing was received by then, although a ping was sent, is given up."""

OVERLAP_S: Final = 2.0
"""A connection is kept this long beside the one that replaces it: frames on their way would be lost otherwise."""

PONG_WITHIN_S: Final = 60.0
"""Longest wait for a pong of a peer that still sends; the exchange itself waits as long for ours."""

PEER_PING_WITHIN_S: Final = 60.0
"""Longest silence of a peer that answers no pings but sends some: three times the exchange's interval of 20 s."""

ASKS_PER_SILENCE: Final = 4
"""Pings within the longest silence: the pong to the first has three quarters of it to arrive, and one may get lost."""

DEFAULT_BACKOFF: Final = Backoff(initial_s=1.0, max_s=60.0)


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """The numbers of the policy, in seconds.

    Attributes:
        immediate_tries: Tries without delay after a loss.
        backoff_tries: Delayed tries before degraded mode.
        backoff: Their delays.
        loss_s: Outage that is reported as a connection loss.
        silence_s: Longest time without receiving anything. After a quarter of it a ping is sent.
        rotate_after_s: Age at which a connection is replaced.
    """

    immediate_tries: int = 3
    backoff_tries: int = 10
    backoff: Backoff = DEFAULT_BACKOFF
    loss_s: float = 30.0
    silence_s: float = 5.0
    rotate_after_s: float = 23 * 3600.0

    @property
    def ask_after_s(self) -> float:
        """Seconds without receiving anything after which a ping is sent."""
        return self.silence_s / ASKS_PER_SILENCE


class Stage(Enum):
    """Stage of the tries of an outage."""

    IMMEDIATE = "immediate"
    BACKOFF = "backoff"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class Tries:
    """Tries made since the last healthy connection."""

    count: int = 0

    def stage(self, policy: ConnectionPolicy) -> Stage:
        """Name the stage of the next try."""
        if self.count < policy.immediate_tries:
            return Stage.IMMEDIATE
        if self.count < policy.immediate_tries + policy.backoff_tries:
            return Stage.BACKOFF
        return Stage.DEGRADED

    def delay_s(self, policy: ConnectionPolicy, draw: float) -> float:
        """Give the delay before the next try.

        Args:
            policy: The numbers of the policy.
            draw: Uniform random number from 0 to 1.
        """
        if self.stage(policy) is Stage.IMMEDIATE:
            return 0.0
        return policy.backoff.delay_s(self.count - policy.immediate_tries + 1, draw)

    def failed(self) -> Tries:
        """Count a failed try."""
        return Tries(self.count + 1)

    def exhausted(self, policy: ConnectionPolicy) -> bool:
        """Say whether the last try before degraded mode has just failed."""
        return self.count == policy.immediate_tries + policy.backoff_tries


def pause_s(
    tries: Tries, policy: ConnectionPolicy, draw: float, *, refused: bool = False, asked_s: float = 0.0
) -> float:
    """Give the seconds from the end of a failed try to the next one.

    Args:
        tries: Tries made, the failed one included.
        policy: The numbers of the policy.
        draw: Uniform random number from 0 to 1.
        refused: The exchange refuses the client, for instance because of the key: an early retry would not help.
        asked_s: Seconds for which the exchange asked for no requests.
    """
    if refused:
        return policy.backoff.max_s * (1 - policy.backoff.jitter * draw)
    return max(asked_s, tries.delay_s(policy, draw))


@dataclass(frozen=True, slots=True)
class Outage:
    """Since when there is no healthy connection, and whether that was reported."""

    since_s: float | None = None
    reported: bool = False

    def begin(self, at_s: float) -> Outage:
        """Note a loss; an outage that lasts keeps its beginning."""
        return self if self.since_s is not None else Outage(at_s)

    def due(self, now_s: float, policy: ConnectionPolicy) -> bool:
        """Say whether the loss has to be reported now."""
        return self.since_s is not None and not self.reported and now_s - self.since_s > policy.loss_s

    def mark_reported(self) -> Outage:
        """Note that it was reported."""
        return Outage(self.since_s, reported=True)


class ConnectionAction(Enum):
    """What to do with a connection; the value is the reason in the log."""

    KEEP = "it is healthy"
    REPLACE = "open another beside it"
    RETIRE = "replaced by another connection"
    IDLE = "nothing was received for too long"
    NO_FIRST_MESSAGE = "nothing was received since it was opened"
    NO_PONG = "a ping was not answered"


def judge(state: ConnectionState, now_s: float, policy: ConnectionPolicy) -> ConnectionAction:
    """Decide about one connection."""
    if state.opened_s is None:
        return ConnectionAction.KEEP  # the connect call has its own time-out
    if state.replaced_s is not None and now_s - state.replaced_s > OVERLAP_S:
        return ConnectionAction.RETIRE
    heard_s = state.heard_s
    if heard_s is None:
        return ConnectionAction.NO_FIRST_MESSAGE if now_s - state.opened_s > HEALTHY_WITHIN_S else ConnectionAction.KEEP
    if now_s - heard_s > (policy.silence_s if state.answers else max(policy.silence_s, PEER_PING_WITHIN_S)):
        return ConnectionAction.IDLE
    if state.unanswered_s is not None and now_s - state.unanswered_s > PONG_WITHIN_S:
        return ConnectionAction.NO_PONG
    old = state.leaving or now_s - state.opened_s > policy.rotate_after_s
    return ConnectionAction.REPLACE if old and state.replaced_s is None else ConnectionAction.KEEP


LACKS_AFTER_S: Final = {"depth": 10.0, "bestBidAsk": 300.0, "trade": 300.0}
"""Seconds without a message of a stream after which it is lacking, if others of its symbol go on. Every change of the
best prices is one of the book, so depth is lacking soon; a coin may go untraded, or keep its best prices, for
minutes."""

SYMBOL_LACKS_AFTER_S: Final = 300.0
"""The same for all streams of a symbol, if other symbols go on."""

LACKS_WHILE: Final = 10
"""Messages of other streams in that time that show that the connection itself works."""


@dataclass(slots=True)
class StreamWatch:
    """Which streams of one connection bring messages, and which are lacking.

    Args:
        streams: `(symbol, stream)` pairs that are subscribed to.
        since_s: When the connection was opened, in monotonic seconds.
    """

    streams: Sequence[tuple[str, str]]
    since_s: float
    _last: dict[tuple[str, str], tuple[float, int, int]] = field(default_factory=dict)
    _of_symbol: dict[str, int] = field(default_factory=dict)
    _messages: int = 0

    def note(self, symbol: str, stream: str, now_s: float) -> None:
        """Note a message."""
        self._messages += 1
        own = self._of_symbol[symbol] = self._of_symbol.get(symbol, 0) + 1
        self._last[symbol, stream] = now_s, own, self._messages

    def silent_s(self, symbol: str, stream: str, now_s: float) -> float:
        """Give the seconds since the last message of a stream."""
        return now_s - self._last.get((symbol, stream), (self.since_s, 0, 0))[0]

    def lacking(self, now_s: float) -> list[tuple[str, str]]:
        """Name the streams without a message for too long while others went on."""
        return [pair for pair in self.streams if self._lacks(*pair, now_s)]

    def _lacks(self, symbol: str, stream: str, now_s: float) -> bool:
        last_s, own, all_of_them = self._last.get((symbol, stream), (self.since_s, 0, 0))
        since_of_symbol, since = self._of_symbol.get(symbol, 0) - own, self._messages - all_of_them
        if since_of_symbol >= LACKS_WHILE:
            return now_s - last_s > LACKS_AFTER_S[stream]
        return now_s - last_s > SYMBOL_LACKS_AFTER_S and since - since_of_symbol >= LACKS_WHILE


@dataclass(slots=True)
class Replacing:
    """When a connection that lacks streams is replaced: at once, then with growing pauses, since it may not help.

    Attributes:
        next_s: Earliest time of the next replacement.
        pause_s: Pause before the one after it.
    """

    next_s: float = 0.0
    pause_s: float = 60.0

    def due(self, now_s: float) -> bool:
        """Say whether another connection may be tried."""
        return now_s >= self.next_s

    def done(self, now_s: float) -> Replacing:
        """Note a try."""
        return Replacing(now_s + self.pause_s, min(2 * self.pause_s, 3600.0))


@dataclass(slots=True)
class SequenceWatch:
    """Jumps of ids on one connection, by symbol and kind of message.

    They are only counted: another line may bring what this one lacks.
    """

    streams: StreamWatch | None = None
    _last: dict[tuple[str, int], int] = field(default_factory=dict)

    def jumped(self, symbol: str, template: int, first_id: int, last_id: int) -> bool:
        """Note a message of a template and say whether ids are missing before it."""
        key = (symbol, template)
        last = self._last.get(key)
        if last is None or last_id > last:
            self._last[key] = last_id
        return last is not None and first_id > last + 1

"""When to connect, when to give a connection up, and when to say that it is lost.

Whether a connection lives is judged by whatever comes on it: a market message, a ping, or the pong to a ping of ours. A
market without events is no dead connection, and a connection that lives may lack a stream: that is told of the stream.
Pure; clocks and chance are arguments. Three tries at once, ten with growing delays, then degraded but still trying: a
feed is never given up for good. All that time an outage of more than 30 s is told once, whatever the tries are doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sheetanchor.runtime.reliability import Backoff
from sheetanchor.venue import ConnectionState

HEALTHY_WITHIN_S: Final = 10.0
"""A new connection that has given no sign of life by then, though asked for one, is as good as none."""

OVERLAP_S: Final = 2.0
"""A connection is kept this long beside the one that replaces it: what is on its way would be lost otherwise."""

PONG_WITHIN_S: Final = 60.0
"""A peer that speaks but does not hear; it is the time that the exchange itself gives a pong."""

PEER_PING_WITHIN_S: Final = 60.0
"""A peer that answers no pings but sends some is given three times the exchange's 20 s between them."""

ASKS_PER_SILENCE: Final = 4
"""Pings within the longest silence: the answer to the first has three quarters of it, and one may get lost."""

DEFAULT_BACKOFF: Final = Backoff(initial_s=1.0, max_s=60.0)


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """The numbers of the policy, in seconds.

    Attributes:
        immediate_tries: Tries without delay after a loss.
        backoff_tries: Delayed tries before degraded mode.
        backoff: Their delays.
        loss_s: Outage that is told as a connection loss.
        silence_s: Longest time without a sign of life. A quarter of it after the last one we ask for another.
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
        """Seconds without a sign of life after which a ping asks for one."""
        return self.silence_s / ASKS_PER_SILENCE


class Stage(Enum):
    """How far the tries of an outage have come."""

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
            policy: The numbers.
            draw: Uniform random number from 0 to 1.
        """
        if self.stage(policy) is Stage.IMMEDIATE:
            return 0.0
        return policy.backoff.delay_s(self.count - policy.immediate_tries + 1, draw)

    def failed(self) -> Tries:
        """Count a try that came to nothing."""
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
    reported: bool = False

    def begin(self, at_s: float) -> Outage:
        """Take note of a loss; one that lasts keeps its beginning."""
        return self if self.since_s is not None else Outage(at_s)

    def due(self, now_s: float, policy: ConnectionPolicy) -> bool:
        """Say whether the loss has to be told now."""
        return self.since_s is not None and not self.reported and now_s - self.since_s > policy.loss_s

    def mark_reported(self) -> Outage:
        """Take note that it has been told."""
        return Outage(self.since_s, reported=True)


class ConnectionAction(Enum):
    """What to do with a connection; the values of those that end it say why."""

    KEEP = "all is well"
    REPLACE = "open another beside it"
    RETIRE = "replaced by another connection"
    IDLE = "no sign of life for too long"
    NO_FIRST_MESSAGE = "never a sign of life since it was opened"
    NO_PONG = "no pong came back"


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
"""Seconds without a message of a stream after which it is missing, if others of its symbol go on. Every change of the
best prices is one of the book, so that is missed soon; a coin may go untraded, or keep its best prices, for minutes."""

SYMBOL_LACKS_AFTER_S: Final = 300.0
"""The same for all streams of a symbol, if other symbols go on."""

LACKS_WHILE: Final = 10
"""Messages of others in that time that show that the connection itself speaks."""


@dataclass(slots=True)
class StreamWatch:
    """What each stream of one connection has brought, and which of them are missing.

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
        """Take note of a message."""
        self._messages += 1
        own = self._of_symbol[symbol] = self._of_symbol.get(symbol, 0) + 1
        self._last[symbol, stream] = now_s, own, self._messages

    def silent_s(self, symbol: str, stream: str, now_s: float) -> float:
        """Give the seconds for which a stream has brought nothing."""
        return now_s - self._last.get((symbol, stream), (self.since_s, 0, 0))[0]

    def lacking(self, now_s: float) -> list[tuple[str, str]]:
        """Name the streams that have brought nothing for too long while others went on."""
        return [pair for pair in self.streams if self._lacks(*pair, now_s)]

    def _lacks(self, symbol: str, stream: str, now_s: float) -> bool:
        last_s, own, all_of_them = self._last.get((symbol, stream), (self.since_s, 0, 0))
        since_of_symbol, since = self._of_symbol.get(symbol, 0) - own, self._messages - all_of_them
        if since_of_symbol >= LACKS_WHILE:
            return now_s - last_s > LACKS_AFTER_S[stream]
        return now_s - last_s > SYMBOL_LACKS_AFTER_S and since - since_of_symbol >= LACKS_WHILE


@dataclass(slots=True)
class Replacing:
    """When a connection that lacks streams is replaced: at once, then with growing pauses, for it may not help.

    Attributes:
        next_s: Not before then.
        pause_s: What is added the next time.
    """

    next_s: float = 0.0
    pause_s: float = 60.0

    def due(self, now_s: float) -> bool:
        """Say whether another connection is worth a try."""
        return now_s >= self.next_s

    def done(self, now_s: float) -> Replacing:
        """Take note of a try."""
        return Replacing(now_s + self.pause_s, min(2 * self.pause_s, 3600.0))


@dataclass(slots=True)
class SequenceWatch:
    """Jumps of ids on one connection, by symbol and kind of message.

    They are only counted: another line may have what this one lacks.
    """

    streams: StreamWatch | None = None
    _last: dict[tuple[str, int], int] = field(default_factory=dict)

    def jumped(self, symbol: str, template: int, first_id: int, last_id: int) -> bool:
        """Take in a message of a template and say whether ids are missing before it."""
        key = (symbol, template)
        last = self._last.get(key)
        if last is None or last_id > last:
            self._last[key] = last_id
        return last is not None and first_id > last + 1

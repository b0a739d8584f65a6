"""Limits of a client: REST weight per minute, messages per second. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

BAN_AFTER: Final = 10
"""Requests after the first 429 of a minute that turn it into a ban; the exchange does not publish its number."""

BAN_FIRST_S: Final = 120
BAN_LONGEST_S: Final = 3 * 86_400
"""Bans last from two minutes to three days."""

CALLERS_MAX: Final = 1_000
"""Addresses that are kept; the oldest is dropped for a new one."""

MESSAGES_PER_S: Final = 5
"""Client messages a connection may send in a second: PING, PONG and text together."""


@dataclass(frozen=True, slots=True)
class LimitDecision:
    """The decision about a request.

    Attributes:
        status: 200, 429 or 418.
        used: Weight used in the running minute.
        retry_after_s: Seconds to wait, for 429 and 418.
        banned_until_ms: End of the ban, for 418.
    """

    status: int
    used: int
    retry_after_s: int = 0
    banned_until_ms: int = 0


@dataclass(slots=True)
class _Caller:
    minute: int = -1
    used: int = 0
    refused: int = 0
    bans: int = 0
    banned_until_s: float = 0.0


@dataclass(slots=True)
class WeightBudget:
    """Request weight per address and clock minute."""

    per_minute: int
    _callers: dict[str, _Caller] = field(default_factory=dict)

    def charge(self, address: str, weight: int, now_s: float) -> LimitDecision:
        """Count a request and say whether it is answered.

        Args:
            address: Address of the client; limits are per address.
            weight: Weight of the request.
            now_s: Wall-clock time in seconds.
        """
        caller = self._caller(address)
        minute = int(now_s // 60)
        if caller.minute != minute:
            caller.minute, caller.used, caller.refused = minute, 0, 0
        if now_s < caller.banned_until_s:
            return self._banned(caller, now_s)
        caller.used += weight
        if caller.used <= self.per_minute:
            return LimitDecision(200, caller.used)
        caller.refused += 1
        if caller.refused > BAN_AFTER:
            caller.bans += 1
            caller.banned_until_s = now_s + min(BAN_LONGEST_S, BAN_FIRST_S * 2 ** min(caller.bans - 1, 20))
            return self._banned(caller, now_s)
        return LimitDecision(429, caller.used, max(1, math.ceil((minute + 1) * 60 - now_s)))

    def _caller(self, address: str) -> _Caller:
        if address not in self._callers and len(self._callers) >= CALLERS_MAX:
            self._callers.pop(next(iter(self._callers)))
        return self._callers.setdefault(address, _Caller())

    @staticmethod
    def _banned(caller: _Caller, now_s: float) -> LimitDecision:
        wait_s = max(1, math.ceil(caller.banned_until_s - now_s))
        return LimitDecision(418, caller.used, wait_s, int(caller.banned_until_s * 1000))


class MessageBudget:
    """Messages of one connection in the last second."""

    def __init__(self, per_s: int = MESSAGES_PER_S) -> None:
        self._times: deque[float] = deque(maxlen=per_s)

    def spend(self, now_s: float) -> bool:
        """Count a message; False if it is one too many.

        Args:
            now_s: Monotonic time in seconds.
        """
        full = len(self._times) == self._times.maxlen and now_s - self._times[0] < 1.0
        self._times.append(now_s)
        return not full

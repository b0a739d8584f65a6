"""Which pipeline is reconciled next, and when. One at a time per pipeline, each failure later than the one before.

The schedule is pure; time and random numbers are arguments.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

SETTLE_S: Final = 0.1
"""Changes come in bursts: a Deployment, its ReplicaSet and its pods within a tenth of a second."""

GAP_S: Final = 0.5
"""Least time between two reconciles of the same pipeline, however often it changes."""

BACKOFF_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0


@dataclass(slots=True)
class _Entry:
    due_s: float | None = None
    started_s: float = float("-inf")
    running: bool = False
    failures: int = 0
    not_before_s: float = float("-inf")


@dataclass(slots=True)
class Schedule(Generic[Item]):
    """When each item is due."""

    _entries: dict[Item, _Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._entries)

    def wake(self, item: Item, now_s: float) -> None:
        """Have a changed item reconciled soon, but not before its backoff is over."""
        entry = self._entries.setdefault(item, _Entry())
        self._bring_forward(entry, max(now_s + SETTLE_S, entry.started_s + GAP_S, entry.not_before_s))

    def at(self, item: Item, due_s: float) -> None:
        """Have an item reconciled at a time, or earlier."""
        self._bring_forward(self._entries.setdefault(item, _Entry()), due_s)

    def _bring_forward(self, entry: _Entry, due_s: float) -> None:
        entry.due_s = due_s if entry.due_s is None else min(entry.due_s, due_s)

    def take(self, now_s: float) -> Item | None:
        """Give the item that has been due longest, None if none is; it is not given again before `done` or `failed`."""
        due = [(entry.due_s, item) for item, entry in self._entries.items() if self._is_due(entry, now_s)]
        if not due:
            return None
        item = min(due, key=lambda pair: pair[0] or 0.0)[1]
        entry = self._entries[item]
        entry.due_s, entry.running, entry.started_s = None, True, now_s
        return item

    def _is_due(self, entry: _Entry, now_s: float) -> bool:
        return not entry.running and entry.due_s is not None and entry.due_s <= now_s

    def waiting(self, now_s: float) -> int:
        """Count the items that are due."""
        return sum(self._is_due(entry, now_s) for entry in self._entries.values())

    def next_s(self) -> float | None:
        """Say when the next item is due, None if none is scheduled."""
        due = [entry.due_s for entry in self._entries.values() if entry.due_s is not None and not entry.running]
        return min(due, default=None)

    def done(self, item: Item, due_s: float) -> None:
        """Note that an item was reconciled; the next time is `due_s`, or earlier if it changed meanwhile."""
        entry = self._entries.get(item)
        if entry is not None:
            entry.running, entry.failures, entry.not_before_s = False, 0, float("-inf")
            self._bring_forward(entry, due_s)

    def failed(self, item: Item, now_s: float, jitter: float, least_s: float = 0.0) -> float:
        """Note that reconciling an item failed; gives the delay until the next try.

        Args:
            item: The item.
            now_s: The time.
            jitter: Random number in [0, 1) that spreads the tries by 20 % to either side.
            least_s: Wait that the server asked for; honoured up to the longest delay of the backoff.
        """
        entry = self._entries.setdefault(item, _Entry())
        entry.failures += 1
        delay_s = min(BACKOFF_S * 2.0 ** min(entry.failures - 1, 30), BACKOFF_MAX_S) * (0.8 + 0.4 * jitter)
        delay_s = max(delay_s, min(least_s, BACKOFF_MAX_S))
        entry.running, entry.not_before_s, entry.due_s = False, now_s + delay_s, now_s + delay_s
        return delay_s

    def forget(self, item: Item) -> None:
        """Drop a deleted item; one that was created again while its deletion was handled is reconciled again."""
        entry = self._entries.get(item)
        if entry is None:
            return
        if entry.running and entry.due_s is not None:
            entry.running = False
        else:
            del self._entries[item]

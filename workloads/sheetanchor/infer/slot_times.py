"""Timestamps of the steps of a slot, which show where its time goes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STAGES: Final = ("wake", "read", "judge", "features", "model", "record", "commit", "after")
"""The steps of a slot in their order; each lasts from the end of the one before it."""


@dataclass(slots=True)
class SlotTimes:
    """The moments of one slot, in ns of this machine's monotonic clock; 0 for what was not reached.

    What is tried again has the moments of its last try, so that the stages always add up to the whole.

    Attributes:
        due_ns: When the slot began, as far as this replica knows Redis' clock.
        begun_ns: When its read was sent.
        read_s: Seconds that the read took, 0 if there was none that could be understood.
        read_ns: When there was something to answer from.
        features_s: Seconds that the input of the model took.
        model_s: Seconds that its run took.
        answered_ns: When there was an answer.
        recorded_ns: When the record was ready, and its commit was sent.
        committed_ns: When Redis' reply to the commit was there.
        done_ns: When the slot was over: remembered, scored, shown.
    """

    due_ns: int = 0
    begun_ns: int = 0
    read_ns: int = 0
    features_s: float = 0.0
    model_s: float = 0.0
    answered_ns: int = 0
    recorded_ns: int = 0
    committed_ns: int = 0
    done_ns: int = 0
    read_s: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether every moment was reached, which is so for a slot that Redis has answered about."""
        return all((self.begun_ns, self.read_ns, self.answered_ns, self.recorded_ns, self.committed_ns, self.done_ns))

    @property
    def commit_s(self) -> float:
        """Seconds from sending the commit to Redis' reply."""
        return (self.committed_ns - self.recorded_ns) / 1e9

    def stages_us(self) -> dict[str, float]:
        """Give the length of each of `STAGES` in µs; only of a whole slot.

        `judge` has what the answer took beside features and model. `wake` is how late the read was sent; it may be
        negative by as much as Redis' clock is not known exactly.
        """
        inner_us = (self.features_s + self.model_s) * 1e6
        lengths_us = (
            (self.begun_ns - self.due_ns) / 1e3,
            (self.read_ns - self.begun_ns) / 1e3,
            (self.answered_ns - self.read_ns) / 1e3 - inner_us,
            self.features_s * 1e6,
            self.model_s * 1e6,
            (self.recorded_ns - self.answered_ns) / 1e3,
            (self.committed_ns - self.recorded_ns) / 1e3,
            (self.done_ns - self.committed_ns) / 1e3,
        )
        return dict(zip(STAGES, lengths_us, strict=True))

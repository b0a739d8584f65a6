"""Frames on their way to Redis: a bounded queue that drops the least important first, and the recently sent ones."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from sheetanchor.contract import pack_frames

RESEND_US: Final = 15_000_000
"""Frames of this time are appended again when Redis has another data set; readers then go back twice as far."""

RESEND_BYTES_MAX: Final = 64 * 1024 * 1024
FRAME_OVERHEAD_BYTES: Final = 120
"""Memory of a queued frame beside its bytes: two objects and a tuple."""

BATCH_FRAMES_MAX: Final = 4_096
BATCH_BYTES_MAX: Final = 1024 * 1024
"""Half a second of the busiest market: larger entries would delay other clients' commands at the server."""

Frame = tuple[int, bytes, bool]
"""(receive time in µs, frame, whether it may be dropped first: best prices, since the next one replaces them)."""


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """The frames of one stream entry."""

    count: int
    first_received_us: int
    packed: bytes


@dataclass(frozen=True, slots=True)
class Shed:
    """How many frames were dropped to make room.

    Attributes:
        spare: Best prices.
        other: Trades and book updates: their loss is a gap, which processors find by the ids.
    """

    spare: int = 0
    other: int = 0


NOTHING_SHED: Final = Shed()


@dataclass(slots=True)
class SendBuffer:
    """The queue of one symbol.

    Args:
        bytes_max: Bytes that may wait, overhead included.
        resend_bytes_max: Bytes of sent frames that are kept.
    """

    bytes_max: int
    resend_bytes_max: int = RESEND_BYTES_MAX
    bytes_waiting: int = 0
    _waiting: list[Frame] = field(default_factory=list)
    _sent: deque[tuple[int, FrameBatch]] = field(default_factory=deque)
    _sent_bytes: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, received_us: int, frame: bytes, spare: bool) -> Shed:
        """Queue a frame.

        Returns:
            What was dropped to make room: best prices first, then the oldest.
        """
        self._waiting.append((received_us, frame, spare))
        self.bytes_waiting += len(frame) + FRAME_OVERHEAD_BYTES
        return self._shed() if self.bytes_waiting > self.bytes_max else NOTHING_SHED

    def _shed(self) -> Shed:
        # A tenth is dropped at once, so that a full queue is not searched for every frame.
        target = self.bytes_max * 9 // 10
        spare = self._drop(target, spare_only=True)
        return Shed(spare, self._drop(target, spare_only=False))

    def _drop(self, target: int, *, spare_only: bool) -> int:
        if self.bytes_waiting <= target:
            return 0
        kept: list[Frame] = []
        for frame in self._waiting:
            if self.bytes_waiting > target and (frame[2] or not spare_only):
                self.bytes_waiting -= len(frame[1]) + FRAME_OVERHEAD_BYTES
            else:
                kept.append(frame)
        dropped = len(self._waiting) - len(kept)
        self._waiting = kept
        return dropped

    def take(self) -> FrameBatch | None:
        """Take the oldest frames as one batch; None when the queue is empty."""
        size = count = 0
        for _, frame, _ in self._waiting:
            size += len(frame)
            if count and (size > BATCH_BYTES_MAX or count == BATCH_FRAMES_MAX):
                break
            count += 1
        if not count:
            return None
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self.bytes_waiting -= sum(len(frame) for _, frame, _ in taken) + count * FRAME_OVERHEAD_BYTES
        return FrameBatch(count, taken[0][0], pack_frames((received_us, frame) for received_us, frame, _ in taken))

    def sent(self, batch: FrameBatch, now_us: int) -> None:
        """Keep a batch that Redis has accepted, for as long as it may have to be sent again."""
        self._sent.append((now_us, batch))
        self._sent_bytes += len(batch.packed)
        while self._sent and (now_us - self._sent[0][0] > RESEND_US or self._sent_bytes > self.resend_bytes_max):
            self._sent_bytes -= len(self._sent.popleft()[1].packed)

    def recent(self) -> tuple[FrameBatch, ...]:
        """Give the recently sent batches, oldest first."""
        return tuple(batch for _, batch in self._sent)

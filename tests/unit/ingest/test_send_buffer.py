from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.contract import unpack_frames
from sheetanchor.ingest.send_buffer import (
    BATCH_BYTES_MAX,
    BATCH_FRAMES_MAX,
    FRAME_OVERHEAD_BYTES,
    RESEND_BYTES_MAX,
    RESEND_US,
    FrameBatch,
    SendBuffer,
    Shed,
)

S = 1_000_000
frames = st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=200)


def drained(buffer: SendBuffer) -> list[tuple[int, bytes]]:
    """Take all that waits."""
    found: list[tuple[int, bytes]] = []
    while (batch := buffer.take()) is not None:
        unpacked = list(unpack_frames(batch.packed))
        assert (batch.count, batch.first_received_us) == (len(unpacked), unpacked[0][0])
        found += unpacked
    return found


@given(queued=frames)
def test_frames_leave_as_they_came(queued: list[tuple[bytes, bool]]) -> None:
    """Whatever is queued comes out to the byte, in order, with its receive time, and leaves nothing behind."""
    buffer = SendBuffer(10**9)
    for number, (frame, spare) in enumerate(queued):
        assert Shed() == buffer.put(number, frame, spare)

    found = drained(buffer)

    assert [(number, frame) for number, (frame, _) in enumerate(queued)] == found
    assert (0, 0) == (len(buffer), buffer.bytes_waiting)
    assert buffer.take() is None


@given(queued=frames, bytes_max=st.integers(200, 20_000))
@settings(max_examples=200)
def test_the_queue_is_bounded_and_every_frame_accounted_for(queued: list[tuple[bytes, bool]], bytes_max: int) -> None:
    """Never more bytes than allowed; what is not shed comes out in order; sums are right."""
    buffer = SendBuffer(bytes_max)
    shed = 0
    for number, (frame, spare) in enumerate(queued):
        lost = buffer.put(number, frame, spare)
        shed += lost.spare + lost.other
        assert buffer.bytes_waiting <= bytes_max

    waiting = buffer.bytes_waiting
    found = drained(buffer)

    assert len(queued) == shed + len(found)
    assert waiting == sum(len(frame) + FRAME_OVERHEAD_BYTES for _, frame in found)
    assert sorted(found) == found
    assert all(queued[number][0] == frame for number, frame in found)


@given(spares=st.lists(st.booleans(), min_size=20, max_size=200))
def test_nothing_else_is_shed_while_best_prices_wait(spares: list[bool]) -> None:
    """A trade or book update is lost only when no best price is left to give up for it."""
    buffer = SendBuffer(10 * (50 + FRAME_OVERHEAD_BYTES))
    waiting_spares = 0
    for number, spare in enumerate(spares):
        waiting_spares += spare
        shed = buffer.put(number, bytes(50), spare)
        waiting_spares -= shed.spare
        assert not shed.other or waiting_spares == 0


def test_the_oldest_go_first() -> None:
    """Of frames of one kind the newest stay."""
    buffer = SendBuffer(10 * (50 + FRAME_OVERHEAD_BYTES))

    shed = [buffer.put(number, bytes(50), spare=False).other for number in range(11)]

    assert [0] * 10 + [2] == shed
    assert list(range(2, 11)) == [number for number, _ in drained(buffer)]


def test_an_entry_is_bounded() -> None:
    """A long queue becomes several entries: by count for small frames, by bytes for large ones, never an empty one."""
    small, large, huge = SendBuffer(10**9), SendBuffer(10**9), SendBuffer(10**9)
    for number in range(BATCH_FRAMES_MAX + 1):
        small.put(number, b"x", spare=False)
    for number in range(3):
        large.put(number, bytes(BATCH_BYTES_MAX // 2), spare=False)
        huge.put(number, bytes(2 * BATCH_BYTES_MAX), spare=False)

    counts = [[batch.count for batch in iter(buffer.take, None)] for buffer in (small, large, huge)]

    assert [[BATCH_FRAMES_MAX, 1], [2, 1], [1, 1, 1]] == counts


@given(gaps_s=st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_what_was_sent_within_fifteen_seconds_is_kept(gaps_s: list[int]) -> None:
    """Exactly the batches of the last fifteen seconds can be had again, in order."""
    buffer, now_us, times = SendBuffer(10**9), 0, []
    for gap_s in gaps_s:
        now_us += gap_s * S
        times.append(now_us)
        buffer.sent(FrameBatch(1, now_us, b"frame"), now_us)

    kept = [batch.first_received_us for batch in buffer.recent()]

    assert [sent_us for sent_us in times if now_us - sent_us <= RESEND_US] == kept


def test_what_waited_out_an_outage_can_be_had_again() -> None:
    """Frames that were received a minute before Redis took them are kept for fifteen seconds after it did."""
    buffer = SendBuffer(10**9)
    for number in range(3):
        buffer.sent(FrameBatch(1, number * S, b"frame"), (60 + number) * S)

    assert [0, S, 2 * S] == [batch.first_received_us for batch in buffer.recent()]


def test_what_is_kept_is_bounded_in_bytes() -> None:
    """However much is sent within fifteen seconds, no more than the limit is held."""
    buffer = SendBuffer(10**9)
    packed = bytes(1024 * 1024)

    for number in range(100):
        buffer.sent(FrameBatch(1, number, packed), 0)

    kept = buffer.recent()
    assert RESEND_BYTES_MAX // len(packed) == len(kept)
    assert 99 == kept[-1].first_received_us

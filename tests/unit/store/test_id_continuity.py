"""Where the ids of the lines begin again, and what must not be read again because of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.contract import stream_id_order
from sheetanchor.store.frame_streams import Batch
from sheetanchor.store.id_continuity import Mark, begin_after, beyond, mark_of, overtaken
from support.market_parts import T0, batch, best, diff, trades

STEP_MS = 100
SETTLED_MS = 2_500


def entry(ms: int, *frames: object) -> Batch:
    return Batch("a", f"{ms}-0", len(frames), ms * 1_000, batch(*frames))  # type: ignore[arg-type]  # messages


def test_a_mark_has_the_first_id_of_each_kind() -> None:
    """Ids are read without decoding the whole frame, and damaged frames have none."""
    frames = [best(7, 5, 6), trades((3, 5, 1, True), (4, 5, 1, True), at=T0 + 9), diff(6, 8), diff(9, 12)]

    assert Mark("5-0", 5_000, 6, 8, 7, 3, T0 + 9) == mark_of(entry(5, *frames))
    assert Mark("5-0", 5_000) == mark_of(entry(5, b"", b"\0" * 7, b"\x1a\0\x13\x27"))
    assert Mark("5-0", 5_000) == mark_of(Batch("a", "5-0", 1, 0, b"\1\2\3"))


@given(st.binary(max_size=80))
def test_any_bytes_have_a_mark(raw: bytes) -> None:
    """Any entry can be read without an exception."""
    assert "5-0" == mark_of(Batch("a", "5-0", 1, 0, raw)).entry_id
    assert "5-0" == mark_of(entry(5, raw)).entry_id


@dataclass(frozen=True)
class Segment:
    """Frames from one beginning of the ids to the next."""

    update_id: int
    trade_id: int
    steps: int


@dataclass
class Past:
    """What two lines hold at the end, and where the last history stands."""

    lines: dict[str, list[Mark]] = field(default_factory=lambda: {"a": [], "b": []})
    update_id: int = 0
    best_id: int = 0
    trade_id: int = 0


def past_of(segments: list[Segment], lag_ms: int, last_of_b: int, again: bool) -> Past:
    """Let the segments pass; line b lags, and ends early."""
    past, ms = Past(), 1_000_000
    for segment in segments:
        past.update_id, past.trade_id = segment.update_id, segment.trade_id
        for step in range(segment.steps):
            ms += STEP_MS
            first, past.update_id = past.update_id + 1, past.update_id + 3
            past.best_id = past.update_id + 2  # best prices run ahead of the next diff
            past.trade_id += step % 3 == 0
            mark = (first, past.update_id, past.best_id, past.trade_id, ms * 1_000)
            past.lines["a"].append(Mark(f"{ms}-0", ms * 1_000, *mark))
            if ms <= 1_000_000 + last_of_b * STEP_MS:
                past.lines["b"].append(Mark(f"{ms + lag_ms}-0", (ms + lag_ms) * 1_000, *mark))
    if again:  # after a failover an ingestor appends again what it keeps
        kept = past.lines["a"][-20:]
        past.lines["a"] += [m._replace(entry_id=f"{ms}-{at + 1}", stamp_us=ms * 1_000) for at, m in enumerate(kept)]
    return past


def left(past: Past, gone: dict[str, str]) -> Iterator[Mark]:
    for line, marks in past.lines.items():
        yield from (
            mark for mark in marks if line not in gone or stream_id_order(mark.entry_id) > stream_id_order(gone[line])
        )


IDS = st.integers(1, 10**9)
SEGMENTS = st.lists(st.builds(Segment, IDS, IDS, st.integers(1, 60)), max_size=4)
LAST = st.builds(Segment, IDS, IDS, st.integers(SETTLED_MS // STEP_MS, 60))
LAGS = st.integers(0, 300)


@given(SEGMENTS, LAST, LAGS, st.integers(0, 300), st.booleans())
def test_what_is_left_belongs_to_the_last_history(
    before: list[Segment], last: Segment, lag_ms: int, last_of_b: int, again: bool
) -> None:
    """However often ids restarted, no entry beyond the present ids is left: no missing range, no stuck best price."""
    past = past_of([*before, last], lag_ms, last_of_b, again)

    gone = begin_after(past.lines, overtaken(past.lines))

    for mark in left(past, gone):
        assert max(mark.update_id, mark.best_id) <= past.best_id
        assert mark.trade_id <= past.trade_id
    newest = past.lines["a"][-1]
    assert "a" not in gone or stream_id_order(gone["a"]) < stream_id_order(newest.entry_id), (
        "the present is never left out"
    )


@given(LAST, LAGS, st.integers(0, 300), st.booleans())
def test_one_history_loses_nothing(last: Segment, lag_ms: int, last_of_b: int, again: bool) -> None:
    """Lines that lag, end or come again have no gone history in them."""
    past = past_of([last], lag_ms, last_of_b, again)

    assert {} == begin_after(past.lines, overtaken(past.lines))


@given(SEGMENTS, st.builds(Segment, IDS, IDS, st.integers(1, 60)), LAGS, st.integers(0, 300))
def test_a_book_knows_at_once(before: list[Segment], last: Segment, lag_ms: int, last_of_b: int) -> None:
    """What a rebuilt book has read up to cannot be beyond it, however short ago the ids began again."""
    past = past_of([*before, last], lag_ms, last_of_b, again=False)
    positions = {line: marks[-1].entry_id for line, marks in past.lines.items() if marks}

    gone = begin_after(past.lines, beyond(positions, past.update_id, past.best_id, past.trade_id))

    for mark in left(past, gone):
        assert max(mark.update_id, mark.best_id) <= past.best_id
        assert mark.trade_id <= past.trade_id
    if not before:
        assert {} == gone

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.contract import (
    TIME_LIMIT_US,
    Entry,
    Gap,
    Receipt,
    keys,
    line_names,
    line_stream,
    pack_frames,
    parse_entry,
    slot_of,
    slot_start_us,
    unpack_frames,
)
from support.bad_entries import BAD_IDS, BAD_NAMES, MALFORMED, SOUND

FRAMES = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=200)), max_size=20)


def test_all_keys_of_a_symbol_share_a_hash_slot() -> None:
    """Every key carries the same literal hash tag."""
    named = asdict(keys("BTCUSDT"))
    del named["symbol"]

    assert [] == [key for key in [*named.values(), line_stream("BTCUSDT", "a")] if "{BTCUSDT}" not in key]


def test_keys_have_the_names_that_readers_know() -> None:
    """The names are a public contract."""
    named = keys("BTCUSDT")

    assert "ob:{BTCUSDT}" == named.ob
    assert "tr:{BTCUSDT}:1s" == named.tr_1s
    assert "tr:new:{BTCUSDT}:5s" == named.tr_5s_new
    assert "reanchor:{BTCUSDT}" == named.lock
    assert "sbe:{BTCUSDT}:zone-a" == line_stream("BTCUSDT", "zone-a")


@given(FRAMES)
def test_unpacking_gives_what_was_packed(frames: list[tuple[int, bytes]]) -> None:
    """A stream entry loses nothing and keeps the order."""
    assert frames == list(unpack_frames(pack_frames(frames)))


def test_a_frame_is_packed_as_length_time_bytes() -> None:
    """u32 length, i64 receive time, frame; little-endian."""
    assert bytes.fromhex("020000000100000000000000abcd") == pack_frames([(1, b"\xab\xcd")])


@given(FRAMES.filter(bool), st.data())
def test_a_batch_cut_inside_a_frame_is_refused(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """A cut batch raises ValueError instead of giving a shorter frame."""
    whole = pack_frames(frames)
    ends = {0}
    for received_us, frame in frames:
        ends.add(max(ends) + len(pack_frames([(received_us, frame)])))
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda size: size not in ends)) if len(whole) > 1 else 0

    with pytest.raises(ValueError, match="inside a frame"):
        list(unpack_frames(whole[:cut]))


def test_a_gap_survives_the_stream() -> None:
    """Parsing gives the event that was rendered."""
    gap = Gap("BTCUSDT", "sequence_gap", "high", "immediate_reanchor", "depth: expected 2, found 5", "process", 17, 3)

    assert gap == Gap.parse(gap.fields())


def test_a_receipt_survives_the_stream() -> None:
    """Parsing gives the receipt that was rendered."""
    receipt = Receipt(
        "r1", "BTCUSDT", "gap", "sequence_gap", "swapped", 1, 2, 0, 1, 10, 12, 0, "done", {"lock": 0.1}, ("depth",)
    )

    assert receipt == Receipt.from_json(receipt.to_json())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checks": 1}'])
def test_what_is_no_receipt_is_refused(text: str) -> None:
    """Anything else raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        Receipt.from_json(text)


@given(st.integers(0, 2**52))
def test_a_moment_lies_in_its_slot(now_us: int) -> None:
    """A slot begins at its time and lasts two seconds."""
    assert 0 <= now_us - slot_start_us(slot_of(now_us)) < 2_000_000


def test_a_sound_entry_is_read() -> None:
    """Id, count, time and frames come out as they stand there, whatever other fields there are."""
    fields = {b"n": b"3", b"t": b"1790000000000000", b"f": b"frames", b"more": b"later"}

    assert Entry("1790000000000-7", 3, 1_790_000_000_000_000, b"frames") == parse_entry(b"1790000000000-7", fields)


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_a_malformed_entry_is_one_clear_error(name: str) -> None:
    """Whatever an envelope lacks or holds instead, one short line names the field and what was expected."""
    with pytest.raises(ValueError, match=r"^[ntf] (=|is missing).*expected ") as caught:
        parse_entry(b"5-0", MALFORMED[name])

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("entry_id", BAD_IDS)
def test_an_id_that_no_clock_gives_is_malformed(entry_id: bytes) -> None:
    """A stamp beyond what the market takes as a time is refused here, where it can be counted."""
    with pytest.raises(ValueError, match=r"^id = "):
        parse_entry(entry_id, SOUND)


@given(
    entry_id=st.binary(max_size=40) | st.integers(0, 2**64 - 1).map(lambda ms: f"{ms}-0".encode()),
    fields=st.dictionaries(st.sampled_from([b"n", b"t", b"f", b"x"]), st.binary(max_size=24)),
)
def test_any_entry_is_read_or_refused(entry_id: bytes, fields: dict[bytes, bytes]) -> None:
    """Of arbitrary bytes either numbers within their bounds come out or a ValueError, never anything else."""
    try:
        entry = parse_entry(entry_id, fields)
    except ValueError:
        return

    assert 0 <= entry.frame_count < 2**32
    assert 0 <= entry.first_received_us < TIME_LIMIT_US
    assert int(entry.id.partition("-")[0]) * 1_000 < TIME_LIMIT_US


def test_only_lines_are_named() -> None:
    """Members that cannot be a line's name are left out; the others are sorted."""
    assert ["a", "zone-1"] == line_names([b"zone-1", *BAD_NAMES, b"a"])


@given(st.sets(st.binary(max_size=40)))
def test_any_members_give_names(members: set[bytes]) -> None:
    """Whatever bytes stand there, what comes out can be part of a key and fits the packed book."""
    assert [] == [name for name in line_names(members) if not name.isascii() or not 0 < len(name.encode()) < 32]

"""Frames to messages and back, on the native decoder and on the plain Python one."""

from __future__ import annotations

import dataclasses
import os
import pickle
import struct
import subprocess
import sys
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sheetanchor import _decoder, sbe
from sheetanchor.errors import SheetAnchorError
from support import reference

GOLDEN = {
    "trades": (
        "1200102701000000 003822ac6c220600 396822ac6c220600 fe fb 1900 02000000"
        "0127b92900000000 1f3a5b0000000000 3930000000000000 01"
        "0227b92900000000 4c3a5b0000000000 581b000000000000 00 07 42544355534454",
        sbe.Trades(
            event_time_us=1726700000000000,
            symbol="BTCUSDT",
            price_exponent=-2,
            qty_exponent=-5,
            transact_time_us=1726700000012345,
            trades=((700000001, 5978655, 12345, True), (700000002, 5978700, 7000, False)),
        ),
    ),
    "best_bid_ask": (
        "3200112701000000 a0be23ac6c220600 01e9a43500000000 fe fb"
        "1f3a5b0000000000 f049020000000000 4c3a5b0000000000 8038010000000000 07 45544855534454",
        sbe.BestBidAsk(
            event_time_us=1726700000100000,
            symbol="ETHUSDT",
            price_exponent=-2,
            qty_exponent=-5,
            book_update_id=900000001,
            bid_price=5978655,
            bid_qty=150000,
            ask_price=5978700,
            ask_qty=80000,
        ),
    ),
    "depth_snapshot": (
        "1200122701000000 404525ac6c220600 64e9a43500000000 fe fb"
        "1000 0200 1f3a5b0000000000 f049020000000000 e8395b0000000000 605b030000000000"
        "1000 0200 4c3a5b0000000000 8038010000000000 b03a5b0000000000 60ea000000000000 07 42544355534454",
        sbe.DepthSnapshot(
            event_time_us=1726700000200000,
            symbol="BTCUSDT",
            price_exponent=-2,
            qty_exponent=-5,
            book_update_id=900000100,
            bids=((5978655, 150000), (5978600, 220000)),
            asks=((5978700, 80000), (5978800, 60000)),
        ),
    ),
    "depth_diff": (
        "1a00132701000000 e0cb26ac6c220600 65e9a43500000000 65e9a43500000000 fe fb"
        "1000 0100 1f3a5b0000000000 0000000000000000"
        "1000 0100 143b5b0000000000 8813000000000000 07 42544355534454",
        sbe.DepthDiff(
            event_time_us=1726700000300000,
            symbol="BTCUSDT",
            price_exponent=-2,
            qty_exponent=-5,
            first_update_id=900000101,
            last_update_id=900000101,
            bids=((5978655, 0),),
            asks=((5978900, 5000),),
        ),
    ),
}
FRAMES = {name: bytes.fromhex(text) for name, (text, _) in GOLDEN.items()}
# Frame offset of the first group header, and the struct format of such a header.
GROUPS = {"trades": (26, "<HI", 25), "depth_snapshot": (26, "<HH", 16), "depth_diff": (34, "<HH", 16)}


@pytest.fixture(params=["native", "reference"])
def codec(request: pytest.FixtureRequest) -> ModuleType:
    return sbe if request.param == "native" else reference


def patched(frame: bytes, offset: int, form: str, *values: int) -> bytes:
    return frame[:offset] + struct.pack(form, *values) + frame[offset + struct.calcsize(form) :]


def refusal(codec: ModuleType, frame: bytes) -> tuple[str, int]:
    with pytest.raises(sbe.DecodeError) as caught:
        codec.decode(frame)
    return caught.value.kind, caught.value.offset


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frames_decode(codec: ModuleType, name: str) -> None:
    """Frames checked against the schema's official codec give the messages they hold."""
    text, message = GOLDEN[name]

    decoded = codec.decode(bytes.fromhex(text))

    assert message == decoded


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_messages_encode(codec: ModuleType, name: str) -> None:
    """Messages give the official codec's bytes."""
    _, message = GOLDEN[name]

    frame = codec.encode(message)

    assert FRAMES[name] == frame


@pytest.mark.parametrize("name", GOLDEN)
def test_truncation_at_every_byte(codec: ModuleType, name: str) -> None:
    """A frame cut anywhere is refused as truncated, at an offset within it."""
    frame = FRAMES[name]

    refusals = [refusal(codec, frame[:size]) for size in range(len(frame))]

    assert {"truncated"} == {kind for kind, _ in refusals}
    assert all(offset <= size for size, (_, offset) in enumerate(refusals))


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("schema", [0, 2, 3, 0x0100, 0xFFFF])
def test_other_schema(codec: ModuleType, name: str, schema: int) -> None:
    """A frame of another schema is refused as such, where the header says so."""
    frame = patched(FRAMES[name], 4, "<H", schema)

    assert ("schema_mismatch", 4) == refusal(codec, frame)


@pytest.mark.parametrize("template", [0, 1, 9999, 10004, 0xFFFF])
def test_unknown_template(codec: ModuleType, template: int) -> None:
    """A template that the stream schema does not have is refused as unknown."""
    frame = patched(FRAMES["trades"], 2, "<H", template)

    assert ("unknown_template", 2) == refusal(codec, frame)


@pytest.mark.parametrize("name", GOLDEN)
def test_root_block_too_short(codec: ModuleType, name: str) -> None:
    """Any root blockLength below the known one is refused, 0 included."""
    frame = FRAMES[name]
    (known,) = struct.unpack_from("<H", frame)

    refusals = {refusal(codec, patched(frame, 0, "<H", length)) for length in range(known)}

    assert {("bad_block_length", 0)} == refusals


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("added", [1, 7, 300])
def test_newer_version_with_a_longer_root(codec: ModuleType, name: str, added: int) -> None:
    """A newer version's additions to the root block are skipped by its blockLength."""
    frame = FRAMES[name]
    (known,) = struct.unpack_from("<H", frame)
    newer = patched(patched(frame, 0, "<H", known + added), 6, "<H", 1)
    newer = newer[: 8 + known] + b"\xa5" * added + newer[8 + known :]

    assert GOLDEN[name][1] == codec.decode(newer)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("added", [1, 100])
def test_newer_version_with_longer_entries(codec: ModuleType, name: str, added: int) -> None:
    """A newer version's additions to group entries are skipped by the group's blockLength."""
    frame = FRAMES[name]
    out, at = frame[: GROUPS[name][0]], GROUPS[name][0]
    form, known = GROUPS[name][1:]
    for _ in range(1 if name == "trades" else 2):
        _, count = struct.unpack_from(form, frame, at)
        out += struct.pack(form, known + added, count)
        at += struct.calcsize(form)
        for _ in range(count):
            out += frame[at : at + known] + b"\x5a" * added
            at += known

    assert GOLDEN[name][1] == codec.decode(out + frame[at:])


@pytest.mark.parametrize("name", GROUPS)
def test_entries_too_short(codec: ModuleType, name: str) -> None:
    """Any entry blockLength below the known one is refused when there are entries, 0 included."""
    offset, _, known = GROUPS[name]

    refusals = {refusal(codec, patched(FRAMES[name], offset, "<H", length)) for length in range(known)}

    assert {("bad_block_length", offset)} == refusals


@pytest.mark.parametrize("count", [1, 2**31 - 1, 2**32 - 1])
def test_entries_of_no_length_are_not_counted_through(codec: ModuleType, count: int) -> None:
    """Entries of length 0 are refused at once, however many are claimed."""
    frame = patched(FRAMES["trades"], 26, "<HI", 0, count)

    assert ("bad_block_length", 26) == refusal(codec, frame)


@pytest.mark.parametrize("length", [0, 3, 25, 200])
def test_empty_group_may_state_any_length(codec: ModuleType, length: int) -> None:
    """A group without entries is read whatever length it states for them."""
    frame = FRAMES["trades"]
    empty = patched(frame, 26, "<HI", length, 0)[:32] + frame[82:]

    assert () == codec.decode(empty).trades


@pytest.mark.parametrize("count", [65535, 2**31 - 1, 2**32 - 1])
def test_too_many_trades(codec: ModuleType, count: int) -> None:
    """A count above the cap is refused before anything is read by it."""
    frame = patched(FRAMES["trades"], 28, "<I", count)

    assert ("too_large", 28) == refusal(codec, frame)


def test_too_many_levels(codec: ModuleType) -> None:
    """The one 16-bit count that means null is above the cap."""
    frame = patched(FRAMES["depth_diff"], 36, "<H", 65535)

    assert ("too_large", 36) == refusal(codec, frame)


@pytest.mark.parametrize("count", [3, 65534])
def test_more_entries_claimed_than_there_are(codec: ModuleType, count: int) -> None:
    """A count within the cap that the bytes cannot hold is a truncated frame."""
    frame = patched(FRAMES["trades"], 28, "<I", count)

    assert ("truncated", 32) == refusal(codec, frame)


def test_a_full_group_is_read(codec: ModuleType) -> None:
    """65,534 levels a side, the most the schema allows, are read and written."""
    levels = tuple((price, 1) for price in range(1, 65535))
    message = sbe.DepthDiff(1, "X", 0, 0, 1, 1, levels, levels)

    assert message == codec.decode(codec.encode(message))


@pytest.mark.parametrize("flag", [2, 3, 127, 128, 254, 255])
@pytest.mark.parametrize("entry", [0, 1])
def test_flag_that_is_no_boolean(codec: ModuleType, flag: int, entry: int) -> None:
    """isBuyerMaker is 0 or 1; anything else is refused, null included."""
    place = 32 + 25 * entry + 24

    assert ("bad_enum", place) == refusal(codec, patched(FRAMES["trades"], place, "B", flag))


@pytest.mark.parametrize(
    ("raw", "bad"),
    [
        (b"\xff", 0),
        (b"AB\x80", 2),
        (b"\xc0\x80", 0),
        (b"\xc1\xbf", 0),
        (b"\xe0\x80\x80", 0),
        (b"A\xed\xa0\x80", 1),
        (b"\xf4\x90\x80\x80", 0),
        (b"\xf5\x80\x80\x80", 0),
        (b"A\xe2\x82", 1),
        (b"\xe2\x82\x41", 0),
        (b"\xf0\x9f\x98", 0),
    ],
)
def test_symbol_that_is_not_utf8(codec: ModuleType, raw: bytes, bad: int) -> None:
    """Malformed UTF-8 is refused at its first bad sequence: overlong, surrogate, out of range or cut short."""
    frame = FRAMES["best_bid_ask"][:58] + bytes([len(raw)]) + raw

    assert ("bad_utf8", 59 + bad) == refusal(codec, frame)


@pytest.mark.parametrize("symbol", ["", "Ω", "币安", "\U0001f600", "a" * 254, "\0"])
def test_symbols_of_all_lengths(codec: ModuleType, symbol: str) -> None:
    """Symbols of 0 to 254 bytes of any UTF-8 go both ways."""
    message = dataclasses.replace(GOLDEN["depth_diff"][1], symbol=symbol)

    assert message == codec.decode(codec.encode(message))


def test_symbol_of_null_length(codec: ModuleType) -> None:
    """A length of 255 means null, which a required symbol must not be."""
    frame = FRAMES["best_bid_ask"][:58] + b"\xff" + b"A" * 255

    assert ("too_large", 58) == refusal(codec, frame)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("count", [1, 4, 1000])
def test_bytes_after_the_symbol(codec: ModuleType, name: str, count: int) -> None:
    """Bytes after the symbol are accepted and counted, and not written again."""
    decoded = codec.decode(FRAMES[name] + b"\xee" * count)

    assert dataclasses.replace(GOLDEN[name][1], trailing_bytes=count) == decoded
    assert FRAMES[name] == codec.encode(decoded)


@pytest.mark.parametrize("name", GOLDEN)
def test_summary_of_a_frame(codec: ModuleType, name: str) -> None:
    """The ingestor's check names template, symbol, time, ids and count of a frame."""
    expected = {
        "trades": (10000, "BTCUSDT", 1726700000000000, 700000001, 700000002, 2),
        "best_bid_ask": (10001, "ETHUSDT", 1726700000100000, 900000001, 900000001, 1),
        "depth_snapshot": (10002, "BTCUSDT", 1726700000200000, 900000100, 900000100, 4),
        "depth_diff": (10003, "BTCUSDT", 1726700000300000, 900000101, 900000101, 2),
    }
    check = _decoder.validate_frame if codec is sbe else reference.validate_frame

    assert expected[name] == check(FRAMES[name])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_a_frame(kind: type) -> None:
    """Frames may come as bytes, bytearray or memoryview."""
    frame = kind(FRAMES["trades"])

    assert GOLDEN["trades"][1] == sbe.decode(frame)


def test_text_is_no_frame() -> None:
    """Text is a mistake of the caller, not a bad frame."""
    with pytest.raises(TypeError):
        sbe.decode("12001027")  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("name", GOLDEN)
def test_messages_are_values(name: str) -> None:
    """Messages compare by value, hash, survive pickling and cannot be changed."""
    message = GOLDEN[name][1]

    assert message == dataclasses.replace(message)
    assert hash(message) == hash(dataclasses.replace(message))
    assert message == pickle.loads(pickle.dumps(message))
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.symbol = "X"  # type: ignore[misc]  # what is tested
    assert repr(message).startswith(type(message).__name__ + "(event_time_us=")


def test_error_names_what_is_wrong() -> None:
    """A DecodeError says kind, offset, field, what was expected and what was found, also after pickling."""
    with pytest.raises(SheetAnchorError) as caught:
        sbe.decode(patched(FRAMES["trades"], 56, "B", 7))

    again = pickle.loads(pickle.dumps(caught.value))

    assert "bad_enum at offset 56: isBuyerMaker: expected 0 or 1, found 7" == str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert ("bad_enum", 56, str(caught.value)) == (again.kind, again.offset, str(again))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"event_time_us": 2**63}, "event_time_us: expected an integer"),
        ({"event_time_us": 1.5}, "event_time_us: expected an integer"),
        ({"price_exponent": 128}, "price_exponent: expected an integer of -128..127, found 128"),
        ({"qty_exponent": -129}, "qty_exponent: expected an integer of -128..127, found -129"),
        ({"trades": ((1, 2, 3),)}, r"trades\[0\]: expected 4 items, found 3"),
        ({"trades": ((1, 2, 3, 1),)}, r"trades\[0\] is_buyer_maker: expected True or False, found 1"),
        ({"trades": ((1, 2, -(2**63) - 1, True),)}, r"trades\[0\] qty: expected an integer"),
        ({"trades": ((1, 2, 3, True),) * 65535}, "trades: expected at most 65534 entries, found 65535"),
        ({"symbol": "a" * 255}, "symbol: expected at most 254 bytes of UTF-8, found 255"),
        ({"symbol": "币" * 85}, "symbol: expected at most 254 bytes of UTF-8, found 255"),
        ({"symbol": "\ud800"}, "symbol: expected text that UTF-8 can hold"),
        ({"symbol": b"X"}, "symbol: expected text, found b'X'"),
    ],
)
def test_what_the_wire_cannot_carry(changes: dict[str, object], complaint: str) -> None:
    """A value that does not fit its field is refused by name when encoding."""
    message = dataclasses.replace(GOLDEN["trades"][1], **changes)  # type: ignore[arg-type]  # what is tested

    with pytest.raises(sbe.EncodeError, match=complaint):
        sbe.encode(message)


def test_only_messages_are_encoded() -> None:
    """Anything but the four messages is refused."""
    with pytest.raises(
        sbe.EncodeError, match="expected one of Trades, BestBidAsk, DepthSnapshot, DepthDiff, found int"
    ):
        sbe.encode(7)  # type: ignore[arg-type]  # what is tested


def test_missing_native_module() -> None:
    """Without the native module the import says what to do."""
    script = "import sys; sys.modules['sheetanchor._decoder'] = None; import sheetanchor.sbe"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    assert "the native decoder is missing" in done.stderr
    assert "make setup" in done.stderr


NEED_DECODER = {
    "ingest": [],
    "process": [],
    "reanchor": [],
    "capture": [],
    "exchange": ["--http-port", "0"],
    "train": [],
    "local": [],
}


@pytest.mark.parametrize("role", sorted(NEED_DECODER))
def test_a_role_without_the_native_module_says_what_to_do(role: str) -> None:
    """Every role that decodes ends at once with one line, whichever module imports the decoder first."""
    script = f"""
import sys
sys.modules['sheetanchor._decoder'] = None
from sheetanchor.__main__ import main
sys.exit(main({[role, *NEED_DECODER[role]]!r}))
"""
    environment = {**os.environ, "BINANCE_API_KEY": "none"}

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)

    hint = (
        "the native decoder is missing or was built for another Python: "
        "install the wheel for this kind of machine, or build it with `make setup`"
    )
    assert (1, f"sheetanchor {role}: {hint}\n") == (done.returncode, done.stderr)


INT64 = st.integers(-(2**63), 2**63 - 1)
HEAD = (INT64, st.text(max_size=60), st.integers(-128, 127), st.integers(-128, 127))
LEVELS = st.lists(st.tuples(INT64, INT64), max_size=8).map(tuple)
MESSAGES = st.one_of(
    st.builds(sbe.Trades, *HEAD, INT64, st.lists(st.tuples(INT64, INT64, INT64, st.booleans()), max_size=8).map(tuple)),
    st.builds(sbe.BestBidAsk, *HEAD, INT64, INT64, INT64, INT64, INT64),
    st.builds(sbe.DepthSnapshot, *HEAD, INT64, LEVELS, LEVELS),
    st.builds(sbe.DepthDiff, *HEAD, INT64, INT64, LEVELS, LEVELS),
)


@given(MESSAGES)
@example(GOLDEN["trades"][1])
def test_decoding_undoes_encoding(message: sbe.Message) -> None:
    """Every message comes back from its frame, and both codecs write the same frame."""
    frame = sbe.encode(message)

    assert message == sbe.decode(frame)
    assert reference.encode(message) == frame


def outcome(codec: ModuleType, frame: bytes) -> sbe.Message | tuple[str, int]:
    try:
        message: sbe.Message = codec.decode(frame)
    except sbe.DecodeError as error:
        return error.kind, error.offset
    return message


@given(st.binary(max_size=200))
@example(FRAMES["trades"])
def test_arbitrary_bytes(frame: bytes) -> None:
    """Random bytes give the same refusal from both codecs, never anything but a DecodeError."""
    assert outcome(reference, frame) == outcome(sbe, frame)


@given(
    st.sampled_from(sorted(FRAMES)),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(-8, 8),
)
def test_damaged_frames(name: str, changes: list[tuple[int, int]], length: int) -> None:
    """Frames with changed bytes and lengths are read or refused alike by both codecs."""
    frame = bytearray(FRAMES[name])
    for place, value in changes:
        frame[place % len(frame)] = value
    damaged = bytes(frame[:length]) if length < 0 else bytes(frame) + b"\x01" * length

    assert outcome(reference, damaged) == outcome(sbe, damaged)


def test_what_the_native_module_raises_is_what_programs_catch() -> None:
    """Programs that use the decoder alone import `sheetanchor.sbe`, and catch what the native module raises."""
    with pytest.raises(sbe.DecodeError):
        _decoder.validate_frame(b"")

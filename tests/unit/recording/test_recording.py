"""Recordings: what is read, what is written, and what a bad file says."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from pathlib import Path

import pytest

from sheetanchor import sbe
from sheetanchor.contract import pack_frames
from sheetanchor.errors import BadRecording
from sheetanchor.recording import recording_file

SNAPSHOT = b'1000000 {"lastUpdateId":100,"bids":[["10.00000000","1.00000000"]],"asks":[["11.00000000","2.00000000"]]}'


def depth_line(first: int, last: int, *, at_us: int = 2000) -> bytes:
    body = {"e": "depthUpdate", "E": 1300, "s": "BTCUSDT", "U": first, "u": last, "b": [["10.5", "3"]], "a": []}
    return f"{at_us * 1000} ".encode() + json.dumps({"stream": "btcusdt@depth@100ms", "data": body}).encode()


def trade_line(number: int, *, event_ms: int = 1300, price: str = "10.00000000") -> bytes:
    body = {"E": event_ms, "s": "BTCUSDT", "t": number, "p": price, "q": "1.00000000", "T": event_ms - 1, "m": True}
    return b"2000000 " + json.dumps({"stream": "btcusdt@trade", "data": body}).encode()


def best_line(update_id: int) -> bytes:
    body = {"u": update_id, "s": "BTCUSDT", "b": "10.0", "B": "1.0", "a": "11.0", "A": "2.0"}
    return b"5000000 " + json.dumps({"stream": "btcusdt@bookTicker", "data": body}).encode()


def written(folder: Path, *lines: bytes) -> Path:
    path = folder / "market.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    return path


@pytest.fixture(scope="module")
def shipped() -> recording_file.Recording:
    return recording_file.load(recording_file.default_path())


def test_the_shipped_recording_is_the_one_described() -> None:
    """The file beside the metadata has the checksum and the counts that the metadata states."""
    folder = recording_file.default_path().parent
    described = json.loads((folder / "metadata.json").read_text())["recordings"][0]

    content = (folder / described["file"]).read_bytes()

    assert described["sha256"] == hashlib.sha256(content).hexdigest()
    assert described["counts"]["lines"] == len(gzip.decompress(content).splitlines())
    assert (folder / "LICENSE.hftbacktest.txt").read_text().startswith("MIT License")


def test_the_shipped_recording_is_whole(shipped: recording_file.Recording) -> None:
    """All trades and diffs after the snapshot are there, without a missing id in either chain."""
    messages = [sbe.decode(frame) for _, frame in shipped.events]
    trade_ids = [trade[0] for message in messages if isinstance(message, sbe.Trades) for trade in message.trades]
    diffs = [message for message in messages if isinstance(message, sbe.DepthDiff)]

    assert list(range(3735683259, 3735693015 + 1)) == trade_ids
    assert (1000, 1000) == (len(shipped.snapshot.bids), len(shipped.snapshot.asks))
    assert diffs[0].first_update_id <= shipped.snapshot.book_update_id + 1 <= diffs[0].last_update_id
    assert all(later.first_update_id == diff.last_update_id + 1 for diff, later in itertools.pairwise(diffs))


def test_frames_come_back_as_they_were_saved(shipped: recording_file.Recording, tmp_path: Path) -> None:
    """Saving as frames and loading again gives the same recording, compressed or not."""
    small = recording_file.Recording(shipped.symbol, shipped.snapshot, shipped.snapshot_us, shipped.events[:500])

    for name in ("a.frames", "a.frames.gz"):
        recording_file.save(small, tmp_path / name)

        assert small == recording_file.load(tmp_path / name)


def test_trades_of_one_moment_share_a_frame(tmp_path: Path) -> None:
    """Trades in a row with equal times and consecutive ids are one message; others are not."""
    lines = [trade_line(1), trade_line(2), trade_line(3, event_ms=1301), trade_line(5, event_ms=1301)]
    path = written(tmp_path, SNAPSHOT, *lines, depth_line(101, 102), trade_line(6, event_ms=1301))

    messages = [sbe.decode(frame) for _, frame in recording_file.load(path).events]

    groups = [[trade[0] for trade in message.trades] for message in messages if isinstance(message, sbe.Trades)]
    assert [[1, 2], [3], [5], [6]] == groups


def test_what_the_snapshot_knows_already_is_left_out(tmp_path: Path) -> None:
    """Diffs and best prices up to the snapshot's id are dropped, wherever the snapshot stands in the file."""
    path = written(
        tmp_path,
        depth_line(90, 99),
        best_line(100),
        depth_line(99, 101),
        SNAPSHOT,
        best_line(101),
        depth_line(102, 102),
    )

    messages = [sbe.decode(frame) for _, frame in recording_file.load(path).events]

    kinds = [(type(message).__name__, getattr(message, "last_update_id", 101)) for message in messages]
    assert [("DepthDiff", 101), ("BestBidAsk", 101), ("DepthDiff", 102)] == kinds


def test_best_prices_get_the_event_time_of_their_neighbours(tmp_path: Path) -> None:
    """A best price has no time of its own: it gets its receive time plus the usual distance of the two clocks."""
    path = written(tmp_path, SNAPSHOT, depth_line(101, 102, at_us=300_000), best_line(103))

    messages = [sbe.decode(frame) for _, frame in recording_file.load(path).events]

    assert 5_000 + (1_300_000 - 300_000) == messages[1].event_time_us


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("61737.63000000", 6173763000000),
        ("1", 100000000),
        ("0.1", 10000000),
        ("1.500000000", 150000000),
        ("92233720368.54775807", 2**63 - 1),
    ],
)
def test_numbers_become_exact_integers(text: str, expected: int) -> None:
    """A decimal number is counted in units of 10**-8."""
    assert expected == recording_file.mantissa(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1.0",
        "1e5",
        "NaN",
        ".5",
        "1.123456789",
        "1_000.00000000",
        "9" * 20,
        "92233720368.54775808",
        "1" * 5_000,
        "\u0661.0",
    ],
)
def test_other_numbers_are_refused(text: str) -> None:
    """What is no plain decimal number of the wire's size is an error that shows it."""
    with pytest.raises(ValueError, match="expected"):
        recording_file.mantissa(text)


def test_another_name_changes_nothing_else(tmp_path: Path) -> None:
    """A renamed recording differs in the symbol of every frame only."""
    loaded = recording_file.load(written(tmp_path, SNAPSHOT, trade_line(1), depth_line(101, 102)))

    renamed = recording_file.rename(loaded, "ETHUSDT")

    assert {"ETHUSDT"} == {sbe.decode(frame).symbol for _, frame in renamed.events} | {renamed.symbol}
    assert loaded == recording_file.rename(renamed, "BTCUSDT")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([b"1000 nonsense"], ["line 1", "Expecting value"]),
        ([SNAPSHOT, b"x1000 {}"], ["line 2", "receive time"]),
        ([SNAPSHOT, b"1000 []"], ["line 2", "JSON object", "list"]),
        ([SNAPSHOT, b'1000 {"stream":"btcusdt@kline","data":{"s":"BTCUSDT"}}'], ["line 2", "@depth", "@kline"]),
        ([SNAPSHOT, trade_line(1), trade_line(2, price="ten")], ["line 3", "decimal number", "'ten'"]),
        ([SNAPSHOT, b'1000 {"stream":"btcusdt@trade","data":{"s":"BTCUSDT","E":1}}'], ["line 2", "'T'", "missing"]),
        ([SNAPSHOT, trade_line(1), trade_line(2).replace(b"BTCUSDT", b"ETHUSDT")], ["line 3", "BTCUSDT", "ETHUSDT"]),
        ([trade_line(1)], ["depth snapshot", "found none"]),
        ([SNAPSHOT], ["at least one"]),
    ],
)
def test_a_bad_line_is_reported(tmp_path: Path, lines: list[bytes], words: list[str]) -> None:
    """The error names the file, the line and what was expected."""
    path = written(tmp_path, *lines)

    with pytest.raises(BadRecording) as caught:
        recording_file.load(path)

    assert [] == [word for word in [str(path), *words] if word not in str(caught.value)]


def test_bad_frames_are_reported(shipped: recording_file.Recording, tmp_path: Path) -> None:
    """A file of frames that begins otherwise, breaks off or holds a bad frame names the byte."""
    start = (1, sbe.encode(shipped.snapshot))
    size = 12 + len(start[1])
    cases = {
        "expected a DepthSnapshot": pack_frames(shipped.events[:1]),
        "ends inside a frame": pack_frames([start, *shipped.events[:1]])[:-3],
        f"frame at byte {size}": pack_frames([start, (2, b"12345")]),
        "at least one frame": pack_frames([start]),
        "is empty": b"",
        "cannot be read": b"\x1f\x8bnot gzip",
    }

    for words, content in cases.items():
        path = tmp_path / "bad.frames"
        path.write_bytes(content)

        with pytest.raises(BadRecording) as caught:
            recording_file.load(path)
        assert words in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    """The error names the file that is not there."""
    with pytest.raises(BadRecording, match=r"nowhere\.gz: cannot be read"):
        recording_file.load(tmp_path / "nowhere.gz")

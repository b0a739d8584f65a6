"""A receipt in the few bytes that Kubernetes keeps of a container."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.contract import Receipt
from sheetanchor.reanchor.receipts import RECEIPT_BYTES_MAX, short_json, write_receipt


def receipt(**fields: object) -> Receipt:
    plain: dict[str, object] = {
        "id": "reanchor_BTCUSDT_1_ab",
        "symbol": "BTCUSDT",
        "reason": "because",
        "trigger": "manual",
        "result": "failed",
        "started_at_us": 1,
        "finished_at_us": 2,
        "epoch_before": 3,
        "epoch_after": 3,
        "snapshot_id": 4,
        "update_id": 5,
        "exit_code": 3,
        "message": "no",
    }
    return Receipt(**{**plain, **fields})  # type: ignore[arg-type]  # the tests say what they vary


_TEXT = st.text(max_size=6_000)


@given(
    reason=_TEXT,
    message=_TEXT,
    request_id=_TEXT,
    checks=st.lists(st.text(max_size=300), max_size=100),
    calls=st.integers(0, 200),
)
def test_it_is_always_a_receipt_that_fits(
    reason: str, message: str, request_id: str, checks: list[str], calls: int
) -> None:
    """Whatever its texts are, what is written can be read back and says what happened."""
    asked = (("/api/v3/ticker/24hr", "timeout", 10.000123),) * calls
    long = receipt(
        reason=reason, message=message, request_id=request_id, checks=tuple(checks), warnings=tuple(checks), calls=asked
    )

    text = short_json(long)

    back = Receipt.from_json(text)

    assert len(text.encode()) <= RECEIPT_BYTES_MAX
    assert ("failed", 3, 4, 5) == (back.result, back.exit_code, back.snapshot_id, back.update_id)


def test_what_fits_is_left_as_it_is() -> None:
    """A receipt of usual length is not touched."""
    usual = receipt(checks=("book", "windows"), message="the exchange answered 500")

    assert usual == Receipt.from_json(short_json(usual))


def test_cut_message_keeps_its_beginning() -> None:
    """What is cut off is the end, and that shows."""
    back = Receipt.from_json(short_json(receipt(message="the reason " + "x" * 5_000)))

    assert back.message.startswith("the reason ")
    assert back.message.endswith("…")


def test_file_is_filled_not_replaced(tmp_path: Path) -> None:
    """The file that the kubelet has mounted keeps its identity and rights; what it held before is gone."""
    path = tmp_path / "termination-log"
    path.write_text("x" * 5_000)
    path.chmod(0o666)
    before = os.stat(path)

    write_receipt(receipt(), path)

    after = os.stat(path)
    assert (before.st_ino, 0o666) == (after.st_ino, stat.S_IMODE(after.st_mode))
    assert receipt() == Receipt.from_json(path.read_text())


def test_file_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """A run does not fail because its termination message cannot be written."""
    write_receipt(receipt(), tmp_path / "missing" / "file")

    assert [] == list(tmp_path.iterdir())

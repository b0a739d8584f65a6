"""The receipt in a run's termination message, which may hold anything, since a pipeline may run any image. Pure."""

from __future__ import annotations

import math
from typing import Final

from sheetanchor.contract import Receipt
from sheetanchor_operator.observation import NUMBER_END

RESULTS: Final = frozenset({"swapped", "validated", "dry_run", "repeated", "failed", "lock_held", "superseded"})
EXIT_CODE_MAX: Final = 255
ID_MAX: Final = 2**63 - 1
"""The API server stores integers in 64 bits."""


def receipt_in(text: str) -> Receipt | None:
    """Find a run's receipt: the last line that is a receipt and fits into a status; None if there is none.

    Args:
        text: Termination message of the run's container.
    """
    for line in reversed(text.strip().splitlines()):
        try:
            receipt = Receipt.from_json(line)
        except ValueError:
            continue
        if _is_sound(receipt):
            return receipt
    return None


def _is_sound(receipt: Receipt) -> bool:
    times = receipt.started_at_us, receipt.finished_at_us, receipt.retry_at_us
    numbers = receipt.epoch_before, receipt.epoch_after, receipt.snapshot_id, receipt.update_id
    return (
        receipt.result in RESULTS
        and 0 <= receipt.exit_code <= EXIT_CODE_MAX
        and all(0 <= at_us < NUMBER_END for at_us in times)
        and all(0 <= number <= ID_MAX for number in numbers)
        and all(math.isfinite(seconds) and seconds >= 0 for seconds in receipt.phases.values())
    )

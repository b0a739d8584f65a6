"""What the exchange's book is at each update: the recording that the simulator plays, with nothing of ours between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from faults.history import Levels
from sheetanchor import sbe
from sheetanchor.recording import recording_file
from sheetanchor.simulator.playback.script import Script, ScriptStep, prepare

DEPTH = 10
"""Levels a side that the hot state holds."""

Best = tuple[float, float]


class Truth(Protocol):
    """What a checker asks of the exchange."""

    def best(self, update_id: int) -> set[Best]:
        """Best bid and ask at an update; several where two messages of that number differ, none if there is no such."""

    def levels(self, update_id: int) -> tuple[Levels, Levels] | None:
        """Best levels of bids and asks at an update; None if no book is of that number."""


@dataclass
class RecordedTruth:
    """The book of a recording that is played round and round.

    Args:
        script: The recording, prepared.
    """

    script: Script
    _best: dict[int, set[Best]] = field(default_factory=dict)
    _levels: dict[int, tuple[Levels, Levels]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        book = self.script.start.copy()
        self._note(book.update_id, *book.top(DEPTH))
        for step in (*self.script.steps, *self.script.seam):
            self._play(step)
            if step.kind == "depth":
                book.apply(step.frame, step.last_id)
                self._note(book.update_id, *book.top(DEPTH))

    def best(self, update_id: int) -> set[Best]:
        """Best bid and ask at an update, in any pass."""
        return self._best.get(self._in_first_pass(update_id), set())

    def levels(self, update_id: int) -> tuple[Levels, Levels] | None:
        """Best levels at an update, in any pass."""
        return self._levels.get(self._in_first_pass(update_id))

    def _in_first_pass(self, update_id: int) -> int:
        first = self.script.start.update_id
        if update_id <= first + self.script.id_shift:
            return update_id
        return first + 1 + (update_id - first - 1) % self.script.id_shift

    def _play(self, step: ScriptStep) -> None:
        if step.kind != "bestBidAsk":
            return
        message = sbe.decode(step.frame)
        assert isinstance(message, sbe.BestBidAsk)
        scale = self.script.price_exponent
        best = _scaled(message.bid_price, scale), _scaled(message.ask_price, scale)
        self._best.setdefault(step.last_id, set()).add(best)

    def _note(self, update_id: int, bids: list[tuple[int, int]], asks: list[tuple[int, int]]) -> None:
        price, qty = self.script.price_exponent, self.script.qty_exponent
        sides = [tuple((_scaled(p, price), _scaled(q, qty)) for p, q in side) for side in (bids, asks)]
        self._levels[update_id] = sides[0], sides[1]
        if bids and asks:
            self._best.setdefault(update_id, set()).add((sides[0][0][0], sides[1][0][0]))


def _scaled(mantissa: int, exponent: int) -> float:
    return float(f"{mantissa}e{exponent}")  # as any reader of the decimal number has it


def shipped_truth() -> RecordedTruth:
    """Give the truth of the recording that ships."""
    return RecordedTruth(prepare(recording_file.load(recording_file.default_path())))

"""From a recorded market to the rows that a model is trained on, and their split for validation. Pure.

The rows are made by the code that serves: frames go through the same market, which gives the same hot state, from which
the same vector is taken. So training and serving cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sheetanchor._decoder import Market
from sheetanchor.contract import HORIZON_MS, HORIZON_SLOTS, SLOT_MS, pack_frames
from sheetanchor.recording.recording_file import Recording

SLOT_US: Final = SLOT_MS * 1_000

MISSING_MAX_US: Final = 1_000_000
"""A missing range that no frame has filled for this long stays missing; rows after it would not show the market."""

WARM_UP_US: Final = 5_000_000
"""The longest window and the longest return need this much of the past."""

Groups = dict[str, dict[str, str]]
"""Hot-state fields by group: ob, tr_1s, tr_5s, feat."""


@dataclass(frozen=True, slots=True)
class Row:
    """The market at a slot.

    Attributes:
        at_us: Time of the slot on the recorder's clock, in µs.
        mid: Mid price.
        groups: All fields that a model may use.
    """

    at_us: int
    mid: float
    groups: Groups


@dataclass(frozen=True, slots=True)
class Example:
    """A row with its label.

    Attributes:
        label: Relative change of the mid price over the horizon: `mid(t + 10 s) / mid(t) - 1`.
    """

    at_us: int
    mid: float
    groups: Groups
    label: float


def rows(recording: Recording) -> Iterator[Row]:
    """Replay a recording and take a row every two seconds, as inference does.

    A row is taken before the first frame that was received after its slot; the recorder's clock is used in place of
    Redis'. Slots at which a side of the book is empty have no row. The rows end where updates or trades are missing
    from the recording.
    """
    market = Market(recording.symbol)
    start_us = recording.snapshot_us
    snapshot = recording.snapshot
    market.load_snapshot(
        snapshot.book_update_id,
        snapshot.price_exponent,
        snapshot.qty_exponent,
        list(snapshot.bids),
        list(snapshot.asks),
        start_us,
    )
    slot_us = start_us - start_us % SLOT_US + SLOT_US
    for received_us, frame in recording.events:
        while received_us > slot_us:
            if _has_missing_range(market, slot_us):
                return
            if slot_us - start_us >= WARM_UP_US and all(market.top(1)):
                yield _row_of(market, slot_us)
            slot_us += SLOT_US
        market.feed(0, pack_frames([(received_us, frame)]), received_us)


def _has_missing_range(market: Market, now_us: int) -> bool:
    missing = (market.depth_gap, market.trade_gap)
    return any(found is not None and now_us - found[2] > MISSING_MAX_US for found in missing)


def _row_of(market: Market, now_us: int) -> Row:
    ob, tr_1s, tr_5s, feat = map(_pairs, market.hot_state(now_us))
    mid = (float(ob["best_bid"]) + float(ob["best_ask"])) / 2
    return Row(now_us, mid, {"ob": ob, "tr_1s": tr_1s, "tr_5s": tr_5s, "feat": feat})


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def label(of: Iterable[Row]) -> list[Example]:
    """Label each row with the return over the horizon; rows without a recorded row one horizon later are left out.

    The label uses the row exactly one horizon later and no other.
    """
    known = {row.at_us: row for row in of}
    examples = []
    for row in known.values():
        later = known.get(row.at_us + HORIZON_SLOTS * SLOT_US)
        if later is not None:
            examples.append(Example(row.at_us, row.mid, row.groups, later.mid / row.mid - 1))
    return examples


@dataclass(frozen=True, slots=True)
class Split:
    """Examples in the order of time: the first to train on, the middle to select by, the last to test on."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def split(examples: Sequence[Example], train_share: float = 0.6, validation_share: float = 0.2) -> Split:
    """Split by time, with a horizon left out at each border so that no label crosses it.

    Args:
        examples: In any order.
        train_share: Share of the examples for training.
        validation_share: Share of the examples for the choice of hyperparameters.

    Raises:
        ValueError: If a part would be empty.
    """
    ordered = sorted(examples, key=lambda example: example.at_us)
    if not ordered:
        raise ValueError("expected at least one example, found none: is the recording shorter than 20 s?")
    border_1 = _time_at(ordered, train_share)
    border_2 = _time_at(ordered, train_share + validation_share)
    embargo_us = HORIZON_MS * 1_000
    parts = Split(
        [example for example in ordered if example.at_us + embargo_us <= border_1],
        [example for example in ordered if border_1 < example.at_us and example.at_us + embargo_us <= border_2],
        [example for example in ordered if border_2 < example.at_us],
    )
    for name, part in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        if len(part) < 2:
            raise ValueError(f"{name} part: expected at least 2 examples, found {len(part)}: record for longer")
    return parts


def _time_at(ordered: Sequence[Example], share: float) -> int:
    """Give the time before which a share of the examples lies; recordings may be days apart."""
    place = (len(ordered) - 1) * share
    before, after = ordered[int(place)].at_us, ordered[min(int(place) + 1, len(ordered) - 1)].at_us
    return before + round((after - before) * (place - int(place)))

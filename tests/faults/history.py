"""What was observed of a pipeline under faults, as records that a file holds line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Levels = tuple[tuple[float, float], ...]
"""Price and quantity, best first."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the open-loop reader.

    Attributes:
        at_us: When it was sent, also while earlier ones are unanswered.
        took_us: Until its answer or its failure.
        replica: Replica that it was sent to, "" if there was none in the Service.
        error: Why it failed, "" if it was answered.
    """

    at_us: int
    took_us: int
    replica: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One slot's prediction as a replica or the store showed it.

    Attributes:
        at_us: When it was read.
        source: The replica that served it, with the number of its start (`b#2`), or `store` for the stream in Redis.
        slot: Its slot.
        committed: Whether it is shown as kept.
        degraded: Whether it is shown as degraded.
        price: Middle of the best bid and ask.
        update_id: The exchange's update that the price is of.
        feature_us: Last market event behind it.
        epoch: Rebuild that it is of.
        receipt: Receipt of that rebuild.
        value: What was predicted.
        made_by: Replica that made it.
        reason: Why it is degraded.
    """

    at_us: int
    source: str
    slot: int
    committed: bool
    degraded: bool
    price: float | None = None
    update_id: int | None = None
    feature_us: int | None = None
    epoch: int = 0
    receipt: str = ""
    value: float = 0.0
    made_by: str = ""
    reason: str = ""

    @property
    def content(self) -> tuple[Any, ...]:
        """What makes two records of a slot the same prediction."""
        return self.made_by, self.price, self.update_id, self.value, self.epoch, self.receipt, self.degraded


@dataclass(frozen=True, slots=True)
class Look:
    """The hot state of one server at a moment.

    Attributes:
        at_us: When it was read.
        server: Which server.
        term: Who may write: the number.
        writer: Who may write: the name.
        epoch: Which rebuild the state belongs to.
        receipt: Receipt of that rebuild or restatement.
        root: Receipt of the last rebuild from the exchange.
        state: anchored or suspect.
        beat_us: The last write of a writer, by the server's clock.
        update_id: Update of the levels; 0 where the state was not complete.
        bids: Best levels.
        asks: Best levels.
        best_id: Update of the best prices.
        best: Best bid and ask.
    """

    at_us: int
    server: str
    term: int
    writer: str
    epoch: int
    receipt: str
    root: str
    state: str
    beat_us: int
    update_id: int = 0
    bids: Levels = ()
    asks: Levels = ()
    best_id: int = 0
    best: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Played:
    """The exchange has played everything up to an update."""

    at_us: int
    update_id: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A receipt of a run, or of a restatement.

    Attributes:
        at_us: When it ended.
        receipt: Its id.
        result: swapped, restated, validated, failed and so on.
    """

    at_us: int
    receipt: str
    result: str


@dataclass(frozen=True, slots=True)
class FaultEdge:
    """A fault began or ended."""

    at_us: int
    fault: str
    active: bool


Record = Request | Answer | Look | Played | Rebuilt | FaultEdge
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Request, Answer, Look, Played, Rebuilt, FaultEdge)}


def to_line(record: Record) -> str:
    """Render as a line of JSON."""
    return json.dumps({"kind": type(record).__name__, **asdict(record)}, separators=(",", ":"))


def from_line(line: str) -> Record:
    """Read back what `to_line` rendered.

    Raises:
        KeyError: If it is no record.
        TypeError: If a field is missing, or one too many.
    """
    fields = json.loads(line)
    kind = _KINDS[fields.pop("kind")]
    for name in {"bids", "asks"} & fields.keys():
        fields[name] = tuple((price, qty) for price, qty in fields[name])
    if "best" in fields:
        fields["best"] = tuple(fields["best"])
    record: Record = kind(**fields)
    return record


def write(path: Path, records: Iterable[Record]) -> None:
    """Keep a history."""
    path.write_text("".join(to_line(record) + "\n" for record in records))


def read(path: Path) -> list[Record]:
    """Read a history back."""
    return [from_line(line) for line in path.read_text().splitlines()]

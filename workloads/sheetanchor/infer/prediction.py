"""The prediction record: doubts about the state, the answer, and how both are stored. Pure.

A record never holds NaN or infinity. An unknown value is empty in Redis and null over HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from sheetanchor.contract import STALE_AFTER_US, is_usable, slot_start_us
from sheetanchor.errors import shortened
from sheetanchor.infer.accuracy import Direction, direction_of
from sheetanchor.ml.feature_vector import Fields, mid_of
from sheetanchor.policy.soundness import REASON_KINDS

Mode = Literal["model", "fallback", "linear_trend", "none"]

TREND_CONFIDENCE: Final = 0.1

NO_DATA_AFTER_US: Final = 120_000_000
"""The TTL of the features in Redis: older ones say nothing about the next ten seconds."""

REASON_LENGTH_MAX: Final = 500

AHEAD_MAX_US: Final = 1_000_000
"""How far a stamp may be ahead of Redis' clock: more than estimates of it differ, so one of the clocks was set."""

SILENT_WRITER_US: Final = 2_000_000
"""The active processor renews its heartbeat every 100 ms, and a standby takes over after a second."""

UNMOVED_WRITER_US: Final = 1_800_000
"""The same by the clock of a reader that polls about every two seconds: Redis' clock may have been set back."""

ANSWER_DOUBTS: Final = frozenset({"symbols", "model", "features"})
"""Kinds of doubts about the answer only; every other one is about the state, and so about the price."""

_OWN_DOUBTS: Final = frozenset({"redis", "model"})
"""Kinds that may affect this replica only: its connection and its model. All others are in the state or the model that
every replica has: waiting for a better replica would only delay the prediction."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """One reason why a prediction is degraded.

    Attributes:
        kind: suspect, incomplete, stale, writer, clock, unproven, redis or one of `soundness.REASON_KINDS` (the
            state); symbols, model or features (the answer).
        text: The reason in one line.
    """

    kind: str
    text: str

    @property
    def own(self) -> bool:
        """Whether it may affect this replica only."""
        return self.kind in _OWN_DOUBTS

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class SlotState:
    """The state that was read for a slot.

    Attributes:
        now_us: Redis' clock at the read, or now if the read failed and this is the content of an earlier one.
        stamp_us: Redis-clock time of the last market event; 0 if none is known.
        failure: Why Redis could not be read, "" if it could.
        heartbeat_us: Redis' clock at the last heartbeat of the active processor; 0 if there was none.
        sound_until_us: Redis' clock until which the processor declares the state sound; None if it does not say.
        unsound: Why the processor does not declare it sound, reasons joined by `; `.
        unmoved_us: How long, by its own clock, the reader has seen no newer heartbeat than this one.
        receipt: Receipt of the rebuild or restatement that the state is of.
    """

    now_us: int
    epoch: int
    anchored: bool
    suspect_reason: str
    incomplete: str
    stamp_us: int
    hashes: Mapping[str, Fields]
    failure: str = ""
    heartbeat_us: int = 0
    sound_until_us: int | None = None
    unsound: str = ""
    unmoved_us: int = 0
    receipt: str = ""

    @property
    def price(self) -> float | None:
        """Middle of the best bid and ask."""
        return mid_of(self.hashes.get("ob", {}))

    @property
    def update_id(self) -> int | None:
        """The exchange's update that the best bid and ask are of; None if the book could not be read."""
        ob = self.hashes.get("ob", {})
        try:
            return max(int(ob["update_id"]), int(ob.get("bba_id", "0")))
        except (KeyError, ValueError):
            return None

    @property
    def age_us(self) -> int | None:
        """Time since the last market event; None if there was none."""
        return max(0, self.now_us - self.stamp_us) if self.stamp_us else None


@dataclass(frozen=True, slots=True)
class WriterHeartbeat:
    """The last heartbeat of a writer, and when a reader saw it first, on a monotonic clock."""

    heartbeat_us: int = -1
    at_us: int = 0

    def again(self, heartbeat_us: int, at_us: int) -> WriterHeartbeat:
        """Update with a heartbeat that was read."""
        return self if heartbeat_us == self.heartbeat_us else WriterHeartbeat(heartbeat_us, at_us)


def nothing_read(now_us: int, failure: str) -> SlotState:
    """Give the state of a replica before its first read."""
    return SlotState(now_us, 0, False, "", "nothing was read yet", 0, {}, failure)


def aged(state: SlotState, now_us: int, failure: str) -> SlotState:
    """Give an earlier state with its age at a later time."""
    return replace(state, now_us=max(now_us, state.now_us), failure=failure)


def doubts_of(state: SlotState) -> list[Doubt]:
    """Name all doubts about a state; a rebuild in progress is none."""
    found = []
    if state.failure:
        found.append(Doubt("redis", state.failure))
    if state.incomplete:
        found.append(Doubt("incomplete", state.incomplete))
    elif not state.anchored:
        found.append(Doubt("suspect", state.suspect_reason or "not anchored"))
    found += _doubts_of_age(state)
    if not state.failure:
        found += _doubts_of_writer(state)
    if not found and state.sound_until_us is None:
        found.append(Doubt("unproven", "the processor does not say until when it is sound: it is of an older version"))
    elif not found and state.sound_until_us is not None and state.now_us > state.sound_until_us:
        passed_s = (state.now_us - state.sound_until_us) / 1e6
        found.append(Doubt("unproven", f"the processor last declared it sound until {passed_s:.1f} s ago"))
    return found


def _doubts_of_age(state: SlotState) -> list[Doubt]:
    age_us = state.age_us
    if age_us is None:
        return [Doubt("stale", "no market event known")]
    if age_us > STALE_AFTER_US:
        return [Doubt("stale", f"last market event {age_us / 1e6:.1f} s ago")]
    ahead_us = max(state.stamp_us, state.heartbeat_us) - state.now_us
    if ahead_us > AHEAD_MAX_US:
        return [Doubt("clock", f"the state is {ahead_us / 1e6:.1f} s ahead of Redis' clock: its age is not known")]
    return []


def _doubts_of_writer(state: SlotState) -> list[Doubt]:
    """Name the doubts that the processor itself declares, and whether it still writes."""
    found = []
    for reason in filter(None, state.unsound.split("; ")):
        kind, _, text = reason.partition(": ")
        found.append(Doubt(kind, text) if kind in REASON_KINDS else Doubt("unproven", reason))
    silent_us = max(state.now_us - state.heartbeat_us, state.unmoved_us)
    if silent_us > SILENT_WRITER_US or state.unmoved_us > UNMOVED_WRITER_US:
        duration = f"for {silent_us / 1e6:.1f} s" if state.heartbeat_us else "yet"
        found.append(Doubt("writer", f"no processor has written {duration}"))
    return found


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A prediction from a state.

    Attributes:
        predicted_return: Relative change of the price over the horizon, finite.
        confidence: 0 to 1.
        model: `name@hash`, "" without a model.
        doubts: Why this answer cannot be relied on.
        features_s: Seconds that the model's input took, 0 without a model.
        model_s: Seconds that its run took.
    """

    mode: Mode
    predicted_return: float
    confidence: float
    model: str = ""
    doubts: tuple[Doubt, ...] = ()
    features_s: float = field(default=0.0, compare=False)
    model_s: float = field(default=0.0, compare=False)

    @property
    def own_degraded(self) -> bool:
        """Whether another replica may have a better answer."""
        return any(doubt.own for doubt in self.doubts)


def confidence_of(predicted_return: float, residual_std: float) -> float:
    """Compute how sure a model may be of its direction.

    With errors spread normally around the prediction as they were in training, the direction is right with probability
    P = Φ(|predicted return| / residual std). The confidence is 2P - 1: 0 is a coin toss, 1 is certainty.

    Args:
        predicted_return: The model's output.
        residual_std: Standard deviation of its errors on data it was not fitted to; 0 if unknown.
    """
    if residual_std <= 0:
        return 0.0
    return math.erf(abs(predicted_return) / (residual_std * math.sqrt(2)))


def without_model(trend: float | None, doubts: Sequence[Doubt]) -> ModelAnswer:
    """Answer without a model: the trend of the last prices, or nothing.

    Args:
        trend: Return by the trend; None if there is no trend.
        doubts: Why there is no model's answer.
    """
    if trend is None or not is_usable(trend):
        return ModelAnswer("none", 0.0, 0.0, doubts=tuple(doubts))
    return ModelAnswer("linear_trend", trend, TREND_CONFIDENCE, doubts=tuple(doubts))


@dataclass(frozen=True, slots=True)
class Prediction:
    """One slot's prediction.

    Attributes:
        ts: The slot's time in µs since the epoch, on Redis' clock.
        feature_ts: Time of the last market event that it uses, in µs on the same clock; None if none is known.
        price_now: Middle of the best bid and ask; None if the book could not be read.
        latency_ms: From the slot's time to its commit; None while it is not committed.
        committed: Whether Redis holds it.
        receipt: Receipt of the state that it was made from: after a failover an epoch's number can come twice.
        update_id: The exchange's update that the price is of; None if it is not known.
    """

    slot: int
    ts: int
    feature_ts: int | None
    price_now: float | None
    direction: Direction
    predicted_return: float
    predicted_price: float | None
    confidence: float
    mode: str
    model: str
    epoch: int
    degraded: bool
    reason: str
    replica: str
    latency_ms: float | None = None
    committed: bool = False
    receipt: str = ""
    update_id: int | None = None

    def fields(self) -> dict[str, str]:
        """Render for Redis; `slot` and `latency_ms` are written there."""
        return {
            "ts": str(self.ts),
            "feature_ts": "" if self.feature_ts is None else str(self.feature_ts),
            "price_now": _text(self.price_now),
            "direction": self.direction,
            "predicted_return": _text(self.predicted_return),
            "predicted_price": _text(self.predicted_price),
            "confidence": _text(self.confidence),
            "mode": self.mode,
            "model": self.model,
            "epoch": str(self.epoch),
            "receipt": self.receipt,
            "update_id": "" if self.update_id is None else str(self.update_id),
            "degraded": str(int(self.degraded)),
            "reason": self.reason,
            "replica": self.replica,
        }

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Prediction:
        """Read back a committed record.

        Raises:
            KeyError: If a field is missing.
            ValueError: If a number is not one.
        """
        direction = fields["direction"]
        return cls(
            slot=int(fields["slot"]),
            ts=int(fields["ts"]),
            feature_ts=int(fields["feature_ts"]) if fields["feature_ts"] else None,
            price_now=_number(fields["price_now"]),
            direction="up" if direction == "up" else "down" if direction == "down" else "flat",
            predicted_return=float(fields["predicted_return"]),
            predicted_price=_number(fields["predicted_price"]),
            confidence=float(fields["confidence"]),
            mode=fields["mode"],
            model=fields["model"],
            epoch=int(fields["epoch"]),
            degraded=fields["degraded"] == "1",
            reason=fields["reason"],
            replica=fields.get("replica", ""),
            latency_ms=_number(fields.get("latency_ms", "")),
            committed=True,
            receipt=fields.get("receipt", ""),
            update_id=int(fields["update_id"]) if fields.get("update_id") else None,
        )

    @property
    def sound_price(self) -> float | None:
        """The price, if nothing about the state was in doubt; doubts about the answer do not affect it."""
        kinds = {part.partition(":")[0] for part in self.reason.split("; ")}
        return None if self.degraded and kinds - ANSWER_DOUBTS else self.price_now

    def to_json(self) -> dict[str, Any]:
        """Render for HTTP, with numbers as numbers."""
        return {name: getattr(self, name) for name in self.__slots__}


def reason_of(doubts: Sequence[Doubt]) -> str:
    """Join doubts as `kind: text; kind: text`, within `REASON_LENGTH_MAX`.

    A long text is shortened in its middle and never displaces another doubt: readers depend on the kinds.
    """
    texts = [str(doubt).replace(";", ",") for doubt in doubts]
    left = REASON_LENGTH_MAX - 2 * max(0, len(texts) - 1)
    cut: dict[int, str] = {}
    # The shortest first: characters that they do not use are left for the longer ones.
    for done, at in enumerate(sorted(range(len(texts)), key=lambda at: len(texts[at]))):
        cut[at] = shortened(texts[at], max(1, left // (len(texts) - done)))
        left -= len(cut[at])
    return "; ".join(cut[at] for at in range(len(texts)))


def build(slot: int, state: SlotState, answer: ModelAnswer, replica: str) -> Prediction:
    """Build a slot's prediction.

    Args:
        slot: The slot.
        state: The state that was read for it.
        answer: The prediction from that state.
        replica: Name of this replica.
    """
    doubts = [*doubts_of(state), *answer.doubts]
    price = state.price
    return Prediction(
        slot=slot,
        ts=slot_start_us(slot),
        feature_ts=state.stamp_us or None,
        price_now=price,
        direction=direction_of(answer.predicted_return),
        predicted_return=answer.predicted_return,
        predicted_price=None if price is None else price * (1 + answer.predicted_return),
        confidence=answer.confidence,
        mode=answer.mode,
        model=answer.model,
        epoch=state.epoch,
        degraded=bool(doubts),
        reason=reason_of(doubts),
        replica=replica,
        receipt=state.receipt,
        update_id=state.update_id,
    )


def _text(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _number(text: str) -> float | None:
    return float(text) if text else None

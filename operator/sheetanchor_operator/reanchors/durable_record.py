"""What outlives the ReAnchor objects: which requests were answered within a day, and how runs have ended.

History limits delete objects; a request of the same id must still find its answer, and the success rate must not depend
on which objects are kept. Both are in the pipeline's status, computed each time from it and from the objects, so that
nothing is counted twice and every operator finds the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor.policy.reanchor_object import digest
from sheetanchor.policy.reanchor_scheduler import HOUR_US, IDS_KEPT_US
from sheetanchor.runtime.plain_text import one_line
from sheetanchor_operator.observation import whole_number
from sheetanchor_operator.reanchors.runs import ReAnchor

REQUESTS_MAX: Final = 500
"""Ids that are remembered; with their answers they stay far below the size limit of an object."""

RUNS_KEPT_US: Final = 24 * HOUR_US
RUNS_MAX: Final = 1_000
MESSAGE_LENGTH_MAX: Final = 200
COMPARISONS_MAX: Final = 600

Outcomes = tuple[tuple[int, ...], tuple[int, ...]]
"""Ends of the re-anchors that succeeded, and of those that failed."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request with an id, and its result.

    Attributes:
        key: Identifies symbol and id.
        name: Its ReAnchor.
        made_us: When the ReAnchor was created, by the API server's clock.
    """

    key: str
    name: str
    made_us: int
    phase: str
    result: str
    message: str
    epoch_before: int | None = None
    epoch_after: int | None = None

    def entry(self) -> dict[str, Any]:
        """Render for `status.reanchorRequests`."""
        fields = {
            "key": self.key,
            "name": self.name,
            "madeMicros": self.made_us,
            "phase": self.phase,
            "result": self.result,
            "message": self.message,
            "epochBefore": self.epoch_before,
            "epochAfter": self.epoch_after,
        }
        return {name: value for name, value in fields.items() if value is not None}


def key_of_request(symbol: str, request_id: str) -> str:
    """Give the key of a symbol's request; a hash, since ids may be long and may be confidential."""
    return hashlib.sha256(f"{symbol}\n{request_id}".encode()).hexdigest()[:32]


def answered_in(status: Mapping[str, Any]) -> dict[str, Answered]:
    """Read the requests that a status remembers; entries in another version's format are left out."""
    found = {}
    for entry in status.get("reanchorRequests") or ():
        if not isinstance(entry, Mapping) or whole_number(entry.get("madeMicros")) is None:
            continue
        one = Answered(
            key=str(entry.get("key", "")),
            name=str(entry.get("name", "")),
            made_us=int(entry["madeMicros"]),
            phase=str(entry.get("phase", "")),
            result=str(entry.get("result", "")),
            message=str(entry.get("message", "")),
            epoch_before=whole_number(entry.get("epochBefore")),
            epoch_after=whole_number(entry.get("epochAfter")),
        )
        found[one.key] = one
    return found


def counts_as_made(one: ReAnchor) -> bool:
    """Say whether a request has had an effect: one that was skipped without a run may be made again."""
    return bool(one.request_id) and not (one.phase == "Skipped" and not one.attempts and not one.answered_by)


def remembered(known: Iterable[ReAnchor], status: Mapping[str, Any], now_us: int) -> dict[str, Answered]:
    """Give the requests of the last 24 hours that have been answered, the first of each id."""
    found = answered_in(status)
    for one in sorted(known, key=lambda one: (one.created_us, one.name)):
        if not one.final or not counts_as_made(one):
            continue
        key = key_of_request(one.symbol, one.request_id)
        before = found.get(key)
        if before is None or one.created_us - before.made_us >= IDS_KEPT_US:
            found[key] = _answered(key, one)
    young = [one for one in found.values() if now_us - one.made_us < IDS_KEPT_US]
    newest = sorted(young, key=lambda one: (one.made_us, one.key))[-REQUESTS_MAX:]
    return {one.key: one for one in newest}


def _answered(key: str, one: ReAnchor) -> Answered:
    return Answered(
        key=key,
        name=one.name,
        made_us=one.created_us,
        phase=one.phase,
        result=one.result,
        message=one_line(str(one.raw.get("message") or ""), MESSAGE_LENGTH_MAX),
        epoch_before=whole_number(one.raw.get("epochBefore")),
        epoch_after=whole_number(one.raw.get("epochAfter")),
    )


def outcomes_of(known: Iterable[ReAnchor], status: Mapping[str, Any], now_us: int) -> Outcomes:
    """Give how the re-anchors of the last 24 hours have ended, each once, also those whose objects are deleted.

    Those that another one's run has answered, that were skipped and dry runs do not count.
    """
    recorded = status.get("reanchorRuns") or {}
    good, bad = (set(_numbers(recorded.get(name))) for name in ("succeededMicros", "failedMicros"))
    for one in known:
        if one.attempts and not one.dry_run and not one.answered_by and one.phase in ("Succeeded", "Failed"):
            (good if one.phase == "Succeeded" else bad).add(_end_us(one))
    return _latest(good, now_us - RUNS_KEPT_US), _latest(bad, now_us - RUNS_KEPT_US)


def _end_us(one: ReAnchor) -> int:
    """Give the end of a re-anchor; the digits below a millisecond distinguish two that ended at the same time."""
    return one.finished_us // 1_000 * 1_000 + int(digest(one.uid or one.name), 16) % 1_000


def _latest(timestamps: Iterable[int], after_us: int) -> tuple[int, ...]:
    return tuple(sorted(at_us for at_us in timestamps if at_us > after_us)[-RUNS_MAX:])


def _numbers(given: Any) -> list[int]:
    return [number for one in given or () if (number := whole_number(one)) is not None]


def comparisons(known: Iterable[ReAnchor], status: Mapping[str, Any], now_us: int) -> dict[str, tuple[int, ...]]:
    """Give by symbol the ends of the last hour's runs that swapped nothing: they count against the same budget."""
    recorded: dict[str, set[int]] = {}
    for entry in status.get("symbols") or ():
        recorded.setdefault(str(entry.get("name")), set()).update(_numbers(entry.get("comparedMicros")))
    for one in known:
        if _has_compared(one):
            recorded.setdefault(one.symbol, set()).add(_end_us(one))
    young = {symbol: sorted(at_us for at_us in ends if at_us > now_us - HOUR_US) for symbol, ends in recorded.items()}
    return {symbol: tuple(ends[-COMPARISONS_MAX:]) for symbol, ends in young.items()}


def _has_compared(one: ReAnchor) -> bool:
    if not one.attempts or not one.finished_us or one.answered_by:
        return False
    return one.result == "validated" or (one.dry_run and one.result != "lock_held")

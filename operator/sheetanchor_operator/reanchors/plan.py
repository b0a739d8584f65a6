"""A plan about re-anchors, and what is left of it when the API server refuses a part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sheetanchor.contract import Receipt
from sheetanchor.errors import shortened
from sheetanchor_operator.api.pipeline_status import MESSAGE_LENGTH_MAX
from sheetanchor_operator.children.object_meta import Manifest
from sheetanchor_operator.events import Event
from sheetanchor_operator.names import EventReason, Reason
from sheetanchor_operator.reanchors.durable_record import Answered, Outcomes


@dataclass(frozen=True, slots=True)
class JobStart:
    """A Job to create for a ReAnchor."""

    reanchor: str
    symbol: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Patch:
    """Fields to merge into a ReAnchor's status; None removes one.

    Attributes:
        can_wait: Whether the next reconcile plans the same again if this one has no time for it. Changes that concern a
            run do not wait: there are few, and the ends of runs are counted in the pipeline's status.
    """

    name: str
    status: Manifest
    can_wait: bool = False


@dataclass(frozen=True, slots=True)
class SymbolFacts:
    """The state of a symbol's re-anchors.

    Attributes:
        running: Name of the ReAnchor whose run is in progress, "" if there is none.
        pending: Names of those that wait.
        throttled: Why they wait, None if they are not throttled.
        message: The reason as a text.
        next_us: When the wait ends; 0 if that is not known.
        rebuilt_us: Ends of the rebuilds of the last hour, for `status.symbols[].rebuiltMicros`.
        compared_us: Ends of its runs that swapped nothing, for `status.symbols[].comparedMicros`.
    """

    running: str = ""
    pending: tuple[str, ...] = ()
    throttled: Reason | None = None
    message: str = ""
    next_us: int = 0
    rebuilt_us: tuple[int, ...] = ()
    compared_us: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReanchorPlan:
    """The writes of one reconcile, in this order: create, start, patch, adopt, delete.

    Attributes:
        create: ReAnchors to create; one that exists already is no error.
        start: Jobs to create; likewise.
        patch: Statuses of ReAnchors.
        adopt: Names of ReAnchors to give the pipeline as owner.
        delete: Names of ReAnchors to delete.
        wake_at_us: When to plan again if nothing changes before.
        last_reanchor: For `status.lastReanchor`; None if there has been none.
        last_request: For `status.lastReanchorRequest`.
        receipts: Receipts that the patch of a ReAnchor records, by its name: counted once that is written.
        requests: For `status.reanchorRequests`; None leaves it as it is.
        outcomes: For `status.reanchorRuns`; likewise.
    """

    create: tuple[Manifest, ...] = ()
    start: tuple[JobStart, ...] = ()
    patch: tuple[Patch, ...] = ()
    adopt: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    wake_at_us: int | None = None
    events: tuple[Event, ...] = ()
    symbols: Mapping[str, SymbolFacts] = field(default_factory=dict)
    last_reanchor: Mapping[str, Any] | None = None
    last_request: str = ""
    receipts: Mapping[str, tuple[Receipt, ...]] = field(default_factory=dict)
    requests: tuple[Answered, ...] | None = None
    outcomes: Outcomes | None = None


def without(plan: ReanchorPlan, refused: Mapping[str, str]) -> ReanchorPlan:
    """Give what is left of a plan when Jobs were refused: their runs have not begun, so no status or Event says so.

    Args:
        plan: The plan.
        refused: Why, by the name of the ReAnchor.
    """
    if not refused:
        return plan
    symbols = {start.symbol: start.reanchor for start in plan.start}
    symbols = {symbol: name for symbol, name in symbols.items() if name in refused}
    begun = (EventReason.REANCHOR_STARTED, EventReason.REANCHOR_RETRIED)
    facts = {
        symbol: replace(one, running="", pending=(symbols[symbol], *one.pending)) if symbol in symbols else one
        for symbol, one in plan.symbols.items()
    }
    last = plan.last_reanchor
    return replace(
        plan,
        start=tuple(start for start in plan.start if start.reanchor not in refused),
        patch=tuple(
            Patch(
                one.name,
                {
                    "message": shortened(
                        f"the API server refused the Job of its run: {refused[one.name]}", MESSAGE_LENGTH_MAX
                    )
                },
            )
            if one.name in refused
            else one
            for one in plan.patch
        ),
        events=tuple(one for one in plan.events if one.reason not in begun or one.cause not in refused),
        symbols=facts,
        last_reanchor=None if last is not None and last.get("name") in refused else last,
    )


def defer(plan: ReanchorPlan, unwritten: Collection[str], now_us: int) -> ReanchorPlan:
    """Give what is left of a plan when statuses were not written: no Event reports what no status says yet.

    Args:
        plan: The plan.
        unwritten: Names of the ReAnchors.
        now_us: The time; the next reconcile comes at once.
    """
    if not unwritten:
        return plan
    return replace(
        plan,
        patch=tuple(one for one in plan.patch if one.name not in unwritten),
        delete=tuple(name for name in plan.delete if name not in unwritten),
        events=tuple(one for one in plan.events if one.cause not in unwritten),
        wake_at_us=now_us,
    )

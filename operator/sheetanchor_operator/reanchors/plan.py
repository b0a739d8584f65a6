"""A plan about re-anchors, and the draft that it is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from sheetanchor.contract import Receipt
from sheetanchor.errors import shortened
from sheetanchor.policy import reanchor_scheduler
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.pipeline_status import MESSAGE_LENGTH_MAX
from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.children.object_meta import Defaults, Manifest
from sheetanchor_operator.events import Event
from sheetanchor_operator.names import PIPELINE_KIND, REANCHOR_KIND, EventReason, Reason
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.reanchors.durable_record import Answered, Outcomes, remembered
from sheetanchor_operator.reanchors.runs import JobRun, ReAnchor

WRITES_MAX: Final = 30
"""Requests of one look that can wait for the next: greeting, skipping, adopting and forgetting. How many of them are
sent is for `reconcile_timer` to say; more than these are not even planned."""


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
        can_wait: Whether the next look finds the same again if this one has no time for it. What concerns a run does
            not wait: there are few of them, and their ends are counted in the pipeline's status.
    """

    name: str
    status: Manifest
    can_wait: bool = False


@dataclass(frozen=True, slots=True)
class SymbolFacts:
    """How the re-anchors of a symbol stand.

    Attributes:
        running: Name of the ReAnchor whose run is in progress, "" if there is none.
        pending: Names of those that wait.
        throttled: Why they wait, None if nothing holds them up.
        message: The same for people.
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
    """What to do now, in this order: create, start, patch, adopt, delete.

    Attributes:
        create: ReAnchors to create; that one exists already is fine.
        start: Jobs to create; likewise.
        patch: Statuses of ReAnchors.
        adopt: Names of ReAnchors to give the pipeline as owner.
        delete: Names of ReAnchors to delete.
        wake_at_us: When to plan again if nothing changes before.
        last_reanchor: For `status.lastReanchor`; None if there has been none.
        last_request: For `status.lastReanchorRequest`.
        receipts: Receipts that the patch of a ReAnchor takes in, by its name: counted once that is written.
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
    """Give what is left of a plan when Jobs could not be made: their runs have not begun, and nobody is told so.

    Args:
        plan: What was decided.
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
                {"message": shortened(f"the Job of its run was refused: {refused[one.name]}", MESSAGE_LENGTH_MAX)},
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
    """Give what is left of a plan when statuses were not written: nobody is told of what is not written down yet.

    Args:
        plan: What was decided.
        unwritten: Names of the ReAnchors.
        now_us: The moment: the next look comes at once.
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


@dataclass(slots=True)
class Draft:
    """A plan in the making, and what it is made from."""

    pipeline: Pipeline
    observed: Observed
    defaults: Defaults
    known: dict[str, ReAnchor]
    runs: dict[str, list[JobRun]]
    policy: reanchor_scheduler.Policy
    create: list[Manifest] = field(default_factory=list)
    start: list[JobStart] = field(default_factory=list)
    patch: dict[str, Manifest] = field(default_factory=dict)
    wakes: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    symbols: dict[str, SymbolFacts] = field(default_factory=dict)
    passed_over: frozenset[str] = frozenset()
    """Names of those that this look leaves alone: more wait than are looked at."""

    receipts: dict[str, tuple[Receipt, ...]] = field(default_factory=dict)
    answered: dict[str, Answered] = field(init=False)
    _writes_left: int = WRITES_MAX
    _of: dict[str, list[str]] = field(init=False)
    _same_id: dict[tuple[str, str], list[str]] = field(init=False)

    def __post_init__(self) -> None:
        # Both orders rest on what never changes of a ReAnchor: they are made once, however many there are.
        self._of, self._same_id = {}, {}
        for one in sorted(self.known.values(), key=lambda one: (one.at_us, one.name)):
            self._of.setdefault(one.symbol, []).append(one.name)
        for one in sorted(self.known.values(), key=lambda one: (one.created_us, one.name)):
            if one.request_id:
                self._same_id.setdefault((one.symbol, one.request_id), []).append(one.name)
        self.answered = remembered(self.known.values(), self.pipeline.status, self.now_us)

    @property
    def now_us(self) -> int:
        return self.observed.now_us

    def of(self, symbol: str) -> list[ReAnchor]:
        """Give the ReAnchors of a symbol, first asked first."""
        return [self.known[name] for name in self._of.get(symbol, ())]

    def with_id_of(self, one: ReAnchor) -> list[ReAnchor]:
        """Give the ReAnchors of a symbol that have the id of one, first created first."""
        return [self.known[name] for name in self._same_id.get((one.symbol, one.request_id), ())]

    def may_write(self, requests: int = 1) -> bool:
        """Say whether this look may send so many more requests that can wait; if not, the next look comes at once."""
        if self._writes_left < requests:
            self.wakes.append(self.now_us)
            return False
        self._writes_left -= requests
        return True

    def write(self, name: str, status: Manifest) -> None:
        """Merge into a status, and go on with the ReAnchor as it will be."""
        one = self.known[name]
        self.patch[name] = {**self.patch.get(name, {}), **status}
        merged = {key: value for key, value in {**one.raw, **self.patch[name]}.items() if value is not None}
        self.known[name] = with_status(one, merged)

    def tell(
        self, one: ReAnchor | None, kind: Literal["Normal", "Warning"], reason: EventReason, message: str, *, both: bool
    ) -> None:
        """Note an Event about a ReAnchor, and about the pipeline too if it matters to whoever looks at that."""
        if one is not None:
            self.events.append(Event(REANCHOR_KIND, one.name, one.uid, kind, reason, message, one.name))
        if both or one is None:
            told = f"{one.symbol}: {message}" if one is not None else message
            cause = one.name if one is not None else ""
            self.events.append(Event(PIPELINE_KIND, self.pipeline.name, self.pipeline.uid, kind, reason, told, cause))


def with_status(one: ReAnchor, status: Mapping[str, Any]) -> ReAnchor:
    """Give a ReAnchor as it is with another status."""
    return replace(
        one,
        phase=status.get("phase") or "Pending",
        result=status.get("result") or "",
        attempts=int(status.get("attempts") or 0),
        started_us=micros_of(status.get("startedAt")),
        finished_us=micros_of(status.get("finishedAt")),
        duration_us=round(float(status.get("durationSeconds") or 0) * 1e6),
        next_us=micros_of(status.get("nextAttemptAt")),
        answered_by=status.get("answeredBy") or "",
        epoch_after=int(status.get("epochAfter") or 0),
        held=int(status.get("attemptsHeld") or 0),
        raw=status,
    )

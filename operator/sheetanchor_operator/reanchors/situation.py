"""The input of a plan about re-anchors, and the changes of one stage of planning.

A stage takes a `Situation` and gives `Changes`; the next stage takes the situation with these applied. So each can be
read, and tested, without the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from sheetanchor.contract import Receipt
from sheetanchor.policy import reanchor_scheduler
from sheetanchor.policy.reanchor_object import Owner, ReAnchorRequest, object_name, reanchor_object
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults, Manifest
from sheetanchor_operator.events import Event
from sheetanchor_operator.names import PIPELINE_KIND, REANCHOR_KIND, EventReason, ZoneHealth
from sheetanchor_operator.observation import Live, Observed
from sheetanchor_operator.reanchors.durable_record import Answered, remembered
from sheetanchor_operator.reanchors.history import policy_of
from sheetanchor_operator.reanchors.plan import JobStart, SymbolFacts
from sheetanchor_operator.reanchors.runs import JobRun, ReAnchor, read_reanchor, runs_of, with_status

WRITES_MAX: Final = 30
"""Most writes of one reconcile that can wait for the next: acknowledging, skipping, adopting and deleting. How many of
them are sent is decided by `reconcile_timer`; more than these are not even planned."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A pipeline's re-anchors at one stage of planning.

    Attributes:
        known: The ReAnchors by name, with the changes of earlier stages.
        runs: The runs of each ReAnchor by its name, in their order.
        answered: Requests of the last 24 hours by their key: an id is answered once.
        by_symbol: Names of each symbol's ReAnchors, oldest request first.
        by_request_id: Names of the ReAnchors of a symbol and a request id, oldest first.
        passed_over: Names of those that this plan leaves alone, since more wait than are handled.
        writes_left: Writes that can wait and may still be planned.
    """

    pipeline: Pipeline
    observed: Observed
    defaults: Defaults
    policy: reanchor_scheduler.Policy
    known: Mapping[str, ReAnchor]
    runs: Mapping[str, list[JobRun]]
    answered: Mapping[str, Answered]
    by_symbol: Mapping[str, list[str]]
    by_request_id: Mapping[tuple[str, str], list[str]]
    passed_over: frozenset[str] = frozenset()
    writes_left: int = WRITES_MAX

    @property
    def now_us(self) -> int:
        """The time, by Redis' clock."""
        return self.observed.now_us

    def after(self, changes: Changes) -> Situation:
        """Give the situation with a stage's changes applied, for the next stage."""
        return replace(
            self,
            known=changes.known,
            passed_over=self.passed_over | changes.passed_over,
            writes_left=changes.writes_left,
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What one stage of planning changes.

    Attributes:
        known: The ReAnchors by name, with this stage's changes.
        statuses: Fields to merge into the statuses of ReAnchors, by name; None removes one.
        create: ReAnchors to create.
        start: Jobs to create.
        wakes: Times at which to plan again if nothing changes before.
        receipts: Receipts that a ReAnchor's new status records, by its name.
        symbols: The state of a symbol's re-anchors.
        names: ReAnchors that the stage has chosen, of stages that choose.
    """

    known: Mapping[str, ReAnchor]
    writes_left: int
    statuses: Mapping[str, Manifest] = field(default_factory=dict)
    create: tuple[Manifest, ...] = ()
    start: tuple[JobStart, ...] = ()
    wakes: tuple[int, ...] = ()
    events: tuple[Event, ...] = ()
    receipts: Mapping[str, tuple[Receipt, ...]] = field(default_factory=dict)
    symbols: Mapping[str, SymbolFacts] = field(default_factory=dict)
    passed_over: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()


def situation_of(pipeline: Pipeline, observed: Observed, defaults: Defaults) -> Situation:
    """Read a pipeline's ReAnchors and their runs.

    Args:
        pipeline: The pipeline with its specification.
        observed: The observation, at a time of Redis' clock.
        defaults: Values from the operator's own settings.
    """
    mine = [body for body in observed.reanchors if (body.get("spec") or {}).get("pipeline") == pipeline.name]
    known = {one.name: one for one in map(read_reanchor, mine)}
    # Both orders depend on fields that never change: sorting again in each stage would take long with many ReAnchors.
    by_symbol: dict[str, list[str]] = {}
    by_request_id: dict[tuple[str, str], list[str]] = {}
    for one in sorted(known.values(), key=lambda one: (one.at_us, one.name)):
        by_symbol.setdefault(one.symbol, []).append(one.name)
    for one in sorted(known.values(), key=lambda one: (one.created_us, one.name)):
        if one.request_id:
            by_request_id.setdefault((one.symbol, one.request_id), []).append(one.name)
    return Situation(
        pipeline=pipeline,
        observed=observed,
        defaults=defaults,
        policy=policy_of(pipeline),
        known=known,
        runs=_runs_of_all(known, observed),
        answered=remembered(known.values(), pipeline.status, observed.now_us),
        by_symbol=by_symbol,
        by_request_id=by_request_id,
    )


def _runs_of_all(known: Mapping[str, ReAnchor], observed: Observed) -> dict[str, list[JobRun]]:
    """Read every ReAnchor's runs, each Job once."""
    jobs: dict[str, list[Live]] = {}
    for body in observed.jobs:
        for owner in body["metadata"].get("ownerReferences") or ():
            jobs.setdefault(str(owner.get("uid", "")), []).append(body)
    failed = observed.zones_that_are(ZoneHealth.FAILED)
    lost = {node: zone for node, zone in observed.node_zones.items() if zone in failed}
    return {
        name: runs_of(one, jobs[one.uid], observed.pods, observed.now_us, lost) if one.uid in jobs else []
        for name, one in known.items()
    }


class Stage:
    """Collects the changes of one stage. It is used inside that stage only: stages pass on values, not this object.

    Args:
        before: The situation before the stage.
    """

    def __init__(self, before: Situation) -> None:
        self.before = before
        self.known = dict(before.known)
        """The ReAnchors by name, with this stage's changes so far."""
        self.create: list[Manifest] = []
        self.start: list[JobStart] = []
        self.wakes: list[int] = []
        self.receipts: dict[str, tuple[Receipt, ...]] = {}
        self._statuses: dict[str, Manifest] = {}
        self._events: list[Event] = []
        self._writes_left = before.writes_left

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline with its specification."""
        return self.before.pipeline

    @property
    def now_us(self) -> int:
        """The time, by Redis' clock."""
        return self.before.now_us

    def of(self, symbol: str) -> list[ReAnchor]:
        """Give the ReAnchors of a symbol, oldest request first."""
        return [self.known[name] for name in self.before.by_symbol.get(symbol, ())]

    def with_id_of(self, one: ReAnchor) -> list[ReAnchor]:
        """Give the ReAnchors of a symbol that have the request id of one, oldest first."""
        return [self.known[name] for name in self.before.by_request_id.get((one.symbol, one.request_id), ())]

    def may_write(self, requests: int = 1) -> bool:
        """Say whether so many more writes that can wait may be planned; if not, the next reconcile comes at once."""
        if self._writes_left < requests:
            self.wakes.append(self.now_us)
            return False
        self._writes_left -= requests
        return True

    def write(self, name: str, status: Manifest) -> None:
        """Merge fields into a status, and continue with the ReAnchor as it will be."""
        one = self.known[name]
        self._statuses[name] = {**self._statuses.get(name, {}), **status}
        merged = {key: value for key, value in {**one.raw, **self._statuses[name]}.items() if value is not None}
        self.known[name] = with_status(one, merged)

    def request(self, request: ReAnchorRequest) -> None:
        """Plan to create a ReAnchor, unless there is one of its name: the same request twice is one."""
        if object_name(self.pipeline.name, request.symbol, request.suffix) not in self.known:
            owner = Owner(self.pipeline.name, self.pipeline.namespace, self.pipeline.uid)
            self.create.append(reanchor_object(owner, request))
            self.wakes.append(self.now_us)

    def emit(
        self, one: ReAnchor | None, kind: Literal["Normal", "Warning"], reason: EventReason, message: str, *, both: bool
    ) -> None:
        """Emit an Event about a ReAnchor, and with `both` about the pipeline too."""
        if one is not None:
            self._events.append(Event(REANCHOR_KIND, one.name, one.uid, kind, reason, message, one.name))
        if both or one is None:
            text = f"{one.symbol}: {message}" if one is not None else message
            cause = one.name if one is not None else ""
            about = self.pipeline
            self._events.append(Event(PIPELINE_KIND, about.name, about.uid, kind, reason, text, cause))

    def changes(
        self,
        *,
        symbols: Mapping[str, SymbolFacts] | None = None,
        passed_over: frozenset[str] = frozenset(),
        names: tuple[str, ...] = (),
    ) -> Changes:
        """Give the changes of the stage."""
        return Changes(
            known=self.known,
            writes_left=self._writes_left,
            statuses=self._statuses,
            create=tuple(self.create),
            start=tuple(self.start),
            wakes=tuple(self.wakes),
            events=tuple(self._events),
            receipts=self.receipts,
            symbols=symbols or {},
            passed_over=passed_over,
            names=names,
        )

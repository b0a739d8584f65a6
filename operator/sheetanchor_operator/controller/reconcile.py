"""One reconcile of one pipeline: observe, decide, apply, report. Here is the order; decisions are elsewhere, pure."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sheetanchor.errors import shortened
from sheetanchor_operator import metrics
from sheetanchor_operator.api.pipeline import BadSpec, Pipeline, parse
from sheetanchor_operator.api.reanchor_spec import TERMINAL_PHASES
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.apply.installation_claim import TAKE_OVER_AFTER_S, ObservedClaim, decide, observe_claim
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.controller.apply_children import ChildApplier
from sheetanchor_operator.controller.observe import Observer
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from sheetanchor_operator.controller.plan_writes import PlanWriter
from sheetanchor_operator.controller.processor_wait import processor_wait_s
from sheetanchor_operator.controller.respread import Respread
from sheetanchor_operator.controller.seen_requests import SeenRequests
from sheetanchor_operator.controller.zones.mover import Mover
from sheetanchor_operator.events import Event
from sheetanchor_operator.kube.api_client import (
    PIPELINE,
    REANCHOR,
    ApiError,
    ApiRefused,
    Cluster,
)
from sheetanchor_operator.kube.cache import Cache, Key
from sheetanchor_operator.kube.event_recorder import Publisher
from sheetanchor_operator.kube.reconcile_timer import CURRENT_TIMER, ReconcileTimer
from sheetanchor_operator.kube.workload_probe import Workloads
from sheetanchor_operator.names import OPERATOR_ANNOTATION, EventReason, ZoneHealth, ZoneReason
from sheetanchor_operator.observation import Observed, Refusal
from sheetanchor_operator.reanchors.decide import plan
from sheetanchor_operator.reanchors.plan import ReanchorPlan
from sheetanchor_operator.status.conditions import PLANNED_FROM
from sheetanchor_operator.status.failover import FailoverPlan, plan_failover
from sheetanchor_operator.status.summary import NO_PLAN, refused_status, status_of, transitions
from sheetanchor_operator.status.workload_health import workload_health_of
from sheetanchor_operator.zones.judge import Bounds, bounds_of

log = logging.getLogger(__name__)

UNSOUND_S: Final = 3.0
"""How soon a pipeline with a problem is reconciled again."""

MOVING_S: Final = 0.3
"""How soon a pipeline that is being moved is reconciled again: its steps follow one another."""

PER_PIPELINE_S: Final = 0.05
"""With many pipelines each is reconciled less often: at most twenty a second, whatever their number."""

PLANNED_HERE_MAX: Final = 200
"""So many re-anchors are planned within some milliseconds; more are planned in a thread."""

DEFECT_LENGTH_MAX: Final = 300


@dataclass(slots=True)
class Reconciler:
    """Reconciles pipelines.

    One class, since each reconcile of a pipeline uses what earlier ones have noted.

    Attributes:
        resync_s: Time between two reconciles of a pipeline that does not change.
    """

    cluster: Cluster
    cache: Cache
    workloads: Workloads
    publisher: Publisher
    pipeline_metrics: PipelineMetrics
    defaults: Defaults
    resync_s: float = 10.0
    unwatchable: Callable[[str], Mapping[str, Refusal]] = lambda _namespace: {}
    """Gives why a kind cannot be watched in a namespace, by its name."""

    zone_verdicts: Callable[[Bounds], Mapping[str, tuple[ZoneHealth, ZoneReason]] | None] = lambda _bounds: None
    """Gives what each zone counts as, and why; None where zones are not judged."""

    seen_requests: SeenRequests = field(default_factory=SeenRequests)
    installation: str = ""
    """Namespace and name of our Lease, which names this installation in claims; "" makes no claims."""

    _applier: ChildApplier = field(init=False, repr=False)
    _observer: Observer = field(init=False, repr=False)
    _writer: PlanWriter = field(init=False, repr=False)
    _respread: Respread = field(init=False, repr=False)
    _mover: Mover = field(init=False, repr=False)
    _claims: dict[Key, ObservedClaim] = field(default_factory=dict)
    _kept_off: dict[Key, str] = field(default_factory=dict)
    """Pipelines that another installation manages, each with its name."""

    _unsound: set[Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._observer = Observer(self.cluster, self.cache, self.workloads)
        self._applier = ChildApplier(self.cluster, self.cache, self.defaults)
        self._respread = Respread(self.cluster)
        self._mover = Mover(self.cluster)
        self._writer = PlanWriter(self.cluster, self.cache, self.pipeline_metrics)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile a pipeline once.

        Returns:
            Seconds until the next reconcile if nothing happens before; None if the pipeline is deleted.

        Raises:
            ApiUnavailable: The API server does not answer, or cannot do it at the moment.
            ApiRefused: It refuses a request.
            Exception: A defect of the operator, which the pipeline's status reports.
        """
        timer, before_s = ReconcileTimer(time.monotonic()), processor_wait_s()
        CURRENT_TIMER.set(timer)
        try:
            return await self._reconcile(key, timer)
        finally:
            timer.starved_s += processor_wait_s() - before_s
            if message := timer.message(time.monotonic()):
                log.warning("pipeline %s/%s: %s", *key, message)

    async def _reconcile(self, key: Key, timer: ReconcileTimer) -> float | None:
        body = self.cache.get(PIPELINE.name, *key)
        if body is None:
            self._forget(key)
            return None if await self._report_orphans(key, timer) else 0.0
        if "deletionTimestamp" in body["metadata"]:
            return self.resync_s
        body = await self._claimed(key, body)
        if body is None:
            return self.resync_s
        try:
            pipeline = parse(body)
        except BadSpec as error:
            await self._refuse(key, body, str(error))
            return self.resync_s
        try:
            return await self._reconcile_parsed(key, pipeline, body, timer)
        except ApiError:
            raise
        except Exception as error:
            # Any error has to appear in the pipeline's status, or users would see a healthy one; the caller handles it.
            defect = shortened(" ".join(f"{type(error).__name__}: {error}".split()), DEFECT_LENGTH_MAX)
            with suppress(ApiError):
                await self._refuse(
                    key, body, f"the operator fails to reconcile this pipeline, see the operator's log: {defect}"
                )
            raise

    async def _claimed(self, key: Key, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Write this installation's claim; gives the pipeline as written, None if another installation manages it.

        Raises:
            ApiUnavailable: The pipeline was written at the same moment, perhaps by another installation that claims it.
        """
        if not self.installation:
            return body
        metadata, now_s = body["metadata"], time.monotonic()
        known = self._claims[key] = observe_claim(self._claims.get(key), body.get("status") or {}, now_s)
        wanted = str((metadata.get("annotations") or {}).get(OPERATOR_ANNOTATION, ""))
        decision = decide(self.installation, wanted, known, _now_us(), now_s)
        if decision == "keep-off":
            await self._keep_off(key, metadata["uid"], wanted or known.name)
            return None
        if self._kept_off.pop(key, None) is not None:
            metrics.KEPT_OFF.remove(*key)
        if decision == "act":
            return body
        claim = {"name": self.installation, "seenAt": text_of(_now_us() // 1_000_000 * 1_000_000)}
        change = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": {"operator": claim}}
        try:
            written = await self.cluster.merge(PIPELINE, *key, change, "status")
        except ApiRefused as error:
            # Without this right no status can be written; children are still applied, unless another installation does.
            log.warning("pipeline %s/%s: the claim of this installation cannot be written: %s", *key, error)
            return body if known.name in ("", self.installation) else None
        if written is None:
            return None
        if known.name != self.installation:
            log.info("pipeline %s/%s is managed by %s from now on", *key, self.installation)
        self.cache.put(written)
        return written

    async def _keep_off(self, key: Key, uid: str, other: str) -> None:
        """Leave a pipeline to another installation, and report that once."""
        metrics.KEPT_OFF.labels(*key).set(1)
        if self._kept_off.get(key) == other:
            return
        self._kept_off[key] = other
        self.pipeline_metrics.forget(key)
        message = (
            f"installation {other} manages this pipeline, and {self.installation} leaves it alone; it takes over when "
            f"{other} has not renewed its claim for {TAKE_OVER_AFTER_S / 60:g} minutes, or at once with "
            f"kubectl -n {key[0]} annotate pp {key[1]} --overwrite {OPERATOR_ANNOTATION}={self.installation}"
        )
        log.warning("pipeline %s/%s: %s", *key, message)
        self._publish(key[0], (Event(PIPELINE.name, key[1], uid, "Warning", EventReason.KEPT_OFF, message),))

    async def _reconcile_parsed(
        self, key: Key, pipeline: Pipeline, body: Mapping[str, Any], timer: ReconcileTimer
    ) -> float:
        observed = await self._observer.observe(
            pipeline,
            self.cache.of(key),
            unwatchable=self.unwatchable(pipeline.namespace),
            overwritten=self.seen_requests.of(key),
            zone_verdicts=self.zone_verdicts(bounds_of(pipeline.spec.failover)),
        )
        # A pipeline that cannot be watched may be deleted or changed by now: its old children must not be created
        # again.
        if not pipeline.paused and PIPELINE.name not in observed.unwatchable:
            observed = await self._applier.keep(
                pipeline, observed, lambda: timer.may_begin(time.monotonic(), at_least=1)
            )
        decided = NO_PLAN
        refusals: tuple[Refusal, ...] = ()
        if not PLANNED_FROM & observed.unwatchable.keys():
            decided = await self._plan(pipeline, observed, timer)
            decided, refusals = await self._writer.carry_out(key, pipeline, decided, timer, _now_us())
        observed = replace(observed, refusals=(*observed.refusals, *refusals))
        # The ReAnchors are written by now: a later reconcile would not see these changes as new, so report them here.
        self._publish(pipeline.namespace, decided.events)
        moves = self._move(key, pipeline, observed)
        status = status_of(pipeline, observed, decided, moves)
        events = transitions(pipeline.status, status, pipeline.name, pipeline.uid)
        if await self._write_status(body, status):
            self.pipeline_metrics.moved(key, pipeline.status, status)
            moved = await self._respread.move(pipeline, observed, status, time.monotonic())
            self._publish(pipeline.namespace, (*events, *((moved,) if moved else ())))
            if not refusals and decided is not NO_PLAN and not pipeline.paused:
                self.seen_requests.done(key, observed.overwritten)
        # With a plan the status holds how runs have ended; without one only the existing objects do.
        counted = observed.reanchors if decided.outcomes is None else ()
        self.pipeline_metrics.take(key, status, counted, announced=pipeline.spec.maintenance.enabled)
        wait_s = self._next_reconcile_s(key, decided, status, refused=bool(refusals))
        return min(wait_s, MOVING_S) if moves is not None and moves.running and not pipeline.paused else wait_s

    def _move(self, key: Key, pipeline: Pipeline, observed: Observed) -> FailoverPlan | None:
        """Go on with a move of the pipeline, or begin one; None where it is not known what there is to move."""
        if PLANNED_FROM & observed.unwatchable.keys():
            return None
        health, failed = workload_health_of(pipeline, observed), self._mover.outcome(key)
        moves = plan_failover(pipeline, observed, health, failed)
        if moves.action is not None:
            # Its record is in the status already: what is asked for now another replica would ask for again.
            self._mover.begin(key, pipeline, observed, moves.action)
        return moves

    async def _plan(self, pipeline: Pipeline, observed: Observed, timer: ReconcileTimer) -> ReanchorPlan:
        """Decide about re-anchors; many of them in a thread, since a blocked event loop could not renew the Lease."""
        if len(observed.reanchors) <= PLANNED_HERE_MAX:
            return plan(pipeline, observed, self.defaults)

        def planned() -> tuple[ReanchorPlan, float]:
            before_s = processor_wait_s()
            return plan(pipeline, observed, self.defaults), processor_wait_s() - before_s

        before_s = processor_wait_s()
        made, waited_s = await asyncio.to_thread(planned)
        # The wait of this thread meanwhile is counted with the rest of the reconcile.
        timer.starved_s += max(0.0, waited_s - (processor_wait_s() - before_s))
        return made

    async def _refuse(self, key: Key, body: Mapping[str, Any], message: str) -> None:
        """Report in the status that a pipeline's spec cannot be used; its children stay as they are."""
        status = refused_status(body, message, _now_us())
        metadata = body["metadata"]
        events = transitions(body.get("status") or {}, status, metadata["name"], metadata["uid"])
        if await self._write_status(body, status):
            self._publish(metadata["namespace"], events)
        # A maintenance block that cannot be read must not silence alerts.
        mine = self.cache.of(key)
        reanchors = [one for (kind, _), one in mine.items() if kind == REANCHOR.name]
        self.pipeline_metrics.take(key, status, reanchors, announced=False)

    async def _report_orphans(self, key: Key, timer: ReconcileTimer) -> bool:
        """Report in ReAnchors of a missing pipeline that they wait for one; owned ones are deleted with their owner.

        Returns:
            Whether all statuses are written; a reconcile writes no more than it has time for.
        """
        namespace, name = key
        change = {
            "phase": "Pending",
            "message": f"waits: there is no PredictionPipeline {name} in namespace {namespace}",
        }

        def unreported(body: Mapping[str, Any]) -> bool:
            status = body.get("status") or {}
            if body["metadata"].get("ownerReferences") or status.get("phase") in TERMINAL_PHASES:
                return False
            return any(status.get(field) != value for field, value in change.items())

        names = [one for (kind, one), body in self.cache.of(key).items() if kind == REANCHOR.name and unreported(body)]
        return await self._writer.report_orphans(key, change, names, timer)

    def _forget(self, key: Key) -> None:
        self.seen_requests.forget(key)
        self._claims.pop(key, None)
        if self._kept_off.pop(key, None) is not None:
            metrics.KEPT_OFF.remove(*key)
        self.pipeline_metrics.forget(key)
        self._applier.forget(key)
        self._observer.forget(key)
        self._respread.forget(key)
        self._mover.forget(key)
        self._writer.refusals.forget(key)
        self._unsound.discard(key)

    def _next_reconcile_s(self, key: Key, decided: ReanchorPlan, status: Mapping[str, Any], *, refused: bool) -> float:
        sound = status.get("phase") in ("Running", "Suspended", "Maintenance", "Paused")
        (self._unsound.discard if sound else self._unsound.add)(key)
        least_s = PER_PIPELINE_S * len(self.cache.pipelines() if sound else self._unsound)
        wait_s = max(self.resync_s if sound else UNSOUND_S, least_s) * (0.9 + 0.2 * random.random())
        if self._applier.is_holding(key) or self._observer.is_waiting(key):
            wait_s = min(wait_s, UNSOUND_S)
        if self._applier.is_late(key):
            wait_s = 0.0
        if decided.wake_at_us is not None:
            wake_s = (decided.wake_at_us - _now_us()) / 1e6
            # A pipeline with a problem is reconciled every second: many of them share that rate.
            wait_s = min(wait_s, max(0.0 if sound else least_s, wake_s))
        if refused:
            # The plan would try again at once, although it is refused until a user changes something.
            wait_s = max(wait_s, UNSOUND_S)
        return wait_s

    # Reporting

    async def _write_status(self, body: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
        """Write the status if it differs; false if the pipeline is deleted."""
        before = body.get("status") or {}
        if before == status:
            return True
        gone = {name: None for name in before if name not in status}
        changed = {name: value for name, value in status.items() if before.get(name) != value}
        metadata = body["metadata"]
        change = {"status": {**gone, **_whole(changed, before)}}
        written = await self.cluster.merge(PIPELINE, metadata["namespace"], metadata["name"], change, "status")
        if written is None:
            return False
        self.cache.put(written)
        return True

    def _publish(self, namespace: str, events: Iterable[Event]) -> None:
        for event in events:
            self.publisher.publish(namespace, event)


def _whole(changed: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Make a merge replace maps as a whole: removed fields are set to null."""
    whole = {}
    for name, value in changed.items():
        known = before.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            whole[name] = {**dict.fromkeys(known, None), **value}
        else:
            whole[name] = value
    return whole


def key_of_pipeline(pipeline: Pipeline) -> Key:
    """Give namespace and name of a pipeline."""
    return pipeline.namespace, pipeline.name


def _now_us() -> int:
    return time.time_ns() // 1_000

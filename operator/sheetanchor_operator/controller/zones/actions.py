"""What any operator replica does about a silent zone: withdraws its pods from Services, and shows it in the status.

Nothing here waits for a leader. Writes carry the version of what they change, so that of two replicas one comes second
and does nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from sheetanchor_operator import metrics
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.controller.zones.observer import InBackground, ZoneObserver, wall_us
from sheetanchor_operator.events import Event
from sheetanchor_operator.kube.api_client import PIPELINE, POD, ApiConflict, ApiError, Cluster
from sheetanchor_operator.kube.event_recorder import Publisher
from sheetanchor_operator.kube.zone_probe import ZoneProbe
from sheetanchor_operator.kube.zone_register import PipelineFacts
from sheetanchor_operator.names import EventReason, ZoneReason
from sheetanchor_operator.status.zone_report import report_of, zone_events
from sheetanchor_operator.zones.withdrawal import (
    LEFT_ALONE_S,
    OBSERVED_WITHIN_S,
    Withdrawal,
    unready_condition,
    withdrawal,
)
from sheetanchor_operator.zones.witnesses import PodFacts

log = logging.getLogger(__name__)

LEASE_STALE_S: Final = 4.0
"""Two renewals were missed: the leader may be in the zone that is lost, and the next one leads only after some time."""

AT_ONCE: Final = 16
"""Pipelines that are acted on at the same time."""

_SECOND_US: Final = 1_000_000


class ZoneActions:
    """Acts on what the observer concludes.

    Args:
        cluster: The API server, whether or not this replica leads.
        observer: Observes the zones.
        probe: Asks pods.
        publisher: Publishes Events of this replica.
        installation: Namespace and name of our Lease, by which pipelines say who manages them.
        unrenewed_s: Says for how long the Lease has not been renewed; 0 where this replica leads.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        observer: ZoneObserver,
        probe: ZoneProbe,
        publisher: Publisher,
        installation: str,
        unrenewed_s: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._cluster, self._observer, self._probe, self._publisher = cluster, observer, probe, publisher
        self._installation, self._unrenewed_s, self._clock = installation, unrenewed_s, clock
        self._left_alone_until_s: dict[str, float] = {}
        self._withdrawn: set[str] = set()
        """Uids of the pods that this replica has withdrawn."""

        self._errors: list[str] = []
        """What the API server has not done since the last line about it."""

        self._places = asyncio.Semaphore(AT_ONCE)
        self._withdrawing, self._reporting = InBackground(self._withdraw_all), InBackground(self._report_all)

    def after_round(self) -> None:
        """Begin what a round calls for; what is still going on from the one before goes on instead."""
        self._note_overruled()
        if any(evidence.confirmed for evidence in self._observer.judgement.zones.values()):
            self._withdrawing.start()
        if self._unrenewed_s() >= LEASE_STALE_S:
            self._reporting.start()

    async def aclose(self) -> None:
        """End what is going on."""
        await self._withdrawing.aclose()
        await self._reporting.aclose()

    def _mine(self) -> list[PipelineFacts]:
        pipelines = self._observer.register.pipelines.values()
        return [pipeline for pipeline in pipelines if pipeline.installation == self._installation]

    # Readers

    def _note_overruled(self) -> None:
        """Leave pods alone whose kubelets have said since that they are ready."""
        register, now_s = self._observer.register, self._clock()
        kept = {uid: until_s for uid, until_s in self._left_alone_until_s.items() if until_s > now_s}
        for pod in register.take_overruled():
            kept[pod.uid] = now_s + LEFT_ALONE_S
            pipeline = register.pipelines.get(pod.owner)
            zone = register.node_zones.get(pod.node, "")
            if pod.uid in self._withdrawn and pipeline and self._is_unreachable(zone, pipeline):
                metrics.READERS_WITHDRAWN.labels("disputed").inc()
                message = (
                    f"the kubelet of {pod.node} reports {pod.name} as ready, but it cannot be reached from here: the "
                    f"pod is left alone for {LEFT_ALONE_S:g} s; check the network between zone {zone} and the others"
                )
                self._publish(pipeline, EventReason.ZONE_DISPUTED, message)
        self._left_alone_until_s = kept
        self._withdrawn &= {pod.uid for pod in register.pods.values() if pod.withdrawn}

    def _is_unreachable(self, zone: str, pipeline: PipelineFacts) -> bool:
        """Say whether a zone's silence counts, also if this round, such as one that was late, proves nothing itself."""
        _, reason = self._observer.verdicts(pipeline.bounds).get(zone, (None, None))
        return reason is ZoneReason.UNREACHABLE

    async def _withdraw_all(self) -> None:
        await asyncio.gather(*(self._withdraw_of(pipeline) for pipeline in self._mine() if not pipeline.paused))
        self._log_errors()

    def _log_errors(self) -> None:
        """Say once what may have happened to each of a thousand pipelines."""
        errors, self._errors = self._errors, []
        if errors:
            log.warning("zones: %d writes were not done, for instance %s", len(errors), errors[0])

    async def _withdraw_of(self, pipeline: PipelineFacts) -> None:
        async with self._places:
            observer = self._observer
            asked_s, zones, answered = observer.asked_s, observer.zones, observer.answered
            for zone in observer.unreachable(pipeline.bounds):
                decided = withdrawal(pipeline.place, zone, zones, answered, self._left_alone_until_s)
                if decided is not None and await self._reader_remains(decided):
                    await self._withdraw(pipeline, decided, asked_s)

    async def _reader_remains(self, decided: Withdrawal) -> bool:
        """Ask now: at least one has to be there for the readers that are sent away. The first one suffices."""
        questions = [asyncio.ensure_future(self._probe.is_ready(pod)) for pod in decided.remaining]
        try:
            for answer in asyncio.as_completed(questions):
                if await answer:
                    return True
        finally:
            for question in questions:
                question.cancel()
        return False

    async def _withdraw(self, pipeline: PipelineFacts, decided: Withdrawal, asked_s: float) -> None:
        results = await asyncio.gather(*(self._patch(pod, decided.zone, asked_s) for pod in decided.pods))
        done = sorted(pod.name for pod, result in zip(decided.pods, results, strict=True) if result == "withdrawn")
        for result in results:
            metrics.READERS_WITHDRAWN.labels(result).inc()
        if done:
            message = f"zone {decided.zone} is silent: its readers are sent to other zones ({', '.join(done)})"
            self._publish(pipeline, EventReason.READERS_WITHDRAWN, message)

    async def _patch(self, pod: PodFacts, zone: str, asked_s: float) -> str:
        """Have a pod not be ready; gives what came of it."""
        if self._clock() - asked_s > OBSERVED_WITHIN_S:
            return "stale"
        condition = unready_condition(zone, text_of(wall_us() // _SECOND_US * _SECOND_US))
        try:
            written = await self._cluster.set_condition(
                POD, pod.namespace, pod.name, pod.version, condition, timeout_s=OBSERVED_WITHIN_S
            )
        except ApiConflict:
            return "conflict"
        except ApiError as error:
            self._errors.append(f"pod {pod.namespace}/{pod.name} of zone {zone} stays in its Service: {error}")
            return "failed"
        if written is None:
            return "conflict"
        self._withdrawn.add(pod.uid)
        self._observer.register.seen("MODIFIED", {**written, "kind": POD.name})
        return "withdrawn"

    # The status

    async def _report_all(self) -> None:
        await asyncio.gather(*(self._report(pipeline) for pipeline in self._mine()))
        self._log_errors()

    async def _report(self, pipeline: PipelineFacts) -> None:
        """Write what the zones count as, in the leader's place."""
        async with self._places:
            changed = report_of(pipeline.status, self._observer.verdicts(pipeline.bounds), wall_us())
            # It may lead again by now, or another replica does.
            if not changed or self._unrenewed_s() < LEASE_STALE_S:
                return
            change = {"metadata": {"resourceVersion": pipeline.version}, "status": changed}
            try:
                written = await self._cluster.merge(PIPELINE, pipeline.namespace, pipeline.name, change, "status")
            except ApiConflict:
                return
            except ApiError as error:
                self._errors.append(f"the zones of pipeline {pipeline.namespace}/{pipeline.name}: {error}")
                return
            if written is None:
                return
            self._observer.register.seen("MODIFIED", {**written, "kind": PIPELINE.name})
            for warns, reason, message in zone_events(pipeline.status.get("zones", ()), changed.get("zones", ())):
                self._publish(pipeline, reason, message, warns=warns)

    def _publish(self, pipeline: PipelineFacts, reason: EventReason, message: str, *, warns: bool = True) -> None:
        subject = (PIPELINE.name, pipeline.name, pipeline.uid)
        event = Event(*subject, "Warning" if warns else "Normal", reason, message)
        self._publisher.publish(pipeline.namespace, event)

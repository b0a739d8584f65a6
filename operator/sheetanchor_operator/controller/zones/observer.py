"""Observes zones in every operator replica, leader or not: once a second, outside of reconciling.

One class, since a round, the judgement of it and what follows from it are one sequence with one clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from sheetanchor_operator import metrics
from sheetanchor_operator.kube.api_client import NODE, PIPELINE, POD, Cluster
from sheetanchor_operator.kube.watch import LISTS_AT_ONCE, Place, Watch
from sheetanchor_operator.kube.zone_probe import ZoneProbe
from sheetanchor_operator.kube.zone_register import ZoneRegister
from sheetanchor_operator.names import ZoneHealth, ZoneReason
from sheetanchor_operator.zones.judge import Bounds, Judgement, Round, Verdict, Voice, judge, verdict_of
from sheetanchor_operator.zones.witnesses import (
    PodFacts,
    answers_of,
    by_zone,
    sample,
    speakers,
    suspects,
    voices_of,
)

log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
LAG_STEP_S: Final = 0.1
"""How often the event loop is measured: a pause between two rounds is seen as well."""

Verdicts = Mapping[str, tuple[ZoneHealth, ZoneReason]]


class ZoneObserver:
    """Asks pods, judges zones, and has others act on it.

    Args:
        cluster: The API server, whether or not this replica leads.
        probe: Asks pods.
        namespaces: Where pipelines are managed; empty for everywhere.
        own_node: Name of the node that this operator runs on.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        probe: ZoneProbe,
        namespaces: Sequence[str],
        own_node: str,
        clock: Callable[[], float],
    ) -> None:
        self.register = ZoneRegister()
        self.judgement = Judgement()
        self.zones: Mapping[str, Sequence[PodFacts]] = {}
        """Pods by zone, as the last round saw them."""

        self.asked_s = float("-inf")
        """When the last round began that was judged."""

        self.answered: frozenset[str] = frozenset()
        """Uids of the pods that answered in it."""

        self.on_change: Callable[[], None] = lambda: None
        """Called when what a zone counts as has changed, for any pipeline."""

        self.on_round: Callable[[], None] = lambda: None
        """Called after each round."""

        self._probe, self._own_node, self._clock = probe, own_node, clock
        where = tuple(dict.fromkeys(namespaces)) or ("",)
        lists = asyncio.Semaphore(LISTS_AT_ONCE)
        self._watches = [
            Watch(cluster, Place(kind, one), self.register, lists)
            for kind in (NODE, PIPELINE, POD)
            for one in (where if kind.namespaced else ("",))
        ]
        self._suspected: frozenset[str] = frozenset()
        self._lag_s = 0.0
        self._chosen: tuple[int, dict[str, list[PodFacts]], dict[str, list[PodFacts]]] = (-1, {}, {})
        self._verdicts: dict[Bounds, Mapping[str, Verdict]] = {}

    async def run(self) -> None:
        """Observe until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.run())
            for watch in self._watches:
                await watch.settled.wait()
            group.create_task(self._measure_lag())
            while True:
                await self._round()

    # What is concluded

    def verdicts(self, bounds: Bounds) -> Verdicts:
        """Give what each zone counts as, and why; nothing before the first round.

        Args:
            bounds: A pipeline's.
        """
        found = {zone: verdict_of(evidence, bounds) for zone, evidence in self.judgement.zones.items()}
        return {zone: (one.health, one.reason) for zone, one in found.items()}

    def unreachable(self, bounds: Bounds) -> list[str]:
        """Name the zones whose silence is confirmed at this moment, by a pipeline's bounds."""
        return [zone for zone, one in self.judgement.zones.items() if verdict_of(one, bounds).unreachable]

    # A round

    async def _measure_lag(self) -> None:
        while True:
            before_s = self._clock()
            await asyncio.sleep(LAG_STEP_S)
            self._lag_s = max(self._lag_s, self._clock() - before_s - LAG_STEP_S)

    def _pods(self) -> tuple[dict[str, list[PodFacts]], dict[str, list[PodFacts]]]:
        """Give the pods by zone, and the sample of each; chosen again only when pods or nodes have changed."""
        register = self.register
        if self._chosen[0] != register.revision:
            zones = by_zone(register.pods.values(), register.node_zones)
            self._chosen = (register.revision, zones, {zone: sample(pods) for zone, pods in zones.items()})
        return self._chosen[1], self._chosen[2]

    async def _round(self) -> None:
        """Ask, wait for the next second, and judge what came: what is late by then has not come."""
        asked_s = self._clock()
        zones, samples = self._pods()
        own_zone = self.register.node_zones.get(self._own_node, "")
        asked = {zone: suspects(pods) if zone in self._suspected else samples[zone] for zone, pods in zones.items()}
        sentinels = speakers(zones, self._suspected & zones.keys(), own_zone) if self._suspected else []
        answered, voices = await asyncio.gather(self._answered(asked.values()), self._voices(sentinels))
        await asyncio.sleep(max(0.0, asked_s + PERIOD_S - self._clock()))
        seen = Round(
            asked_s,
            self._clock(),
            own_zone,
            {zone: answers_of(pods, asked[zone], answered) for zone, pods in zones.items()},
            voices,
            self._lag_s,
        )
        self._lag_s = 0.0
        before, self.judgement = self.judgement, judge(self.judgement, seen)
        self.zones, self.asked_s, self.answered = zones, asked_s, answered
        self._suspected = frozenset(zone for zone, one in seen.zones.items() if one.asked and not one.answered)
        self._conclude(before.abstains)

    async def _answered(self, asked: Collection[Sequence[PodFacts]]) -> frozenset[str]:
        pods = [pod for of_zone in asked for pod in of_zone]
        answers = await asyncio.gather(*(self._probe.answers(pod) for pod in pods))
        return frozenset(pod.uid for pod, answer in zip(pods, answers, strict=True) if answer)

    async def _voices(self, sentinels: Sequence[PodFacts]) -> tuple[Voice, ...]:
        answers = await asyncio.gather(*(self._probe.peers(pod) for pod in sentinels))
        pods, node_zones = self.register.pods, self.register.node_zones
        return tuple(
            voice
            for pod, answer in zip(sentinels, answers, strict=True)
            for voice in voices_of(pod, node_zones.get(pod.node, ""), answer, pods, node_zones)
        )

    def _conclude(self, abstained: str) -> None:
        if self.judgement.abstains != abstained:
            log.info("zones: %s", f"abstains, {self.judgement.abstains}" if self.judgement.abstains else "judges")
        changed = False
        used = {Bounds(), *(pipeline.bounds for pipeline in self.register.pipelines.values())}
        before, self._verdicts = self._verdicts, {}
        for bounds in used:
            now = {zone: verdict_of(evidence, bounds) for zone, evidence in self.judgement.zones.items()}
            self._verdicts[bounds] = now
            changed |= bounds in before and _words(before[bounds]) != _words(now)
        self._show(before.get(Bounds(), {}), self._verdicts[Bounds()])
        if changed:
            self.on_change()
        self.on_round()

    def _show(self, before: Mapping[str, Verdict], now: Mapping[str, Verdict]) -> None:
        for zone in before.keys() - now.keys():
            metrics.ZONE_HEALTHY.remove(zone)
        for zone, verdict in now.items():
            if verdict.health is ZoneHealth.UNKNOWN:
                metrics.ZONE_HEALTHY.remove(zone)
            else:
                metrics.ZONE_HEALTHY.labels(zone).set(verdict.health is ZoneHealth.HEALTHY)
            if zone in before and (before[zone].health, before[zone].reason) != (verdict.health, verdict.reason):
                level = logging.INFO if verdict.health is ZoneHealth.HEALTHY else logging.WARNING
                log.log(level, "zone %s is %s: %s", zone, verdict.health, verdict.reason)


def _words(verdicts: Mapping[str, Verdict]) -> dict[str, tuple[ZoneHealth, ZoneReason]]:
    return {zone: (one.health, one.reason) for zone, one in verdicts.items()}


def wall_us() -> int:
    """Give the time that is written into statuses, in µs since the epoch."""
    return time.time_ns() // 1_000


class InBackground:
    """Runs one thing at a time beside the rounds: a slow API server must not hold up a round.

    Args:
        work: What is run; its errors are its own to report.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run it, unless it runs already."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self._work()
        except Exception:
            # Judging must go on: the next round tries again what is left to do.
            log.exception("zones: what follows from a judgement failed on a defect of the operator")

    async def aclose(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

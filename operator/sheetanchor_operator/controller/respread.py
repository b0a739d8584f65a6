"""Spreads a pipeline's pods over the zones again, some minutes after a lost zone has returned."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.events import Event
from sheetanchor_operator.kube.api_client import PIPELINE, ApiError, Cluster
from sheetanchor_operator.kube.cache import Key
from sheetanchor_operator.names import Condition, EventReason, Phase, Reason
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.status.summary import condition_of
from sheetanchor_operator.status.topology import pod_to_move
from sheetanchor_operator.status.workload_health import workload_health_of

log = logging.getLogger(__name__)

SHARED_FOR_US: Final = 120_000_000
"""A component shares a zone for this long before a pod is moved: roll-outs and returning zones settle by themselves."""

AGAIN_S: Final = 600.0
AGAIN_MAX_S: Final = 86_400.0
"""Where the scheduler puts a pod back into the same zone there is a reason, such as a lack of room: waits double."""


class Respread:
    """Evicts one pod at a time, by the eviction API, so that budgets hold.

    Args:
        cluster: The API server, as the leader writes to it.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._moved: dict[Key, tuple[float, int]] = {}
        """When a pod of a pipeline was moved last, in monotonic seconds, and how often until then."""

    async def move(
        self, pipeline: Pipeline, observed: Observed, status: Mapping[str, Any], now_s: float
    ) -> Event | None:
        """Evict a pod if that spreads a component again; gives the Event that says so.

        Args:
            pipeline: The pipeline.
            observed: What is there.
            status: Its status, as it is written.
            now_s: Monotonic seconds.
        """
        key = (pipeline.namespace, pipeline.name)
        shared = condition_of(status, Condition.TOPOLOGY_SATISFIED) or {}
        if shared.get("status") == "True":
            self._moved.pop(key, None)
        if not _may_move(status, observed.now_us) or now_s < self._next_s(key):
            return None
        found = pod_to_move(pipeline, observed, workload_health_of(pipeline, observed))
        if found is None:
            return None
        pod, zone = found
        name = pod["metadata"]["name"]
        self._moved[key] = (now_s, self._moved.get(key, (0.0, 0))[1] + 1)
        try:
            done = await self._cluster.evict(pipeline.namespace, name, pod["metadata"].get("uid", ""))
        except ApiError as error:
            log.warning("pod %s/%s shares zone %s and cannot be evicted: %s", pipeline.namespace, name, zone, error)
            return None
        if not done:
            return None
        message = f"evicts {name}, which shares zone {zone} with another pod of its component, so that they are apart"
        return Event(PIPELINE.name, pipeline.name, pipeline.uid, "Normal", EventReason.POD_MOVED, message)

    def _next_s(self, key: Key) -> float:
        at_s, times = self._moved.get(key, (float("-inf"), 0))
        return at_s + min(AGAIN_S * 2.0 ** min(max(0, times - 1), 10), AGAIN_MAX_S)

    def forget(self, key: Key) -> None:
        """A pipeline is gone."""
        self._moved.pop(key, None)


def _may_move(status: Mapping[str, Any], now_us: int) -> bool:
    """Say whether everything else is as it should be, and pods have shared a zone for some time."""
    shared = condition_of(status, Condition.TOPOLOGY_SATISFIED) or {}
    ready = condition_of(status, Condition.READY) or {}
    return (
        status.get("phase") == Phase.RUNNING
        and ready.get("reason") == Reason.AS_EXPECTED
        and shared.get("reason") == Reason.NOT_SPREAD
        and now_us - micros_of(shared.get("lastTransitionTime")) >= SHARED_FOR_US
    )

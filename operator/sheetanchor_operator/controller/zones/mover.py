"""Sends a move's requests to pods, apart from the reconciles, since a hand-over may take seconds."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.redis_access import password_entry
from sheetanchor_operator.kube.api_client import KINDS, ApiError, Cluster
from sheetanchor_operator.kube.cache import Key
from sheetanchor_operator.kube.workload_control import ControlFailed, send_control
from sheetanchor_operator.names import Component
from sheetanchor_operator.observation import Live, Observed
from sheetanchor_operator.zones.failover_record import Action, Failed, HandOver, Take

log = logging.getLogger(__name__)

REDIS_USER: Final = "sentinel"
"""Whose password signs a hand-over: no workload has it."""

Send = Callable[[str, str, Mapping[str, Any], str], Awaitable[None]]


class Mover:
    """Carries out one action of a pipeline at a time.

    Args:
        cluster: The API server, for the Secrets of pipelines.
        send: Sends a signed request to an address.
    """

    def __init__(self, cluster: Cluster, send: Send = send_control) -> None:
        self._cluster, self._send = cluster, send
        self._tasks: dict[Key, asyncio.Task[Failed | None]] = {}

    def outcome(self, key: Key) -> Failed | None:
        """Give the failure of what was begun last, once; None if there is none, or none yet."""
        task = self._tasks.get(key)
        if task is None or not task.done():
            return None
        del self._tasks[key]
        return task.result()

    def begin(self, key: Key, pipeline: Pipeline, observed: Observed, action: Action) -> None:
        """Begin an action, unless one goes on."""
        if key not in self._tasks:
            pods = {pod["metadata"]["name"]: pod for pod in observed.pods}
            self._tasks[key] = asyncio.ensure_future(self._carry_out(pipeline, pods, action))

    def forget(self, key: Key) -> None:
        """A pipeline is gone."""
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()

    async def _carry_out(self, pipeline: Pipeline, pods: Mapping[str, Live], action: Action) -> Failed | None:
        where = f"pipeline {pipeline.namespace}/{pipeline.name}"
        try:
            await self._sent(pipeline, pods.get(action.pod, {}), action)
        except (ControlFailed, ApiError) as error:
            log.warning("%s: %s does not execute the requested action: %s", where, action.pod, error)
            return Failed(action, str(error))
        except Exception as error:
            # The move must be given up in its time, not wait for an action whose task has failed unseen.
            log.exception("%s: a request to %s failed on a defect of the operator", where, action.pod)
            return Failed(action, type(error).__name__)
        log.info("%s: %s has executed the requested action: %s", where, action.pod, action)
        return None

    async def _sent(self, pipeline: Pipeline, pod: Live, action: Action) -> None:
        address = str((pod.get("status") or {}).get("podIP") or "")
        if not address:
            raise ControlFailed("it has no address")
        match action:
            case Take():
                password = await self._password(pipeline, Component.PROCESS, Component.PROCESS)
                body: dict[str, Any] = {"replica": action.replica, "term": action.term, "symbols": list(action.symbols)}
                await self._send(address, "take", body, password)
            case HandOver():
                password = await self._password(pipeline, Component.REDIS, REDIS_USER)
                await self._send(address, "hand-over", {"node": action.pod}, password)

    async def _password(self, pipeline: Pipeline, component: Component, user: str) -> str:
        """Read a password, as pods have it.

        Raises:
            ControlFailed: There is none.
            ApiError: The API server does not give it.
        """
        entry = password_entry(pipeline, component)
        if entry is None:
            raise ControlFailed("spec.redis.external has no passwordSecret, and without a password nothing is moved")
        key = entry.key if pipeline.managed_redis is None else user
        found = await self._cluster.get(KINDS["Secret"], pipeline.namespace, entry.name)
        try:
            text = base64.b64decode(((found or {}).get("data") or {})[key]).decode().strip()
        except (KeyError, ValueError) as error:
            raise ControlFailed(f"Secret {entry.name} has no entry {key}") from error
        if not text:
            raise ControlFailed(f"entry {key} of Secret {entry.name} is empty")
        return text

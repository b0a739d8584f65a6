"""Health and metrics over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sheetanchor import __version__
from sheetanchor.web.answers import Counters, new_app, timestamp
from sheetanchor.web.server import CHECK_TIMEOUT_S, LOOP_STALL_MAX_S, TURN_EVERY_S
from sheetanchor_operator.metrics import HTTP_REQUEST_ERRORS, HTTP_REQUESTS, REGISTRY

LEASE_STALE_S: Final = 60.0
"""The Lease is read every two seconds: an operator that could not read it for a minute cannot act."""


@dataclass(frozen=True, slots=True)
class OperatorHealth:
    """The state of the operator.

    Attributes:
        leading: It holds the Lease.
        synced: Every watch has listed its objects; only a leader watches.
        stale_watch: The place whose watch has been behind for too long, "" for none.
        lease_age_s: Time since the Lease was last read.
        pipelines: Number of pipelines that it manages.
        serves: Whether there is a namespace in which all kinds that are needed can be watched.
        refused: Places that cannot be listed or watched, each with the reason.
        zones: What each zone counts as; None where this replica does not judge zones.
        abstains: Why silence did not count in the last round of questions to zones, "" if it did.
    """

    leading: bool
    synced: bool
    stale_watch: str
    lease_age_s: float
    pipelines: int
    serves: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    zones: Mapping[str, str] | None = None
    abstains: str = ""

    @property
    def live(self) -> bool:
        """False if only a restart can help. A restart does not help against an API server that does not answer."""
        return not self.stale_watch

    @property
    def ready(self) -> bool:
        """Whether it acts, or could at once. A leader that cannot watch all kinds of any namespace manages nothing."""
        return self.lease_age_s < LEASE_STALE_S and ((self.synced and self.serves) or not self.leading)


class LastHealth:
    """The latest state of the operator, for the probes: these are answered in another thread.

    Args:
        operator_health: Gives the state; called in the event loop only.
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, operator_health: Callable[[], OperatorHealth], clock: Callable[[], float]) -> None:
        self._operator_health, self._clock = operator_health, clock
        self._last = (operator_health(), clock())

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep the state up to date while the block runs."""
        task = asyncio.create_task(self._keep(), name="standing")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            self._last = (self._operator_health(), self._clock())
            await asyncio.sleep(TURN_EVERY_S)

    def live(self) -> bool:
        """Say whether the process is alive; with a blocked event loop it is not, and has to be restarted."""
        operator_health, recorded_s = self._last
        return operator_health.live and self._clock() - recorded_s < LOOP_STALL_MAX_S

    def ready(self) -> bool:
        """Say whether the operator acts, or could at once."""
        operator_health, recorded_s = self._last
        return operator_health.ready and self._clock() - recorded_s < CHECK_TIMEOUT_S


def app(operator_health: Callable[[], OperatorHealth]) -> FastAPI:
    """Make the application that answers `/health`, `/health/live`, `/health/ready`, `/health/detailed`, `/metrics`."""
    started_s = time.monotonic()

    async def live() -> JSONResponse:
        now = operator_health()
        body = (
            {"status": "alive"}
            if now.live
            else {"status": "stale", "message": f"the watch of {now.stale_watch} is behind the API server: restart"}
        )
        return JSONResponse(body, status_code=200 if now.live else 503)

    async def ready() -> JSONResponse:
        sound = operator_health().ready
        return JSONResponse({"status": "ready" if sound else "not ready"}, status_code=200 if sound else 503)

    async def health() -> JSONResponse:
        now = operator_health()
        sound = now.live and now.ready
        status = ("degraded" if now.refused else "healthy") if sound else "unhealthy"
        status_of_watches = "degraded" if now.refused else "healthy"
        body: dict[str, Any] = {
            "status": status,
            "overall_status": status,
            "service": "sheetanchor-operator",
            "version": __version__,
            "timestamp": timestamp(),
            "uptime_seconds": round(time.monotonic() - started_s, 1),
            "checks": {
                "lease": {
                    "status": "healthy" if now.lease_age_s < LEASE_STALE_S else "unhealthy",
                    "leading": now.leading,
                },
                "watches": {
                    "status": "unhealthy" if now.stale_watch or not now.serves else status_of_watches,
                    "synced": now.synced,
                    "refused": dict(now.refused),
                },
            },
            "pipelines": now.pipelines,
        }
        if now.zones is not None:
            lost = {"silent", "failed"} & set(now.zones.values())
            zones = {"zones": dict(now.zones), "abstains": now.abstains}
            body["checks"]["zones"] = {"status": "degraded" if lost else "healthy", **zones}
        return JSONResponse(body, status_code=200 if sound else 503)

    async def metrics() -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    application = new_app("sheetanchor-operator", Counters(HTTP_REQUESTS, HTTP_REQUEST_ERRORS))
    application.add_api_route("/health", health)
    application.add_api_route("/health/detailed", health)
    application.add_api_route("/health/live", live)
    application.add_api_route("/health/ready", ready)
    application.add_api_route("/metrics", metrics)
    return application

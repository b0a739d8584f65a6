"""Health and metrics over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sheetanchor import __version__
from sheetanchor_operator.metrics import REGISTRY

LEASE_STALE_S: Final = 60.0
"""The Lease is looked at every two seconds: an operator that has not managed to for a minute is of no use."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How the operator is.

    Attributes:
        leading: It holds the Lease.
        synced: It has seen everything that there is; only a leader looks.
        deaf: Kind whose watch has missed something for too long, "" for none.
        lease_age_s: Time since the Lease was last looked at.
        pipelines: How many it looks after.
    """

    leading: bool
    synced: bool
    deaf: str
    lease_age_s: float
    pipelines: int

    @property
    def live(self) -> bool:
        """False if only a new start can help. An API server that does not answer is nothing that a new start mends."""
        return not self.deaf

    @property
    def ready(self) -> bool:
        """Whether it acts, or could at once."""
        return self.lease_age_s < LEASE_STALE_S and (self.synced or not self.leading)


def app(standing: Callable[[], Standing]) -> web.Application:
    """Make the application that answers `/health`, `/health/live`, `/health/ready`, `/health/detailed`, `/metrics`."""
    started_s = time.monotonic()

    async def live(_: web.Request) -> web.Response:
        now = standing()
        told = {"status": "alive"} if now.live else {"status": "deaf", "message": f"the watch of {now.deaf} is behind"}
        return web.json_response(told, status=200 if now.live else 503)

    async def ready(_: web.Request) -> web.Response:
        sound = standing().ready
        return web.json_response({"status": "ready" if sound else "not ready"}, status=200 if sound else 503)

    async def health(_: web.Request) -> web.Response:
        now = standing()
        status = "healthy" if now.live and now.ready else "unhealthy"
        told: dict[str, Any] = {
            "status": status,
            "overall_status": status,
            "service": "sheetanchor-operator",
            "version": __version__,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "uptime_seconds": round(time.monotonic() - started_s, 1),
            "checks": {
                "lease": {
                    "status": "healthy" if now.lease_age_s < LEASE_STALE_S else "unhealthy",
                    "leading": now.leading,
                },
                "watches": {"status": "unhealthy" if now.deaf else "healthy", "synced": now.synced},
            },
            "pipelines": now.pipelines,
        }
        return web.json_response(told, status=200 if status == "healthy" else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get("/health", health)
    application.router.add_get("/health/detailed", health)
    application.router.add_get("/health/live", live)
    application.router.add_get("/health/ready", ready)
    application.router.add_get("/metrics", metrics)
    return application

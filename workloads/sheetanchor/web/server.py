"""HTTP of every long-running role: health, metrics and what the role adds.

No request does I/O: checks run in the background at the configured interval and the answers are cached, so a hanging
dependency cannot hang a probe. Liveness says only that this process works; a lost dependency never causes a restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sheetanchor import __version__
from sheetanchor.runtime import metrics
from sheetanchor.web.answers import Counters, new_app, timestamp
from sheetanchor.web.listeners import is_local, open_listeners, probes, serving

log = logging.getLogger(__name__)

Status = Literal["healthy", "degraded", "unhealthy"]
_RANK: dict[Status, int] = {"healthy": 0, "degraded": 1, "unhealthy": 2}
_GAUGE: dict[Status, float] = {"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}

CHECK_TIMEOUT_S = 2.0
"""A check that takes longer has failed; well below twice the smallest interval between two rounds."""

UNWELL_INTERVAL_S = 1.0
"""While a check fails, and at the start, checks run more often, so that a recovery is seen at once."""

TURN_EVERY_S = 0.25

LOOP_STALL_MAX_S = 10.0
"""A role whose own loop has had no heartbeat for this long is not alive; five slots."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        status: healthy, degraded or unhealthy.
        details: Numbers and short texts to show, never addresses with credentials.
    """

    status: Status
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """The check of a dependency or component of a role.

    Attributes:
        name: Key in the health answer.
        run: Makes the check, bounded by `CHECK_TIMEOUT_S`; may read cached state only.
        critical: Whether its failure makes the role unhealthy; else it makes it degraded.
        component: Also list it under `components` (of the role itself rather than a dependency).
    """

    name: str
    run: Callable[[], Awaitable[CheckResult]]
    critical: bool = True
    component: bool = False


def overall(results: Sequence[tuple[bool, Status]]) -> Status:
    """Give the worst status; the failure of an optional check only degrades.

    Args:
        results: Pairs of (critical, status).
    """
    worst: Status = "healthy"
    for critical, status in results:
        counted: Status = "degraded" if status == "unhealthy" and not critical else status
        if _RANK[counted] > _RANK[worst]:
            worst = counted
    return worst


class Health:
    """The health of one role: its checks, their last results, and the heartbeat of its loop."""

    def __init__(self, service: str, checks: Sequence[Check], interval_s: float = 5.0) -> None:
        self.service = service
        self.checks = list(checks)
        self.interval_s = interval_s
        self.draining = False
        self.admits: Callable[[], bool] | None = None
        self._started = time.monotonic()
        self._turned = time.monotonic()
        self._heartbeats: dict[str, float] = {}
        self._results: dict[str, tuple[CheckResult, float]] = {}

    def heartbeat(self, loop: str = "") -> None:
        """Record a heartbeat of one of the role's loops; from the first one on it has to go on."""
        self._heartbeats[loop] = time.monotonic()

    @property
    def stalled_s(self) -> float:
        """Seconds since the last heartbeat of the loop that has had none for longest."""
        return time.monotonic() - min(self._heartbeats.values(), default=self._started)

    async def turn(self) -> None:
        """Note that the event loop runs, until cancelled: cached results are outdated while it is blocked."""
        while True:
            self._turned = time.monotonic()
            await asyncio.sleep(TURN_EVERY_S)

    async def watch(self) -> None:
        """Run all checks periodically until cancelled."""
        while True:
            await asyncio.gather(*(self._run(check) for check in self.checks))
            await asyncio.sleep(
                self.interval_s if self.status == "healthy" else min(self.interval_s, UNWELL_INTERVAL_S)
            )

    async def _run(self, check: Check) -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                result = await check.run()
        except TimeoutError:
            result = CheckResult("unhealthy", {"message": f"no answer within {CHECK_TIMEOUT_S:g} s"})
        except Exception as error:  # noqa: BLE001 - a check may fail in any way; the failure is its result
            result = CheckResult("unhealthy", {"message": type(error).__name__})
        before = self._results.get(check.name)
        self._results[check.name] = (result, (time.perf_counter() - started) * 1000)
        metrics.HEALTH_STATUS.labels(self.service, check.name).set(_GAUGE[result.status])
        if before is not None and before[0].status != result.status:
            text = "Health check failed" if result.status == "unhealthy" else "Health check changed"
            level = logging.INFO if result.status == "healthy" else logging.WARNING
            log.log(level, "%s: %s is %s", text, check.name, result.status)

    def _result(self, check: Check) -> tuple[CheckResult, float]:
        return self._results.get(check.name, (CheckResult("unhealthy", {"message": "not checked yet"}), 0.0))

    @property
    def status(self) -> Status:
        """The worst of all checks."""
        return overall([(check.critical, self._result(check)[0].status) for check in self.checks])

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here: running, checked, not draining, and no critical check failing.

        A role that can serve although a critical check fails decides that itself, by `admits`.
        """
        turns = time.monotonic() - self._turned < CHECK_TIMEOUT_S
        if self.draining or not turns or any(check.name not in self._results for check in self.checks):
            return False
        return self.status != "unhealthy" if self.admits is None else self.admits()

    @property
    def live(self) -> bool:
        """Whether the process itself works."""
        return self.stalled_s < LOOP_STALL_MAX_S

    def report(self) -> dict[str, Any]:
        """Build the body of `/health`."""
        checks: dict[str, Any] = {}
        components: dict[str, Any] = {}
        for check in self.checks:
            result, latency_ms = self._result(check)
            body: dict[str, Any] = {
                "status": result.status,
                "latency_ms": round(latency_ms, 3),
                **result.details,
            }
            if not check.critical:
                body["optional"] = True
            checks[check.name] = body
            if check.component:
                components[check.name] = body
        status = self.status
        return {
            "status": status,
            "overall_status": status,
            "service": self.service,
            "version": __version__,
            "timestamp": timestamp(),
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "checks": checks,
            "components": components,
        }


def create_app(health: Health) -> FastAPI:
    """Build the application of a role; the role adds its own routes to it."""
    app = new_app(health.service, Counters(metrics.HTTP_REQUESTS, metrics.HTTP_REQUEST_ERRORS))

    async def health_route() -> JSONResponse:
        body = health.report()
        return JSONResponse(body, status_code=503 if body["status"] == "unhealthy" else 200)

    async def live_route() -> JSONResponse:
        return JSONResponse({"status": "live" if health.live else "stalled"}, status_code=200 if health.live else 503)

    async def ready_route() -> JSONResponse:
        return JSONResponse(
            {"status": "ready" if health.ready else "not ready"}, status_code=200 if health.ready else 503
        )

    async def metrics_route() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app.add_api_route("/health", health_route)
    app.add_api_route("/health/detailed", health_route)
    app.add_api_route("/health/live", live_route)
    app.add_api_route("/health/ready", ready_route)
    app.add_api_route("/metrics", metrics_route)
    return app


@asynccontextmanager
async def serve(app: FastAPI, health: Health, host: str, port: int, probe_port: int = 0) -> AsyncIterator[int]:
    """Serve a role's application, and its probes beside it, while the block runs.

    Args:
        app: Application of `create_app`, with the role's routes.
        health: Its checks run in the background meanwhile.
        host: Address to listen on, as for `listeners.addresses_of`.
        port: Port; 0 picks a free one.
        probe_port: Port for liveness and readiness only, which readers cannot overload; 0 picks a free one.

    Yields:
        The port in use.

    Raises:
        OSError: A port cannot be used.
    """
    with ExitStack() as stack:
        listeners = open_listeners(host, port)
        for listener in listeners:
            stack.enter_context(listener)
        probe_port = stack.enter_context(probes(lambda: health.live, lambda: health.ready, host, probe_port))
        bound = int(listeners[0].getsockname()[1])
        answers = app.state.answers
        answers.only_local = is_local(listeners)
        watchers = [asyncio.create_task(health.watch()), asyncio.create_task(health.turn())]
        try:
            async with serving(app, listeners, answers.bad_request):
                ports = {"http_port": bound, "probe_port": probe_port}
                log.info("listening on %s, port %d", host, bound, extra=ports)
                yield bound
        finally:
            health.draining = True
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

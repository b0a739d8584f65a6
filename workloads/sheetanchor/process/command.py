"""`sheetanchor process`: the processor of one or more symbols.

One process writes a symbol's hot keys; others stand by and take over within a second or two of its last heartbeat. Gaps
go to the stream `gaps:{S}`, and a coordinator elsewhere starts the re-anchor. Only when none has done so within
`self_reanchor_after_s` does this process run the same program itself, as a child.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis

from sheetanchor.contract import STALE_AFTER_US
from sheetanchor.errors import BadSettings, RedisError, RedisUnavailable
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, Thresholds
from sheetanchor.policy.reanchor_scheduler import Seen
from sheetanchor.policy.restatement import rebuild_due_us
from sheetanchor.process.market.write_timer import Cadence
from sheetanchor.process.ownership.take_action import TAKE, take_action
from sheetanchor.process.ownership.writer_election import WriteRole
from sheetanchor.process.rest_health import RestHealth
from sheetanchor.process.self_reanchor import RebuildRequest, SelfReanchor, newest_receipt
from sheetanchor.process.state_endpoint import state_route
from sheetanchor.process.symbol_processor import SymbolProcessor
from sheetanchor.runtime.reliability import Backoff, CircuitBreaker, RetryPolicy
from sheetanchor.runtime.settings import ProcessSettings
from sheetanchor.runtime.stop_signals import stop_event
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import check_connection, redis_client
from sheetanchor.web.background_task import RestartedTasks
from sheetanchor.web.control import ControlGate, add_control, password_in
from sheetanchor.web.server import Check, CheckResult, Health, Status, create_app, serve

if TYPE_CHECKING:
    from sheetanchor.process.reanchor_requests import Requests

log = logging.getLogger(__name__)

FRESH_S: Final = 5.0
"""A last event older than this fails the check of the lines."""

LOCK_POLL_S: Final = 0.5
"""How often the lock's holder, which `/state` shows, is read."""


def thresholds_of(settings: ProcessSettings) -> Thresholds:
    """Give the gap rules their thresholds."""
    return Thresholds(
        gap_threshold=settings.gap_threshold,
        gap_wait_us=settings.gap_wait_ms * 1_000,
        time_gap_us=round(settings.time_gap_s * 1e6),
        volume_sigmas=settings.volume_sigmas,
        price_jump=settings.price_jump,
        suppressed=frozenset(settings.suppress_rules),
    )


def writer_name() -> str:
    """Make the name of this process, which no other has had: a restarted one must not pass for the writer before it."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


async def watch_runs(redis: Redis, processor: SymbolProcessor, lock_holders: dict[str, str], rest: RestHealth) -> None:
    """Read who holds the lock of a symbol and what its runs report; until cancelled."""
    symbol = processor.symbol
    hot = HotState(redis, symbol)
    known = ""
    while True:
        try:
            lock_holders[symbol] = await hot.lock_holder()
            entry_id, receipt = await newest_receipt(redis, symbol)
            if entry_id != known and receipt is not None:
                rest.take(receipt)
                processor.record_run(entry_id, receipt)
            known = entry_id
        except RedisError as error:
            log.debug("%s: the lock cannot be read: %s", symbol, error)
        await asyncio.sleep(LOCK_POLL_S)


@asynccontextmanager
async def requesting_reanchors(
    settings: ProcessSettings, processors: list[SymbolProcessor], shared: Redis, kept: RestartedTasks
) -> AsyncIterator[None]:
    """Request re-anchors from the cluster while the block runs, if the settings say so.

    Raises:
        BadSettings: It is not known where the cluster's API is, or which namespace this is.
    """
    if settings.reanchor_requests == "none":
        yield
        return
    # Imported here: a processor without a cluster needs no HTTP client.
    from sheetanchor.process.reanchor_requests import (
        DELAY_MAX_S,
        KubernetesApi,
        Requests,
        api_url,
        counts_as_failure,
        owner_of,
    )

    owner = owner_of(settings)
    delays = Backoff(initial_s=settings.retry_initial_delay_ms / 1000, max_s=DELAY_MAX_S)
    policy = RetryPolicy(settings.retry_max_attempts, delays)
    breaker = CircuitBreaker(
        "kubernetes",
        settings.circuit_breaker_threshold,
        settings.circuit_breaker_timeout_seconds,
        counts=counts_as_failure,
    )
    async with KubernetesApi(api_url(settings, dict(os.environ)), settings.service_account_dir) as api:
        requests = [
            partial(
                Requests,
                shared,
                processor.symbol,
                owner,
                processor.name,
                _is_active(processor),
                api.create,
                policy,
                breaker,
            )
            for processor in processors
        ]
        tasks = [asyncio.create_task(kept.keep("reanchor_requests", _running(make))) for make in requests]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _running(make: Callable[[], Requests]) -> Callable[[], Awaitable[None]]:
    """Give a function that makes new `Requests` each time it is called, and runs them."""
    return lambda: make().run()


def _is_active(processor: SymbolProcessor) -> Callable[[], bool]:
    return lambda: processor.role is WriteRole.WRITER


def observation_of(processor: SymbolProcessor) -> Callable[[bool], tuple[Seen, int] | None]:
    """Give a function that observes the symbol: None unless its processor is active and connected."""

    def seen(lock_held: bool) -> tuple[Seen, int] | None:
        if processor.role is not WriteRole.WRITER or not (processor.connected and processor.clock.known):
            return None
        anchor, age_us = processor.anchor, processor.event_age_us
        fresh = age_us is not None and age_us < STALE_AFTER_US
        since_us = rebuild_due_us(anchor.doubt, anchor.suspect_at) if anchor.state == "suspect" else 0
        return Seen(anchor.state, anchor.epoch, fresh, lock_held, since_us), processor.now_us

    return seen


def checks_of(processors: list[SymbolProcessor], rest: RestHealth, kept: RestartedTasks) -> list[Check]:
    """Give the health checks; they read cached state only, so that an answer never waits for Redis."""

    async def redis() -> CheckResult:
        symbols = {processor.symbol: processor.connected for processor in processors}
        connected = all(symbols.values())
        return CheckResult("healthy" if connected else "unhealthy", {"connected": connected, "symbols": symbols})

    async def anchored() -> CheckResult:
        states = {processor.symbol: _state_of(processor) for processor in processors}
        good = all(state["state"] == "anchored" for state in states.values())
        return CheckResult("healthy" if good else "degraded", {"symbols": states})

    async def lines() -> CheckResult:
        ages = {processor.symbol: _age_ms(processor) for processor in processors}
        lacking = {processor.symbol: lacking for processor in processors if (lacking := processor.lines_behind())}
        good = not lacking and all(age is not None and age < FRESH_S * 1000 for age in ages.values())
        return CheckResult("healthy" if good else "degraded", {"last_event_age_ms": ages, "lacking": lacking})

    async def detector() -> CheckResult:
        reports = {processor.symbol: processor.detector_report() for processor in processors}
        good = all(report["status"] == "monitoring" for report in reports.values())
        status: Status = "healthy" if good else "unhealthy"
        if len(reports) == 1:
            return CheckResult(status, next(iter(reports.values())))
        return CheckResult(status, {"status": "monitoring" if good else "blind", "symbols": reports})

    return [
        Check("redis", redis),
        Check("anchor", anchored, critical=False),
        Check("lines", lines, critical=False),
        Check("gap_detector", detector, critical=False, component=True),
        Check("binance_rest", rest.check, critical=False),
        Check("tasks", kept.check, critical=False),
    ]


def _state_of(processor: SymbolProcessor) -> dict[str, Any]:
    role = "writer" if processor.role is WriteRole.WRITER else "warm"
    anchor = processor.anchor
    return {"role": role, "state": anchor.state, "epoch": anchor.epoch, "term": anchor.term, "reason": anchor.reason}


def _age_ms(processor: SymbolProcessor) -> int | None:
    age_us = processor.event_age_us
    return None if age_us is None else age_us // 1_000


def processors_of(
    settings: ProcessSettings, clients: Sequence[Redis], rebuild_requests: Mapping[str, RebuildRequest], health: Health
) -> list[SymbolProcessor]:
    """Make a processor for each symbol, each with a heartbeat of its own: one that hangs must not hide behind others.

    Args:
        settings: Of the processor.
        clients: One for the reads of each symbol, in their order, and the last for the writes of all.
        rebuild_requests: Where each symbol's processor requests a rebuild.
        health: Where each loop records its heartbeat.
    """
    name = writer_name()
    cadence = Cadence(round(settings.write_interval_ms * 1e3), round(settings.book_interval_s * 1e6))
    return [
        SymbolProcessor(
            clients[-1],
            reading,
            symbol,
            name,
            thresholds_of(settings),
            cadence,
            dataset=settings.pipeline_uid,
            request_rebuild=rebuild_requests[symbol].set,
            request_validation=rebuild_requests[symbol].set_validation,
            heartbeat=partial(health.heartbeat, symbol),
        )
        for symbol, reading in zip(settings.symbol, clients[:-1], strict=True)
    ]


async def run(settings: ProcessSettings) -> int:
    """Run the processor until SIGTERM or SIGINT.

    Returns:
        0 after a clean end.

    Raises:
        BadSettings: If a setting cannot be used.
        RedisRefused: If Redis wants another password.
    """
    unknown = sorted(set(settings.suppress_rules) - set(GAP_DETECTION_RULES))
    if unknown:
        known = ", ".join(sorted(GAP_DETECTION_RULES))
        raise BadSettings(f"suppress_rules = {', '.join(unknown)}: expected some of {known}")
    stop = stop_event()
    clients = [
        redis_client(settings.redis_url, settings.redis_password_file, ca_file=settings.redis_ca_file)
        for _ in (*settings.symbol, "shared")
    ]
    shared = clients[-1]
    health = Health(settings.service_name or "sheetanchor-process", [], settings.health_check_interval_seconds)
    rebuild_requests = {symbol: RebuildRequest() for symbol in settings.symbol}
    processors = processors_of(settings, clients, rebuild_requests, health)
    rest, kept = RestHealth(), RestartedTasks()
    health.checks = checks_of(processors, rest, kept)
    lock_holders: dict[str, str] = {}
    app = create_app(health)
    app.add_api_route("/state", state_route(processors[0].name, processors, lock_holders))
    if settings.redis_password_file is not None:
        gate = ControlGate(partial(password_in, settings.redis_password_file))
        add_control(app, gate, {TAKE: take_action(processors[0].name, processors)})
    try:
        async with (
            serve(app, health, settings.http_host, settings.http_port, settings.probe_port),
            requesting_reanchors(settings, processors, shared, kept),
        ):
            await check_if_reachable(shared)
            helpers = [
                SelfReanchor(
                    settings, shared, processor.symbol, rebuild_requests[processor.symbol], observation_of(processor)
                ).run
                for processor in processors
            ]
            run_watches = [partial(watch_runs, shared, processor, lock_holders, rest) for processor in processors]
            await _work(processors, kept, {"self_help": helpers, "runs": run_watches}, stop)
            health.draining = True
    finally:
        for client in clients:
            await client.aclose()
    log.info("Shutdown complete")
    return 0


async def check_if_reachable(redis: Redis) -> None:
    """Raise for a wrong password now; a server that is not up yet is waited for later."""
    try:
        await check_connection(redis)
    except RedisUnavailable as error:
        log.warning("Redis does not answer yet: %s", error)


async def _work(
    processors: list[SymbolProcessor],
    kept: RestartedTasks,
    beside: Mapping[str, Sequence[Callable[[], Awaitable[None]]]],
    stop: asyncio.Event,
) -> None:
    tasks = [asyncio.create_task(kept.keep(name, work)) for name, works in beside.items() for work in works]
    try:
        async with asyncio.TaskGroup() as group:
            for processor in processors:
                group.create_task(processor.run(stop))
    except* RedisError as refused:
        raise refused.exceptions[0] from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

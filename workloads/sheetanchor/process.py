"""`sheetanchor process`: the processor of one or more symbols.

One process writes a symbol's hot keys, others stay warm and take over within a second or two of its last sign of life.
Gaps go to the stream `gaps:{S}`; who starts a re-anchor then is a coordinator elsewhere. Only when none has started one
within `self_reanchor_after_s` does this process run the same program itself, as a child.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor.command_line import variable_of
from sheetanchor.contract import Receipt, keys
from sheetanchor.errors import BadSettings, RedisError, RedisUnavailable
from sheetanchor.gaps import GAP_DETECTION_RULES, Thresholds
from sheetanchor.hot_state import HotState
from sheetanchor.rest_standing import RestStanding
from sheetanchor.settings import ProcessSettings, ReanchorSettings
from sheetanchor.standing import state_route
from sheetanchor.transport import check_connection, clear_errors, redis_client
from sheetanchor.triggers import EXIT_LOCK_HELD, EXIT_SUPERSEDED
from sheetanchor.web import Check, CheckResult, Health, create_app, serve
from sheetanchor.writer import Cadence, Role, SymbolWriter

log = logging.getLogger(__name__)

FRESH_S: Final = 5.0
"""A last write older than this is a failed check; the beat is every 100 ms."""

WANTED_LOOK_S: Final = 1.0
LOCK_LOOK_S: Final = 0.5
"""How often the answer to `/state` learns who holds the lock."""


@dataclass(slots=True)
class Wish:
    """A rebuild that is wanted and since when.

    Attributes:
        trigger: Gap rule, `start` or `suspect`; "" when nothing is wanted.
        since_s: Monotonic seconds.
    """

    trigger: str = ""
    reason: str = ""
    since_s: float = 0.0

    def set(self, trigger: str, reason: str) -> None:
        """Want something, or nothing; a standing wish keeps its time."""
        if trigger and not self.trigger:
            self.since_s = time.monotonic()
        self.trigger, self.reason = trigger, reason


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
    """Make the name of this process; no other has had it."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def reanchor_environment(settings: ProcessSettings, environ: dict[str, str]) -> dict[str, str]:
    """Give a re-anchor child the settings that this process has."""
    shared = dict(environ)
    for name, info in ReanchorSettings.model_fields.items():
        value = getattr(settings, name, None)
        if value is not None and name != "symbol":
            shared[variable_of(name, info)] = str(value)
    return shared


async def reanchor_as_child(settings: ProcessSettings, hot: HotState, symbol: str, wish: Wish) -> int:
    """Run a re-anchor and wait for it; give its lock back if it was killed.

    Returns:
        Its exit code.

    Raises:
        RedisError: If the state could not be looked at, or the lock of a killed run not be given back.
    """
    request_id = f"process-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, "-m", "sheetanchor", "reanchor", "--symbol", symbol, "--reason", wish.reason]
    # Whoever else was asked may be slow to start: what he has rebuilt by then is not to be rebuilt again.
    doubted_epoch = (await hot.anchor()).epoch
    command += ["--trigger", wish.trigger, "--request-id", request_id, "--doubted-epoch", str(doubted_epoch)]
    environment = reanchor_environment(settings, dict(os.environ))
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL)
    try:
        code = await child.wait()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    holder = await hot.lock_holder()
    if request_id in holder:
        await hot.unlock(holder)
    return code


async def newest_receipt(redis: Redis, symbol: str) -> tuple[str, Receipt | None]:
    """Give the newest receipt of any re-anchor of a symbol with its stream id, "" and None if there is none.

    Raises:
        RedisError: If Redis does not answer.
    """
    stream = keys(symbol).receipts
    with clear_errors(f"XREVRANGE {stream}"):
        newest: Any = await redis.xrevrange(stream, count=1)
    if not newest:
        return "", None
    entry_id, fields = newest[0]
    try:
        return entry_id.decode(), Receipt.from_json(fields.get(b"receipt", b"").decode())
    except ValueError:
        return entry_id.decode(), None  # of another version


async def watch_runs(redis: Redis, symbol: str, lock_holders: dict[str, str], rest: RestStanding) -> None:
    """Keep an eye on who holds the lock of a symbol, and on what the runs tell of the exchange; until cancelled."""
    hot = HotState(redis, symbol)
    known = ""
    while True:
        try:
            lock_holders[symbol] = await hot.lock_holder()
            entry_id, receipt = await newest_receipt(redis, symbol)
            if entry_id != known and receipt is not None:
                rest.take(receipt)
            known = entry_id
        except RedisError as error:
            log.debug("%s: the lock cannot be looked at: %s", symbol, error)
        await asyncio.sleep(LOCK_LOOK_S)


@asynccontextmanager
async def asking(settings: ProcessSettings, writers: list[SymbolWriter], shared: Redis) -> AsyncIterator[None]:
    """Ask the cluster for re-anchors while the block runs, if the settings say so.

    Raises:
        BadSettings: It is not known where the cluster's API is, or which namespace this is.
    """
    if settings.reanchor_requests == "none":
        yield
        return
    # Imported here: a processor without a cluster needs no HTTP client.
    from sheetanchor.requests import KubernetesApi, Requests, api_url, owner_of

    owner = owner_of(settings)
    async with KubernetesApi(api_url(settings, dict(os.environ)), settings.service_account_dir) as api:
        tasks = [
            asyncio.create_task(
                Requests(shared, writer.symbol, owner, writer.name, _is_active(writer), api.create).run()
            )
            for writer in writers
        ]
        for task in tasks:
            task.add_done_callback(_tell_end)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _tell_end(task: asyncio.Task[None]) -> None:
    """Log a fault of the asking: the processor goes on without it."""
    if not task.cancelled() and task.exception() is not None:
        log.error("no more re-anchors will be asked for", exc_info=task.exception())


def _is_active(writer: SymbolWriter) -> Callable[[], bool]:
    return lambda: writer.role is Role.WRITER


async def watch_wish(settings: ProcessSettings, redis: Redis, symbol: str, wish: Wish) -> None:
    """Run a wanted re-anchor that nobody else has begun in time; until cancelled."""
    hot = HotState(redis, symbol)
    known = ""
    while settings.self_reanchor_after_s > 0:
        await asyncio.sleep(WANTED_LOOK_S)
        try:
            before, known = known, (await newest_receipt(redis, symbol))[0]
            # A run may be over between two looks; its receipt shows that somebody takes care.
            if wish.trigger and (known != before or await hot.lock_holder()):
                wish.since_s = time.monotonic()
            if not wish.trigger or time.monotonic() - wish.since_s < settings.self_reanchor_after_s:
                continue
            log.warning("%s: nobody has begun the re-anchor for %s: running it here", symbol, wish.trigger)
            code = await reanchor_as_child(settings, hot, symbol, wish)
        except RedisError as error:
            log.warning("%s: re-anchor not begun: %s", symbol, error)
            continue
        wish.since_s = time.monotonic()
        if code not in (0, EXIT_LOCK_HELD, EXIT_SUPERSEDED):
            log.error("%s: the re-anchor ended with %d", symbol, code)


def checks_of(writers: list[SymbolWriter], rest: RestStanding) -> list[Check]:
    """What the health answers look at: cached state only."""

    async def redis() -> CheckResult:
        connected = all(writer.connected for writer in writers)
        return CheckResult("healthy" if connected else "unhealthy", {"connected": connected})

    async def anchored() -> CheckResult:
        states = {writer.symbol: _state_of(writer) for writer in writers}
        good = all(state["state"] == "anchored" for state in states.values())
        return CheckResult("healthy" if good else "degraded", {"symbols": states})

    async def lines() -> CheckResult:
        ages = {writer.symbol: _age_ms(writer) for writer in writers}
        good = all(age is not None and age < FRESH_S * 1000 for age in ages.values())
        return CheckResult("healthy" if good else "degraded", {"last_event_age_ms": ages})

    async def detector() -> CheckResult:
        known = (writer for writer in writers if writer.clock.known)
        reports = {writer.symbol: writer.lookout.report(writer.market, writer.now_us) for writer in known}
        if len(reports) == 1:
            return CheckResult("healthy", next(iter(reports.values())))
        return CheckResult("healthy", {"status": "monitoring", "symbols": reports})

    return [
        Check("redis", redis),
        Check("anchor", anchored, critical=False),
        Check("lines", lines, critical=False),
        Check("gap_detector", detector, critical=False, component=True),
        Check("binance_rest", rest.check, critical=False),
    ]


def _state_of(writer: SymbolWriter) -> dict[str, Any]:
    role = "writer" if writer.role is Role.WRITER else "warm"
    anchor = writer.anchor
    return {"role": role, "state": anchor.state, "epoch": anchor.epoch, "term": anchor.term, "reason": anchor.reason}


def _age_ms(writer: SymbolWriter) -> int | None:
    age_us = writer.event_age_us
    return None if age_us is None else age_us // 1_000


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
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    name = writer_name()
    clients = [
        redis_client(settings.redis_url, settings.redis_password_file, ca_file=settings.redis_ca_file)
        for _ in (*settings.symbol, "shared")
    ]
    shared = clients[-1]
    health = Health(settings.service_name or "sheetanchor-process", [], settings.health_check_interval_seconds)
    wishes = {symbol: Wish() for symbol in settings.symbol}
    cadence = Cadence(round(settings.flush_ms * 1e3), round(settings.book_interval_s * 1e6))
    writers = [
        SymbolWriter(
            shared,
            reading,
            symbol,
            name,
            thresholds_of(settings),
            cadence,
            wanted=wishes[symbol].set,
            beat=health.beat,
        )
        for symbol, reading in zip(settings.symbol, clients[:-1], strict=True)
    ]
    rest = RestStanding()
    health.checks = checks_of(writers, rest)
    lock_holders: dict[str, str] = {}
    app = create_app(health)
    app.add_api_route("/state", state_route(name, writers, lock_holders))
    try:
        async with (
            serve(app, health, settings.http_host, settings.http_port, settings.probe_port),
            asking(settings, writers, shared),
        ):
            await check_if_reachable(shared)
            await _work(settings, writers, wishes, lock_holders, rest, shared, stop)
            health.draining = True
    finally:
        for client in clients:
            await client.aclose()
    log.info("Shutdown complete")
    return 0


async def check_if_reachable(redis: Redis) -> None:
    """Find out now about a wrong password; a server that is not up yet is waited for later."""
    try:
        await check_connection(redis)
    except RedisUnavailable as error:
        log.warning("Redis does not answer yet: %s", error)


async def _work(
    settings: ProcessSettings,
    writers: list[SymbolWriter],
    wishes: dict[str, Wish],
    lock_holders: dict[str, str],
    rest: RestStanding,
    shared: Redis,
    stop: asyncio.Event,
) -> None:
    watchers = [asyncio.create_task(watch_wish(settings, shared, symbol, wish)) for symbol, wish in wishes.items()]
    watchers += [asyncio.create_task(watch_runs(shared, symbol, lock_holders, rest)) for symbol in wishes]
    try:
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run(stop))
    except* RedisError as refused:
        raise refused.exceptions[0] from None
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

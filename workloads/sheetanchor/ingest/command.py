"""`sheetanchor ingest`: one line, from the exchange's WebSocket to the streams `sbe:{S}:<line>`.

Frames are checked and counted but passed on unchanged. This role never writes a hot key. While Redis is unreachable
frames wait in a bounded queue; while the exchange is, it keeps trying to connect, and reports a gap after 30 s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import AsyncExitStack
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor.contract import Gap
from sheetanchor.errors import BadSettings, RedisError, RedisOutOfMemory, RedisUnavailable
from sheetanchor.ingest.connection_policy import ConnectionPolicy
from sheetanchor.ingest.connection_supervisor import ConnectionSupervisor
from sheetanchor.ingest.frame_receiver import REFUSED_MAX, FrameReceiver, measure_rate
from sheetanchor.ingest.stream_publisher import StreamPublisher
from sheetanchor.runtime.command_line import read_secret
from sheetanchor.runtime.reliability import Backoff
from sheetanchor.runtime.settings import IngestSettings
from sheetanchor.runtime.stop_signals import stop_event
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from sheetanchor.venue import TradingVenue
from sheetanchor.venue_lookup import venue_of
from sheetanchor.web.server import Check, CheckResult, Health, create_app, serve

log = logging.getLogger(__name__)

GAPS_INTERVAL_S: Final = 0.05


async def publish_gaps(redis: Redis, gaps: deque[Gap]) -> None:
    """Append gap events to their stream as soon as Redis accepts them; until cancelled.

    Raises:
        RedisRefused: Wrong password or missing permission.
    """
    reported = False
    while True:
        try:
            while gaps:
                await HotState(redis, gaps[0].symbol).add_gap(gaps[0])
                gaps.popleft()
            reported = False
        except (RedisUnavailable, RedisOutOfMemory) as error:
            if not reported:
                log.warning("a gap event waits until Redis accepts it: %s", error)
            reported = True
        await asyncio.sleep(GAPS_INTERVAL_S)


def describe(supervisor: ConnectionSupervisor, publisher: StreamPublisher) -> dict[str, dict[str, Any]]:
    """Describe the components of the line, for health and `/stats`."""
    numbers = supervisor.receiver.numbers
    last_s = numbers.last_message_s
    age_ms = None if last_s is None else round((time.monotonic() - last_s) * 1000)
    tries = numbers.sent + numbers.failed
    lost = "degraded" if supervisor.degraded else "disconnected"
    return {
        "sbe_websocket": {
            "status": "connected" if supervisor.connected else lost,
            "last_message_age_ms": age_ms,
            "messages_per_second": round(numbers.rate_per_s, 1),
            "reconnect_count": numbers.reconnects,
            **(
                {"lacking": [f"{symbol}@{stream}" for symbol, stream in supervisor.lacking]}
                if supervisor.lacking
                else {}
            ),
            **({"message": supervisor.last_error} if supervisor.last_error and not supervisor.connected else {}),
        },
        "kinesis_producer": {
            "status": "healthy" if publisher.connected else "waiting",
            "success_rate": round(numbers.sent / tries, 4) if tries else 1.0,
            "avg_latency_ms": round(1000 * numbers.send_s / numbers.sent, 3) if numbers.sent else 0.0,
            "buffer_size": publisher.waiting,
            "buffer_bytes": publisher.bytes_waiting,
        },
        "sbe_decoder": {
            "status": "loaded" if numbers.refused_in_row < REFUSED_MAX else "refusing",
            "decode_errors": numbers.decode_errors,
            "messages_decoded": numbers.messages - numbers.decode_errors,
            "avg_decode_time_us": round(1e6 * numbers.decode_s / numbers.messages, 3) if numbers.messages else 0.0,
        },
        "frames": {
            "sequence_gaps": numbers.sequence_gaps,
            "shed": numbers.shed,
            "foreign_symbol": numbers.foreign,
        },
    }


def checks_of(supervisor: ConnectionSupervisor, publisher: StreamPublisher) -> list[Check]:
    """Make the health checks; they read cached state only."""

    async def websocket() -> CheckResult:
        details = describe(supervisor, publisher)["sbe_websocket"]
        if supervisor.connected and supervisor.lacking:
            missing = ", ".join(details["lacking"])
            message = f"no messages of {missing}, while other streams continue"
            return CheckResult("degraded", {**details, "message": message})
        return CheckResult("healthy" if supervisor.connected else "unhealthy", details)

    async def producer() -> CheckResult:
        details = describe(supervisor, publisher)["kinesis_producer"]
        return CheckResult("healthy" if publisher.connected else "unhealthy", details)

    async def decoder() -> CheckResult:
        details, refused = describe(supervisor, publisher)["sbe_decoder"], supervisor.receiver.numbers.refused_in_row
        if refused < REFUSED_MAX:
            return CheckResult("healthy", details)
        reported = f"the decoder refused the last {refused} frames: does the exchange send another schema than 1?"
        return CheckResult("unhealthy", {**details, "message": reported})

    return [
        Check("sbe_websocket", websocket, component=True),
        Check("kinesis_producer", producer, component=True),
        Check("sbe_decoder", decoder, component=True),
    ]


def api_key_of(settings: IngestSettings) -> str:
    """Find the exchange's API key.

    Raises:
        BadSettings: If there is none.
    """
    if settings.api_key_file is not None:
        return read_secret(settings.api_key_file, "API key")
    if settings.api_key is None or not settings.api_key.get_secret_value():
        raise BadSettings("no API key: the binary stream requires one; set BINANCE_API_KEY or --api-key-file")
    return settings.api_key.get_secret_value()


def policy_of(settings: IngestSettings) -> ConnectionPolicy:
    """Make the connection policy from the settings."""
    return ConnectionPolicy(
        immediate_tries=settings.reconnect_immediate_tries,
        backoff_tries=settings.reconnect_backoff_tries,
        backoff=Backoff(initial_s=settings.reconnect_delay_s, max_s=settings.reconnect_delay_max_s),
        loss_s=settings.connection_loss_s,
        silence_s=settings.silence_s,
        rotate_after_s=settings.rotate_after_s,
    )


async def run(settings: IngestSettings) -> int:
    """Run one line until SIGTERM or SIGINT; then close the connection and send the queued frames.

    Returns:
        0 after a clean end, 1 if frames had to be dropped.

    Raises:
        BadSettings: If a setting cannot be used.
        RedisRefused: Redis refuses the password.
    """
    stop = stop_event()
    given_up = await run_line(settings, stop, venue_of(settings))
    log.info("Shutdown complete")
    return 1 if given_up else 0


async def run_line(settings: IngestSettings, stop: asyncio.Event, venue: TradingVenue) -> int:
    """Run one line until an event is set.

    Returns:
        How many frames had to be dropped at the end.

    Raises:
        BadSettings: If a setting cannot be used.
        RedisRefused: Redis refuses the password.
    """
    api_key = api_key_of(settings)
    service = settings.service_name or "sheetanchor-ingest"
    health = Health(service, [], settings.health_check_interval_seconds)
    redis = redis_client(settings.redis_url, settings.redis_password_file, ca_file=settings.redis_ca_file)
    receiver = FrameReceiver(settings.symbol, settings.queue_bytes_max)
    publisher = StreamPublisher(redis, settings.line, receiver, settings.linger_ms / 1000)
    try:
        supervisor = ConnectionSupervisor(
            venue,
            settings.ws_url,
            settings.line,
            settings.symbol,
            api_key,
            receiver,
            policy_of(settings),
            settings.streams,
        )
        health.checks = checks_of(supervisor, publisher)
        app = create_app(health)

        async def stats() -> dict[str, Any]:
            return {"service": service, "line": settings.line, "sbe_stats": describe(supervisor, publisher)}

        app.add_api_route("/stats", stats)
        if settings.api_secret is not None:
            log.info("api_secret has no effect: this role sends no signed requests")
        async with AsyncExitStack() as listening:
            if settings.metrics_port not in (0, settings.http_port):
                alone = create_app(health)
                await listening.enter_async_context(serve(alone, health, settings.http_host, settings.metrics_port))
            await listening.enter_async_context(
                serve(app, health, settings.http_host, settings.http_port, settings.probe_port)
            )
            await _work(supervisor, publisher, redis, stop, health)
        return publisher.given_up
    finally:
        await redis.aclose()


async def _work(
    supervisor: ConnectionSupervisor, publisher: StreamPublisher, redis: Redis, stop: asyncio.Event, health: Health
) -> None:
    """Run all components; once `stop` is set, the connection ends first and the queue is emptied after it."""
    closed = asyncio.Event()

    async def keep() -> None:
        await supervisor.run(stop, health)
        closed.set()

    async def drain() -> None:
        await stop.wait()
        log.info("stopping: closing the connection, then sending the queued frames")
        health.draining = True

    async def send() -> None:
        await publisher.run(closed)
        for task in side:
            task.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            side = [
                group.create_task(publish_gaps(redis, supervisor.gaps)),
                group.create_task(measure_rate(supervisor.receiver.numbers)),
                group.create_task(drain()),
            ]
            group.create_task(keep())
            group.create_task(send())
    except* RedisError as refused:
        raise first_of(refused) from None


def first_of(group: BaseExceptionGroup[RedisError]) -> BaseException:
    """Give the first error of a group, without the groups around it."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first

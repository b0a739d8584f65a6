"""`sheetanchor ingest`: one line, from the exchange's WebSocket to the streams `sbe:{S}:<line>`.

Frames are checked and counted but passed on as they came. This role never writes a hot key. When Redis is gone frames
wait in a bounded queue; when the exchange is gone it keeps trying, and says so after 30 s.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from redis.asyncio import Redis

from sheetanchor import metrics
from sheetanchor._decoder import validate_frame
from sheetanchor.command_line import read_secret
from sheetanchor.connection import Outage, Policy, SequenceWatch, Stage, Tries, Verdict, attempt_budget, judge
from sheetanchor.contract import Gap
from sheetanchor.errors import BadSettings, ExchangeError, RedisError, RedisOutOfMemory, RedisUnavailable
from sheetanchor.feed import Connection, stream_url
from sheetanchor.gaps import Finding, gap_of
from sheetanchor.hot_state import HotState
from sheetanchor.outbox import Batch, Outbox
from sheetanchor.reliability import Backoff
from sheetanchor.sbe import DecodeError
from sheetanchor.settings import IngestSettings
from sheetanchor.transport import LineWriter, redis_client, server_identity
from sheetanchor.web import Check, CheckResult, Health, create_app, serve

log = logging.getLogger(__name__)

STREAM_NAMES: Final = {10000: "trade", 10001: "bestBidAsk", 10002: "depth20", 10003: "depth"}
SPARE_TEMPLATE: Final = 10001

TICK_S: Final = 0.05
"""How often the state of connections is looked at; silence is judged in seconds."""

REDIS_BACKOFF: Final = Backoff(initial_s=0.05, max_s=1.0)
FLUSH_AT_END_S: Final = 5.0
IDENTITY_INTERVAL_S: Final = 1.0
RATE_SPAN_S: Final = 10.0


@dataclass(slots=True)
class Numbers:
    """What has been counted, for health and `/stats`."""

    messages: int = 0
    decode_errors: int = 0
    decode_s: float = 0.0
    last_message_s: float | None = None
    reconnects: int = 0
    sent: int = 0
    failed: int = 0
    send_s: float = 0.0
    shed: int = 0
    foreign: int = 0
    rate_per_s: float = 0.0


class Intake:
    """Takes frames from connections, checks and counts them, and queues them per symbol."""

    def __init__(self, symbols: list[str], bytes_max: int) -> None:
        self.outboxes = {symbol: Outbox(bytes_max // len(symbols)) for symbol in symbols}
        self.numbers = Numbers()
        self.arrived = asyncio.Event()
        self._only = symbols[0] if len(symbols) == 1 else None

    def take(self, frame: bytes, received_us: int, watch: SequenceWatch) -> None:
        """Take one frame.

        A frame that cannot be read belongs to the only symbol of a line, if there is just one; it is passed on all the
        same, so that what was received can be replayed to the letter. Else it is counted and dropped.
        """
        numbers = self.numbers
        numbers.messages += 1
        numbers.last_message_s = time.monotonic()
        started = time.perf_counter()
        try:
            template, symbol, _, first_id, last_id, _ = validate_frame(frame)
        except DecodeError as error:
            numbers.decode_errors += 1
            metrics.SBE_DECODE_ERRORS.labels(error.kind).inc()
            template, symbol, first_id, last_id = 0, self._only or "", 0, 0
        spent_s = time.perf_counter() - started
        numbers.decode_s += spent_s
        metrics.SBE_DECODE_DURATION.observe(spent_s)
        outbox = self.outboxes.get(symbol)
        if outbox is None:
            numbers.foreign += 1
            return
        stream = STREAM_NAMES.get(template, "unreadable")
        metrics.SBE_MESSAGES.labels(symbol, stream).inc()
        if stream in ("trade", "depth") and watch.jumped(symbol, stream, first_id, last_id):
            metrics.SBE_SEQUENCE_GAPS.labels(symbol, stream).inc()
        for _ in outbox.put(received_us, frame, template == SPARE_TEMPLATE):
            numbers.shed += 1
            metrics.FRAMES_SHED.labels(symbol, "any").inc()
        self.arrived.set()


class Sender:
    """Brings what is queued into Redis, at once when idle, else at most every few milliseconds."""

    def __init__(self, redis: Redis, line: str, intake: Intake, flush_s: float) -> None:
        self.redis = redis
        self._intake = intake
        self._flush_s = flush_s
        self._writers = {symbol: LineWriter(redis, symbol, line) for symbol in intake.outboxes}
        self._in_hand: dict[str, Batch] = {}
        self._replication_id = ""
        self.connected = False

    @property
    def waiting(self) -> int:
        """Frames that Redis does not have yet."""
        queued = sum(len(outbox) for outbox in self._intake.outboxes.values())
        return queued + sum(batch.count for batch in self._in_hand.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Send until told to stop and nothing waits, or the time for that is over.

        Raises:
            RedisRefused: A wrong password or a missing permission.
        """
        delays = REDIS_BACKOFF.delays(random.random)
        stopping_s: float | None = None
        while True:
            if stop.is_set():
                stopping_s = stopping_s or time.monotonic()
                if not self.waiting or time.monotonic() - stopping_s > FLUSH_AT_END_S:
                    return
            try:
                async with asyncio.timeout(0.2):
                    await self._intake.arrived.wait()
            except TimeoutError:
                continue
            self._intake.arrived.clear()
            began_s = time.monotonic()
            try:
                await self._send_all()
                self.connected = True
                delays = REDIS_BACKOFF.delays(random.random)
            except (RedisUnavailable, RedisOutOfMemory) as error:
                if self.connected:
                    log.warning("frames wait for Redis: %s", error)
                self.connected = False
                self._intake.numbers.failed += 1
                self._intake.arrived.set()
                await asyncio.sleep(next(delays))
                continue
            rest_s = self._flush_s - (time.monotonic() - began_s)
            if rest_s > 0 and self._intake.arrived.is_set():
                await asyncio.sleep(rest_s)

    async def _send_all(self) -> None:
        for symbol, outbox in self._intake.outboxes.items():
            # What is in hand was taken but maybe not sent; readers know duplicates by their ids.
            while (batch := self._in_hand.get(symbol) or outbox.take()) is not None:
                self._in_hand[symbol] = batch
                await self._send(symbol, batch)
                outbox.sent(batch, time.time_ns() // 1_000)
                del self._in_hand[symbol]
        metrics.QUEUE_BYTES.set(sum(outbox.bytes_waiting for outbox in self._intake.outboxes.values()))

    async def _send(self, symbol: str, batch: Batch) -> None:
        started = time.perf_counter()
        await self._writers[symbol].append_packed(batch.count, batch.first_received_us, batch.packed)
        numbers = self._intake.numbers
        numbers.sent += 1
        numbers.send_s += time.perf_counter() - started
        metrics.RECORDS_SENT.labels(symbol).inc()
        metrics.INGEST_DELAY.observe(max(0.0, time.time() - batch.first_received_us / 1e6))

    async def watch_identity(self) -> None:
        """Append what was sent of late again when Redis turns out to hold another data set; until cancelled."""
        while True:
            await asyncio.sleep(IDENTITY_INTERVAL_S)
            try:
                replication_id = (await server_identity(self.redis)).replication_id
                before, self._replication_id = self._replication_id, replication_id
                if before and before != replication_id:
                    await self._send_again()
            except RedisError as error:
                log.debug("Redis' identity is not known just now: %s", error)

    async def _send_again(self) -> None:
        log.warning("Redis' replication id has changed: appending the last 15 s again")
        for symbol, outbox in self._intake.outboxes.items():
            for batch in outbox.recent():
                await self._send(symbol, batch)


@dataclass(slots=True)
class Live:
    """A connection and the task that runs it."""

    connection: Connection
    task: asyncio.Task[str]
    welcomed: bool = False


@dataclass(slots=True)
class Keeper:
    """Keeps one healthy connection to the exchange, two while one replaces the other."""

    settings: IngestSettings
    session: aiohttp.ClientSession
    api_key: str
    intake: Intake
    policy: Policy
    gaps: list[Gap] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)
    tries: Tries = field(default_factory=Tries)
    outage: Outage = field(default_factory=Outage)
    connected: bool = False
    _next_try_s: float = 0.0
    _ever_healthy: bool = False

    async def run(self, stop: asyncio.Event, health: Health) -> None:
        """Keep the connection until told to stop, then close it."""
        budget = attempt_budget(time.monotonic)
        self.outage = self.outage.begin(time.monotonic())
        while not stop.is_set():
            health.beat()
            now_s = time.monotonic()
            self._bury(now_s)
            replacing = await self._judge_all(now_s)
            wanted = not self.live or (replacing and len(self.live) == 1)
            if wanted and now_s >= self._next_try_s and budget.take():
                self._open(now_s)
            self._tell_loss(now_s)
            await asyncio.sleep(TICK_S)
        for live in self.live:
            await live.connection.close()
        await asyncio.gather(*(live.task for live in self.live), return_exceptions=True)

    def _open(self, now_s: float) -> None:
        watch = SequenceWatch()
        connection = Connection(
            stream_url(self.settings.ws_url, self.settings.symbol, self.settings.streams),
            self.api_key,
            self.settings.line,
            lambda frame, received_us: self.intake.take(frame, received_us, watch),
        )
        self.live.append(Live(connection, asyncio.create_task(connection.run(self.session))))
        if not self.connected and self._ever_healthy:
            stage = self.tries.stage(self.policy)
            delay_s = self.tries.delay_s(self.policy, 0.5)
            log.info("reconnection attempt %d (%s, after %.1f s)", self.tries.count + 1, stage.value, delay_s)
            if stage is Stage.DEGRADED and self.tries.made().count == self._exhausted_at + 1:
                log.error("All SBE reconnection attempts exhausted")
                log.error("SBE reconnection failed, entering degraded mode")
                metrics.ALERTS.labels("SBE_RECONNECTION_FAILED").inc()
        self.tries = self.tries.made()
        self._next_try_s = now_s + self.tries.delay_s(self.policy, random.random())

    @property
    def _exhausted_at(self) -> int:
        return self.policy.immediate_tries + self.policy.backoff_tries

    def _bury(self, now_s: float) -> None:
        """Take note of connections that have ended."""
        for live in [live for live in self.live if live.task.done()]:
            self.live.remove(live)
            if live.task.cancelled():
                continue
            error = live.task.exception()
            if error is None:
                log.info("connection ended: %s", live.task.result())
            elif isinstance(error, ExchangeError):
                log.warning("%s", error)
                metrics.RECONNECTION_ATTEMPTS.labels("sbe", "failure").inc()
            else:
                raise error
        if self.connected and not any(live.connection.vitals.healthy for live in self.live):
            self.connected = False
            log.warning("SBE WebSocket disconnected")
            metrics.SBE_CONNECTION_STATUS.labels(self.settings.line).set(0)
            self.outage = self.outage.begin(now_s)
            self._next_try_s = now_s

    async def _judge_all(self, now_s: float) -> bool:
        """Close what is no use any more.

        Returns:
            Whether a connection wants to be replaced.
        """
        replacing = False
        for live in list(self.live):
            vitals = live.connection.vitals
            if vitals.healthy and not live.welcomed:
                await self._welcome(live)
            verdict = judge(vitals, now_s, self.policy)
            if verdict in (Verdict.SILENT, Verdict.MUTE):
                log.warning("connection closed here: %s", "no message for too long")
                live.task.cancel()
                self.live.remove(live)
                if vitals.last_message_s is not None and not any(other.welcomed for other in self.live):
                    # The loss began with the last message, not when it was noticed.
                    self.outage = self.outage.begin(vitals.last_message_s)
            replacing = replacing or verdict is Verdict.REPLACE
        return replacing

    async def _welcome(self, live: Live) -> None:
        """A connection has brought its first message: it takes over from any other."""
        live.welcomed = True
        self.tries = Tries()
        self.outage = Outage()
        metrics.SBE_CONNECTION_STATUS.labels(self.settings.line).set(1)
        if self._ever_healthy:
            self.intake.numbers.reconnects += 1
            metrics.RECONNECTION_ATTEMPTS.labels("sbe", "success").inc()
            log.info("SBE reconnection successful")
        else:
            log.info("SBE WebSocket connected")
        self.connected = self._ever_healthy = True
        for other in [other for other in self.live if other is not live]:
            await other.connection.close()

    def _tell_loss(self, now_s: float) -> None:
        if not self.outage.due(now_s, self.policy) or self.outage.since_s is None:
            return
        self.outage = self.outage.tell()
        reason = f"line {self.settings.line} has had no connection for {now_s - self.outage.since_s:.0f} s"
        log.error("connection_loss: %s", reason)
        for symbol in self.settings.symbol:
            source = f"ingest/{self.settings.line}"
            finding = Finding("connection_loss", reason)
            self.gaps.append(gap_of(finding, symbol, source, time.time_ns() // 1_000, 0))
            metrics.GAPS.labels(symbol, "connection_loss", "emergency_reanchor").inc()


async def publish_gaps(redis: Redis, gaps: list[Gap]) -> None:
    """Bring gap events to their stream as soon as Redis takes them; until cancelled."""
    while True:
        while gaps:
            try:
                await HotState(redis, gaps[0].symbol).add_gap(gaps[0])
            except (RedisUnavailable, RedisOutOfMemory) as error:
                log.warning("a gap event waits for Redis: %s", error)
                break
            gaps.pop(0)
        await asyncio.sleep(TICK_S)


async def measure_rate(numbers: Numbers) -> None:
    """Keep the rate of messages up to date; until cancelled."""
    while True:
        before = numbers.messages
        await asyncio.sleep(1.0)
        share = 1.0 / RATE_SPAN_S if numbers.rate_per_s else 1.0
        numbers.rate_per_s += share * (numbers.messages - before - numbers.rate_per_s)


def describe(keeper: Keeper, sender: Sender) -> dict[str, dict[str, Any]]:
    """Describe the parts of the line, for health and `/stats`."""
    numbers = keeper.intake.numbers
    last_s = numbers.last_message_s
    age_ms = None if last_s is None else round((time.monotonic() - last_s) * 1000)
    tries = numbers.sent + numbers.failed
    return {
        "sbe_websocket": {
            "status": "connected" if keeper.connected else "disconnected",
            "last_message_age_ms": age_ms,
            "messages_per_second": round(numbers.rate_per_s, 1),
            "reconnect_count": numbers.reconnects,
        },
        "kinesis_producer": {
            "status": "healthy" if sender.connected else "waiting",
            "success_rate": round(numbers.sent / tries, 4) if tries else 1.0,
            "avg_latency_ms": round(1000 * numbers.send_s / numbers.sent, 3) if numbers.sent else 0.0,
            "buffer_size": sender.waiting,
        },
        "sbe_decoder": {
            "status": "loaded",
            "decode_errors": numbers.decode_errors,
            "messages_decoded": numbers.messages - numbers.decode_errors,
            "avg_decode_time_us": round(1e6 * numbers.decode_s / numbers.messages, 3) if numbers.messages else 0.0,
        },
    }


def checks_of(keeper: Keeper, sender: Sender) -> list[Check]:
    """What the health answers look at: cached state only."""

    async def websocket() -> CheckResult:
        return CheckResult("healthy" if keeper.connected else "unhealthy", describe(keeper, sender)["sbe_websocket"])

    async def producer() -> CheckResult:
        details = describe(keeper, sender)["kinesis_producer"]
        return CheckResult("healthy" if sender.connected else "unhealthy", details)

    async def decoder() -> CheckResult:
        return CheckResult("healthy", describe(keeper, sender)["sbe_decoder"])

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
        raise BadSettings("no API key: the binary stream wants one; set BINANCE_API_KEY or --api-key-file")
    return settings.api_key.get_secret_value()


def policy_of(settings: IngestSettings) -> Policy:
    """Give the connection policy its numbers."""
    return Policy(
        immediate_tries=settings.reconnect_immediate_tries,
        backoff_tries=settings.reconnect_backoff_tries,
        backoff=Backoff(initial_s=settings.reconnect_delay_s, max_s=settings.reconnect_delay_max_s),
        loss_s=settings.connection_loss_s,
        silence_s=settings.silence_s,
        rotate_after_s=settings.rotate_after_s,
    )


async def run(settings: IngestSettings) -> int:
    """Run one line until SIGTERM or SIGINT; then close the connection and send what waits.

    Returns:
        0 after a clean end.

    Raises:
        BadSettings: If a setting cannot be used.
        RedisRefused: If Redis wants another password.
    """
    api_key = api_key_of(settings)
    stop, flushed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    redis = redis_client(settings.redis_url, settings.redis_password_file)
    intake = Intake(settings.symbol, settings.queue_bytes_max)
    sender = Sender(redis, settings.line, intake, settings.flush_ms / 1000)
    service = settings.service_name or f"sheetanchor-ingest-{settings.line}"
    health = Health(service, [], settings.health_check_interval_seconds)
    try:
        async with aiohttp.ClientSession() as session:
            keeper = Keeper(settings, session, api_key, intake, policy_of(settings))
            health.checks = checks_of(keeper, sender)
            app = create_app(health)
            app.add_api_route("/stats", lambda: {"service": service, "sbe_stats": describe(keeper, sender)})
            async with serve(app, health, settings.http_host, settings.http_port):
                await _work(keeper, sender, stop, flushed, health)
    finally:
        await redis.aclose()
    log.info("Shutdown complete")
    return 0


async def _work(keeper: Keeper, sender: Sender, stop: asyncio.Event, flushed: asyncio.Event, health: Health) -> None:
    watchers = [
        asyncio.create_task(publish_gaps(sender.redis, keeper.gaps)),
        asyncio.create_task(measure_rate(keeper.intake.numbers)),
        asyncio.create_task(sender.watch_identity()),
    ]

    async def keep() -> None:
        await keeper.run(stop, health)
        health.draining = True
        flushed.set()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(keep())
            group.create_task(sender.run(flushed))
    except* RedisError as refused:
        raise refused.exceptions[0] from None
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

"""The supervisor: starts the processes in order, watches them, and ends them in order.

It owns the child processes and the embedded server's folder. When it receives a signal, or its time is over, it reads
the state one last time and ends everything. A child that exits is restarted; when this process exits, for any reason,
the kernel ends the children.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from redis.asyncio import Redis

from sheetanchor.contract import Gap, keys
from sheetanchor.errors import ExchangeUnavailable, RedisError
from sheetanchor.local import leftovers, redis_server
from sheetanchor.local.coordinator import Coordinator
from sheetanchor.local.dashboard.board import Board, ProcessRun, why_no_prediction
from sheetanchor.local.dashboard.probe import EXAMINED, Probe, delay_to_phase_s, unready_reason
from sheetanchor.local.dashboard.tally import ShownPrediction, Tally, end_after
from sheetanchor.local.dashboard.training_overlap import training_overlap_of
from sheetanchor.local.dashboard.watcher import Watcher
from sheetanchor.local.processes import Child, Spec, free_port
from sheetanchor.local.relay import Relay
from sheetanchor.local.roles import EXCHANGE, LocalPlan, child_environment, choose_market
from sheetanchor.policy import reanchor_scheduler
from sheetanchor.runtime.settings import LocalSettings
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from sheetanchor.store.redis_connection import translate_errors

log = logging.getLogger(__name__)

FIRST_SLOT_WITHIN_S: Final = 60.0
EXCHANGE_WITHIN_S: Final = 30.0
FEED_WITHIN_S: Final = 10.0
"""How long the first anchor and the replicas wait for a line of frames, so that the first prediction is not
degraded."""

SETTLE_S: Final = 3.0
"""How long a rebuild in progress may take when the time is over; most take less than two seconds."""

MISSED_REPORTED_AFTER_US: Final = 500_000
"""A prediction that is committed at the end of its slot is read here a little later."""

POLL_S: Final = 0.05
ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDING_ORDER: Final = (("infer/", "process", "ingest/"), (EXCHANGE,), ("redis",))
"""Order of ending: readers and writers first, then what they depend on."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Callbacks for predictions and missed slots."""

    on_prediction: Callable[[str, ShownPrediction], None]
    on_missed: Callable[[str, int], None]


async def wait_for_port(child: Child, within_s: float) -> None:
    """Wait until a process accepts connections on its port.

    Raises:
        ExchangeUnavailable: If it does not in time; with its last error.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", child.port)
        except OSError as error:
            if time.monotonic() > deadline:
                reported = child.last_error or "it has logged no error"
                message = f"{child.spec.name} does not listen within {within_s:g} s: {reported}"
                raise ExchangeUnavailable(message) from error
            await asyncio.sleep(POLL_S)
        else:
            writer.close()
            return


class Supervisor:
    """One run of the whole pipeline.

    One class, since it owns every child and task of a run, and has to end all of them whatever fails.

    Args:
        settings: Settings of the run.
        environ: Environment of this process.
        relay: Receives log lines.
        listeners: Callbacks for predictions and missed slots.

    Raises:
        BadSettings: If the settings cannot be used.
    """

    def __init__(self, settings: LocalSettings, environ: Mapping[str, str], relay: Relay, listeners: Listeners) -> None:
        market = choose_market(settings, free_port)
        self.run = ProcessRun()
        self.board = Board(self.run, [Tally(symbol) for symbol in settings.symbol], relay, market.kind)
        self._settings = settings
        self._environ = child_environment(environ)
        self._relay = relay
        self._listeners = listeners
        self._market = market
        self._background: list[asyncio.Task[None]] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._watcher: Watcher | None = None
        self._reported: dict[str, int] = {}

    async def supervise(self) -> int:
        """Run the pipeline until its time is over, a signal is received, or it fails.

        Returns:
            Exit code: 0 after a regular end with an anchored state, else 1; `run.failure` says why.

        Raises:
            BadSettings: If a setting turns out to be wrong.
            RedisError: If an external Redis does not answer.
        """
        with self._signals(), self._folder() as folder:
            url = self._settings.redis_url or f"unix://{redis_server.socket_path(folder)}"
            try:
                async with asyncio.TaskGroup() as group:
                    await self._live(group, url, folder)
            except BaseExceptionGroup as failures:
                raise _first(failures) from None
        return 0 if self.board.sound and not self.run.failure else 1

    async def _live(self, group: asyncio.TaskGroup, url: str, folder: Path) -> None:
        redis = redis_client(url, self._settings.redis_password_file)
        try:
            async with aiohttp.ClientSession() as session:
                self._spawn(group, self._start(group, redis, session, url, folder))
                await self._until_over(session)
                self.run.phase = "ending"
                await self._settle()
                for task in self._background:
                    task.cancel()
                await asyncio.gather(*self._background, return_exceptions=True)
                await self._end_children()
        finally:
            await redis.aclose()

    # -- starting -----------------------------------------------------------------------------------------------------

    async def _start(
        self, group: asyncio.TaskGroup, redis: Redis, session: aiohttp.ClientSession, url: str, folder: Path
    ) -> None:
        await self._start_redis(group, redis, folder)
        overlap = await asyncio.to_thread(training_overlap_of, self._settings, replayed=self._market.kind == "local")
        self.board.skill_note = overlap.note
        plan = LocalPlan(self._settings, self._market, url, self._environ, time.time(), overlap.begin_at_s)
        tallies = self.board.tallies
        for tally in tallies:
            await leftovers.refuse_if_alive(redis, HotState(redis, tally.symbol))
            await leftovers.clear(redis, tally.symbol, same_market=self._market.kind == "live")
        self._watcher = Watcher(redis, tallies, self._listeners.on_prediction, self._take_gap)
        await self._watcher.begin()
        policy = reanchor_scheduler.Policy(suppressed=frozenset(self._settings.suppress_rules))
        self.board.coordinators = [
            Coordinator(redis, tally.symbol, plan.reanchor, self._relay, policy) for tally in tallies
        ]
        self.board.probe = probe = Probe(session, redis, self._settings.symbol)
        self._spawn(group, self._watcher.run())
        self._spawn(group, self._poll_probes(probe))
        await self._start_feed(group, plan)
        await self._wait_for_lines(redis)
        for spec in plan.replicas(free_port):
            self._keep(group, spec)
        for coordinator in self.board.coordinators:
            start = reanchor_scheduler.Request(
                reanchor_scheduler.IMMEDIATE, "start", "start", self.run.now_us(), force=True
            )
            coordinator.ask(start)
            self._spawn(group, coordinator.run())

    async def _start_redis(self, group: asyncio.TaskGroup, redis: Redis, folder: Path) -> None:
        if self._settings.redis_url:
            for warning in await redis_server.check_external(redis, self._settings.redis_url):
                log.warning(warning)
            return
        binary = redis_server.find_binary()
        self.board.redis_name = f"{binary.kind} {binary.version}"
        spec = redis_server.server_spec(binary, folder, len(self._settings.symbol))
        self._keep(group, spec)
        await redis_server.wait_until_up(redis)

    async def _start_feed(self, group: asyncio.TaskGroup, plan: LocalPlan) -> None:
        local = self._market.kind == "local"
        if local:
            exchange = self._keep(group, plan.exchange())
        # The processor loads while the exchange does; ingestors are started later, since it would refuse them until
        # then.
        self._keep(group, plan.processor(free_port))
        if local:
            await wait_for_port(exchange, EXCHANGE_WITHIN_S)
        for spec in plan.ingestors(free_port):
            self._keep(group, spec)

    async def _wait_for_lines(self, redis: Redis) -> None:
        """Wait for frames of every symbol, for a limited time: a degraded prediction is better than none."""
        deadline = time.monotonic() + FEED_WITHIN_S
        names = [keys(coordinator.symbol).lines for coordinator in self.board.coordinators]
        while time.monotonic() < deadline:
            with contextlib.suppress(RedisError), translate_errors(f"EXISTS {' '.join(names)}"):
                if await redis.exists(*names) == len(names):
                    return
            await asyncio.sleep(POLL_S)

    def _keep(self, group: asyncio.TaskGroup, spec: Spec) -> Child:
        child = Child(spec, self._relay)
        self.board.children.append(child)
        self._keepers.append(group.create_task(child.keep_running(), name=spec.name))
        return child

    def _spawn(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(group.create_task(work))

    # -- working ------------------------------------------------------------------------------------------------------

    def _take_gap(self, symbol: str, gap: Gap) -> None:
        for coordinator in self.board.coordinators:
            if coordinator.symbol == symbol:
                coordinator.take_gap(gap)

    async def _poll_probes(self, probe: Probe) -> None:
        while True:
            await asyncio.sleep(delay_to_phase_s(self.run.now_us()) or POLL_S)
            with contextlib.suppress(RedisError):
                await probe.poll(self.board.children)
            for child in self.board.children:
                if child.spec.name.startswith(EXAMINED) and child.is_hung:
                    log.error("%s runs but does not answer any more: it is killed and restarted", child.spec.name)
                    child.restart()

    async def _until_over(self, session: aiohttp.ClientSession) -> None:
        run, tallies = self.run, self.board.tallies
        while not run.stop.is_set():
            self.board.observe_clock()
            self._report_missed()
            firsts = [tally.first_slot for tally in tallies if tally.first_slot is not None]
            if len(firsts) == len(tallies):
                run.phase = "running"
                if self._settings.for_ and run.end_us is None:
                    self._end_at(end_after(firsts, self._settings.for_))
            elif time.monotonic() - run.started > FIRST_SLOT_WITHIN_S:
                run.failure = await self._explain(session)
                return
            if run.end_us is not None and run.now_us() >= run.end_us:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await run.stop.wait()

    def _end_at(self, end_us: int) -> None:
        self.run.end_us = end_us
        for tally in self.board.tallies:
            tally.end_us = end_us

    def _report_missed(self) -> None:
        now_us = self.run.now_us() - MISSED_REPORTED_AFTER_US
        for tally in self.board.tallies:
            for slot in tally.missed_slots(now_us):
                if slot > self._reported.get(tally.symbol, -1):
                    self._reported[tally.symbol] = slot
                    self._listeners.on_missed(tally.symbol, slot)

    async def _explain(self, session: aiohttp.ClientSession) -> str:
        unready = {}
        for child in self.board.children:
            reason = await unready_reason(session, child) if child.port and child.spec.name != EXCHANGE else ""
            if reason:
                unready[child.spec.name] = reason
        messages = [coordinator.last_message for coordinator in self.board.coordinators]
        why = why_no_prediction(self.board.children, unready, " ".join(filter(None, messages)))
        return f"no prediction was committed within {FIRST_SLOT_WITHIN_S:.0f} s: {why}"

    # -- ending -------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Count what was committed in time, and read the final state; a running rebuild may end."""
        if self.run.end_us is None:
            self._end_at(self.run.now_us())
        deadline = time.monotonic() + SETTLE_S
        try:
            if self._watcher is not None:
                await self._watcher.read()
            while True:
                for coordinator in self.board.coordinators:
                    await coordinator.poll()
                running = any(coordinator.running for coordinator in self.board.coordinators)
                if self.board.sound or not running or time.monotonic() > deadline:
                    break
                await asyncio.sleep(POLL_S)
            if self._watcher is not None:
                await self._watcher.read()
        except RedisError as error:
            self.run.failure = self.run.failure or f"the final state cannot be read: {error}"
        if not self.board.sound and not self.run.failure:
            self.run.failure = f"the final state is not anchored: {self.board.unsound_reason()}"

    async def _end_children(self) -> None:
        for names in ENDING_ORDER:
            await asyncio.gather(*(c.stop() for c in self.board.children if c.spec.name.startswith(names)))
        await asyncio.gather(*self._keepers, return_exceptions=True)
        log.info("Shutdown complete")

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Create the embedded server's folder, and remove it afterwards."""
        if self._settings.redis_url:
            yield Path()
            return
        redis_server.remove_leftovers()
        folder = redis_server.make_folder()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in ENDING_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in ENDING_SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.run.stop.is_set():  # a second signal: end at once
            for child in self.board.children:
                child.kill()
        else:
            log.info("a signal was received, the run ends")
        self.run.stop.set()


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the first error of a group."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first

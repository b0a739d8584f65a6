"""`sheetanchor redis`: one server of a replicated Redis, or its Sentinel, run as a child of this process.

This process decides in which role the server may start, writes its configuration, starts it, serves health checks and
metrics for it, loads the function library while it is the master, and hands the master role over before it ends. When
the child ends by itself this process ends too, so that a restart decides about the role again.

One module, since the order of these steps prevents writes to two masters: it has to be read as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import HTTPException
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sheetanchor.errors import BadSettings, OperationFailed, RedisError
from sheetanchor.managed_redis import topology
from sheetanchor.managed_redis.acl_users import NODE, read_passwords, server_users
from sheetanchor.managed_redis.config_files import (
    APPEND_FOLDER,
    SOCKET,
    USERS_FILE,
    Tuning,
    read_sentinel_file,
    sentinel_config,
    sentinel_notes,
    server_config,
)
from sheetanchor.managed_redis.peer_reachability import PeerReachability, ask_reachability
from sheetanchor.managed_redis.peers import Peers, Replication, replication_of
from sheetanchor.managed_redis.server_binary import find_binary
from sheetanchor.managed_redis.topology import Decision, NodeStep, RedisNode, SentinelReport, TopologyObservation
from sheetanchor.runtime import metrics
from sheetanchor.runtime.settings import RedisSettings
from sheetanchor.runtime.stop_signals import stop_event
from sheetanchor.store.function_library import LibraryCheck, execute, keep_library
from sheetanchor.store.redis_client import client_of, redis_client
from sheetanchor.store.sentinel_pool import Master, ask_master
from sheetanchor.web.control import ControlGate, ControlRefused, add_control, password_in
from sheetanchor.web.server import Check, CheckResult, Health, create_app, serve

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
WATCH_EVERY_S: Final = 1.0
SENTINEL_EVERY_S: Final = 0.5
"""What a Sentinel says of its peers decides within seconds whether a zone is lost."""

ASK_TIMEOUT_S: Final = 1.0
END_TIMEOUT_S: Final = 8.0
HEALTH_INTERVAL_S: Final = 1.0
HAND_OVER_NOW_S: Final = 8.0
"""A promotion takes a second or two; writes are paused for four at most."""

FAILOVER_EVERY_S: Final = 3.0
"""A Sentinel refuses a second failover at the same time; an earlier request would be refused."""

INFO_PERIOD_MS: Final = 500
"""How often a Sentinel reads each server's INFO. With the default of ten seconds it may know no eligible replica when
the master fails, and sees a promotion half a second later."""

HAND_OVER: Final = "hand-over"

BUSY: Final = ("BUSY", "UNKILLABLE")
"""A server's answers begin so while a function or a script has been running for five seconds."""

SERVER_CONFIG: Final = "redis.conf"
SENTINEL_CONFIG: Final = "sentinel.conf"
SENTINEL_NOTES: Final = "sentinel.notes"


@dataclass(slots=True)
class NodeState:
    """What was last read from the child; None while it does not answer."""

    replication: Replication | None = None
    watched: Master | None = None
    hurried: bool = False
    noted: SentinelReport | None = None
    reached: PeerReachability | None = None
    reached_s: float = 0.0


def tuning_of(settings: RedisSettings) -> Tuning:
    """Give the settings that are common to all nodes."""
    return Tuning(
        bind=settings.bind,
        service=settings.service,
        quorum=settings.quorum,
        down_after_ms=settings.down_after_ms,
        failover_timeout_ms=settings.failover_timeout_ms,
        min_replicas_to_write=settings.min_replicas_to_write,
        min_replicas_max_lag_s=settings.min_replicas_max_lag_s,
        maxmemory_bytes=settings.maxmemory_bytes,
        persistent=settings.persistent,
    )


def nodes_of(settings: RedisSettings) -> tuple[RedisNode, tuple[RedisNode, ...]]:
    """Give the own node and all nodes.

    Raises:
        BadSettings: If a node cannot be parsed, or it is ambiguous which one this is.
    """
    try:
        nodes = tuple(map(topology.parse_node, settings.nodes))
    except ValueError as error:
        raise BadSettings(f"nodes: {error}") from error
    try:
        return topology.own_node(nodes, settings.node, socket.gethostname()), nodes
    except ValueError as error:
        raise BadSettings(f"node: {error}") from error


class NodeProcess:
    """One server or Sentinel, and what is run around it.

    One class, since the tasks that watch the child have to stop before it is ended, and none may start after.
    """

    def __init__(self, settings: RedisSettings, health: Health) -> None:
        self._settings = settings
        self._tuning = tuning_of(settings)
        self._own, self._nodes = nodes_of(settings)
        self._name = self._own.host.rstrip(".")
        self._passwords = read_passwords(settings.password_dir) | {NODE: secrets.token_hex(32)}
        self._folder = settings.data_dir.absolute()
        self._config_folder = (settings.config_dir or settings.data_dir).absolute()
        self._binary = str(settings.server) if settings.server else find_binary().path
        self._health = health
        self._peers = Peers(self._own, self._nodes, self._passwords["sentinel"], settings.service)
        self._child: Process | None = None
        self._handing_over = False
        self.state = NodeState()

    # --- start

    async def start(self) -> None:
        """Decide, write the configuration and start the child.

        Raises:
            BadSettings: If the folder cannot be written to or the program cannot be run.
        """
        write = self._write_sentinel if self._settings.sentinel else self._write_server
        config = await write()
        arguments = [str(config), *(["--sentinel"] if self._settings.sentinel else [])]
        try:
            self._child = await asyncio.create_subprocess_exec(
                self._binary, *arguments, stdin=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise BadSettings(f"server: cannot run {self._binary!r}: {error.strerror}") from error

    async def _write_server(self) -> Path:
        own_data = self._settings.persistent and any((self._folder / APPEND_FOLDER).glob("*.manifest"))

        def decide(seen: TopologyObservation, waited_s: float) -> Decision:
            return topology.decide_start(self._own, self._nodes, seen, own_data=own_data, waited_s=waited_s)

        decision, _ = await self._settle(decide)
        users = "\n".join(server_users(self._passwords)) + "\n"
        folders = (str(self._folder), str(self._config_folder))
        self._forget(USERS_FILE, SERVER_CONFIG)
        self._write(USERS_FILE, users)
        return self._write(
            SERVER_CONFIG, server_config(self._own, decision.master, self._passwords, self._tuning, *folders)
        )

    async def _write_sentinel(self) -> Path:
        own_report = self._read_notes()

        def decide(seen: TopologyObservation, waited_s: float) -> Decision:
            sentinels = dict(seen.sentinels) | ({self._own: own_report} if own_report else {})
            return topology.decide_monitored(
                self._nodes, TopologyObservation(sentinels, seen.servers), waited_s=waited_s
            )

        decision, seen = await self._settle(decide)
        epochs = [report.config_epoch for report in (*seen.sentinels.values(), own_report) if report is not None]
        report = SentinelReport(decision.master, max(epochs, default=0))
        self._note(report)
        self._forget(SENTINEL_CONFIG)
        return self._write(
            SENTINEL_CONFIG,
            sentinel_config(self._own, self._nodes, report, self._passwords, self._tuning, str(self._folder)),
        )

    def _read_notes(self) -> SentinelReport | None:
        """Read what this node's Sentinel knew: from its own file if that still exists, else from the stored notes."""
        places = {self._config_folder / SENTINEL_CONFIG, self._folder / SENTINEL_CONFIG, self._folder / SENTINEL_NOTES}
        found = []
        for place in places:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                found.append(read_sentinel_file(place.read_text(encoding="utf-8"), self._settings.service))
        return max(
            (report for report in found if report is not None), key=lambda report: report.config_epoch, default=None
        )

    def _note(self, report: SentinelReport) -> None:
        """Store who the master is beside the data: the configuration may be in memory, and be lost with the pod."""
        if report != self.state.noted:
            self._write(SENTINEL_NOTES, sentinel_notes(report, self._settings.service), self._folder)
            self.state.noted = report

    def _forget(self, *names: str) -> None:
        """Remove configuration files that earlier versions wrote beside the data: they hold passwords."""
        for name in names if self._config_folder != self._folder else ():
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()

    async def _settle(
        self, decide: Callable[[TopologyObservation, float], Decision]
    ) -> tuple[Decision, TopologyObservation]:
        """Poll the other nodes until the decision is clear."""
        clock = asyncio.get_running_loop().time
        began_s, asked_s, message = clock(), -FAILOVER_EVERY_S, ""
        while True:
            seen = await self._peers.observe()
            self._health.heartbeat()
            decision = decide(seen, clock() - began_s)
            if decision.why != message:
                log.info("%s: %s", decision.step, decision.why)
                message = decision.why
            if decision.step in (NodeStep.MASTER, NodeStep.REPLICA):
                return decision, seen
            if decision.step is NodeStep.FAIL_OVER and clock() - asked_s >= FAILOVER_EVERY_S:
                asked_s = clock()
                await self._peers.request_failover()
            await asyncio.sleep(LOOK_EVERY_S)

    def _write(self, name: str, text: str, folder: Path | None = None) -> Path:
        path = (folder or self._config_folder) / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            setting = "data_dir" if path.parent == self._folder else "config_dir"
            raise BadSettings(f"{setting}: cannot write {str(path)!r}: {error.strerror}") from error
        return path

    # --- watch

    async def watch(self) -> None:
        """Poll the child every second until cancelled; this updates health, metrics and the function library."""
        poll = self._watch_sentinel if self._settings.sentinel else self._watch_server
        async with self._client() as client:
            while True:
                answered = await self._answered(poll, client)
                if answered:
                    self._health.heartbeat()
                up = metrics.SENTINEL_UP if self._settings.sentinel else metrics.REDIS_UP
                up.labels(self._name).set(answered)
                await asyncio.sleep(SENTINEL_EVERY_S if self._settings.sentinel else WATCH_EVERY_S)

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[Redis]:
        if self._settings.sentinel:
            login = {"username": "sentinel", "password": self._passwords["sentinel"]}
            client = client_of(self._own.host, self._own.sentinel_port, timeout_s=ASK_TIMEOUT_S, **login)
        else:
            path = quote(str(self._folder / SOCKET))
            url = f"unix://{NODE}:{self._passwords[NODE]}@{path}"
            client = redis_client(url, socket_timeout_s=ASK_TIMEOUT_S, connect_timeout_s=ASK_TIMEOUT_S)
        try:
            yield client
        finally:
            await client.aclose()

    async def _answered(self, poll: Callable[[Redis], Awaitable[None]], client: Redis) -> bool:
        try:
            await poll(client)
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError):
            self.state.replication = self.state.watched = None
            return False
        except (exceptions.RedisError, RedisError, ValueError) as error:
            message = " ".join(str(error).split())
            if message.startswith(BUSY):
                self.state.replication = self.state.watched = None
                await self._free(message)
                return False
            # It loads, or waits for replicas: it is alive, and is polled again.
            log.info("the child is not ready yet, it answers: %s", message)
        return True

    async def _free(self, message: str) -> None:
        """Kill the function or script that blocks the server: all clients wait meanwhile, and ours take far less."""
        log.error("a function or script blocks the server and is killed: %s", message)
        # It accepts only AUTH and this command now, so the client must not send its name first.
        client = Redis(
            unix_socket_path=str(self._folder / SOCKET),
            username=NODE,
            password=self._passwords[NODE],
            socket_timeout=ASK_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            for what in ("FUNCTION", "SCRIPT"):
                try:
                    await execute(client, what, "KILL")
                except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
                    log.warning("%s KILL: %s", what, " ".join(str(error).split()))
                except exceptions.RedisError as error:
                    if str(error).startswith("UNKILLABLE") and self._child is not None:
                        # It has written already, to this server only: after the kill a replica takes over without these
                        # writes.
                        log.error("what blocks the server cannot be killed: killing the server, a replica takes over")
                        self._child.kill()
                        return
                else:
                    log.error("killed the %s that blocked the server", what.lower())
                    return
        finally:
            await client.aclose()

    async def _watch_server(self, client: Redis) -> None:
        found = await replication_of(client)
        before, self.state.replication = self.state.replication, found
        if before is None or before.role != found.role:
            log.info("this server is now a %s", "master" if found.role == "master" else "replica")
        self._show(found)
        enough = found.replicas >= self._settings.min_replicas_to_write
        if found.role == "master" and enough:
            # A master without replicas refuses to load it, as it refuses every write.
            self._report(await keep_library(client))

    def _report(self, kept: LibraryCheck) -> None:
        if kept is LibraryCheck.REPAIRED:
            metrics.REDIS_LIBRARY_REPAIRS.labels(self._name).inc()
            log.error(
                "the function library was not this version's, or not the only one: replaced it; functions run with the "
                "rights of their callers, so find out who could load one (docs/redis.md)"
            )
        elif kept is not LibraryCheck.SAME:
            log.info("the function library was %s", kept)

    def _show(self, found: Replication) -> None:
        node = self._name
        metrics.REDIS_MASTER.labels(node).set(found.role == "master")
        metrics.REDIS_LINK_UP.labels(node).set(found.link_up)
        metrics.REDIS_REPLICAS.labels(node).set(found.replicas)
        metrics.REDIS_OFFSET.labels(node).set(found.offset)
        metrics.REDIS_MEMORY.labels(node).set(found.memory_bytes)
        metrics.REDIS_MEMORY_MAX.labels(node).set(found.memory_max_bytes)
        metrics.REDIS_CLIENTS.labels(node).set(found.clients)

    async def _watch_sentinel(self, client: Redis) -> None:
        if not self.state.hurried:
            execute: Callable[..., Awaitable[object]] = client.execute_command
            await execute("SENTINEL", "DEBUG", "INFO-PERIOD", INFO_PERIOD_MS)
            self.state.hurried = True
        asked_s = time.monotonic()
        self.state.reached = await ask_reachability(client, self._settings.service)
        self.state.reached_s = asked_s
        found = await ask_master(client, self._settings.service)
        self.state.watched = found
        try:
            self._note(SentinelReport(found.address, found.config_epoch))
        except BadSettings as error:
            log.warning("the Sentinel's knowledge of the master cannot be stored: %s", error)
        metrics.SENTINEL_MASTER_DOWN.labels(self._name).set(found.down)
        metrics.SENTINEL_EPOCH.labels(self._name).set(found.config_epoch)
        metrics.SENTINEL_OTHERS.labels(self._name).set(found.others)

    # --- stop

    async def ended(self) -> int:
        """Wait until the child ends by itself."""
        if self._child is None:
            raise OperationFailed("the child was not started")
        return await self._child.wait()

    async def stop(self) -> None:
        """Hand over if this is the master, then end the child."""
        child = self._child
        if child is not None and child.returncode is None:
            if not self._settings.sentinel and self._settings.hand_over_s > 0:
                await self._hand_over()
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(child.wait(), END_TIMEOUT_S)
            except TimeoutError:
                log.warning("the child does not end in time: killing it")
                child.kill()
                await child.wait()
        await self._peers.aclose()

    async def hand_over_now(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Hand the master role over and stay, as the action behind `POST /control/hand-over`.

        Raises:
            ControlRefused: Another node is meant, this one is not the master, or no other could be promoted.
        """
        if body.get("node") not in (self._name, self._name.partition(".")[0]):
            raise ControlRefused(f"node = {body.get('node')!r}: expected {self._name}")
        if self._handing_over:
            raise ControlRefused("it is handing over already")
        self._handing_over = True
        try:
            async with self._client() as local:
                found = await replication_of(local)
                if found.role != "master":
                    raise ControlRefused(f"{self._name} is not the master")
                if not await self._peers.hand_over(local, min(HAND_OVER_NOW_S, self._settings.hand_over_s)):
                    raise ControlRefused("no other node was promoted; see the log of this node")
        except (exceptions.RedisError, OSError) as error:
            raise ControlRefused(f"the server does not answer: {type(error).__name__}") from error
        finally:
            self._handing_over = False
        return {"node": self._name}

    async def _hand_over(self) -> None:
        async with self._client() as local:
            try:
                found = await replication_of(local)
            except (exceptions.RedisError, OSError):
                return
            if found.role == "master" and found.replicas:
                done = await self._peers.hand_over(local, self._settings.hand_over_s)
                log.info("the master role was handed over" if done else "the master role was not handed over")


def checks_of(node: NodeProcess, settings: RedisSettings) -> list[Check]:
    """Make the check for readiness: master, or a replica that follows its master."""

    async def server() -> CheckResult:
        found = node.state.replication
        if found is None:
            return CheckResult("unhealthy", {"message": "the child process does not answer"})
        details = {"role": found.role, "replicas": found.replicas, "link_up": found.link_up, "offset": found.offset}
        if not found.link_up:
            return CheckResult("unhealthy", details)
        short = found.role == "master" and found.replicas < settings.min_replicas_to_write
        return CheckResult("degraded" if short else "healthy", details)

    async def sentinel() -> CheckResult:
        found = node.state.watched
        if found is None:
            return CheckResult("unhealthy", {"message": "the child process does not answer"})
        details = {
            "master": f"{found.host}:{found.port}",
            "master_down": found.down,
            "config_epoch": found.config_epoch,
            "others": found.others,
            "replicas": found.replicas,
        }
        return CheckResult("degraded" if found.down else "healthy", details)

    return [Check("sentinel", sentinel) if settings.sentinel else Check("server", server)]


def peers_route(node: NodeProcess) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Make the function behind `GET /peers` of a Sentinel."""

    async def peers() -> dict[str, Any]:
        if node.state.reached is None:
            raise HTTPException(503, "the Sentinel has not reported yet which nodes it reaches; try again in a second")
        return node.state.reached.to_json(time.monotonic() - node.state.reached_s)

    return peers


async def run(settings: RedisSettings) -> int:
    """Run a server or a Sentinel until SIGTERM or SIGINT.

    Returns:
        0 after a clean end, 1 if the child ended by itself.

    Raises:
        BadSettings: If a setting cannot be used.
    """
    stop = stop_event()
    health = Health(settings.service_name or "sheetanchor-redis", [], HEALTH_INTERVAL_S)
    node = NodeProcess(settings, health)
    health.checks = checks_of(node, settings)
    app = create_app(health)
    if settings.sentinel:
        app.add_api_route("/peers", peers_route(node))
    else:
        # The user of Sentinels may fail over anyway, and no workload has its password.
        gate = ControlGate(partial(password_in, settings.password_dir / "sentinel"))
        add_control(app, gate, {HAND_OVER: node.hand_over_now})
    async with serve(app, health, settings.http_host, settings.http_port, settings.probe_port):
        try:
            if not await _unless(stop, node.start()):
                return 0
            watcher = asyncio.create_task(node.watch())
            try:
                ended = await _unless(stop, node.ended())
            finally:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
            health.draining = True
            if ended:
                log.error("the server ended by itself, so this process ends too: restart it")
            return 1 if ended else 0
        finally:
            await node.stop()


async def _unless(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Do something unless `stop` is set first; true if it was done."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.create_task(stop.wait())
    await asyncio.wait([task, waiter], return_when="FIRST_COMPLETED")
    waiter.cancel()
    if task.done():
        await task
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False

"""A pipeline in three places of one machine: real roles, a replicated Redis, the local exchange, a network between.

Places `a` and `b` hold an ingestor, a processor, a replica of inference, a server of Redis and its Sentinel; `c` holds
the third server and Sentinel. Two of a cluster's parts are stood in for: the kubelet, which starts again what has ended
and probes the replicas, and the Service, which sends a reader to the replicas whose probe succeeds.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from conftest import server_binary, wait_until
from faults.network import CLIENT_HOST, OUTSIDE, SERVER_HOST, Network, descendants, free_port
from support.pipeline import SHEETANCHOR, answers, environment, request
from support.redis_set_parts import NodeRun, RedisSet

SYMBOL: Final = "BTCUSDT"
PLACES: Final = ("a", "b", "c")
STREAMS: Final = "exchange"
"""The place of the exchange's streams."""

REST: Final = "rest"
"""The place of the exchange's REST interface."""

TICK_S: Final = 0.2
ANSWER_WITHIN_S: Final = 10.0
"""A process that a fault has stopped never answers, and the others wait to be asked."""

FOUND_WITHIN_S: Final = 60.0
RESTART_AFTER_S: Final = 1.0
RESTART_AFTER_MAX_S: Final = 10.0
STEADY_AFTER_S: Final = 30.0
PROBE_EVERY_S: Final = 2.0
PROBE_FAILURES: Final = 2
WITHDRAWN_AFTER_S: Final = 6.0
"""The Service forgets replicas of a place that is cut off from readers after so long: on a cluster operators see to it,
within 8 s (docs/zones.md)."""


@dataclass
class Part:
    """One process that a pod would hold.

    Attributes:
        name: For instance `process-a`.
        place: Where it is.
        begin: Starts it.
        held: It is not started again while this is above 0: a fault has killed it.
        starts: How often it has been started.
    """

    name: str
    place: str
    begin: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None
    held: int = 0
    starts: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0
    delay_s: float = RESTART_AFTER_S

    @property
    def is_running(self) -> bool:
        """Whether its process is there, be it stopped."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Its process; 0 if it has none."""
        return self.process.pid if self.process is not None and self.is_running else 0

    def signal(self, number: int) -> None:
        """Signal it and all that it has started."""
        if self.is_running and self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def limit(self, what: int, soft: Callable[[int], int]) -> list[tuple[int, tuple[int, int]]]:
        """Limit what it and its children may use; gives what has to be put back.

        Args:
            what: One of `resource.RLIMIT_…`.
            soft: The limit, by the process' number.
        """
        before = []
        for pid in [self.pid, *descendants(self.pid)] if self.pid else []:
            with contextlib.suppress(ProcessLookupError):
                old = resource.prlimit(pid, what)
                resource.prlimit(pid, what, (soft(pid), old[1]))
                before.append((pid, old))
        return before


class Pipeline:
    """All parts, the network between them, and what stands in for kubelet and Service.

    One class, since everything has to be ended together, whatever has been done to it.

    Args:
        folder: Where everything writes to.
        seed: Of what the network loses.
        redis_flags: Further flags of the nodes of Redis.
        hooks: Environment of roles by the beginning of their name: a negative control takes a fence down with it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        redis_flags: tuple[str, ...] = (),
        hooks: dict[str, dict[str, str]] | None = None,
    ) -> None:
        self.folder = folder
        self.network = Network(seed=seed)
        self.members = RedisSet(folder, "--server", server_binary(), *redis_flags, bind=SERVER_HOST)
        self.members.nodes = [f"localhost:{free_port()}:{free_port()}" for _ in PLACES]
        self.exchange_port, self.rest_port = free_port(), free_port()
        self.http_ports = {place: free_port() for place in "ab"}
        self.state_ports = {place: free_port() for place in "ab"}
        self.parts: dict[str, Part] = {}
        self._hooks = hooks or {}
        self._kubelet = _Kubelet(self)
        self._add_all()

    # Its parts

    def _add_all(self) -> None:
        self._role("exchange", STREAMS, "exchange", self.exchange_port, "--loop")
        for run, place in zip(self.members.servers, PLACES, strict=True):
            self._node(f"redis-{place}", place, run)
        for run, place in zip(self.members.sentinels, PLACES, strict=True):
            self._node(f"sentinel-{place}", place, run)
        streams = f"ws://{CLIENT_HOST}:{self.exchange_port}"
        rest = f"http://{CLIENT_HOST}:{self.rest_port}"
        for place in "ab":
            self._role(f"ingest-{place}", place, "ingest", 0, "--line", place, "--ws-url", streams)
            flags = ("--rest-url", rest, "--self-reanchor-after-s", "1")
            self._role(f"process-{place}", place, "process", self.state_ports[place], *flags)
            self._role(f"infer-{place}", place, "infer", self.http_ports[place], "--replica", f"infer-{place}")

    def _node(self, name: str, place: str, run: NodeRun) -> None:
        def begin() -> subprocess.Popen[bytes]:
            run.start()
            assert run.process is not None
            return run.process

        self.parts[name] = Part(name, place, begin)

    def _role(self, name: str, place: str, role: str, port: int, *flags: str) -> None:
        command = [*SHEETANCHOR, role, "--http-host", SERVER_HOST, "--http-port", str(port), *flags]
        if role != "exchange":
            command += ["--redis-url", self.members.url(role)]
            command += ["--redis-password-file", str(self.members.password_file(role))]
        hook = next((more for start, more in self._hooks.items() if name.startswith(start)), {})

        def begin() -> subprocess.Popen[bytes]:
            with (self.folder / f"{name}.log").open("ab") as log:
                return subprocess.Popen(
                    command, env=environment() | hook, stdout=log, stderr=log, start_new_session=True
                )

        self.parts[name] = Part(name, place, begin)

    def start(self) -> None:
        """Start everything; it is complete when all of Redis is and the replicas are ready."""
        self.network.listen(self.exchange_port, STREAMS)
        self.network.listen(self.rest_port, REST, self.exchange_port)
        for index, place in enumerate(PLACES):
            self.network.listen(self.members.port(index), place)
            self.network.listen(self.members.sentinel_port(index), place)
        for place, port in self.http_ports.items():
            self.network.listen(port, place)
        for name, part in self.parts.items():
            if name.startswith(("exchange", "redis", "sentinel")):
                self.begin(part)
        self.wait(lambda: answers(f"{self.exchange_url}/api/v3/time"), 60, "the exchange answers")
        self.wait(self.members.whole, 90, "all of Redis is there")
        for part in self.parts.values():
            if not part.is_running:
                self.begin(part)
        self._kubelet.start()
        self.wait(lambda: len(self.endpoints) == len(self.http_ports), 90, "both replicas are ready")

    def begin(self, part: Part) -> None:
        """Start a part that does not run."""
        part.process = part.begin()
        part.starts += 1
        part.began_s = time.monotonic()
        self.network.belongs(part.process.pid, part.place)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        self._kubelet.stop()
        for part in self.parts.values():
            part.signal(signal.SIGKILL)
        for part in self.parts.values():
            if part.process is not None:
                part.process.wait()
        self.network.close()

    # What is going on

    def forget_fault(self, number: int) -> None:
        """Take away a fault that was scripted at the exchange."""
        request(f"{self.exchange_url}/faults/{number}", method="DELETE", within_s=ANSWER_WITHIN_S)

    @property
    def exchange_url(self) -> str:
        """The exchange, past the network."""
        return f"http://{SERVER_HOST}:{self.exchange_port}"

    @property
    def endpoints(self) -> list[str]:
        """Places whose replica a reader may be sent to."""
        return self._kubelet.endpoints()

    def master(self) -> str:
        """Place of the server that others follow. After a partition the former master takes itself for one for a while.

        Raises:
            AssertionError: If there is none for a long time.
        """
        found: list[int] = []

        def is_there() -> bool:
            found[:] = sorted(
                self.members.masters(), key=lambda index: int(self.members.info(index).get("connected_slaves", 0))
            )
            return bool(found)

        self.wait(is_there, FOUND_WITHIN_S, "a master")
        return PLACES[found[-1]]

    def writer(self) -> str:
        """Place of the processor that says it writes.

        Raises:
            AssertionError: If there is none for a long time.
        """
        found: list[str] = []

        def is_there() -> bool:
            for place, port in self.state_ports.items():
                with contextlib.suppress(OSError, ValueError, KeyError):
                    if request(f"http://{SERVER_HOST}:{port}/state", within_s=ANSWER_WITHIN_S)["symbols"][SYMBOL][
                        "active"
                    ]:
                        found.append(place)
            return bool(found)

        self.wait(is_there, FOUND_WITHIN_S, "a writer")
        return found[0]

    def wait(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        """Wait for a condition; a failure shows the ends of all logs."""
        try:
            wait_until(condition, within_s=within_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None

    def tails(self, lines: int = 8) -> str:
        """The ends of all logs."""
        paths = sorted([*self.folder.glob("*.log"), *self.folder.glob("*/log")])
        return "\n\n".join(
            f"{path.relative_to(self.folder)}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in paths
        )


@dataclass
class _Probed:
    """What is known of a replica's readiness."""

    failures: int = PROBE_FAILURES
    next_s: float = 0.0


@dataclass
class _Kubelet:
    """Starts again what has ended, and probes replicas, in a thread."""

    pipeline: Pipeline
    probed: dict[str, _Probed] = field(default_factory=dict)
    cut_since_s: dict[str, float] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.probed = {place: _Probed() for place in self.pipeline.http_ports}
        self.thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self.thread.start()
        for place in self.probed:
            threading.Thread(target=self._probe, args=(place,), name=f"probe {place}", daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        if self.thread is not None:
            self.thread.join(10)

    def endpoints(self) -> list[str]:
        now_s = time.monotonic()
        ready = [place for place, probed in self.probed.items() if probed.failures < PROBE_FAILURES]
        return [place for place in ready if now_s - self.cut_since_s.get(place, now_s) < WITHDRAWN_AFTER_S]

    def _run(self) -> None:
        while not self.stopped.wait(TICK_S):
            now_s = time.monotonic()
            for part in self.pipeline.parts.values():
                self._keep(part, now_s)
            for place in self.probed:
                network = self.pipeline.network
                if network.is_cut(place, OUTSIDE) or network.is_cut(OUTSIDE, place):
                    self.cut_since_s.setdefault(place, now_s)
                else:
                    self.cut_since_s.pop(place, None)

    def _keep(self, part: Part, now_s: float) -> None:
        if part.is_running or part.held:
            part.ended_s = 0.0
            if part.is_running and now_s - part.began_s > STEADY_AFTER_S:
                part.delay_s = RESTART_AFTER_S
            return
        part.ended_s = part.ended_s or now_s
        if now_s - part.ended_s >= part.delay_s:
            part.delay_s = min(part.delay_s * 2, RESTART_AFTER_MAX_S)
            part.ended_s = 0.0
            self.pipeline.begin(part)

    def _probe(self, place: str) -> None:
        port, probed = self.pipeline.http_ports[place], self.probed[place]
        while not self.stopped.wait(PROBE_EVERY_S if probed.failures != PROBE_FAILURES else TICK_S):
            try:
                with urllib.request.urlopen(f"http://{SERVER_HOST}:{port}/health/ready", timeout=1):
                    probed.failures = 0
            except (OSError, ValueError):
                probed.failures = min(PROBE_FAILURES, probed.failures + 1)


@contextlib.contextmanager
def running(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Run a pipeline until the block ends."""
    try:
        pipeline.start()
        yield pipeline
    finally:
        pipeline.close()

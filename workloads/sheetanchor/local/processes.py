"""Child processes: started, their output relayed, restarted when they exit, and never left behind.

Each child leads a process group of its own, so that a Ctrl-C in the terminal reaches only the supervisor, which then
ends the children in order. On Linux the kernel kills a child when its supervisor exits, for any reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sheetanchor.contract import EXIT_BAD_SETTINGS
from sheetanchor.errors import BadSettings
from sheetanchor.local.relay import LINE_LENGTH_MAX, Relay

log = logging.getLogger(__name__)

STABLE_AFTER_S: Final = 10.0
"""A process that ran this long counts as stable: its next exit is restarted without a delay again."""

RESTART_DELAY_S: Final = 0.25
RESTART_DELAY_MAX_S: Final = 10.0
HUNG_AFTER_S: Final = 20.0
"""Ten polls in a row without an answer: a busy machine does not delay answers for so long."""

STOP_TIMEOUT_S: Final = 8.0
"""Longer than any role needs to finish its writes; after it the process is killed."""

PR_SET_PDEATHSIG: Final = 1
_PRCTL = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Spec:
    """A process to run.

    Attributes:
        name: Name in logs and views, for instance `ingest/a`.
        command: Program and arguments; `{port}` in one of them is replaced by the port in use.
        environ: The whole environment of the child.
        port: Port of its HTTP server, 0 if it has none.
        moves: Whether it may get another port when its own has been taken by another program.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    port: int = 0
    moves: bool = False


def restart_delay_s(exits_in_a_row: int, luck: float) -> float:
    """Compute the delay before a process is restarted.

    The first restart has no delay, so that a single crash does not cost a slot; after that the delay doubles.

    Args:
        exits_in_a_row: Exits without a stable run between them, this one included.
        luck: Random number between 0 and 1; spreads restarts between half and all of the delay.
    """
    if exits_in_a_row <= 1:
        return 0.0
    longest = min(RESTART_DELAY_MAX_S, RESTART_DELAY_S * 2.0 ** (min(exits_in_a_row, 32) - 2))
    return longest * (0.5 + 0.5 * luck)


def describe_exit(code: int) -> str:
    """Describe an exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def free_port() -> int:
    """Get a free port on the loopback address from the kernel."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        if _PRCTL is not None:
            _PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # the parent exited between fork and prctl
                os._exit(1)

    return before_exec


async def spawn(spec: Spec, port: int) -> asyncio.subprocess.Process:
    """Start a process that is killed when this one exits; its output comes through one pipe.

    Raises:
        OSError: If the program cannot be started.
    """
    command = [part.replace("{port}", str(port)) for part in spec.command]
    return await asyncio.create_subprocess_exec(
        *command,
        env=dict(spec.environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),  # takes no lock and allocates nothing, so it is safe after a fork
        limit=LINE_LENGTH_MAX * 8,
    )


async def relay_output(name: str, process: asyncio.subprocess.Process, relay: Relay) -> str:
    """Pass a process's lines on until it closes its output; gives the last one."""
    assert process.stdout is not None
    last = ""
    while True:
        try:
            raw = await process.stdout.readline()
        except ValueError:  # a line beyond the limit, which the reader has dropped
            relay.take(name, "a log line was longer than the limit and is left out")
            continue
        if not raw:
            return last
        line = raw.decode(errors="replace").rstrip()
        if line:
            last = line
            relay.take(name, line)


async def listen(name: str, process: asyncio.subprocess.Process, relay: Relay) -> tuple[int, str]:
    """Pass a process's lines on until it has ended; gives its exit code and its last line.

    When this is cancelled the process is ended too. Processes that it has started itself never outlive it.
    """
    reader = asyncio.create_task(relay_output(name, process, relay))
    try:
        code = await process.wait()
    finally:
        await asyncio.shield(end(process))
        last_line = await asyncio.shield(reader)
    return code, last_line


def signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def end(process: asyncio.subprocess.Process, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Send SIGTERM to a process, and SIGKILL to it and all that it has started after the time-out."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await process.wait()
    signal_group(process, signal.SIGKILL)  # the group outlives its leader while a grandchild is left
    await process.wait()


class Child:
    """A process that runs as long as the supervisor does.

    Args:
        spec: The process to run.
        relay: Receives its log lines.
    """

    def __init__(self, spec: Spec, relay: Relay) -> None:
        self.spec = spec
        self.port = spec.port
        self.restarts = 0
        self.started_at = 0.0
        self.heard_at = 0.0
        self.last_error = ""
        self._relay = relay
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int:
        """Process id, 0 while it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def state(self) -> str:
        """starting, running, stopped, or waiting to be restarted."""
        if self.pid:
            return "running"
        if self.started_at == 0.0:
            return "starting"
        return "stopped" if self._stopping.is_set() else "waiting"

    async def keep_running(self) -> None:
        """Start the process and restart it whenever it exits, until `stop` or cancellation.

        Raises:
            BadSettings: If it refuses its settings; a restart would not help.
        """
        deaths = 0
        while not self._stopping.is_set():
            code = await self._live_once()
            if self._stopping.is_set():
                return
            lived_s = time.monotonic() - self.started_at
            if code == EXIT_BAD_SETTINGS and self.restarts == 0:
                raise BadSettings(self.last_error or f"{self.spec.name} refused its settings")
            deaths = 1 if lived_s >= STABLE_AFTER_S else deaths + 1
            delay_s = restart_delay_s(deaths, random.random())
            log.warning(
                "%s exited (%s) after %.1f s and is restarted in %.1f s",
                self.spec.name,
                describe_exit(code),
                lived_s,
                delay_s,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
            self.restarts += 1

    async def _live_once(self) -> int:
        if self.spec.moves and not port_is_free(self.port):
            self.port = free_port()
        self.started_at = time.monotonic()
        process = self._process = await spawn(self.spec, self.port)
        code, last_line = await listen(self.spec.name, process, self._relay)
        if code:
            self.last_error = last_line
        return code

    @property
    def is_hung(self) -> bool:
        """Whether it runs but has not answered for so long that it counts as hung."""
        return self.pid != 0 and time.monotonic() - max(self.heard_at, self.started_at) > HUNG_AFTER_S

    def heard(self) -> None:
        """Note that it answered."""
        self.heard_at = time.monotonic()

    def restart(self) -> None:
        """Kill the process and all that it has started; it is restarted like one that exited."""
        if self._process is not None and self._process.returncode is None:
            signal_group(self._process, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the process and all that it has started, at once; it is not restarted."""
        self._stopping.set()
        self.restart()

    async def stop(self) -> None:
        """End the process; it is not restarted."""
        self._stopping.set()
        if self._process is not None:
            await end(self._process)


async def run_once(spec: Spec, relay: Relay, timeout_s: float) -> tuple[int, str]:
    """Run a process to its end.

    Args:
        spec: The process to run.
        relay: Receives its log lines.
        timeout_s: Seconds after which it is ended.

    Returns:
        Exit code and last line of output.
    """
    process = await spawn(spec, spec.port)
    try:
        async with asyncio.timeout(timeout_s):
            return await listen(spec.name, process, relay)
    except TimeoutError:
        log.error("%s did not end within %.0f s and was stopped", spec.name, timeout_s)
        return process.returncode or -signal.SIGKILL, f"not ended within {timeout_s:.0f} s"

"""`sheetanchor local`: the whole pipeline as processes of one machine, under one supervisor.

Reading order: `supervisor` (what is started, watched and ended), `roles` (the command lines of the processes),
`processes`, `redis_server`, `leftovers`, `coordinator` (when a rebuild is run); in `dashboard` `watcher` and `tally`
(what is counted), `probe` and `exposition` (what is measured), `board` and `status` (what is shown), `view`, `page`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.live import Live

from sheetanchor.errors import DECODER_MODULE, BadRecording, BadSettings, SheetAnchorError
from sheetanchor.local import relay
from sheetanchor.local.dashboard import page, view
from sheetanchor.local.dashboard.tally import ShownPrediction
from sheetanchor.local.supervisor import Listeners, Supervisor
from sheetanchor.runtime.settings import LocalSettings
from sheetanchor.web.server import Check, Health, create_app, serve

HEARTBEAT_INTERVAL_S = 1.0


async def run(settings: LocalSettings) -> int:
    """Run the pipeline on this machine.

    Args:
        settings: Settings of the run.

    Returns:
        Exit code: 0 if it ran its time or was stopped by a signal and the state is anchored, 1 otherwise.

    Raises:
        BadSettings: If a setting is wrong.
    """
    importlib.import_module(DECODER_MODULE)  # missing: reported once here instead of by each child process
    live = not settings.plain and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    log_relay = relay.for_terminal(live)
    relay.take_over_logging(log_relay)
    printer = Printer(quiet=live)
    listeners = Listeners(printer.on_prediction, printer.on_missed)
    try:
        supervisor = Supervisor(settings, os.environ, log_relay, listeners)
        printer.stop = supervisor.run.stop
        async with _page(supervisor, settings), _view(supervisor, live):
            code = await _outcome(supervisor)
    finally:
        log_relay.close()
    if supervisor.run.failure:
        print(f"sheetanchor local: {supervisor.run.failure}", file=sys.stderr)
    printer.print(json.dumps(supervisor.board.summary()))
    return code


async def _outcome(supervisor: Supervisor) -> int:
    """Supervise; a failure that is not a bad setting is reported with the summary, as at any other end."""
    try:
        return await supervisor.supervise()
    except (BadSettings, BadRecording):
        raise
    except SheetAnchorError as error:
        supervisor.run.failure = str(error)
        return 1


class Printer:
    """Prints a line per slot on stdout, unless there is a live view; ends the run when stdout is closed.

    Args:
        quiet: Print only lines passed to `print`.
    """

    def __init__(self, quiet: bool) -> None:
        self.stop = asyncio.Event()
        self._quiet = quiet

    def on_prediction(self, symbol: str, prediction: ShownPrediction) -> None:
        """Print a prediction."""
        if not self._quiet:
            self.print(view.slot_line(symbol, prediction))

    def on_missed(self, symbol: str, slot: int) -> None:
        """Print a missed slot."""
        if not self._quiet:
            self.print(view.missed_line(symbol, slot))

    def print(self, line: str) -> None:
        """Print a line."""
        try:
            print(line, flush=True)
        except OSError:  # a closed pipe or terminal
            self.stop.set()
            # The buffer cannot be written either; without this the interpreter reports an error when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@asynccontextmanager
async def _page(supervisor: Supervisor, settings: LocalSettings) -> AsyncIterator[None]:
    board = supervisor.board
    checks = [Check("processes", board.check_processes, component=True), Check("anchor", board.check_anchor)]
    health = Health("sheetanchor-local", checks, interval_s=HEARTBEAT_INTERVAL_S)
    app = create_app(health)
    page.add_routes(app, board.status)
    try:
        async with serve(app, health, settings.http_host, settings.http_port) as port:
            host = "127.0.0.1" if settings.http_host in ("0.0.0.0", "::", "*", "", "localhost") else settings.http_host
            board.page_url = f"http://{host}:{port}/"
            heartbeat = asyncio.create_task(_record_heartbeats(health, supervisor))
            try:
                yield
            finally:
                heartbeat.cancel()
    except OSError as error:
        if board.page_url:
            raise
        raise BadSettings(
            f"http_port = {settings.http_port}: the status page cannot listen on {settings.http_host} there "
            f"({error.strerror}); name another port with --http-port, or 0 for a free one"
        ) from error


async def _record_heartbeats(health: Health, supervisor: Supervisor) -> None:
    while True:
        health.heartbeat()
        health.draining = supervisor.run.phase == "ending"
        await asyncio.sleep(HEARTBEAT_INTERVAL_S)


@asynccontextmanager
async def _view(supervisor: Supervisor, live: bool) -> AsyncIterator[None]:
    if not live:
        yield
        return
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as screen:
        task = asyncio.create_task(_draw(supervisor, console, screen))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _draw(supervisor: Supervisor, console: Console, screen: Live) -> None:
    while True:
        screen.update(view.render(supervisor.board.status(), console.height), refresh=True)
        await asyncio.sleep(view.REFRESH_S)

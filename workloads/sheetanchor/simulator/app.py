"""The server: WebSocket and REST on one port, the loop that plays the market, and the endpoints that control it.

Clients cannot disturb it: a slow one is disconnected, a wrong request is answered with an error. At the end connections
are closed and the port is released.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, web

from sheetanchor.errors import BadSettings, message_of, shortened
from sheetanchor.recording import recording_file
from sheetanchor.runtime.settings import ExchangeSettings
from sheetanchor.runtime.stop_signals import stop_event
from sheetanchor.simulator import answers, rest
from sheetanchor.simulator.control import STREAMS_MAX, is_stream_name, not_served, unserved_type
from sheetanchor.simulator.faults import RECIPES, Client, check, parse
from sheetanchor.simulator.playback.market import PlaybackMarket
from sheetanchor.simulator.playback.playback_clock import Pace, RecordedPace, SteadyPace, parse_burst
from sheetanchor.simulator.playback.script import begin_at, prepare
from sheetanchor.simulator.sessions import Session, Terms
from sheetanchor.simulator.venue import Venue, wall_clock

log = logging.getLogger(__name__)

TICK_MIN_S: Final = 0.002
"""At 5,000 messages a second ten of them share one write; an idle market is not delayed by more."""

TICK_MAX_S: Final = 0.02
"""How late a fault that begins by time may be when no message is due."""

MESSAGE_MAX_BYTES: Final = 64 * 1024
"""A request to subscribe to 1,024 streams fits."""

_STOP_WITHIN_S: Final = 2.0
_CATCH_UP_COUNT: Final = 10_000  # messages made at a time, while no client is connected yet

_FAULT_ID: Final = re.compile(r"[0-9]{1,9}")

KEY_HEADER: Final = "X-MBX-APIKEY"


@dataclass(slots=True)
class ExchangeSimulator:
    """A running exchange: its port and what it serves."""

    venue: Venue
    settings: ExchangeSettings
    terms: Terms
    port: int = 0
    page: str = field(default="", repr=False)
    playing: asyncio.Task[None] | None = None
    closing: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Close a connection in the background; the server waits for that when it ends."""
        task = asyncio.create_task(work)
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)


_SERVER: Final = web.AppKey("server", ExchangeSimulator)


def build_venue(settings: ExchangeSettings, now_us: Callable[[], int]) -> Venue:
    """Load recordings and set up markets and scripted faults.

    Raises:
        BadSettings: A setting contradicts another one or the recordings.
        BadRecording: A recording cannot be used.
    """
    faults = [parse(spec) for spec in settings.fault]
    burst = parse_burst(settings.burst)
    if burst is not None and settings.rate <= 0:
        raise BadSettings(f"burst = {settings.burst!r}: expected rate too, the messages per second between bursts")
    begin_us = round(settings.begin_at * 1e6)
    scripts = [prepare(begin_at(item, begin_us)) for item in _recordings(settings)]
    start_us = now_us()
    began_us = min(start_us, round(settings.playing_since * 1e6)) or start_us
    pace: Pace = RecordedPace(began_us, settings.speed)
    if settings.rate > 0:
        pace = SteadyPace(began_us, settings.rate, burst)
    warmup_us = round(settings.warmup_s * 1e6)
    markets = {}
    for script in scripts:
        if warmup_us >= script.duration_us:
            raise BadSettings(
                f"warmup_s = {settings.warmup_s:g}: expected less than the {script.duration_us / 1e6:.0f} s "
                f"that the recording of {script.symbol} lasts"
            )
        markets[script.symbol] = PlaybackMarket(script, pace, loop=settings.loop, warmup_us=warmup_us)
    for market in markets.values():
        while market.advance(start_us, count_max=_CATCH_UP_COUNT):
            pass  # messages that were due before the restart
    venue = Venue(markets, now_us, start_us, settings.weight_limit)
    for kind, params in faults:
        venue.board.add(kind, params, start_us)
    return venue


def _recordings(settings: ExchangeSettings) -> list[recording_file.Recording]:
    """Load every recording; a symbol that has none plays the first recording under its name."""
    paths: list[Path] = settings.recording or [recording_file.default_path()]
    loaded = [recording_file.load(path) for path in paths]
    by_symbol = {item.symbol: item for item in loaded}
    if len(by_symbol) < len(loaded):
        names = ", ".join(item.symbol for item in loaded)
        raise BadSettings(f"recording: expected one per symbol, found {names}")
    if settings.recording and "symbol" not in settings.model_fields_set:
        return loaded
    return [by_symbol.get(symbol) or recording_file.rename(loaded[0], symbol) for symbol in settings.symbol]


# -- WebSocket --------------------------------------------------------------------------------------------------------


def _refusal(status: int, code: int, text: str) -> web.Response:
    return web.json_response({"code": code, "msg": text}, status=status)


def _named_streams(request: web.Request) -> list[str]:
    if request.path.startswith("/stream"):
        return [name for name in request.query.get("streams", "").split("/") if name]
    return [name for name in request.match_info.get("stream", "").split("/") if name]


def _check_upgrade(request: web.Request, server: ExchangeSimulator, streams: list[str]) -> web.Response | None:
    """Give the error answer to an upgrade that is refused; None if it is accepted."""
    key = request.headers.get(KEY_HEADER, "")
    expected = server.settings.api_key
    if not key:
        return _refusal(401, -2014, f"API-key format invalid: header {KEY_HEADER} is missing.")
    if expected is not None and key != expected.get_secret_value():
        return _refusal(401, -2015, "Invalid API-key, IP, or permissions for action.")
    wrong = [name for name in streams if not is_stream_name(name)]
    if wrong:
        return _refusal(400, -1100, f"Invalid stream name {wrong[0]!r}: expected for instance btcusdt@trade.")
    if (unserved := next(filter(None, map(unserved_type, streams)), "")) != "":
        return _refusal(400, -1100, f"Invalid stream name: {not_served(unserved)}.")
    if len(streams) > STREAMS_MAX:
        return _refusal(400, -1130, f"More than {STREAMS_MAX} streams on one connection.")
    return None


async def _websocket(request: web.Request) -> web.StreamResponse:
    server = request.app[_SERVER]
    streams = _named_streams(request)
    refusal = _check_upgrade(request, server, streams)
    if refusal is not None:
        return refusal
    client = Client(server.venue.next_number(), request.headers.get("User-Agent", ""))
    if server.venue.board.refuses(client):
        return _refusal(503, -1008, "Server is currently overloaded with other requests.")
    socket = web.WebSocketResponse(
        autoping=False, compress=False, max_msg_size=MESSAGE_MAX_BYTES, timeout=_STOP_WITHIN_S
    )
    await socket.prepare(request)
    transport = request.transport
    if transport is None:
        return socket
    now_s = asyncio.get_running_loop().time()
    session = Session(client, socket, transport, server.terms, server.spawn, now_s)
    session.subscribe(streams)
    server.venue.sessions[client.number] = session
    log.info("connection %d opens: %s", client.number, client.user_agent)
    try:
        await session.receive()
    finally:
        del server.venue.sessions[client.number]
        log.info("connection %d has ended", client.number)
    return socket


# -- pages ------------------------------------------------------------------------------------------------------------


def _fault_list(server: ExchangeSimulator) -> dict[str, Any]:
    board = server.venue.board
    return {
        "active": [fault.report() for fault in board.live],
        "done": [fault.report() for fault in board.done],
        "kinds": {kind: {"does": recipe.does, "takes": recipe.defaults} for kind, recipe in RECIPES.items()},
    }


_LOCAL_HOST: Final = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_CONTROL: Final = ("/faults", "/checkpoint", "/connections")


@web.middleware
async def _only_for_us(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Prevent web pages of other origins, open in a browser on this machine, from scripting faults or reading them."""
    if request.path.startswith(_CONTROL):
        sockname = request.transport.get_extra_info("sockname") if request.transport else None
        host = request.headers.get("Host", "localhost")
        if sockname and sockname[0] in ("127.0.0.1", "::1") and not _LOCAL_HOST.fullmatch(host):
            return _refusal(421, -1100, "This server listens on this machine only: use localhost in the URL.")
        origin = request.headers.get("Origin", "")
        if origin and urlsplit(origin).netloc != host:
            return _refusal(403, -1100, "Requests from web pages of other origins are refused.")
    return await handler(request)


async def _get_faults(request: web.Request) -> web.Response:
    return web.json_response(_fault_list(request.app[_SERVER]))


async def _post_fault(request: web.Request) -> web.Response:
    venue = request.app[_SERVER].venue
    if request.content_type != "application/json":
        return _refusal(415, -1100, "Expected the header Content-Type: application/json.")
    try:
        body = await request.json()
        if not isinstance(body, dict) or not isinstance(body.get("kind"), str):
            return _refusal(400, -1102, 'Expected a JSON object such as {"kind": "drop", "n": 3}.')
        kind = body.pop("kind")
        fault = venue.board.add(*check(kind, body), venue.now_us())
    except RecursionError:
        return _refusal(400, -1100, "Expected a flat JSON object.")
    except (ValueError, BadSettings) as error:
        return _refusal(400, -1100, message_of(error))
    venue.tick_faults(venue.now_us())
    return web.json_response(fault.report(), status=201)


async def _delete_fault(request: web.Request) -> web.Response:
    text = request.match_info["id"]
    fault = request.app[_SERVER].venue.board.remove(int(text)) if _FAULT_ID.fullmatch(text) else None
    if fault is None:
        return _refusal(404, -1100, f"No live fault has the id {shortened(text, 40)}.")
    return web.json_response(fault.report())


async def _checkpoint(request: web.Request) -> web.Response:
    markets = request.app[_SERVER].venue.markets
    symbol = request.query.get("symbol") or next(iter(markets))
    if symbol not in markets:
        return _refusal(400, -1121, "Invalid symbol.")
    return web.json_response(answers.checkpoint(markets[symbol]))


async def _connections(request: web.Request) -> web.Response:
    sessions = request.app[_SERVER].venue.sessions.values()
    return web.json_response({"connections": [session.report() for session in sessions]})


async def _front(request: web.Request) -> web.Response:
    return web.Response(text=request.app[_SERVER].page)


def _page(server: ExchangeSimulator) -> str:
    settings = server.settings
    pace = f"{settings.rate:g} messages a second" if settings.rate > 0 else f"speed {settings.speed:g}"
    rounds = "in a loop" if settings.loop else "once"
    return (
        "Sheet Anchor local exchange: a recorded market over the real protocols. No order can be placed.\n\n"
        f"symbols      {', '.join(server.venue.markets)}, played {rounds} at {pace}\n"
        "WebSocket    /ws, /ws/<symbol>@<type>, /stream?streams=a/b   types: trade bestBidAsk depth depth20\n"
        f"             header {KEY_HEADER} is required; SBE in binary frames, control in text frames\n"
        f"REST         {', '.join(rest.PREFIX + name for name in rest.ROUTES)}\n"
        "faults       GET /faults, POST /faults, DELETE /faults/<id>\n"
        "for tests    GET /checkpoint?symbol=, GET /connections\n"
    )


@web.middleware
async def _in_json(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Answer unknown paths and wrong methods in JSON too."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        response = _refusal(405, -1020, "This operation is not supported.")
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except web.HTTPNotFound:
        return _refusal(404, -1000, f"Path {shortened(request.path, 100)} is not served here.")


def build_app(server: ExchangeSimulator) -> web.Application:
    """Build the application with its routes."""
    app = web.Application(middlewares=[_in_json, _only_for_us])
    app[_SERVER] = server
    app[rest.VENUE] = server.venue
    app.router.add_get("/", _front)
    app.router.add_get("/ws", _websocket)
    app.router.add_get("/ws/{stream:.*}", _websocket)
    app.router.add_get("/stream", _websocket)
    app.router.add_route("*", rest.PREFIX + "{route:.*}", rest.serve)
    app.router.add_get("/faults", _get_faults)
    app.router.add_post("/faults", _post_fault)
    app.router.add_delete("/faults/{id}", _delete_fault)
    app.router.add_get("/checkpoint", _checkpoint)
    app.router.add_get("/connections", _connections)
    return app


# -- life -------------------------------------------------------------------------------------------------------------


async def _play(venue: Venue) -> None:
    """Play the market until cancelled."""
    now_s = asyncio.get_running_loop().time
    playing = True
    while True:
        now_us = venue.now_us()
        venue.tick(now_us)
        for session in list(venue.sessions.values()):
            session.maintain(now_s())
        due_us = venue.next_due_us()
        if due_us is None and playing:
            playing = False
            log.info("the recording has ended; REST and connections stay up")
        wait_s = TICK_MAX_S if due_us is None else (due_us - venue.now_us()) / 1e6
        await asyncio.sleep(min(TICK_MAX_S, max(TICK_MIN_S, wait_s)))


@asynccontextmanager
async def serving(settings: ExchangeSettings, *, terms: Terms | None = None) -> AsyncIterator[ExchangeSimulator]:
    """Serve in the running loop while the context lasts.

    Args:
        settings: Settings of the server.
        terms: Limits of connections; default those of the settings.

    Raises:
        BadSettings: A setting is wrong, or the port is taken.
        BadRecording: A recording cannot be used.
    """
    venue = build_venue(settings, wall_clock())
    server = ExchangeSimulator(
        venue, settings, terms or Terms(ping_interval_s=settings.ping_interval_s, life_s=settings.life_s)
    )
    server.page = _page(server)
    runner = web.AppRunner(build_app(server), access_log=None, shutdown_timeout=_STOP_WITHIN_S)
    await runner.setup()
    try:
        await _listen(runner, settings)
        server.port = runner.addresses[0][1]
        log.info("exchange listening on http://%s:%d", settings.http_host, server.port)
        server.playing = asyncio.create_task(_play(venue))
        yield server
    finally:
        if server.playing is not None:
            server.playing.cancel()
        for session in list(venue.sessions.values()):
            session.close(WSCloseCode.GOING_AWAY, "the server shuts down")
        await asyncio.gather(*server.closing, return_exceptions=True)
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: ExchangeSettings) -> None:
    try:
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
    except OSError as error:
        raise BadSettings(
            f"http_port = {settings.http_port}: cannot listen on {settings.http_host}: {error.strerror or error}"
        ) from error


async def run(settings: ExchangeSettings, on_ready: Callable[[int], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Settings of the server.
        on_ready: Called with the bound port once the server listens.

    Returns:
        The exit code, 0.

    Raises:
        BadSettings: A setting is wrong, or the port is taken.
        BadRecording: A recording cannot be used.
    """
    stop = stop_event()
    async with serving(settings) as server:
        if on_ready is not None:
            on_ready(server.port)
        stopped = asyncio.create_task(stop.wait())
        waited_for = {stopped, server.playing} if server.playing is not None else {stopped}
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done() and server.playing is not None:
            stopped.cancel()
            server.playing.result()  # the market never ends by itself: this raises the failure
    return 0

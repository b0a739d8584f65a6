"""Idle connections, or too many requests, keep no other client out; and the probes are always answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil
import pytest
from fastapi import HTTPException, Response

from conftest import RedisServer
from sheetanchor.runtime import metrics
from sheetanchor.web import answers as web_answers
from sheetanchor.web.listeners import PROBES, READERS, Bounds, is_local, open_listeners, serving
from sheetanchor.web.server import Health, create_app, serve
from support.patience import PATIENCE_S, patience
from support.role_parts import ROLES, Running, ask, running

TESTS = Path(__file__).resolve().parents[2]
IDLE = 1000
STRANGER = "127.0.0.2"
"""Where the many connections come from. A client of the same address that is kept from the processor after it has
connected is taken for one of them."""

WITHIN_S = 0.1
OWN_DESCRIPTORS = 128
"""What a role has open for itself: its log, Redis, the exchange, a model."""


@contextlib.contextmanager
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def idle_connections(*ports: int) -> Iterator[None]:
    """Hold a thousand connections to each port that send nothing, and replace each as soon as it is dropped."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(enough_descriptors())
        held = {port: [stack.enter_context(_connect(port)) for _ in range(IDLE)] for port in ports}
        stack.enter_context(renewed(held))
        yield


@contextlib.contextmanager
def renewed(held: dict[int, list[socket.socket]]) -> Iterator[None]:
    """Replace each connection as soon as it is dropped, while the block runs."""
    stop = threading.Event()

    def renew() -> None:
        at = 0
        while not stop.wait(0.005):
            for port, sockets in held.items():
                at = (at + 1) % IDLE
                if _dropped(sockets[at]):
                    sockets[at].close()
                    sockets[at] = _connect(port)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for one in (one for sockets in held.values() for one in sockets):
            one.close()


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(STRANGER, 0))


def _begin_to_connect(port: int) -> socket.socket:
    one = socket.socket()
    one.bind((STRANGER, 0))
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", port))
    return one


def _dropped(one: socket.socket) -> bool:
    try:
        return one.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[Running]:
    with running(request.param, redis_server.url, tmp_path) as one:
        yield one


@contextlib.contextmanager
def probed(role: Running) -> Iterator[list[dict[str, float]]]:
    """Have another process probe a role while the block runs; the answers are there at its end."""
    answers: list[dict[str, float]] = []
    command = [sys.executable, "-m", "support.prober", str(role.probe_port), str(role.process.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TESTS) as process:
        assert process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
        try:
            yield answers
        finally:
            process.terminate()
            lines = process.stdout.read().splitlines(keepends=True)
            answers.extend(json.loads(line) for line in lines if line.endswith("\n"))


def own_times_s(answers: list[dict[str, float]]) -> list[float]:
    """Give what answers took, the slowest first, without the time for which there was no processor for either side."""
    print(f"of {len(answers)} answers the slowest: {max(answers, key=lambda one: one['took_s'] - one['starved_s'])}")
    return sorted((one["took_s"] - one["starved_s"] for one in answers), reverse=True)


def assert_in_time(answers: list[dict[str, float]]) -> None:
    """None is lost on its way, which would cost it a second, and they take a tenth of a second at the median.

    A page that has to be read, or a processor that is not given, delays some and is seen by no counter.
    """
    assert {(200, 0)} == {(one["status"], one["resent"]) for one in answers}
    assert median(own_times_s(answers)) < WITHIN_S


def test_a_thousand_silent_connections_keep_no_probe_out(role: Running) -> None:
    """On every port of every role, from the first to the last: probes are answered in a tenth of a second.

    Readers are answered, and descriptors stay few.
    """
    read = []
    with probed(role) as answers, idle_connections(role.http_port, role.probe_port):
        until_s = time.monotonic() + 6  # longer than a connection may stay silent
        while time.monotonic() < until_s:
            read.append(ask(role.http_port)[0])
            assert role.descriptors() < READERS.most + PROBES.most + OWN_DESCRIPTORS
            time.sleep(0.05)

    assert len(answers) > 50
    assert_in_time(answers)
    assert {200} == set(read)


def test_a_thousand_connections_at_once_keep_no_probe_out(role: Running) -> None:
    """None is lost before it is accepted: a client would repeat the attempt after a second."""
    with probed(role) as answers, enough_descriptors():
        for _ in range(5):
            held = [_begin_to_connect(port) for _ in range(IDLE) for port in (role.http_port, role.probe_port)]
            time.sleep(0.5)
            for one in held:
                one.close()

    assert len(answers) > 2
    assert_in_time(answers)


def test_both_families_of_this_machine_are_answered_and_no_other_address(role: Running) -> None:
    """By default a role listens on 127.0.0.1 and on [::1], with both ports, and nowhere else."""
    for port in (role.http_port, role.probe_port):
        assert {200} == {ask(port, host=host)[0] for host in ("127.0.0.1", "::1")}
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=2)


@pytest.mark.parametrize("address", ["*", "::", "0.0.0.0", "127.0.0.1", "::1", "localhost"])
def test_a_setting_means_the_same_addresses_for_both_ports(
    redis_server: RedisServer, tmp_path: Path, address: str
) -> None:
    """`*` and `::` are every address of both families, what names one family is that one alone."""
    four = address not in ("::1",)
    six = address in ("*", "::", "::1", "localhost")
    with running("infer", redis_server.url, tmp_path, "--http-host", address) as role:
        for port in (role.http_port, role.probe_port):
            assert (four, six) == tuple(ask(port, host=host)[0] == 200 for host in ("127.0.0.1", "::1"))
            assert (address in ("*", "::", "0.0.0.0")) == (ask(port, host="127.0.0.2")[0] == 200)


# One server in this process: slow clients, clients with too many requests, and requests from other web pages


@contextlib.asynccontextmanager
async def served(route: Any = None, **bounds: float) -> AsyncIterator[int]:
    health = Health("sheetanchor-test", [])
    app = create_app(health)
    if route is not None:
        app.add_api_route("/route", route)
    listeners = open_listeners("localhost", 0)
    answers = app.state.answers
    answers.only_local = is_local(listeners)
    async with serving(app, listeners, answers.bad_request, Bounds(**{"most": 64, "per_address": 32} | bounds)):
        yield int(listeners[0].getsockname()[1])


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Read until the other side has closed."""
    async with patience():
        try:
            return await reader.read()
        except ConnectionError:
            return b""


WHOLE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET", WHOLE[:-2], b"POST /route HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1", b"\r\n"],
    ids=["nothing", "a word", "headers without end", "a body without end", "an empty line"],
)
@pytest.mark.parametrize("before", [b"", WHOLE], ids=["at first", "after an answer"])
async def test_who_asks_no_whole_question_is_dropped(before: bytes, sent: bytes) -> None:
    """In the time for a request, whether nothing or a part of one has come, at first or after an answer."""

    async def slow() -> None:
        await asyncio.sleep(3_600)

    async with served(slow, request_s=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(before + sent)
        await ended(reader)
        writer.close()


async def test_who_sends_a_byte_at_a_time_is_dropped() -> None:
    """Bytes that come do not put the end off: slow headers cost as little as none."""
    async with served(request_s=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def trickle() -> None:
            for byte in WHOLE * 100:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        assert b"" == await ended(reader)
        task.cancel()
        writer.close()
        await asyncio.gather(task, return_exceptions=True)


async def test_who_takes_no_answer_is_dropped() -> None:
    """The connection of an answer that is not read is closed."""
    lengths: list[int] = []

    async def large() -> Response:
        lengths.append(1)
        return Response(b"x" * 50_000_000)

    async with served(large, answer_s=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /route HTTP/1.1\r\nHost: localhost\r\n\r\n")
        own = writer.get_extra_info("sockname")
        async with patience():
            while not lengths or _held_by_the_server(port, own):
                await asyncio.sleep(0.05)
        received = len(await ended(reader))
        writer.close()

    assert [1] == lengths
    assert received < 50_000_000


def _held_by_the_server(port: int, client: tuple[str, int]) -> bool:
    """Say whether the server's end of a connection is still open."""
    ends = psutil.Process().net_connections("tcp4")
    return any((end.laddr.port, end.raddr) == (port, client) for end in ends if end.raddr)


async def test_a_flood_is_refused_for_a_time_and_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After in the usual shape, counted; nothing else is answered with an error."""
    # One a second, past the burst: a busy machine may answer so slowly that the usual rate is never reached.
    monkeypatch.setattr(web_answers, "Admission", partial(web_answers.Admission, per_s=1.0))

    async def route() -> dict[str, str]:
        return {}

    before = metrics.HTTP_REQUESTS.labels("429", "other")._value.get()
    async with (
        served(route) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=aiohttp.TCPConnector(limit=20)) as client,
    ):

        async def one() -> tuple[int, Any, Any]:
            async with client.get("/route") as response:
                return response.status, response.headers.get("Retry-After"), await response.json()

        got = await asyncio.gather(*(one() for _ in range(1500)))

    refused = [answer for answer in got if answer[0] != 200]
    assert len(got) > len(refused) > 100
    assert {(429, "1")} == {(status, after) for status, after, _ in refused}
    assert {"TOO_MANY_REQUESTS"} == {body["error"]["code"] for _, _, body in refused}
    assert len(refused) == metrics.HTTP_REQUESTS.labels("429", "other")._value.get() - before


async def test_an_error_that_nobody_has_thought_of_is_an_answer_like_others(caplog: pytest.LogCaptureFixture) -> None:
    """500 in the usual shape with its id in header, body and log, and counted."""

    async def broken() -> None:
        raise RuntimeError("no one has thought of this")

    before = metrics.HTTP_REQUESTS.labels("500", "/route")._value.get()
    async with (
        served(broken) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
        client.get("/route", headers={"X-Request-Id": "abc"}) as response,
    ):
        status, header, body = response.status, response.headers["X-Request-Id"], await response.json()

    assert (500, "abc", "abc", "INTERNAL_ERROR") == (status, header, body["error"]["request_id"], body["error"]["code"])
    assert "thought" not in json.dumps(body)
    assert before + 1 == metrics.HTTP_REQUESTS.labels("500", "/route")._value.get()
    assert {"abc"} == {getattr(record, "request_id", "") for record in caplog.records if record.levelname == "ERROR"}


@pytest.mark.parametrize(
    ("path", "status"), [("/nothing", 404), ("/route?n=x", 422), ("/route?n=1", 503), ("/route?n=2", 500)]
)
async def test_each_failed_request_is_in_the_log_with_its_id(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    """As the alert's text says; health checks are not, and a flood of them leaves the log readable."""

    async def route(n: int) -> Response:
        if n == 2:
            raise RuntimeError("n")
        raise HTTPException(503, "not yet")

    monkeypatch.setattr(web_answers, "LOGGED_PER_S", 0.1)  # a busy machine may take long enough for many
    caplog.set_level("INFO")
    async with served(route) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        async with client.get(path, headers={"X-Request-Id": "this-one"}) as response:
            assert status == response.status
        reported = [one for one in caplog.records if getattr(one, "request_id", "") == "this-one"]
        for _ in range(200):
            async with client.get("/nothing"):
                pass

    assert f"answered {status}" in reported[-1].getMessage()
    assert len([one for one in caplog.records if "request failed" in one.message]) < 60


async def test_what_is_no_http_is_answered_in_the_same_shape() -> None:
    """Counted, and the connection is closed."""
    before = metrics.HTTP_REQUESTS.labels("400", "other")._value.get()
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        answer = await ended(reader)
        writer.close()

    assert b"400 Bad Request" in answer
    assert "BAD_REQUEST" == json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    assert before + 1 == metrics.HTTP_REQUESTS.labels("400", "other")._value.get()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]"])
async def test_this_machine_is_answered_under_its_own_names(host: str) -> None:
    """With any port, as tunnels and containers map them."""
    async with served() as port:
        assert 200 == (await asyncio.to_thread(ask, port, "/health", Host=host))[0]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil", "[::2]"]
)
async def test_a_page_from_elsewhere_is_not_answered(host: str) -> None:
    """A name that was made to lead to this machine, to read what only it may read, is refused."""
    async with served() as port:
        assert 421 == (await asyncio.to_thread(ask, port, "/health", Host=host))[0]


async def test_no_answer_may_be_taken_for_something_else() -> None:
    """Every answer says that its type is to be believed."""
    async with served() as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        for path in ("/health", "/health/live", "/metrics", "/nothing"):
            async with client.get(path) as response:
                assert "nosniff" == response.headers["X-Content-Type-Options"]


async def test_probes_answer_while_the_event_loop_does_not() -> None:
    """They say so: not ready soon, though alive for as long as a new start would not help."""
    health = Health("sheetanchor-test", [])
    listening = logging.getLogger("sheetanchor.web.server")
    reported: list[int] = []
    listening.addFilter(catch := lambda record: reported.append(record.probe_port) or True)
    level, _ = listening.level, listening.setLevel("INFO")
    try:
        async with serve(create_app(health), health, "localhost", 0):
            async with patience():
                while not reported or (ready := await asyncio.to_thread(ask, reported[0], "/health/ready"))[0] != 200:
                    await asyncio.sleep(0.05)
            with ThreadPoolExecutor() as pool:
                asked = pool.submit(lambda: (time.sleep(2.5), ask(reported[0], "/health/ready"), ask(reported[0]))[1:])
                stalled, live = asked.result()  # the loop is blocked until both are answered
    finally:
        listening.removeFilter(catch)
        listening.setLevel(level)

    assert (200, 503, 200) == (ready[0], stalled[0], live[0])

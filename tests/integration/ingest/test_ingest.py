"""One line between a real exchange and a real Redis server: what passes through, and what each fault does to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from conftest import free_port_number
from sheetanchor import sbe
from sheetanchor.binance.websocket import Connection, stream_url
from sheetanchor.contract import line_stream, unpack_frames
from sheetanchor.ingest import connection_policy
from sheetanchor.simulator.sessions import Terms
from sheetanchor.store.redis_client import redis_client
from support.exchange_client import ALL, client
from support.exchange_fixture import API_KEY, LocalExchange, eventually, local_exchange
from support.line import Line, best, holes, line, peer
from support.patience import PATIENCE_S, PATIENT, patience

QUICK = {"reconnect_delay_s": 0.05, "reconnect_delay_max_s": 0.2}


@pytest.fixture
async def brisk(short_recording: Path) -> AsyncIterator[LocalExchange]:
    """An exchange that plays 300 messages a second."""
    async with local_exchange(recording=[short_recording], warmup_s=5, rate=300) as running:
        yield running


async def numbers_of(exchange: LocalExchange) -> list[int]:
    """Number the open connections of the line."""
    return [connection["number"] for connection in await exchange.connections()]


# -- what passes through ----------------------------------------------------------------------------------------------


async def test_frames_arrive_as_they_were_sent(brisk: LocalExchange, redis_url: str) -> None:
    """What another client receives of the same streams lies in Redis to the byte, in the same order."""
    async with line(redis_url, brisk.ws_url) as running:
        await running.connected()
        async with client(brisk) as socket:
            received = [await asyncio.wait_for(socket.recv(), PATIENCE_S) for _ in range(300)]
        await running.more(100)
        stored = await running.frames()

    start = stored.index(received[0])
    assert received == stored[start : start + 300]


async def test_entries_say_what_is_in_them(brisk: LocalExchange, redis_url: str) -> None:
    """`n` counts the frames of `f`, `t` is the receive time of the first, and receive times never go back."""
    async with line(redis_url, brisk.ws_url) as running:
        await running.connected()
        await running.more(300)
        entries = await running.entries()
        lines = await running.redis.smembers("lines:{BTCUSDT}")

    unpacked = [list(unpack_frames(entry[b"f"])) for entry in entries]
    assert [len(frames) for frames in unpacked] == [int(entry[b"n"]) for entry in entries]
    assert [frames[0][0] for frames in unpacked] == [int(entry[b"t"]) for entry in entries]
    times = [received_us for frames in unpacked for received_us, _ in frames]
    assert sorted(times) == times
    assert {b"a"} == lines


async def test_two_symbols_keep_apart(short_recording: Path, redis_url: str) -> None:
    """Each symbol has a stream of its own with its own frames only."""
    symbols = ["BTCUSDT", "ETHUSDT"]
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, rate=300, symbol=symbols) as exchange,
        line(redis_url, exchange.ws_url, symbol=symbols) as running,
    ):
        await running.connected()
        await running.more(200)
        stored = {symbol: await running.frames(symbol) for symbol in symbols}

    assert {"BTCUSDT": {"BTCUSDT"}, "ETHUSDT": {"ETHUSDT"}} == {
        symbol: {sbe.decode(frame).symbol for frame in frames} for symbol, frames in stored.items()
    }


async def test_garbage_is_counted_and_passed_on(brisk: LocalExchange, redis_url: str) -> None:
    """Frames that no decoder accepts reach Redis as they came and hold up nothing."""
    async with line(redis_url, brisk.ws_url) as running:
        await running.connected()
        await brisk.fault_done(await brisk.fault("garbage", n=6))
        await running.shows("sbe_decoder", "decode_errors", lambda count: count == 6)
        await running.more(50)
        stored = await running.frames()

    bad = 0
    for frame in stored:
        try:
            sbe.decode(frame)
        except sbe.DecodeError:
            bad += 1
    assert 6 == bad


async def test_lost_ids_are_counted_per_stream(brisk: LocalExchange, redis_url: str) -> None:
    """A jump of ids on the line is counted once and passed over."""
    async with line(redis_url, brisk.ws_url) as running:
        await running.connected()
        await running.more(100)
        await brisk.fault_done(await brisk.fault("drop", n=2))
        await running.shows("frames", "sequence_gaps", lambda count: count == 1)
        page = await running.page("/metrics")

    assert 'ingestor_sbe_sequence_gaps_total{stream="depth",symbol="BTCUSDT"}' in page


async def test_a_frame_of_another_symbol_is_dropped(redis_url: str) -> None:
    """Frames that were not subscribed to are counted and dropped."""

    async def speak(socket: ServerConnection) -> None:
        await socket.send(best(1, "ETHUSDT"))
        await socket.send(best(2))
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin) as running:
        await running.connected()
        stats = await running.stats()
        stored = await running.frames()
        foreign = await running.frames("ETHUSDT")

    assert 1 == stats["frames"]["foreign_symbol"]
    assert [best(2)] == stored
    assert [] == foreign


async def test_health_names_all_parts(brisk: LocalExchange, redis_url: str) -> None:
    """The health answer, `/stats` and the metrics carry the names that dashboards know."""
    async with line(redis_url, brisk.ws_url, health_check_interval_seconds=1) as running:
        await running.connected()

        async def healthy() -> bool:
            return bool(json.loads(await running.page("/health"))["status"] == "healthy")

        await eventually(healthy, within_s=10, what="healthy")
        components = json.loads(await running.page("/health"))["components"]
        stats = await running.stats()
        page = await running.page("/metrics")

    assert {"status", "last_message_age_ms", "messages_per_second", "reconnect_count"} <= set(
        components["sbe_websocket"]
    )
    assert {"status", "success_rate", "avg_latency_ms", "buffer_size"} <= set(components["kinesis_producer"])
    assert {"status", "decode_errors", "messages_decoded", "avg_decode_time_us"} <= set(components["sbe_decoder"])
    assert ("connected", "loaded") == (components["sbe_websocket"]["status"], components["sbe_decoder"]["status"])
    assert {"sbe_websocket", "kinesis_producer", "sbe_decoder", "frames"} == set(stats)
    for name in ("sbe_messages_total", "sbe_decode_duration_seconds_count", "kinesis_records_sent_total"):
        assert f"\ningestor_{name}" in page
    assert 'ingestor_sbe_connection_status{line="a"} 1.0' in page


# -- losses -----------------------------------------------------------------------------------------------------------


async def test_a_broken_connection_is_made_again_at_once(
    brisk: LocalExchange, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A break costs milliseconds: the same streams are subscribed to again, and the log says both."""
    caplog.set_level(logging.INFO)
    async with line(redis_url, brisk.ws_url) as running:
        await running.connected()
        [before] = await brisk.connections()
        await brisk.fault("disconnect")
        await running.shows("sbe_websocket", "reconnect_count", lambda count: count >= 1, within_s=5)
        *_, after = await brisk.connections()
        await running.more(100)

    assert before["streams"] == after["streams"]
    assert before["number"] != after["number"]
    lost, found = caplog.text.index("SBE WebSocket disconnected"), caplog.text.index("SBE reconnection successful")
    assert lost < found


async def test_silence_counts_as_a_loss(brisk: LocalExchange, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that falls silent is closed and another one is opened."""
    async with line(redis_url, brisk.ws_url, silence_s=0.5) as running:
        await running.connected()
        [before] = await numbers_of(brisk)
        await brisk.fault("silence", seconds=4)
        await eventually(lambda: _said(caplog, "SBE WebSocket disconnected"), within_s=5, what="the loss is told")
        await running.shows("sbe_websocket", "reconnect_count", lambda count: count >= 1, within_s=5)
        after = await numbers_of(brisk)

    assert before not in after


async def test_an_outage_is_reported_once_while_tries_go_on(
    brisk: LocalExchange, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A lasting loss is one gap event per symbol; degraded or not, the line comes back as soon as it can."""
    caplog.set_level(logging.INFO)
    settings = QUICK | {"reconnect_backoff_tries": 3, "connection_loss_s": 0.8}
    async with line(redis_url, brisk.ws_url, **settings) as running:
        await running.connected()
        await brisk.fault("disconnect", seconds=6)
        await eventually(lambda: _said(caplog, "entering degraded mode"), within_s=5, what="degraded mode is told")
        await running.shows("sbe_websocket", "reconnect_count", lambda count: count >= 1, within_s=10)
        await running.more(50)
        gaps = await running.gaps()

    [gap] = gaps
    assert ("connection_loss", "critical", "emergency_reanchor", "ingest/a") == (
        gap.rule,
        gap.severity,
        gap.action,
        gap.source,
    )
    assert "All SBE reconnection attempts exhausted" in caplog.text
    assert "SBE reconnection failed, entering degraded mode" in caplog.text


async def test_an_exchange_that_was_never_there_is_an_outage(redis_url: str) -> None:
    """A line that starts before the exchange says that it has no connection."""
    async with line(
        redis_url, f"ws://127.0.0.1:{free_port_number()}", symbol=["BTCUSDT", "ETHUSDT"], connection_loss_s=0.3, **QUICK
    ) as running:

        async def reported() -> bool:
            return bool(await running.gaps("ETHUSDT"))

        await eventually(reported, within_s=5, what="the loss is told")
        rules = [gap.rule for symbol in ("BTCUSDT", "ETHUSDT") for gap in await running.gaps(symbol)]
        await eventually(lambda: _tells(running, "no connection to the exchange"), within_s=5, what="health says why")

    assert ["connection_loss", "connection_loss"] == rules


async def _tells(running: Line, text: str) -> bool:
    return text in json.loads(await running.page("/health"))["checks"]["sbe_websocket"].get("message", "")


async def test_a_wrong_key_is_reported_and_not_hammered(
    short_recording: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused key gives one clear error, and the next try waits."""
    async with (
        local_exchange(recording=[short_recording], api_key=SecretStr("another")) as exchange,
        line(redis_url, exchange.ws_url) as running,
    ):
        await eventually(lambda: _said(caplog, "API key"), within_s=5, what="the key is named")
        await asyncio.sleep(0.5)  # time for tries that must not come
        status = (await running.stats())["sbe_websocket"]["status"]

    assert "disconnected" == status
    refusals = [record.message for record in caplog.records if "API key" in record.message]
    assert ["the exchange answered 401 to the WebSocket upgrade: check the API key, it does not accept this one; "] == [
        text.partition("it must")[0] for text in refusals
    ]
    assert API_KEY not in caplog.text


async def _said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def test_a_peer_that_breaks_the_protocol_is_left(redis_url: str) -> None:
    """A message above the size limit ends that connection and nothing else."""
    seen = 0

    async def speak(socket: ServerConnection) -> None:
        nonlocal seen
        seen += 1
        await socket.send(best(seen))
        if seen == 1:
            await socket.send(bytes(5 * 1024 * 1024))
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin) as running:
        await running.shows("sbe_websocket", "reconnect_count", lambda count: count >= 1)
        await eventually(lambda: _has(running, 2), within_s=5, what="both frames are in Redis")
        stored = await running.frames()

    assert [best(1), best(2)] == stored


async def _has(running: Line, frames: int) -> bool:
    return len(await running.frames()) >= frames


# -- changes without loss ---------------------------------------------------------------------------------------------


async def test_an_announced_shutdown_loses_nothing(
    brisk: LocalExchange, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After serverShutdown a second connection takes over before the first one ends."""
    caplog.set_level(logging.INFO)
    async with line(redis_url, brisk.ws_url) as running:
        await running.connected()
        [before] = await numbers_of(brisk)
        await brisk.fault("shutdown", seconds=60)  # the line leaves by itself, as soon as it has another

        async def moved() -> bool:
            numbers = await numbers_of(brisk)
            return bool(numbers) and before not in numbers

        await eventually(moved, within_s=5, what="the old connection is gone")
        await running.more(100)
        stored = await running.frames()
        stats = await running.stats()

    assert 0 == holes(stored)
    assert 0 == stats["sbe_websocket"]["reconnect_count"]
    assert "SBE WebSocket disconnected" not in caplog.text


async def test_rotation_loses_nothing(brisk: LocalExchange, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """An old connection is replaced while it still delivers, again and again."""
    caplog.set_level(logging.INFO)
    async with line(redis_url, brisk.ws_url, rotate_after_s=0.5) as running:
        await running.connected()
        first = max(await numbers_of(brisk))  # two, if the first rotation is under way already

        async def moved() -> bool:
            return all(number > first + 1 for number in await numbers_of(brisk))

        await eventually(moved, within_s=10, what="two rotations")
        stored = await running.frames()
        most = len(await brisk.connections())

    assert 0 == holes(stored)
    assert most <= 2
    assert "SBE WebSocket disconnected" not in caplog.text


async def test_an_old_connection_stays_when_its_replacement_breaks(
    brisk: LocalExchange, redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is not without any connection because the new one broke before the old one was closed."""
    monkeypatch.setattr(connection_policy, "OVERLAP_S", PATIENCE_S)  # it is still there whenever the new one breaks
    caplog.set_level(logging.INFO)
    async with line(redis_url, brisk.ws_url, rotate_after_s=3) as running:
        await running.connected()
        await eventually(
            lambda: _true("SBE connection replaced" in caplog.text), within_s=10, what="a second connection speaks"
        )
        await brisk.fault("disconnect", connection=max(await numbers_of(brisk)), seconds=0)
        await running.more(2_000)
        stored = await running.frames()

    assert 0 == holes(stored)
    assert "SBE WebSocket disconnected" not in caplog.text


async def test_a_scheduled_end_is_no_alarm(
    short_recording: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The exchange ends a connection after its life: the line is back at once and nothing is an error."""
    terms = Terms(life_s=1.0)
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, rate=300, terms=terms) as exchange,
        line(redis_url, exchange.ws_url) as running,
    ):
        await running.shows("sbe_websocket", "reconnect_count", lambda count: count >= 2)
        gaps = await running.gaps()

    assert [] == gaps
    assert [] == [record.message for record in caplog.records if record.levelno >= logging.ERROR]


# -- what a line sends ------------------------------------------------------------------------------------------------


async def test_pings_are_answered(short_recording: Path, redis_url: str) -> None:
    """The exchange keeps a connection only if pongs copy the pings' payload; it does keep it."""
    terms = Terms(ping_interval_s=2.0)
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, rate=300, terms=terms) as exchange,
        line(redis_url, exchange.ws_url) as running,
    ):
        await running.connected()
        before = await numbers_of(exchange)
        await running.more(2_400)  # eight seconds: longer than the three intervals that it waits for a pong
        after = await numbers_of(exchange)

    assert before == after


async def test_five_messages_a_second_are_not_exceeded(redis_url: str) -> None:
    """Of twenty pings within a moment three are answered: with what may follow, five within any second."""
    answered: list[int] = []
    allowed: list[int] = []

    async def speak(socket: ServerConnection) -> None:
        began_s = time.monotonic()
        pongs = [await socket.ping(f"ping {number}") for number in range(20)]
        await socket.send(best(1))
        async with patience():
            while sum(pong.done() for pong in pongs) < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.15)
        answered.append(sum(pong.done() for pong in pongs))
        allowed.append(3 + 5 * int(time.monotonic() - began_s))
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin) as running:
        await running.connected()
        await eventually(lambda: _true(bool(allowed)), within_s=5, what="pongs are counted")

    assert 3 <= answered[0] <= allowed[0]


async def _true(value: bool) -> bool:
    return value


async def test_the_upgrade_names_key_line_and_streams(redis_url: str) -> None:
    """Path, key header and User-Agent are what the exchange wants."""
    found: list[tuple[str, str, str]] = []

    async def speak(socket: ServerConnection) -> None:
        request = socket.request
        assert request is not None
        found.append((request.path, request.headers["X-MBX-APIKEY"], request.headers["User-Agent"]))
        await socket.send(best(1))
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin, line="zone-b") as running:
        await running.connected()

    [(path, key, agent)] = found
    assert ALL == path
    assert API_KEY == key
    assert agent.startswith("sheetanchor/")
    assert agent.endswith(" line=zone-b")


async def test_unexpected_texts_are_survived(redis_url: str) -> None:
    """Error replies and other texts are logged once and change nothing."""

    async def speak(socket: ServerConnection) -> None:
        for text in ('{"code":2,"msg":"Invalid request","id":1}', "not json", '{"result":null,"id":1}', ""):
            await socket.send(text)
        await socket.send(best(1))
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin) as running:
        await running.connected()
        stored = await running.frames()

    assert [best(1)] == stored


# -- beginning and end ------------------------------------------------------------------------------------------------


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "sheetanchor", "ingest", "--http-host", "127.0.0.1", *flags]


def clean(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHEETANCHOR_", "BINANCE_"))}
    return kept | more


async def test_sigterm_sends_what_waits(redis_url: str) -> None:
    """On SIGTERM the peer gets a CLOSE frame with 1000, every frame received is in Redis, and the exit code is 0."""
    received, codes = asyncio.Event(), []

    async def speak(socket: ServerConnection) -> None:
        for number in range(1, 101):
            await socket.send(best(number))
        await (await socket.ping())  # its pong says that all before it has been read
        received.set()
        try:
            await socket.recv()
        except ConnectionClosed as closed:
            codes.append(closed.rcvd.code if closed.rcvd else None)

    async with peer(speak) as origin:
        process = await asyncio.create_subprocess_exec(
            *command("--ws-url", origin, "--redis-url", redis_url, "--flush-ms", "100"),
            env=clean(BINANCE_API_KEY=API_KEY),
            stderr=subprocess.PIPE,
        )
        await asyncio.wait_for(received.wait(), PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), PATIENCE_S)

    redis = redis_client(redis_url, **PATIENT)
    entries = await redis.xrange(line_stream("BTCUSDT", "a"))
    await redis.aclose()
    assert 0 == process.returncode
    assert [1000] == codes
    assert [best(number) for number in range(1, 101)] == [
        frame for _, fields in entries for _, frame in unpack_frames(fields[b"f"])
    ]
    assert "Shutdown complete" == json.loads(log.splitlines()[-1])["message"]


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Upgrade properly, then send without end and read nothing."""
    request = await reader.readuntil(b"\r\n\r\n")
    key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", request)[0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # RFC 6455, 4.2.2
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            frame = best(1)
            writer.write(bytes([0x82, len(frame)]) + frame)
            await writer.drain()
            await asyncio.sleep(0.005)
    writer.close()


@asynccontextmanager
async def deaf_peer() -> AsyncIterator[str]:
    """Run a server that reads nothing."""
    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_peer_that_ignores_close_does_not_hold_up_the_end(redis_url: str) -> None:
    """A server that goes on sending after our CLOSE is left after two seconds."""
    # Without the limit of two seconds it would be endless.
    async with deaf_peer() as origin, patience(), line(redis_url, origin) as running:
        await running.connected()


async def test_a_peer_that_answers_no_ping_is_noticed(brisk: LocalExchange) -> None:
    """Our own pings show which peer still reads; the exchange does."""

    async def unanswered(origin: str, within_s: float) -> bool:
        url = stream_url(origin, ["BTCUSDT"], ["trade", "bestBidAsk", "depth"])
        connection = Connection(url, API_KEY, "a", lambda frame, at_us: None, ping_interval_s=0.3)
        task = asyncio.create_task(connection.run())
        await eventually(lambda: _true(connection.state.healthy), within_s=5, what="the first message")
        deadline_s = time.monotonic() + within_s
        looks, since_s = 0, None
        # Polls are counted, not time: while the loop is paused, so is the answer.
        while time.monotonic() < deadline_s and looks < 25:
            before_s, since_s = since_s, connection.state.unanswered_s
            looks = looks + 1 if since_s is not None and since_s == before_s else 0
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return looks >= 25

    async with deaf_peer() as origin:
        assert await unanswered(origin, within_s=PATIENCE_S)
    assert not await unanswered(brisk.ws_url, within_s=1.5)


def test_a_missing_key_is_one_clear_error() -> None:
    """Without an API key the role ends with 2 and one line that says where to put it."""
    ended = subprocess.run(command(), env=clean(), capture_output=True, text=True, timeout=120, check=False)

    assert 2 == ended.returncode
    [reported] = ended.stderr.splitlines()
    assert "BINANCE_API_KEY" in reported
    assert "--api-key-file" in reported

"""The local exchange over real sockets: streams, connections, the one book behind everything, and the process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sheetanchor import sbe
from sheetanchor._decoder import Market
from sheetanchor.contract import pack_frames
from sheetanchor.errors import BadSettings
from sheetanchor.simulator.sessions import Session, Terms
from support.exchange_client import (
    ALL,
    ClientBook,
    ask,
    client,
    diffs_of,
    ended,
    follow,
    follow_more,
    mantissa,
    messages,
    until,
)
from support.exchange_fixture import KEY_HEADER, LocalExchange, eventually, local_exchange
from support.patience import PATIENCE_S, patience


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/ws/btcusdt@trade", {sbe.Trades}),
        ("/ws/btcusdt@bestBidAsk", {sbe.BestBidAsk}),
        ("/ws/btcusdt@depth", {sbe.DepthDiff}),
        ("/ws/btcusdt@depth20", {sbe.DepthSnapshot}),
        (ALL, {sbe.Trades, sbe.BestBidAsk, sbe.DepthDiff}),
    ],
)
async def test_a_url_names_its_streams(fast_exchange: LocalExchange, path: str, kinds: set[type]) -> None:
    """Each path brings the messages of its streams and no others, in binary frames that decode whole."""
    async with client(fast_exchange, path) as socket:
        found = await messages(socket, 200 if path == ALL else 20)

    assert kinds == {type(message) for message in found}
    assert {("BTCUSDT", 0)} == {(message.symbol, message.trailing_bytes) for message in found}


async def test_event_times_are_now(exchange: LocalExchange) -> None:
    """At speed 1 a message carries an event time just before its arrival."""
    began_s = time.time()
    async with client(exchange) as socket:
        await messages(socket, 1)
        found = await messages(socket, 50)
        ended_s = time.time()

    assert began_s - 60 < found[-1].event_time_us / 1e6 < ended_s + 0.01  # recorded times are months old
    times = [diff.event_time_us for diff in diffs_of(found)]
    assert sorted(times) == times


async def test_subscriptions_over_the_socket(fast_exchange: LocalExchange) -> None:
    """`/ws` starts empty; SUBSCRIBE, LIST and UNSUBSCRIBE answer in text frames and take effect at once."""
    async with client(fast_exchange, "/ws") as socket:
        assert {"result": None, "id": 1} == await ask(socket, method="SUBSCRIBE", params=["btcusdt@depth"], id=1)
        assert {sbe.DepthDiff} == {type(message) for message in await messages(socket, 5)}
        assert {"result": ["btcusdt@depth"], "id": "b"} == await ask(socket, method="LIST_SUBSCRIPTIONS", id="b")
        assert {"result": None, "id": 3} == await ask(socket, method="UNSUBSCRIBE", params=["btcusdt@depth"], id=3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.2)


async def test_wrong_control_messages_are_answered(fast_exchange: LocalExchange) -> None:
    """An error is a text frame with code and message, and the connection stays."""
    async with client(fast_exchange, "/ws") as socket:
        unknown = await ask(socket, method="BUY", id=1)
        await socket.send("{")
        invalid = json.loads(await socket.recv())
        listed = await ask(socket, method="LIST_SUBSCRIPTIONS", id=2)

    assert (2, 1) == (unknown["code"], unknown["id"])
    assert 3 == invalid["code"]
    assert {"result": [], "id": 2} == listed


async def test_capital_symbols_are_no_streams(fast_exchange: LocalExchange) -> None:
    """Stream names are lower case; another URL is refused with an error body."""
    with pytest.raises(InvalidStatus) as refused:
        async with client(fast_exchange, "/ws/BTCUSDT@trade"):
            pass

    assert 400 == refused.value.response.status_code


async def test_a_key_is_required(fast_exchange: LocalExchange) -> None:
    """Without the API key header the upgrade is refused; REST needs none."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(fast_exchange.ws_url + ALL):
            pass

    assert 401 == refused.value.response.status_code
    assert -2014 == json.loads(refused.value.response.body or b"{}")["code"]
    assert {} == await fast_exchange.get("/api/v3/ping")


async def test_a_wrong_key_is_refused(short_recording: Path) -> None:
    """With a key of its own the exchange takes no other."""
    async with local_exchange(recording=[short_recording], warmup_s=5, api_key="other") as running:
        with pytest.raises(InvalidStatus) as refused:
            async with client(running):
                pass

    assert 401 == refused.value.response.status_code


async def test_a_silent_client_is_pinged_and_closed(short_recording: Path) -> None:
    """Pings carry a payload; a client that never answers is closed after three intervals."""
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, ping_interval_s=0.2) as running,
        raw_client(running, "/ws") as reader,
    ):
        opcodes = await asyncio.wait_for(frames_until_close(reader), PATIENCE_S)

        assert len(opcodes) >= 2
        assert [0x9] * (len(opcodes) - 1) + [0x8] == [opcode for opcode, _ in opcodes]
        assert all(payload for _, payload in opcodes)
        assert 1008 == int.from_bytes(opcodes[-1][1][:2], "big")


INTERVAL_S = 2_000.0
"""Of pings, so long that none is due: the tests say what time it is."""


async def test_a_client_that_answers_pings_stays(short_recording: Path) -> None:
    """Pongs with the ping's payload keep a connection past the limit."""
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, ping_interval_s=INTERVAL_S) as running,
        client(running, "/ws", ping_interval=None) as socket,
    ):
        session = await only_session(running)
        now_s = asyncio.get_running_loop().time()
        for times in range(1, 6):
            session.maintain(now_s + times * INTERVAL_S)

            async def has_answered(times: int = times) -> bool:
                return session.counts.received == times

            await eventually(has_answered, within_s=5, what=f"pong {times}")

        await asyncio.sleep(1.1)  # a sixth message within a second would be one too many
        assert {"result": [], "id": 1} == await ask(socket, method="LIST_SUBSCRIPTIONS", id=1)


async def test_a_client_that_is_silent_is_closed_after_three_intervals(short_recording: Path) -> None:
    """It is pinged at each interval; the time counts from the first ping that has not been answered."""
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, ping_interval_s=INTERVAL_S) as running,
        raw_client(running, "/ws") as reader,
    ):
        session = await only_session(running)
        now_s = asyncio.get_running_loop().time()
        for times in range(1, 4):
            session.maintain(now_s + times * INTERVAL_S)
        session.maintain(now_s + 4 * INTERVAL_S - 1)
        assert not running.server.closing
        session.maintain(now_s + 4 * INTERVAL_S + 1)

        opcodes = await asyncio.wait_for(frames_until_close(reader), PATIENCE_S)

    assert [0x9, 0x9, 0x9, 0x8] == [opcode for opcode, _ in opcodes]


async def only_session(running: LocalExchange) -> Session:
    """Give the exchange's side of the only connection: it begins after the client has been answered."""
    sessions = running.server.venue.sessions

    async def has_begun() -> bool:
        return bool(sessions)

    await eventually(has_begun, within_s=5, what="the connection has begun")
    [session] = sessions.values()
    return session


@asynccontextmanager
async def raw_client(
    running: LocalExchange, path: str, *, receive_buffer: int = 0
) -> AsyncIterator[asyncio.StreamReader]:
    """Open a WebSocket by hand, so that nothing answers pings."""
    opened = socket.create_connection(("127.0.0.1", running.port))
    if receive_buffer:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=opened, limit=1024)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-MBX-APIKEY: k\r\nUser-Agent: raw\r\n\r\n".encode()
    )
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101")
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # it may have been cut off
            await writer.wait_closed()


async def frames_until_close(reader: asyncio.StreamReader) -> list[tuple[int, bytes]]:
    """Read short frames up to the close frame."""
    found: list[tuple[int, bytes]] = []
    while not found or found[-1][0] != 0x8:
        first, length = await reader.readexactly(2)
        found.append((first & 0x0F, await reader.readexactly(length)))
    return found


async def test_chatty_clients_are_closed(fast_exchange: LocalExchange) -> None:
    """The sixth client message within a second ends the connection with 1008."""
    async with client(fast_exchange, "/ws") as socket:
        with contextlib.suppress(ConnectionClosed):
            async with patience():
                while True:  # six that a busy machine takes longer than a second for are not too many
                    await socket.send(json.dumps({"method": "LIST_SUBSCRIPTIONS"}))
                    await asyncio.sleep(0)
        await ended(socket)

        assert (1008, "Too many requests") == (socket.close_code, socket.close_reason)


async def test_a_connection_ends_after_its_life(short_recording: Path) -> None:
    """The 24 hours are a setting; at their end the connection is closed in good order."""
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, life_s=0.3) as running,
        client(running) as socket,
    ):
        await ended(socket)

        assert 1001 == socket.close_code


async def test_slow_readers_lose_old_best_prices_first_and_are_cut_off_at_last(short_recording: Path) -> None:
    """Unread bytes are bounded: best prices are culled past one bound, and past another the connection ends."""
    terms = Terms(backlog_bytes=20_000, buffer_max_bytes=2_000_000)
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, rate=50_000, terms=terms) as running,
        raw_client(running, ALL, receive_buffer=4_096),
    ):
        session = await only_session(running)

        async def is_cut_off() -> bool:
            for found in await running.connections():
                assert found["waiting_bytes"] <= terms.buffer_max_bytes + 500_000
            return not await running.connections()

        await eventually(is_cut_off, within_s=60, what="the slow client is cut off")

        assert session.counts.culled > 0


async def test_a_book_kept_by_the_rules_equals_the_exchanges_over_many_seams(short_recording: Path) -> None:
    """Snapshot plus diffs gives the exchange's book at every checkpoint, however often the recording repeats."""
    async with local_exchange(recording=[short_recording], warmup_s=5, rate=6_000) as running:
        async with client(running, "/ws/btcusdt@depth") as socket:
            buffered = diffs_of(await messages(socket, 3))
            book = ClientBook(await running.get("/api/v3/depth", symbol="BTCUSDT", limit=5000), buffered)
            first_id = book.update_id
            for _ in range(8):
                await follow(socket, book, await running.checkpoint())
                await follow_more(socket, book, 100)

        span = running.server.venue.markets["BTCUSDT"].script.id_shift
        assert book.update_id - first_id > 2 * span


async def test_the_pipelines_market_equals_the_exchanges_over_many_seams(short_recording: Path) -> None:
    """The C++ market follows the streams without a missing range, and its book equals every checkpoint."""
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, rate=8_000) as running,
        client(running) as socket,
    ):
        market = Market("BTCUSDT")
        await feed(socket, market, 50)
        snapshot = await running.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
        sides = [[(mantissa(price), mantissa(qty)) for price, qty in snapshot[side]] for side in ("bids", "asks")]
        market.load_snapshot(snapshot["lastUpdateId"], -8, -8, *sides, stamp_us=1)
        for _ in range(4):
            await feed(socket, market, 2_500)
            checkpoint = await running.checkpoint()
            while market.update_id < checkpoint["update_id"]:
                await feed(socket, market, 1, stop_at=checkpoint["update_id"])
            levels = [
                [(mantissa(price), mantissa(qty)) for price, qty in checkpoint[side]] for side in ("bids", "asks")
            ]

            assert tuple(levels) == market.levels()
            assert (None, None, False) == (market.depth_gap, market.trade_gap, market.crossed)

    assert running.server.venue.markets["BTCUSDT"].script.id_shift * 2 < market.update_id - snapshot["lastUpdateId"]


async def feed(socket: ClientConnection, market: Market, count: int, *, stop_at: int = 0) -> None:
    """Hand so many frames to a market as an ingestor would."""
    for _ in range(count):
        frame = await asyncio.wait_for(socket.recv(), PATIENCE_S)
        assert isinstance(frame, bytes)
        assert 1 == market.feed(0, pack_frames([(1, frame)]), 1, stop_at)


async def test_rest_depth_is_the_book_after_the_last_diff(fast_exchange: LocalExchange) -> None:
    """The snapshot's id is always the last id of a diff that was sent, so that the next diff joins it."""
    async with client(fast_exchange, "/ws/btcusdt@depth") as socket:
        await messages(socket, 1)
        snapshots = [await fast_exchange.get("/api/v3/depth", symbol="BTCUSDT", limit=5) for _ in range(10)]
        last = snapshots[-1]["lastUpdateId"]
        found = await until(socket, lambda message: diffs_of([message])[0].last_update_id >= last)

    ends = {diff.last_update_id for diff in diffs_of(found)}
    assert {snapshot["lastUpdateId"] for snapshot in snapshots[1:]} <= ends | {snapshots[0]["lastUpdateId"]}


async def test_top_20_equals_the_book(fast_exchange: LocalExchange) -> None:
    """Each top-20 message equals the twenty best levels of a book that followed the diffs to the same id."""
    async with client(fast_exchange, "/ws/btcusdt@depth/btcusdt@depth20") as socket:
        await messages(socket, 2)
        book = ClientBook(await fast_exchange.get("/api/v3/depth", symbol="BTCUSDT", limit=5000), [])
        compared = 0
        while compared < 10:
            for message in await messages(socket, 1):
                if isinstance(message, sbe.DepthDiff):
                    book.apply(message)
                elif isinstance(message, sbe.DepthSnapshot) and message.book_update_id == book.update_id:
                    assert message.bids == tuple(sorted(book.bids.items(), reverse=True)[:20])
                    assert message.asks == tuple(sorted(book.asks.items())[:20])
                    compared += 1


async def test_trades_over_rest_are_those_of_the_stream(fast_exchange: LocalExchange) -> None:
    """Every trade that came over the stream is listed by REST with the same price, quantity, time and side."""
    async with client(fast_exchange, "/ws/btcusdt@trade") as socket:
        found = await messages(socket, 20)

    streamed = {
        trade[0]: (trade[1], trade[2], message.transact_time_us, trade[3])
        for message in found
        if isinstance(message, sbe.Trades)
        for trade in message.trades
    }
    async with fast_exchange.http.get(
        fast_exchange.rest_url + "/api/v3/historicalTrades",
        params={"symbol": "BTCUSDT", "limit": 1000, "fromId": min(streamed)},
        headers={"X-MBX-TIME-UNIT": "MICROSECOND"},
    ) as response:
        listed = {
            item["id"]: (mantissa(item["price"]), mantissa(item["qty"]), item["time"], item["isBuyerMaker"])
            for item in await response.json()
        }
    assert streamed == {number: listed.get(number) for number in streamed}


async def test_two_symbols_have_two_markets(short_recording: Path) -> None:
    """A symbol without a recording of its own plays the first one under its name."""
    async with local_exchange(
        recording=[short_recording], symbol=["BTCUSDT", "ETHUSDT"], warmup_s=5, rate=2_000
    ) as running:
        async with client(running, "/stream?streams=btcusdt@depth/ethusdt@depth") as socket:
            found = await messages(socket, 20)
        other = await running.checkpoint("ETHUSDT")

    assert {"BTCUSDT", "ETHUSDT"} == {message.symbol for message in found}
    assert "ETHUSDT" == other["symbol"]


async def test_settings_that_do_not_fit_are_reported(short_recording: Path) -> None:
    """Bursts without a rate, a warm-up longer than the recording and a taken port are one clear error each."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for settings, words in (
            ({"burst": "11000:100:10"}, "expected rate too"),
            ({"warmup_s": 5_000}, "warmup_s = 5000: expected less than"),
            ({"http_port": taken.getsockname()[1]}, "cannot listen on 127.0.0.1"),
            ({"fault": ["dorp"]}, "fault 'dorp'"),
            ({"recording": [short_recording, short_recording]}, "expected one per symbol"),
        ):
            with pytest.raises(BadSettings, match=words):
                async with local_exchange(**({"recording": [short_recording], "warmup_s": 5} | settings)):
                    pass


async def test_the_process_says_where_it_listens_and_ends_when_asked(short_recording: Path) -> None:
    """`sheetanchor exchange` serves with a client connected and exits with 0 on SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sheetanchor", "exchange", "--http-port", "0", "--recording", str(short_recording)),
        *("--warmup-s", "5", "--loop"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        port = 0
        while not port:
            line = json.loads(await asyncio.wait_for(process.stderr.readline(), PATIENCE_S))
            if "exchange listening on http://127.0.0.1:" in line["message"]:
                port = int(line["message"].rpartition(":")[2])
        async with websockets.connect(f"ws://127.0.0.1:{port}{ALL}", additional_headers=KEY_HEADER) as opened:
            await messages(opened, 3)
            process.send_signal(signal.SIGTERM)

            assert 0 == await asyncio.wait_for(process.wait(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_front_page_says_what_this_is(fast_exchange: LocalExchange) -> None:
    """A user who opens the port in a browser sees what listens there."""
    async with fast_exchange.http.get(fast_exchange.rest_url + "/") as response:
        text = await response.text()

    assert "local exchange" in text
    assert "BTCUSDT" in text

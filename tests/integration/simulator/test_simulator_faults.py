"""The local exchange over real sockets: what each scripted fault does to a client."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from sheetanchor import sbe
from support.exchange_client import (
    ClientBook,
    client,
    diffs_of,
    ended,
    follow,
    mantissa,
    messages,
    missing_updates,
    until,
    until_now,
)
from support.exchange_fixture import LocalExchange, eventually, local_exchange
from support.patience import PATIENCE_S


async def test_dropped_diffs_leave_a_missing_range_and_stay_in_the_book(fast_exchange: LocalExchange) -> None:
    """A drop breaks the chain of every client at the same place; a book made afresh from REST is right again."""
    async with client(fast_exchange, "/ws/btcusdt@depth") as one, client(fast_exchange, "/ws/btcusdt@depth") as two:
        both = await asyncio.gather(messages(one, 2), messages(two, 2))
        report = await fast_exchange.fault_done(await fast_exchange.fault("drop", n=3))
        more = await asyncio.gather(until_now(one, fast_exchange), until_now(two, fast_exchange))
        chains = [diffs_of(before + after) for before, after in zip(both, more, strict=True)]
        book = ClientBook(await fast_exchange.get("/api/v3/depth", symbol="BTCUSDT", limit=5000), [])
        await follow(one, book, await fast_exchange.checkpoint())

    assert 3 == report["applied"]
    assert [1, 1] == [missing_updates(chain) for chain in chains]


async def test_one_line_alone_loses_messages(fast_exchange: LocalExchange) -> None:
    """`line=a` meets the client that calls itself so; the other line sees an unbroken chain."""
    async with (
        client(fast_exchange, "/ws/btcusdt@depth", line="a") as one,
        client(fast_exchange, "/ws/btcusdt@depth", line="b") as two,
    ):
        first_one, first_two = await asyncio.gather(messages(one, 2), messages(two, 2))
        report = await fast_exchange.fault_done(await fast_exchange.fault("drop", n=5, line="a"))
        more_one, more_two = await asyncio.gather(until_now(one, fast_exchange), until_now(two, fast_exchange))

    assert 5 == report["applied"]
    assert 1 == missing_updates(diffs_of(first_one + more_one))
    assert 0 == missing_updates(diffs_of(first_two + more_two))


async def test_dropped_trades_leave_a_missing_range(fast_exchange: LocalExchange) -> None:
    """`what=trade` loses trades, so that a range of ids is missing."""
    async with client(fast_exchange) as socket:
        found = await until(socket, lambda message: isinstance(message, sbe.Trades))
        await fast_exchange.fault_done(await fast_exchange.fault("drop", n=2, what="trade"))
        found += await until_now(socket, fast_exchange)
        found += await until(socket, lambda message: isinstance(message, sbe.Trades))

    ids = [trade[0] for message in found if isinstance(message, sbe.Trades) for trade in message.trades]
    assert len(ids) < ids[-1] - ids[0] + 1


async def test_duplicates_come_twice(fast_exchange: LocalExchange) -> None:
    """The next messages are sent twice in a row, byte for byte."""
    async with client(fast_exchange) as socket:
        await messages(socket, 2)
        await fast_exchange.fault_done(await fast_exchange.fault("duplicate", n=5))
        found = await until_now(socket, fast_exchange)

    assert 5 == sum(later == message for message, later in itertools.pairwise(found))


async def test_garbage_is_sent_between_good_frames(fast_exchange: LocalExchange) -> None:
    """Bad frames come as asked, none of them decodes, and no good one is lost."""
    async with client(fast_exchange) as socket:
        await messages(socket, 2)
        await fast_exchange.fault_done(await fast_exchange.fault("garbage", n=6))
        sent = (await fast_exchange.checkpoint())["update_id"]
        good: list[sbe.Message] = []
        bad = 0
        while not (good and isinstance(good[-1], sbe.DepthDiff) and good[-1].first_update_id > sent):
            frame = await asyncio.wait_for(socket.recv(), PATIENCE_S)
            assert isinstance(frame, bytes)
            try:
                good.append(sbe.decode(frame))
            except sbe.DecodeError:
                bad += 1

    assert 6 == bad
    assert 0 == missing_updates(diffs_of(good))


async def test_silence_loses_what_was_due(fast_exchange: LocalExchange) -> None:
    """What is due while it lasts is lost; then messages continue after one missing range."""
    async with client(fast_exchange) as socket:
        before = diffs_of(await until(socket, lambda message: isinstance(message, sbe.DepthDiff)))[-1]
        number = await fast_exchange.fault("silence", seconds=3_600)

        async def has_lost_many() -> bool:
            [silence] = (await fast_exchange.get("/faults"))["active"]
            return bool(silence["applied"] > 100)

        await eventually(has_lost_many, within_s=10, what="over a hundred messages are lost")
        await fast_exchange.end_fault(number)
        after = diffs_of(await until_now(socket, fast_exchange))

    assert 1 == missing_updates([before, *after])


@pytest.mark.parametrize("kind", ["silence", "refuse", "disconnect", "hold"])
async def test_a_fault_of_some_seconds_ends_by_itself(fast_exchange: LocalExchange, kind: str) -> None:
    """However long it takes to look: it is done, and a client that connects then gets messages."""
    await fast_exchange.fault_done(await fast_exchange.fault(kind, seconds=0.2))

    async with client(fast_exchange) as socket:
        assert 5 == len(await messages(socket, 5))


async def test_a_held_connection_gets_everything_late(fast_exchange: LocalExchange) -> None:
    """Nothing arrives while it lasts; then all messages do, without a missing range."""
    async with client(fast_exchange) as socket:
        before = diffs_of(await until(socket, lambda message: isinstance(message, sbe.DepthDiff)))
        await fast_exchange.fault_done(await fast_exchange.fault("hold", seconds=0.4))
        after = diffs_of(await until_now(socket, fast_exchange))

    assert 0 == missing_updates(before + after)


async def test_a_disconnect_breaks_without_a_word_and_refuses_for_a_while(fast_exchange: LocalExchange) -> None:
    """The named line's connection ends without a close frame; others stay, and it is let in again afterwards."""
    async with client(fast_exchange, line="a") as one, client(fast_exchange, line="b") as two:
        number = await fast_exchange.fault("disconnect", line="a", seconds=3_600)
        await ended(one)
        with pytest.raises(InvalidStatus) as refused:
            async with client(fast_exchange, line="a"):
                pass
        assert len(await messages(two, 50)) == 50

        await fast_exchange.end_fault(number)
        async with client(fast_exchange, line="a") as again:
            assert len(await messages(again, 5)) == 5

    assert 1006 == one.close_code
    assert 503 == refused.value.response.status_code


async def test_refusing_touches_new_connections_only(fast_exchange: LocalExchange) -> None:
    """Who is connected stays; who comes is turned away until the fault is deleted."""
    async with client(fast_exchange) as socket:
        number = await fast_exchange.fault("refuse", seconds=3_600)
        with pytest.raises(InvalidStatus):
            async with client(fast_exchange):
                pass
        assert len(await messages(socket, 10)) == 10

    await fast_exchange.end_fault(number)
    async with client(fast_exchange) as socket:
        assert len(await messages(socket, 10)) == 10


async def test_a_shutdown_is_announced(fast_exchange: LocalExchange) -> None:
    """`serverShutdown` comes as a bare text frame, and the connection ends soon after."""
    async with client(fast_exchange, "/ws") as socket:
        await fast_exchange.fault("shutdown", seconds=0.2)
        announced = json.loads(await asyncio.wait_for(socket.recv(), PATIENCE_S))
        await ended(socket)

    assert ("serverShutdown", 1001) == (announced["e"], socket.close_code)
    assert abs(announced["E"] / 1000 - time.time()) < 30


async def test_a_price_jump_is_seen_by_stream_and_rest(fast_exchange: LocalExchange) -> None:
    """A trade prints two per cent off, and REST lists it at that price."""
    async with client(fast_exchange, "/ws/btcusdt@trade") as socket:
        [usual] = await messages(socket, 1)
        await fast_exchange.fault("price_jump", percent=2)
        found = await until(socket, lambda message: first_trade(message)[1] > first_trade(usual)[1] * 1.015)
        assert isinstance(found[-1], sbe.Trades)
        odd = {trade[0]: trade[1] for trade in found[-1].trades}
        listed = await fast_exchange.get("/api/v3/historicalTrades", symbol="BTCUSDT", fromId=min(odd), limit=1000)

    assert odd == {item["id"]: mantissa(item["price"]) for item in listed if item["id"] in odd}


def first_trade(message: sbe.Message) -> tuple[int, int]:
    """Give id and price of a message's first trade."""
    assert isinstance(message, sbe.Trades)
    return message.trades[0][:2]


async def test_rest_can_be_slow(fast_exchange: LocalExchange) -> None:
    """The next answer comes late, the one after at once."""
    number = await fast_exchange.fault("slow_rest", seconds=0.5)
    began_s = time.monotonic()
    await fast_exchange.get("/api/v3/time")
    took_s = time.monotonic() - began_s
    await fast_exchange.get("/api/v3/time")

    assert took_s >= 0.5
    assert 1 == (await fast_exchange.fault_done(number))["applied"]


@pytest.mark.parametrize(
    ("code", "body_code", "retry_after"), [(429, -1003, "2"), (418, -1003, "2"), (500, -1000, None), (503, -1008, None)]
)
async def test_rest_can_fail(fast_exchange: LocalExchange, code: int, body_code: int, retry_after: str | None) -> None:
    """The next request for the path gets the status with its documented body."""
    await fast_exchange.fault("rest_status", code=code, retry_after=2, path="depth")
    assert {} == await fast_exchange.get("/api/v3/ping")

    async with fast_exchange.http.get(fast_exchange.rest_url + "/api/v3/depth?symbol=BTCUSDT") as response:
        body = await response.json()

    assert (code, body_code, retry_after) == (response.status, body["code"], response.headers.get("Retry-After"))
    assert await fast_exchange.get("/api/v3/depth", symbol="BTCUSDT")


@pytest.mark.parametrize("form", ["truncated", "html", "empty", "wrong"])
async def test_rest_bodies_can_be_unusable(fast_exchange: LocalExchange, form: str) -> None:
    """The next answer is no depth, whatever its status says."""
    await fast_exchange.fault("rest_body", form=form)

    async with fast_exchange.http.get(fast_exchange.rest_url + "/api/v3/depth?symbol=BTCUSDT") as response:
        text = await response.text()

    assert 200 == response.status
    try:
        assert "bids" not in json.loads(text)
    except ValueError:
        assert form != "wrong"


async def test_a_snapshot_can_be_stale(fast_exchange: LocalExchange) -> None:
    """The next depth answer is a book of some time ago, the one after is current."""
    first = (await fast_exchange.checkpoint())["update_id"]

    async def has_moved_on() -> bool:
        return bool((await fast_exchange.checkpoint())["update_id"] > first + 500)

    await eventually(has_moved_on, within_s=10, what="the book has moved on")
    await fast_exchange.fault("stale_snapshot", seconds=30)
    now = (await fast_exchange.checkpoint())["update_id"]
    stale = await fast_exchange.get("/api/v3/depth", symbol="BTCUSDT")
    current = await fast_exchange.get("/api/v3/depth", symbol="BTCUSDT")

    assert stale["lastUpdateId"] < now <= current["lastUpdateId"]


async def test_faults_can_be_scripted_by_flags(short_recording: Path) -> None:
    """A fault given as a setting acts without any call."""
    async with (
        local_exchange(recording=[short_recording], warmup_s=5, fault=["drop:n=2,line=a"], rate=2_000) as running,
        client(running, "/ws/btcusdt@depth", line="a") as socket,
    ):
        await messages(socket, 5)
        done = (await running.get("/faults"))["done"]

    assert [("drop", 2)] == [(item["kind"], item["applied"]) for item in done]


async def test_wrong_faults_are_refused(fast_exchange: LocalExchange) -> None:
    """A fault that is not known or not deletable is an error that says why."""
    for body in ("{", "[]", '{"kind":"dorp"}', '{"kind":"drop","n":0}', '{"n":1}'):
        async with post_fault(fast_exchange, body, **JSON) as response:
            assert 400 == response.status
            assert (await response.json())["msg"]
    async with fast_exchange.http.delete(fast_exchange.rest_url + "/faults/999") as response:
        assert 404 == response.status


JSON = {"Content-Type": "application/json"}
DROP = '{"kind": "drop", "n": 3}'


def post_fault(exchange: LocalExchange, body: str, **headers: str) -> Any:
    return exchange.http.post(exchange.rest_url + "/faults", data=body, headers=headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON, 201),
        ({"Content-Type": "application/json; charset=utf-8"}, 201),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (JSON | {"Origin": "https://evil.example"}, 403),
        (JSON | {"Origin": "null"}, 403),
        (JSON | {"Host": "evil.example"}, 421),
        (JSON | {"Host": "evil.example", "Origin": "http://evil.example"}, 421),
    ],
)
async def test_no_page_from_elsewhere_scripts_faults(
    fast_exchange: LocalExchange, headers: dict[str, str], status: int
) -> None:
    """A browser sends what a page makes it send without asking: other types, its origin, a name made to lead here."""
    async with post_fault(fast_exchange, DROP, **headers) as response:
        assert status == response.status


@pytest.mark.parametrize(("method", "path"), [("GET", "/faults"), ("DELETE", "/faults/1"), ("GET", "/connections")])
async def test_nor_does_it_look_at_them(fast_exchange: LocalExchange, method: str, path: str) -> None:
    """Under a name that was made to lead here."""
    url = fast_exchange.rest_url + path
    async with fast_exchange.http.request(method, url, headers={"Host": "evil.example:8090"}) as response:
        assert 421 == response.status


async def test_a_deeply_nested_fault_is_refused(fast_exchange: LocalExchange) -> None:
    """As every other body that is none."""
    async with post_fault(fast_exchange, "[" * 100_000, **JSON) as response:
        assert 400 == response.status

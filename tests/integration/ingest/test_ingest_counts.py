"""What a line counts, by the value: frames that a test sends one by one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

import pytest
from websockets.asyncio.server import ServerConnection

from sheetanchor import sbe
from sheetanchor.ingest.frame_receiver import REFUSED_MAX
from support.exchange_fixture import eventually
from support.line import Line, best, line, peer


def diff(first: int, last: int) -> bytes:
    return sbe.encode(sbe.DepthDiff(last, "BTCUSDT", -8, -8, first, last, ((1, 1),), ()))


def value(page: str, sample: str) -> float:
    """The value of a sample, 0 if it is not there."""
    found = re.search(rf"^{re.escape(sample)} ([0-9.e+]+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def settled(running: Line, wanted: Callable[[list[bytes]], bool]) -> None:
    async def holds() -> bool:
        return wanted(await running.frames())

    await eventually(holds, within_s=10, what="frames in Redis")


async def test_every_frame_is_timed_counted_and_sent(redis_url: str) -> None:
    """Ten frames, one jump of ids among them: ten decodes below a millisecond's buckets, each entry, one gap."""
    go_on = asyncio.Event()

    async def speak(socket: ServerConnection) -> None:
        await socket.send(diff(1, 1))
        await go_on.wait()
        for number in range(2, 7):
            await socket.send(diff(number, number))
        for number in range(9, 14):
            await socket.send(diff(number, number))
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin) as running:
        await running.connected()
        before, entries_before = await running.page("/metrics"), len(await running.entries())
        go_on.set()
        await settled(running, lambda frames: len(frames) == 11)
        after, entries = await running.page("/metrics"), len(await running.entries())
        stats = await running.stats()

    def grown(sample: str) -> float:
        return value(after, sample) - value(before, sample)

    decodes = "ingestor_sbe_decode_duration_seconds"
    edges = [float(edge) for edge in re.findall(rf'{decodes}_bucket{{le="([0-9.e-]+)"}}', after)]
    assert 10.0 == grown(f"{decodes}_count")
    assert 10.0 == grown(f'{decodes}_bucket{{le="+Inf"}}')
    assert len([edge for edge in edges if edge < 0.001]) >= 3
    assert entries - entries_before == grown('ingestor_kinesis_records_sent_total{stream="sbe:{BTCUSDT}:a"}')
    assert 1.0 == grown('ingestor_sbe_sequence_gaps_total{stream="depth",symbol="BTCUSDT"}')
    assert 0.0 == grown('ingestor_sbe_sequence_gaps_total{stream="trade",symbol="BTCUSDT"}')
    assert 10.0 == grown('ingestor_sbe_messages_total{stream="depth",symbol="BTCUSDT"}')
    assert (1, 11) == (stats["frames"]["sequence_gaps"], stats["sbe_decoder"]["messages_decoded"])


async def test_a_decoder_that_refuses_everything_is_unhealthy(redis_url: str) -> None:
    """Odd frames among sound ones are none of its business; ten in a row are, until one is read again."""
    go_on = asyncio.Event()

    async def speak(socket: ServerConnection) -> None:
        await socket.send(best(1))
        for _ in range(REFUSED_MAX - 1):
            await socket.send(b"no frame")
        await socket.send(best(2))
        for _ in range(REFUSED_MAX):
            await socket.send(b"no frame")
        await go_on.wait()
        await socket.send(best(3))
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin, health_check_interval_seconds=1) as running:
        await running.shows("sbe_decoder", "status", lambda status: status == "refusing")
        await eventually(lambda: _health_is(running, "unhealthy", "refused"), within_s=10, what="an unhealthy decoder")
        go_on.set()
        await running.shows("sbe_decoder", "status", lambda status: status == "loaded")
        await eventually(lambda: _health_is(running, "healthy", ""), within_s=10, what="a healthy decoder")
        stats = await running.stats()

    assert (2 * REFUSED_MAX - 1, 3) == (stats["sbe_decoder"]["decode_errors"], stats["sbe_decoder"]["messages_decoded"])


async def _health_is(running: Line, status: str, reported: str) -> bool:
    body = json.loads(await running.page("/health"))
    return body["status"] == status and reported in body["checks"]["sbe_decoder"].get("message", "")


@pytest.mark.parametrize("symbols", [["BTCUSDT"], ["BTCUSDT", "ETHUSDT"]])
async def test_unreadable_frames_are_kept_to_the_letter(symbols: list[str], redis_url: str) -> None:
    """Also with several symbols on a line what was received is in Redis: it goes with the first symbol."""
    bad = [b"", b"x", best(1)[:-1], b"\x00" * 60]

    async def speak(socket: ServerConnection) -> None:
        for frame in (best(1), *bad, best(2)):
            await socket.send(frame)
        await socket.wait_closed()

    async with peer(speak) as origin, line(redis_url, origin, symbol=symbols) as running:
        await settled(running, lambda frames: len(frames) == 6)
        frames, foreign = await running.frames(), (await running.stats())["frames"]["foreign_symbol"]

    assert ([best(1), *bad, best(2)], 0) == (frames, foreign)

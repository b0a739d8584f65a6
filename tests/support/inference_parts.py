"""Parts for tests of inference: a registry with a model, a market that writes hot keys, replicas."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis

from conftest import free_port_number, wait_until
from sheetanchor.contract import SLOT_MS, slot_of
from sheetanchor.errors import RedisError
from sheetanchor.infer.model_fallback import FallbackChains
from sheetanchor.ml.registry import ModelRegistry
from sheetanchor.store.hot_records import Vouch
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support import onnx_models
from support.patience import PATIENCE_S

RETURN = 0.0005


def promoted(root: Path, value: float = RETURN, name: str = "test") -> None:
    """Add a model that always says the same to a registry and make it the one in use."""
    onnx_models.promote(root, onnx_models.model(value), name=name)


# A market


def hashes(price: float = 100.0) -> dict[str, dict[str, str]]:
    """The hot state that the market below shows."""
    return {
        "ob": {"best_bid": f"{price - 0.5}", "best_ask": f"{price + 0.5}", "ob_imbalance": "0.25"},
        "tr_1s": {"count": "1"},
        "tr_5s": {"count": "5"},
        "feat": {"ret_1s": "0.0001", "ret_5s": "0.0002"},
    }


def _flat(fields: dict[str, str]) -> list[str]:
    return [text for pair in fields.items() for text in pair]


class Market:
    """A processor of its own: anchors a symbol and keeps its hot keys fresh from a thread until stopped."""

    def __init__(self, url: str, symbol: str = "BTCUSDT") -> None:
        self.price = 100.0
        self.epoch = 0
        self.stamps = True
        self.writes = 0
        self.wish: Callable[[HotState, Redis], Any] | None = None
        self._url = url
        self._symbol = symbol
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Market:
        self._thread.start()
        wait_until(lambda: self.writes > 0, within_s=10, what="the market is anchored")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def do(self, wish: Callable[[HotState, Redis], Any]) -> None:
        """Have something done by the market's own thread, between two of its writes."""
        self.wish = wish
        wait_until(lambda: self.wish is None, within_s=10, what="the wish is done")

    async def _run(self) -> None:
        # Patient: giving up a busy server would anchor again, and tests count epochs.
        redis = redis_client(self._url, socket_timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S)
        try:
            while not self._stop.is_set():
                await self._turn(HotState(redis, self._symbol), redis)
                await asyncio.sleep(0.05)
        finally:
            await redis.aclose()

    async def _turn(self, hot: HotState, redis: Redis) -> None:
        try:
            if self.epoch == 0:
                await self._anchor(hot)
            if self.wish is not None:
                await self.wish(hot, redis)
                self.wish = None
            await self._write(hot)
        except RedisError:
            self.epoch = 0
        except ValueError:
            return  # a test has damaged the anchor: no processor can write before it is rebuilt

    async def _anchor(self, hot: HotState) -> None:
        now = await hot.anchor()
        await hot.take(now.term + 1, "market", now.term, now.writer, force=True)
        await rebuild(hot, self.price)
        self.epoch = (await hot.anchor()).epoch

    async def _write(self, hot: HotState) -> None:
        anchor = await hot.anchor()
        stamp_us = time.time_ns() // 1_000 if self.stamps else anchor.stamp_us
        lists = [_flat(fields) for fields in hashes(self.price).values()]
        vouch = Vouch(time.time_ns() // 1_000 + 2_000_000, 2_000_000)
        reply = await hot.apply(anchor.term, "market", anchor.epoch, 1, stamp_us, *lists, vouch=vouch)
        if reply.ok:
            self.writes += 1
        elif not anchor.epoch:
            self.epoch = 0


async def rebuild(hot: HotState, price: float = 100.0) -> None:
    """Stage a state and swap it in, as a re-anchor does."""
    lists = [_flat(fields) for fields in hashes(price).values()]
    lists[0] += ["update_id", "1"]
    epoch = (await hot.anchor()).epoch
    assert await hot.lock("test")
    assert await hot.stage("test", *lists, b"book")
    assert (await hot.swap("test", epoch, 1, time.time_ns() // 1_000, f"receipt-{epoch}")).ok


# Replicas


async def next_slot() -> int:
    """Wait for a slot to begin and give it, so that a whole slot is left: the clock of this machine is Redis'."""
    slot = slot_of(time.time_ns() // 1_000) + 1
    await asyncio.sleep(slot * SLOT_MS / 1_000 - time.time() + 0.002)
    return slot


class LoopWorld:
    """A Redis, a registry of models and the fallback chain of one symbol, for tests of one replica's loop."""

    def __init__(self, redis: Redis, models: Path, symbol: str = "BTCUSDT") -> None:
        self.redis = redis
        self.models = models
        self.hot = HotState(redis, symbol)
        self.fallbacks = FallbackChains(ModelRegistry(models), [symbol])
        self.chain = self.fallbacks.chains[symbol]

    async def written(
        self, price: float = 100.0, stamp_us: int | None = None, unsound: str = "", **changes: dict[str, str]
    ) -> None:
        """Write a state of now, sound for two seconds unless a reason is given, with some of its hashes replaced."""
        anchor, now_us = await self.hot.anchor(), time.time_ns() // 1_000
        lists = [_flat(fields) for fields in {**hashes(price), **changes}.values()]
        stamp = now_us if stamp_us is None else stamp_us
        vouch = Vouch(0 if unsound else now_us + 2_000_000, 2_000_000, unsound)
        assert (await self.hot.apply(anchor.term, "market", anchor.epoch, 1, stamp, *lists, vouch=vouch)).ok


LoopWorldT = TypeVar("LoopWorldT", bound=LoopWorld)


@contextlib.asynccontextmanager
async def loop_world(kind: type[LoopWorldT], redis_url: str, models: Path) -> AsyncIterator[LoopWorldT]:
    """Make one with a sound model; its connections end with the block."""
    redis = redis_client(
        redis_url, socket_timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
    )  # a slot has its own limits
    onnx_models.promote(models, onnx_models.model(RETURN))
    made = kind(redis, models)
    yield made
    await made.fallbacks.close()
    await redis.aclose()


class Replica:
    """A running `sheetanchor infer`."""

    def __init__(self, url: str, models: Path, name: str, folder: Path, *flags: str) -> None:
        self.port = free_port_number()
        self.log_path = folder / f"{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SHEETANCHOR_")}
        command = [sys.executable, "-m", "sheetanchor", "infer", "--redis-url", url, "--models", str(models)]
        command += ["--replica", name, "--http-host", "127.0.0.1", "--http-port", str(self.port), *flags]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=log)

    def get(self, path: str) -> tuple[int, Any]:
        """Request JSON; status 0 if there is no answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, None

    def latest(self) -> dict[str, Any]:
        """The newest record over HTTP; empty before the first."""
        status, body = self.get("/predictions/BTCUSDT")
        return dict(body) if status == 200 else {}

    def wait_for(self, condition: Callable[[dict[str, Any]], Any], what: str, within_s: float = 20) -> dict[str, Any]:
        """Wait until the newest record fulfils a condition and give it."""
        found: dict[str, Any] = {}

        def holds() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()[-2000:]
            found.clear()
            found.update(self.latest())
            return bool(found) and bool(condition(found))

        try:
            wait_until(holds, within_s=within_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}; last record {found}\n{self.log_path.read_text()[-2000:]}") from None
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def replicas(url: str, models: Path, folder: Path, *names: str, flags: Sequence[str] = ()) -> Iterator[list[Replica]]:
    """Run replicas until the block ends."""
    running = [Replica(url, models, name, folder, *flags) for name in names]
    try:
        yield running
    finally:
        for replica in running:
            replica.end(signal.SIGKILL)


def committed(url: str) -> list[dict[str, str]]:
    """All predictions in the stream, in order."""
    import redis

    with redis.Redis.from_url(url, decode_responses=True) as client:
        return [fields for _, fields in client.xrange("preds:{BTCUSDT}")]


def holes(predictions: Sequence[dict[str, str]]) -> list[int]:
    """Slots between the first and the last prediction that have none."""
    slots = {int(fields["slot"]) for fields in predictions}
    return sorted(set(range(min(slots), max(slots) + 1)) - slots) if slots else []

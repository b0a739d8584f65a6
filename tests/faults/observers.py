"""Observers of a pipeline from outside, which record what it shows."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

from redis.asyncio import Redis

from faults.checker import STORE
from faults.history import Answer, FaultEdge, Levels, Look, Played, Rebuilt, Record, Request
from faults.network import CLIENT_HOST, SERVER_HOST
from faults.places import PLACES, SYMBOL, Pipeline
from faults.truth import DEPTH
from sheetanchor.contract import Receipt, keys
from sheetanchor.errors import SheetAnchorError
from sheetanchor.infer.prediction import Prediction
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.pipeline import request

ASK_EVERY_S: Final = 0.25
ANSWER_WITHIN_S: Final = 1.5
LIMIT: Final = 20
LOOK_EVERY_S: Final = 0.05
PLAYED_EVERY_S: Final = 0.5
RECEIPTS_EVERY_S: Final = 1.0
PLAYED_WITHIN_S: Final = 10.0
END_WITHIN_S: Final = 15
KEYS: Final = keys(SYMBOL)
RECORDS_MAX: Final = 2_000_000
"""An hour has about a quarter of a million."""


def now_us() -> int:
    """This machine's clock, which is that of all servers."""
    return time.time_ns() // 1_000


class Observers:
    """The reader and an observer of each server and of the exchange, each in threads of its own."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._shown: dict[tuple[str, int], Answer] = {}
        self._turn = itertools.count()

    def add(self, record: Record) -> None:
        """Write something down."""
        with self._lock:
            assert len(self.records) < RECORDS_MAX, "the history is too long"
            self.records.append(record)

    @contextlib.contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Write down that a fault is active while the block runs."""
        self.add(FaultEdge(now_us(), name, active=True))
        try:
            yield
        finally:
            self.add(FaultEdge(now_us(), name, active=False))

    def answers(self) -> list[Answer]:
        """Give what has been answered so far."""
        with self._lock:
            return [record for record in self.records if isinstance(record, Answer)]

    def is_sound(self, slots: int, since_us: int = 0) -> bool:
        """Say whether the newest slots were answered as sound and kept, all of them after a moment."""
        good, newest = set(), 0
        for answer in self.answers():
            newest = max(newest, answer.slot)
            if answer.committed and not answer.degraded and answer.slot * 2_000_000 >= since_us:
                good.add(answer.slot)
        fresh = now_us() // 2_000_000 - newest <= 1
        return fresh and all(newest - back in good for back in range(slots))

    # Threads

    def start(self) -> None:
        """Start observing."""
        self._thread(self._read)
        self._thread(self._look_at_exchange)
        self._thread(lambda: asyncio.run(self._look_at_servers()))

    def _thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        """Observe for the last time: what the store holds now belongs to the history."""
        self._stop.set()
        for thread in self._threads:
            thread.join(END_WITHIN_S)
        for answer in asyncio.run(self._stored()):
            self.add(answer)

    def _read(self) -> None:
        """Ask four times a second, whatever became of the questions before."""
        next_s = time.monotonic()
        while not self._stop.wait(max(0.0, next_s - time.monotonic())):
            next_s += ASK_EVERY_S
            threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        began_us, began_s = now_us(), time.monotonic()
        places = self.pipeline.endpoints
        if not places:
            self.add(Request(began_us, 0, "", "nobody is in the Service"))
            return
        place = places[next(self._turn) % len(places)]
        part = self.pipeline.parts[f"infer-{place}"]
        source = f"{place}#{part.starts}"
        url = f"http://{CLIENT_HOST}:{self.pipeline.http_ports[place]}/predictions/{SYMBOL}?limit={LIMIT}"
        error, shown = "", []
        try:
            shown = self._within(url, began_s)
        except (OSError, ValueError, http.client.HTTPException) as failure:
            error = f"{type(failure).__name__}: {failure}"
        took_us = round((time.monotonic() - began_s) * 1e6)
        self.add(Request(began_us, took_us, place, error))
        if source == f"{place}#{part.starts}":
            self._show(source, shown)

    @staticmethod
    def _within(url: str, began_s: float) -> list[dict[str, Any]]:
        with urllib.request.urlopen(url, timeout=ANSWER_WITHIN_S) as response:
            body: dict[str, Any] = json.loads(response.read())
        if time.monotonic() - began_s > ANSWER_WITHIN_S:
            raise TimeoutError("the answer came too late")
        shown: list[dict[str, Any]] = body["predictions"]
        return shown

    def _show(self, source: str, shown: list[dict[str, Any]]) -> None:
        at_us = now_us()
        for fields in reversed(shown):
            answer = answer_of(at_us, source, fields)
            with self._lock:
                before = self._shown.get((source, answer.slot))
                same = before is not None and (before.content, before.committed) == (answer.content, answer.committed)
                self._shown[source, answer.slot] = answer
            if not same:
                self.add(answer)

    def _look_at_exchange(self) -> None:
        while not self._stop.wait(PLAYED_EVERY_S):
            at_us = now_us()
            with contextlib.suppress(OSError, ValueError, KeyError):
                told = request(f"{self.pipeline.exchange_url}/checkpoint?symbol={SYMBOL}", within_s=PLAYED_WITHIN_S)
                self.add(Played(at_us, int(told["update_id"])))

    # Servers

    def _client(self, index: int, user: str = "process") -> Redis:
        members = self.pipeline.members
        url = f"redis://{user}@{SERVER_HOST}:{members.port(index)}/0"
        return redis_client(url, members.password_file(user), socket_timeout_s=1, connect_timeout_s=1)

    async def _look_at_servers(self) -> None:
        await asyncio.gather(*(self._look_at(index) for index in range(len(PLACES))))

    async def _look_at(self, index: int) -> None:
        known: set[str] = set()
        last: tuple[Any, ...] = ()
        receipts_s = 0.0
        async with contextlib.aclosing(self._client(index)) as client:
            hot = HotState(client, SYMBOL)
            while not self._stop.is_set():
                with contextlib.suppress(SheetAnchorError, OSError, ValueError):
                    look = look_of(now_us(), PLACES[index], await hot.read())
                    content = (look.term, look.epoch, look.receipt, look.state, look.beat_us, look.best_id)
                    if content != last:
                        last = content
                        self.add(look)
                if time.monotonic() - receipts_s > RECEIPTS_EVERY_S:
                    receipts_s = time.monotonic()
                    await self._look_at_receipts(client, known)
                await asyncio.sleep(LOOK_EVERY_S)

    async def _look_at_receipts(self, client: Redis, known: set[str]) -> None:
        try:
            entries: Any = await client.xrange(KEYS.receipts)
        except Exception:  # noqa: BLE001  the server is under faults, and the next observation follows
            return
        for _, fields in entries:
            receipt = Receipt.from_json(fields[b"receipt"].decode())
            if receipt.id not in known:
                known.add(receipt.id)
                self.add(Rebuilt(receipt.finished_at_us, receipt.id, receipt.result))

    async def _stored(self) -> list[Answer]:
        [index] = self.pipeline.members.masters()
        at_us = now_us()
        async with contextlib.aclosing(self._client(index, "infer")) as client:
            entries: Any = await client.xrange(KEYS.preds)
        records = [
            Prediction.parse({name.decode(): value.decode() for name, value in fields.items()}) for _, fields in entries
        ]
        return [answer_of(at_us, STORE, record.to_json()) for record in records]


def answer_of(at_us: int, source: str, fields: dict[str, Any]) -> Answer:
    """Make a record of a prediction in the form that HTTP has."""
    return Answer(
        at_us=at_us,
        source=source,
        slot=fields["slot"],
        committed=fields["committed"],
        degraded=fields["degraded"],
        price=fields["price_now"],
        update_id=fields["update_id"],
        feature_us=fields["feature_ts"],
        epoch=fields["epoch"],
        receipt=fields["receipt"],
        value=fields["predicted_return"],
        made_by=fields["replica"],
        reason=fields["reason"],
    )


def look_of(at_us: int, server: str, read: Any) -> Look:
    """Make a record of what was read of a server."""
    anchor, ob = read.anchor, read.ob
    complete = not read.incomplete and ob.get("update_id")
    return Look(
        at_us=at_us,
        server=server,
        term=int(anchor.get("term", 0)),
        writer=anchor.get("writer", ""),
        epoch=int(anchor.get("epoch", 0)),
        receipt=anchor.get("receipt", ""),
        root=anchor.get("root", ""),
        state=anchor.get("state", "suspect"),
        beat_us=int(anchor.get("beat_us", 0)),
        update_id=int(ob["update_id"]) if complete else 0,
        bids=_side(ob, "bid") if complete else (),
        asks=_side(ob, "ask") if complete else (),
        best_id=int(ob.get("bba_id", 0)) if complete else 0,
        best=(float(ob["best_bid"]), float(ob["best_ask"])) if complete else (0.0, 0.0),
    )


def _side(ob: dict[str, str], side: str) -> Levels:
    levels = [
        (float(ob[f"{side}{level}_p"]), float(ob[f"{side}{level}_q"]))
        for level in range(1, DEPTH + 1)
        if f"{side}{level}_p" in ob
    ]
    return tuple(levels)

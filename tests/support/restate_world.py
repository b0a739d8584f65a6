"""A writer, its memory and a Redis that goes back in time, as tests of restating need them.

The server is a real one. It goes back by having its keys put back as they were, and gets another replication history by
following no master for a moment. What really happened is written down beside it, so that a test can say whether a
restatement was right without asking the fences.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from redis.asyncio import Redis

from sheetanchor.contract import keys
from sheetanchor.store.function_library import library_source
from sheetanchor.store.hot_records import Restatement, RestateReply, RestateStatus, Vouch
from sheetanchor.store.hot_state import HotState
from support.hot_state_cases import BOOK, feat, ob, redis_us, stage, window

SYMBOL = "BTCUSDT"
KEYS = keys(SYMBOL)
SOON_US = 100_000
FENCES = ("DONE", "FOREIGN", "FENCED", "REPLID", "EPOCH", "DOUBT", "LATE", "BEHIND")


def library_without(fence: str) -> str:
    """Give the library with one fence of `restate` taken down."""
    lines = library_source().splitlines()
    [at] = [number for number, line in enumerate(lines) if line.strip().startswith(f"{{'{fence}', ")]
    lines[at] = f"    {{'{fence}', false}},"
    return "\n".join(lines) + "\n"


@dataclass
class Truth:
    """What really happened, whatever the server shows.

    Attributes:
        doubted: Update ids of states whose mark as suspect was acknowledged, or whose owner knows a missing range.
        histories: How often the replication history has changed.
        swaps: How often the exchange was asked and its answer swapped in.
        owner: Writer that took ownership last.
    """

    doubted: set[int] = field(default_factory=set)
    histories: int = 0
    swaps: int = 0
    owner: str = "a"


@dataclass
class World:
    """One symbol on one server.

    Args:
        redis: Client of the server, which is empty.
    """

    redis: Redis
    truth: Truth = field(default_factory=Truth)
    runs: int = 0
    term: int = 1

    def __post_init__(self) -> None:
        self.hot = HotState(self.redis, SYMBOL)
        self._kept: dict[bytes, bytes] = {}

    async def begin(self) -> None:
        """Anchor epoch 1 from the exchange, with writer a of term 1 and pipeline `mine`."""
        assert (await self.hot.take(1, "a", 0, "", dataset="mine")).ok
        await self.swap(100)
        await self.apply(100)
        await self.keep()

    async def swap(self, update_id: int) -> None:
        """Rebuild from the exchange: what is stored then is right."""
        anchor = await self.hot.anchor()
        self.runs += 1
        owner = f"run-{self.runs}"
        await self.redis.delete(KEYS.lock)
        assert await self.hot.lock(owner)
        assert await stage(self.hot, owner, update_id)
        stamp_us = await self.now_us()
        reply = await self.hot.swap(
            owner, anchor.epoch, update_id, stamp_us, f"r{self.runs}", expected_receipt=anchor.receipt
        )
        assert reply.ok, reply
        self.truth.swaps += 1

    async def apply(self, update_id: int, writer: str = "a") -> str:
        """Write as a writer that knows what is stored."""
        anchor = await self.hot.anchor()
        lists = (ob(update_id), window(update_id), window(update_id), feat(update_id))
        reply = await self.hot.apply(
            anchor.term,
            writer,
            anchor.epoch,
            update_id,
            await self.now_us(),
            *lists,
            receipt=anchor.receipt,
            trade_id=update_id,
        )
        return reply.status

    async def now_us(self) -> int:
        """Redis' clock."""
        return await redis_us(self.redis)

    async def keep(self) -> None:
        """Let a replica have everything up to here."""
        names = [name async for name in self.redis.scan_iter(count=1000)]
        self._kept = {name: await self.redis.dump(name) for name in names}

    async def go_back(self) -> None:
        """Promote that replica: what was acknowledged since is gone, and the replication history is another."""
        names = [name async for name in self.redis.scan_iter(count=1000)]
        if names:
            await self.redis.delete(*names)
        for name, dumped in self._kept.items():
            await self.redis.restore(name, 0, dumped)
        await self.change_history()

    async def change_history(self) -> None:
        """Have another replication history with the same data."""
        execute: Any = self.redis.execute_command
        before = await self.replication_id()
        await execute("REPLICAOF", "127.0.0.1", "1")
        await execute("REPLICAOF", "NO", "ONE")
        assert before != await self.replication_id()
        self.truth.histories += 1

    async def replication_id(self) -> str:
        """What the server itself reports."""
        return str((await self.redis.info("replication"))["master_replid"])

    async def take(self, writer: str) -> None:
        """Another processor becomes the writer."""
        self.term = (await self.hot.anchor()).term + 1
        assert (await self.hot.take(self.term, writer, 0, "", force=True)).ok
        self.truth.owner = writer

    async def doubt(self) -> None:
        """A client marks the stored state as suspect, and is acknowledged."""
        anchor = await self.hot.anchor()
        self.truth.doubted.add(anchor.update_id)
        assert (await self.hot.suspect(0, "", anchor.epoch, 0, "it is not what the exchange says", doubt="seen")).ok


@dataclass
class Prepared:
    """A restatement that is ready to be sent, and what was true when it was made, at which moment of Redis' clock."""

    term: int
    writer: str
    order: Restatement
    truth: Truth
    content: int
    made_us: int

    def read_before(self, us: int) -> Prepared:
        """Give it as its process sends it that was stopped for so long after it had read the lines."""
        return replace(self, order=replace(self.order, read_us=self.order.read_us - us))


async def prepare(world: World, writer: str, update_id: int, held: tuple[int, str, str]) -> Prepared:
    """Do what a writer does before it restates: write `suspect`, read, and collect everything.

    Args:
        world: Where.
        writer: Its name.
        update_id: Where its memory is.
        held: Epoch, receipt and root of what its memory was built on.
    """
    hot, here = world.hot, await world.replication_id()
    anchor, token = await hot.anchor(), f"failover:{here[:12]}"
    await hot.suspect(anchor.term, writer, anchor.epoch, 0, "Redis has gone back in time", doubt=token)
    now_us = await world.now_us()
    epoch, receipt, root = held
    order = Restatement(
        seen_epoch=anchor.epoch,
        seen_receipt=anchor.receipt,
        known_epoch=epoch,
        held_receipt=receipt,
        doubt=token,
        replication_id=here,
        read_us=now_us,
        update_id=update_id,
        trade_id=update_id,
        stamp_us=now_us,
        receipt=f"memory-{writer}-{here[:12]}",
        root=root,
        dataset="mine",
        unvalidated=anchor.unvalidated,
    )
    truth = replace(world.truth, doubted=set(world.truth.doubted))
    return Prepared(anchor.term, writer, order, truth, update_id, now_us)


async def send(world: World, prepared: Prepared) -> RestateReply:
    """Restate at once after the lines were read and the market heard, unless the order says when that was."""
    at = prepared.content
    lists = (ob(at), window(at), window(at), feat(at))
    book = BOOK + str(at).encode()
    while True:
        began_us = await world.now_us()
        later_us, order = began_us - prepared.made_us, prepared.order
        order = replace(order, read_us=order.read_us + later_us, stamp_us=order.stamp_us + later_us)
        vouch = Vouch(began_us + 1_000_000, 1_000_000)
        reply = await world.hot.restate(prepared.term, prepared.writer, order, lists, book, vouch)
        # Where this process had to wait in between, the order was too late for that.
        if reply.status is not RestateStatus.LATE or reply.now_us - began_us < SOON_US:
            return reply

"""The function library against a model of it: whatever order calls come in, both agree on every reply."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from conftest import RedisServer
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from support.hot_state_cases import apply, stage

WRITERS = ("a", "b")
OWNERS = ("one", "two")
UPDATE_IDS = st.integers(1, 6)
SMALL = st.integers(0, 4)


@dataclass
class Model:
    """What the library should hold; nothing of Redis in it."""

    epoch: int = 0
    term: int = 0
    writer: str = ""
    alive: bool = False
    state: str = "suspect"
    update_id: int = 0
    suspect_id: int = 0
    suspect_by: tuple[int, int] | None = None
    ob: tuple[int, int] | None = None  # epoch, update id
    lock: str = ""
    staged: int = 0
    receipts: dict[str, int] = field(default_factory=dict)
    receipt: str = ""

    def apply(self, term: int, writer: str, epoch: int, update_id: int) -> str:
        if (term, writer) != (self.term, self.writer) or term == 0:
            return "FENCED"
        if epoch != self.epoch:
            return "EPOCH"
        if update_id < self.update_id:
            return "BEHIND"
        self.update_id, self.ob, self.alive = update_id, (epoch, update_id), True
        return "OK"

    def take(self, term: int, writer: str, seen: tuple[int, str], force: bool) -> str:
        if (term, writer) == (self.term, self.writer):
            self.alive = True
            return "OK"
        if term <= self.term:
            return "TERM"
        if not force and seen != (self.term, self.writer):
            return "SEEN"
        if not force and self.alive and self.writer not in {"", writer}:
            return "ALIVE"
        self.term, self.writer, self.alive = term, writer, True
        self.suspect_id, self.suspect_by = 0, None
        return "OK"

    def suspect(self, term: int, writer: str, epoch: int, update_id: int) -> str:
        observer = (term, writer) == (0, "")
        if not observer and (term, writer) != (self.term, self.writer):
            return "FENCED"
        if observer and epoch < self.epoch:
            return "EPOCH"
        self.epoch = max(self.epoch, epoch)
        by = self.suspect_by if observer else (term, self.epoch)
        same = self.state == "suspect" and by == self.suspect_by
        self.suspect_id = max(self.suspect_id, update_id) if same else update_id
        self.state, self.suspect_by = "suspect", by
        self.alive = self.alive or not observer  # what a writer is acknowledged is a heartbeat
        return "OK"

    def take_lock(self, owner: str) -> bool:
        if not self.lock:
            self.lock, self.staged = owner, 0
        return self.lock == owner

    def unlock(self, owner: str) -> bool:
        if self.lock and self.lock != owner:
            return False
        held, self.lock, self.staged = bool(self.lock), "", 0
        return held

    def stage(self, owner: str, update_id: int) -> bool:
        if self.lock != owner:
            return False
        self.staged = update_id
        return True

    def swap(self, owner: str, expected: int, update_id: int, receipt: str, answered: int = 0) -> str:
        if receipt == self.receipt and self.epoch == expected + 1:
            return "SWAPPED"
        if self.lock != owner:
            return "LOCK_LOST"
        if expected != self.epoch:
            return "EPOCH"
        if not self.staged or self.staged != update_id:
            return "MISSING"
        if self.state == "anchored" and self.ob and self.ob[0] == self.epoch and self.ob[1] > update_id:
            return "BEHIND"
        self.epoch, self.update_id, self.receipt = expected + 1, update_id, receipt
        self.ob, self.lock, self.staged = (self.epoch, update_id), "", 0
        if self.state == "anchored" or update_id >= self.suspect_id or answered == self.suspect_id:
            self.state, self.suspect_id, self.suspect_by = "anchored", 0, None
        return "SWAPPED"


class HotStateMachine(RuleBasedStateMachine):
    """Makes the same calls on a server and on the model."""

    runner: asyncio.Runner
    hot: HotState

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.swaps = 0
        self.run(self.hot._redis.flushall())

    def run(self, call):
        """Run one call on the loop that the client belongs to."""
        return self.runner.run(call)

    @rule(back=SMALL, writer=st.sampled_from(WRITERS), off=st.sampled_from([0, 0, 0, 1, -1]), update_id=UPDATE_IDS)
    def apply(self, back: int, writer: str, off: int, update_id: int) -> None:
        term, epoch = max(0, self.model.term - back // 4), max(0, self.model.epoch + off)
        writer = self.model.writer if back < 3 else writer
        expected = self.model.apply(term, writer, epoch, update_id)
        assert expected == self.run(apply(self.hot, update_id, term=term, writer=writer, epoch=epoch)).status

    @rule(up=SMALL, writer=st.sampled_from(WRITERS), stale=st.booleans(), force=st.booleans())
    def take(self, up: int, writer: str, stale: bool, force: bool) -> None:
        term = max(1, self.model.term + up - 1)
        seen = (self.model.term, "nobody") if stale else (self.model.term, self.model.writer)
        expected = self.model.take(term, writer, seen, force)
        assert expected == self.run(self.hot.take(term, writer, *seen, force=force)).status

    @precondition(lambda self: self.model.alive)
    @rule()
    def a_second_passes(self) -> None:
        self.model.alive = False
        self.run(self.hot._redis.hset(self.hot.keys.anchor, "beat_us", "1"))

    @rule(who=st.sampled_from(["writer", "other", "observer"]), off=st.sampled_from([-1, 0, 0, 2]), update_id=SMALL)
    def suspect(self, who: str, off: int, update_id: int) -> None:
        whoever = {"writer": (self.model.term, self.model.writer), "other": (99, "c"), "observer": (0, "")}
        term, writer = whoever[who]
        epoch = max(0, self.model.epoch + off)
        expected = self.model.suspect(term, writer, epoch, update_id)
        assert expected == self.run(self.hot.suspect(term, writer, epoch, update_id, "doubt")).status

    @rule(owner=st.sampled_from(OWNERS))
    def lock(self, owner: str) -> None:
        assert self.model.take_lock(owner) == self.run(self.hot.lock(owner))

    @rule(owner=st.sampled_from(OWNERS))
    def unlock(self, owner: str) -> None:
        assert self.model.unlock(owner) == self.run(self.hot.unlock(owner))

    @precondition(lambda self: self.model.lock)
    @rule()
    def the_lock_runs_out(self) -> None:
        self.model.lock = ""
        self.run(self.hot._redis.delete(self.hot.keys.lock))

    @precondition(lambda self: self.model.staged)
    @rule(key=st.sampled_from(["ob_new", "book_new", "tr_1s_new", "tr_5s_new", "feat_new"]))
    def a_staging_key_runs_out(self, key: str) -> None:
        self.model.staged = 0
        self.run(self.hot._redis.delete(getattr(self.hot.keys, key)))

    @rule(owner=st.sampled_from(OWNERS), update_id=UPDATE_IDS)
    def rebuild(self, owner: str, update_id: int) -> None:
        """Everything that a swap needs, so that swaps are not rare among so many refusals."""
        self.lock(self.model.lock or owner)
        self.stage(self.model.lock, update_id)
        self.swap(self.model.lock, 0, 0, None)

    @rule(owner=st.sampled_from(OWNERS), update_id=UPDATE_IDS)
    def stage(self, owner: str, update_id: int) -> None:
        assert self.model.stage(owner, update_id) == self.run(stage(self.hot, owner, update_id))

    @rule(
        owner=st.sampled_from(OWNERS),
        off=st.sampled_from([0, 0, 0, -1, 1]),
        other=st.sampled_from([0, 0, 0, 1]),
        seen=st.sampled_from([None, 0, 1]),
    )
    def swap(self, owner: str, off: int, other: int, seen: int | None) -> None:
        self.swaps += 1
        answered = 0 if seen is None else self.model.suspect_id + seen
        expected_epoch, update_id = max(0, self.model.epoch + off), max(1, self.model.staged + other)
        receipt = f"receipt-{self.swaps}"
        expected = self.model.swap(owner, expected_epoch, update_id, receipt, answered)
        found = self.run(self.hot.swap(owner, expected_epoch, update_id, 0, receipt, answered=answered))
        assert expected == found.status

    @precondition(lambda self: self.model.receipt)
    @rule(owner=st.sampled_from(OWNERS))
    def the_last_swap_is_asked_again(self, owner: str) -> None:
        epoch = self.model.epoch - 1
        expected = self.model.swap(owner, epoch, 1, self.model.receipt)
        assert expected == self.run(self.hot.swap(owner, epoch, 1, 0, self.model.receipt)).status

    @invariant()
    def both_agree(self) -> None:
        read, model = self.run(self.hot.read()), self.model
        anchor = read.anchor
        found = (read.epoch, int(anchor.get("term", 0)), anchor.get("writer", ""), anchor.get("state", "suspect"))
        assert found == (model.epoch, model.term, model.writer, model.state)
        assert read.rebuilding == bool(model.lock)
        current = model.ob is not None and model.ob[0] == model.epoch
        assert read.ob.get("update_id") == (str(model.ob[1]) if current and model.ob else None)
        assert current == (read.incomplete == "")


@pytest.fixture
def machine(each_server: RedisServer) -> Iterator[type[HotStateMachine]]:
    """The machine, bound to a server and a loop."""
    with asyncio.Runner() as runner:
        client = redis_client(each_server.url)
        yield type("BoundMachine", (HotStateMachine,), {"runner": runner, "hot": HotState(client, "BTCUSDT")})
        runner.run(client.aclose())


def test_library_and_model_agree(machine: type[HotStateMachine]) -> None:
    """Terms, writers, epochs, locks and stagings in any order: the same replies and the same state afterwards."""
    bounds = settings(
        max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )

    run_state_machine_as_test(machine, settings=bounds)

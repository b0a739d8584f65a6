"""Restating on a real server with any order of writes, takeovers, gaps, rebuilds, roll-backs, pauses and failovers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from conftest import RedisServer
from sheetanchor.store.function_library import library_source
from sheetanchor.store.redis_client import redis_client
from support.restate_world import FENCES, Prepared, World, library_without, prepare, send

WRITERS = ("a", "b")
PAUSE_US = 1_500_000


class Orders(RuleBasedStateMachine):
    """Writers prepare a restatement, anything happens, and they send it; what really happened says what is right."""

    runner: asyncio.Runner
    server: RedisServer
    library = ""

    def __init__(self) -> None:
        super().__init__()
        self.client = self.runner.run(self._client())
        self.world = World(self.client)
        self.run(self.client.flushall())
        self.run(self.world.begin())
        # After the first call, which looks whether the library is the package's.
        self.run(self.client.function_load(self.library, replace=True))
        self.update_id = 100
        self.prepared: dict[str, Prepared] = {}
        self.stored_at: dict[str, tuple[int, str]] = {}
        self.paused: set[str] = set()
        self.restated = 0

    async def _client(self):
        return redis_client(self.server.url)

    def run(self, call):
        """Run one call on the loop that the client belongs to."""
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.client.aclose())

    def stored(self) -> tuple[int, str]:
        """Epoch and receipt that are stored."""
        anchor = self.run(self.world.hot.anchor())
        return anchor.epoch, anchor.receipt

    @rule(by=st.integers(1, 5))
    def writes(self, by: int) -> None:
        self.update_id += by
        self.run(self.world.apply(self.update_id, self.run(self.world.hot.anchor()).writer))

    @rule(writer=st.sampled_from(WRITERS))
    def takes(self, writer: str) -> None:
        self.run(self.world.take(writer))

    @rule()
    def somebody_doubts(self) -> None:
        self.run(self.world.doubt())

    @rule(by=st.integers(1, 5))
    def rebuilds(self, by: int) -> None:
        self.run(self.world.doubt())  # a suspect state is rebuilt whatever its ids
        self.update_id += by
        self.run(self.world.swap(self.update_id))
        self.world.truth.doubted.clear()

    @rule()
    def a_replica_follows(self) -> None:
        self.run(self.world.keep())

    @rule()
    def goes_back(self) -> None:
        self.run(self.world.go_back())

    @rule()
    def hands_over(self) -> None:
        self.run(self.world.change_history())

    @rule(writer=st.sampled_from(WRITERS))
    def prepares(self, writer: str) -> None:
        anchor = self.run(self.world.hot.anchor())
        held = (max(1, anchor.epoch), anchor.receipt, anchor.root)
        self.prepared[writer] = self.run(prepare(self.world, writer, max(self.update_id, anchor.update_id), held))
        self.stored_at[writer] = self.stored()
        self.paused.discard(writer)

    @precondition(lambda self: self.prepared)
    @rule()
    def all_are_stopped(self) -> None:
        self.paused |= set(self.prepared)

    @precondition(lambda self: self.prepared)
    @rule(data=st.data())
    def sends(self, data: st.DataObject) -> None:
        self.send_of(data.draw(st.sampled_from(sorted(self.prepared))))

    @rule(between=st.sampled_from(["", "writes", "takes", "doubts", "rebuilds", "goes back", "hands over", "stops"]))
    def the_owner_prepares_and_sends(self, between: str) -> None:
        """With one thing between, so that what comes of it is not rare among so many refusals."""
        owner = self.run(self.world.hot.anchor()).writer
        self.prepares(owner)
        happens = {
            "writes": lambda: self.writes(1),
            "takes": lambda: self.takes("b" if owner == "a" else "a"),
            "doubts": self.somebody_doubts,
            "rebuilds": lambda: self.rebuilds(1),
            "goes back": self.goes_back,
            "hands over": self.hands_over,
            "stops": lambda: self.paused.add(owner),
        }
        happens.get(between, lambda: None)()
        self.send_of(owner)

    def send_of(self, writer: str) -> None:
        """Send what a writer has prepared, and say whether what came of it is right."""
        prepared = self.prepared[writer]
        if writer in self.paused:
            prepared = prepared.read_before(PAUSE_US)
        before = self.run(self.world.hot.anchor())
        here = self.run(self.world.replication_id())
        reply = self.run(send(self.world, prepared))
        after = self.run(self.world.hot.anchor())
        if reply.status == "DONE":
            assert (before.epoch, before.receipt) == (after.epoch, after.receipt)
            return
        if reply.status != "RESTATED":
            assert before == after
            return
        self.restated += 1
        assert (before.writer, before.term) == (writer, prepared.term), "by its owner"
        assert here == prepared.order.replication_id, "in the history that it has seen"
        assert (before.epoch, before.receipt) == self.stored_at[writer], "over what it has seen"
        assert writer not in self.paused, "by a process that was not stopped"
        assert before.state == "anchored" or before.doubt == prepared.order.doubt, "over no doubt but its own"
        assert prepared.content >= before.update_id or before.receipt != prepared.order.held_receipt, "not behind"
        assert after.epoch > max(before.epoch, prepared.order.known_epoch), "above every epoch that is known"
        assert (after.root, after.receipt, after.state) == (prepared.order.root, prepared.order.receipt, "anchored")
        read = self.run(self.world.hot.read())
        assert (read.incomplete, read.ob["update_id"]) == ("", str(prepared.content)), "as a whole"
        self.update_id = max(self.update_id, prepared.content)


BOUNDS = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """A loop that the machine's clients belong to."""
    with asyncio.Runner() as made:
        yield made


def test_no_order_restates_what_must_not_be(each_server: RedisServer, runner: asyncio.Runner) -> None:
    """Whatever happens between preparing and sending: only what still holds is written, and then as a whole."""
    bound = type("Bound", (Orders,), {"runner": runner, "server": each_server, "library": library_source()})

    run_state_machine_as_test(bound, settings=BOUNDS)


@pytest.mark.parametrize("fence", [fence for fence in FENCES if fence not in {"DONE", "FOREIGN"}])
def test_an_order_is_found_for_each_fence_that_is_down(
    each_server: RedisServer, runner: asyncio.Runner, fence: str
) -> None:
    """The property is not true by itself: without the fence some order of the same events breaks it."""
    bound = type("Bound", (Orders,), {"runner": runner, "server": each_server, "library": library_without(fence)})

    with pytest.raises(AssertionError):
        run_state_machine_as_test(bound, settings=settings(BOUNDS, max_examples=300, phases=[Phase.generate]))

"""One symbol's chain of models under every order of loads, failures, promotions and polls of the registry.

The loader is a stand-in: with real models a test cannot choose which of two loads ends first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheetanchor.errors import BadModel
from sheetanchor.infer import model_fallback
from sheetanchor.infer.model_fallback import ModelCache, ModelFallbackChain, ModelKey
from sheetanchor.infer.prediction import SlotState
from sheetanchor.ml import onnx_model
from sheetanchor.ml.registry import Manifest, ModelRegistry

NOW = 1_700_000_000_000_000
STATE = SlotState(NOW, 1, True, "", "", NOW, {"ob": {"best_bid": "99", "best_ask": "101"}})


@dataclass(eq=False)
class FakeModel:
    """A model that answers unless it is among the bad ones."""

    entry: ModelKey

    @property
    def manifest(self) -> Manifest:
        return Manifest(*self.entry, (), ("BTCUSDT",), 0.0, None, {})

    @property
    def version(self) -> str:
        return self.entry[0]


@dataclass
class World:
    """A registry of names, and a loader that loads in the order that the test gives."""

    current: str | None = "m0"
    previous: list[str] = field(default_factory=list)
    outcomes: list[bool] = field(default_factory=list)
    waiting: list[asyncio.Event] = field(default_factory=list)
    at_once: int = 0
    slow: bool = True

    # The registry

    def fingerprint(self) -> bytes:
        return repr((self.current, self.previous)).encode()

    def in_use(self) -> ModelKey:
        if self.current is None:
            raise BadModel("there is no model in use")
        return self.current, "0" * 64

    def earlier(self) -> list[ModelKey]:
        return [(name, "0" * 64) for name in self.previous]

    # The loader

    async def load(self, entry: ModelKey, thread: object) -> Any:
        self.at_once += 1
        assert self.at_once == 1, "two walks at once"
        try:
            if self.slow:
                gate = asyncio.Event()
                self.waiting.append(gate)
                await gate.wait()
            if self.outcomes and not self.outcomes.pop(0):
                raise BadModel(f"{entry[0]}: cannot be loaded")
            return FakeModel(entry)
        finally:
            self.at_once -= 1

    def forget(self, model: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _fake_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def run(model: FakeModel, vector: object, thread: object) -> float:
        await asyncio.sleep(0)
        if model.entry[0] in BAD:
            raise BadModel(f"{model.entry[0]}: expected a return")
        return 0.001

    monkeypatch.setattr(onnx_model, "run", run)
    monkeypatch.setattr(model_fallback.asyncio, "to_thread", _here)
    yield
    BAD.clear()


BAD: set[str] = set()
"""Models that fail whenever they run."""


async def _here(function: Any, *args: Any) -> Any:
    await asyncio.sleep(0)
    return function(*args)


async def _turn(times: int = 30) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def _told_truly(chain: ModelFallbackChain) -> None:
    """The serving model is reported as what it is, and a lesser one with a problem, so that the next check retries."""
    if chain.mode != "model":
        assert chain.problem != ""
    if chain.problem == "":
        assert chain.mode == "model"


STEPS = st.lists(
    st.one_of(
        st.sampled_from(
            ["refresh", "answer", "turn", "let one load end", "retry is due", "break m0", "break m1", "mend"]
        ),
        st.tuples(st.just("promote"), st.sampled_from(["m0", "m1", "m2"])),
    ),
    max_size=25,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.booleans(), max_size=6), STEPS)
def test_whatever_happens_the_current_model_serves_in_the_end(outcomes: list[bool], steps: list[Any]) -> None:
    """Polls, slots, failures, promotions and loads in any order, then none: the next poll loads the current model."""
    BAD.clear()
    asyncio.run(_play(World(previous=["m1"], outcomes=list(outcomes)), steps))


async def _play(world: World, steps: list[Any]) -> None:
    chain = ModelFallbackChain(cast(ModelRegistry, world), "BTCUSDT", cast(ModelCache, world))
    tasks = [asyncio.create_task(chain.start())]
    for step in steps:
        await _turn(3)
        _told_truly(chain)
        tasks += _step(chain, world, step)
    BAD.clear()
    world.outcomes, world.slow = [], False
    while not all(task.done() for task in tasks):
        while world.waiting:
            world.waiting.pop().set()
        await asyncio.sleep(0.0005)
    await asyncio.gather(*tasks)
    _told_truly(chain)

    chain._tried_at -= 60
    await chain.refresh()

    assert ("model", [world.current], "") == (chain.mode, chain.loaded, chain.problem)
    await chain.close()


def _step(chain: ModelFallbackChain, world: World, step: Any) -> list[asyncio.Task[Any]]:
    if step == "refresh":
        return [asyncio.create_task(chain.refresh())]
    if step == "answer":
        return [asyncio.create_task(chain.answer(STATE, 0.0, 0.001))]
    if step == "let one load end" and world.waiting:
        world.waiting.pop(0).set()
    elif step == "retry is due":
        chain._tried_at -= 60
    elif step in ("break m0", "break m1"):
        BAD.add(step[-2:])
    elif step == "mend":
        BAD.clear()
    elif step[0] == "promote":
        world.previous = [world.current or "", *world.previous][:3]
        world.current = step[1]
    return []


async def test_a_slot_beside_a_look_starts_no_second_walk() -> None:
    """A poll loads the current model while a slot finds none: a load that fails cannot undo one that succeeds."""
    world = World(previous=["m1"], outcomes=[True, True])
    chain = ModelFallbackChain(cast(ModelRegistry, world), "BTCUSDT", cast(ModelCache, world))
    started = asyncio.create_task(chain.start())
    await _turn()
    world.waiting.pop().set()
    await started
    BAD.add("m0")

    world.current = "m2"
    look = asyncio.create_task(chain.refresh())
    await _turn()
    slot = asyncio.create_task(chain.answer(STATE, 0.0, 0.05))
    await _turn()
    world.slow = False
    world.waiting.pop().set()
    await asyncio.gather(look, slot)

    assert ("model", ["m2"], "") == (chain.mode, chain.loaded, chain.problem)
    await chain.close()

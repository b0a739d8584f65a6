"""What is done to a pipeline, and what must come of it: a catalogue of scenarios."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from faults.injectors import FaultSpec

_UNREPLICATED: Final = "a commit does not wait for a replica: a master that is lost takes its last ones with it"
COMMITS_LOST: Final = {"committed_kept": _UNREPLICATED, "one_answer": _UNREPLICATED}
"""A known weakness (docs/faults.md): counted in every report, and no failure of a run."""


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that are active together for some time.

    Attributes:
        failures: What is wrong; nothing for a pause.
        for_s: How long.
    """

    failures: tuple[FaultSpec, ...]
    for_s: float


@dataclass(frozen=True, slots=True)
class ChaosScenario:
    """A scenario.

    Attributes:
        id: Its name.
        text: What happens, for people.
        plan: Gives the steps, of which some are chosen by chance.
        sound_within_s: Predictions have to be sound again so long after the last fault; a failure if not.
        allows: Invariants that this scenario violates by its nature, with the reason.
    """

    id: str
    text: str
    plan: Callable[[random.Random], Sequence[Step]]
    sound_within_s: float = 60.0
    allows: Mapping[str, str] = field(default_factory=lambda: COMMITS_LOST)


def _one(kind: str, target: str = "", for_s: float = 10.0, **numbers: float) -> Callable[[random.Random], list[Step]]:
    return lambda _: [Step((FaultSpec(kind, target, numbers),), for_s)]


KILLED: Final = ("ingest-a", "ingest-b", "process-a", "process-b", "infer-a", "infer-b", "sentinel-a", "redis-c")
"""Parts whose loss may cost nothing: all but the master of Redis, which is in `a` at first, and one of each kind."""

FLAPS: Final = 5


def _each_in_turn(_: random.Random) -> Iterator[Step]:
    for part in KILLED:
        yield Step((FaultSpec("kill", part),), 2.0)
        yield Step((), 8.0)


def _flaps(_: random.Random) -> Iterator[Step]:
    for _flap in range(FLAPS):
        yield Step((FaultSpec("partition", "a"),), 10.0)
        yield Step((), 10.0)


def _twice(_: random.Random) -> Iterator[Step]:
    # The second master is lost as soon as there is one, and within three seconds: Sentinels need 2.5 s for the first.
    first = FaultSpec("kill", "redis-a")
    yield Step((first,), 6.0)
    yield Step((first, FaultSpec("kill", "master")), 10.0)


SOAK: Final = (
    FaultSpec("kill", "master"),
    FaultSpec("kill", "writer"),
    FaultSpec("kill", "ingest-a"),
    FaultSpec("kill", "ingest-b"),
    FaultSpec("kill", "infer-a"),
    FaultSpec("kill", "infer-b"),
    FaultSpec("kill", "sentinel-b"),
    FaultSpec("freeze", "writer"),
    FaultSpec("freeze", "ingest-a"),
    FaultSpec("partition", "a"),
    FaultSpec("partition", "b"),
    FaultSpec("partition_in", "c"),
    FaultSpec("partition_out", "c"),
    FaultSpec("slow", "a", {"delay_s": 0.05, "loss": 0.02}),
    FaultSpec("rest_gone"),
    FaultSpec("rest_refuses", "", {"code": 503}),
    FaultSpec("lost_updates", "", {"n": 3}),
)
"""What a soak chooses from."""


def soak(seconds: float) -> Callable[[random.Random], Iterator[Step]]:
    """Plan one or two faults at a time, chosen by chance, with pauses."""

    def plan(chance: random.Random) -> Iterator[Step]:
        left_s = seconds
        while left_s > 0:
            faults = tuple(chance.sample(SOAK, chance.choice((1, 1, 2))))
            # Of two that target the same process, the second would find it ended.
            if len({fault.target for fault in faults}) < len(faults) or sum("mas" in f.target for f in faults) > 1:
                faults = faults[:1]
            step_s, pause_s = chance.uniform(2, 15), chance.uniform(2, 10)
            yield Step(faults, step_s)
            yield Step((), pause_s)
            left_s -= step_s + pause_s

    return plan


SCENARIOS: Final[dict[str, ChaosScenario]] = {
    scenario.id: scenario
    for scenario in (
        ChaosScenario("none", "nothing, for 20 s", lambda _: [Step((), 20.0)]),
        ChaosScenario("parts", "each part but the master of Redis killed in turn", _each_in_turn),
        ChaosScenario("master", "master of Redis killed", _one("kill", "master", 10.0)),
        ChaosScenario("roll-back", "master of Redis killed with writes that no replica has", _one("roll_back")),
        ChaosScenario("power", "place with writer and master powered off for 45 s", _one("power_off", "a", 45.0)),
        ChaosScenario("partition", "place with writer and master cut off for 45 s", _one("partition", "a", 45.0)),
        ChaosScenario("one-way-out", "nothing leaves that place for 45 s", _one("partition_out", "a", 45.0)),
        ChaosScenario("one-way-in", "nothing reaches that place for 45 s", _one("partition_in", "a", 45.0)),
        ChaosScenario("flaps", "that place cut off for 10 s, five times", _flaps),
        ChaosScenario("second", "the promoted master killed within 3 s of its promotion", _twice),
        ChaosScenario("processors", "both processors killed, for 5 s", _one("kill", "process", 5.0)),
        ChaosScenario("freeze", "writer stopped for 10 s", _one("freeze", "writer", 10.0)),
        ChaosScenario(
            "slow", "200 ms and 2 % loss to and from that place", _one("slow", "a", 20, delay_s=0.1, loss=0.02)
        ),
        ChaosScenario("exchange", "exchange gone for 20 s", _one("exchange_gone", "", 20.0)),
        ChaosScenario("rest", "REST gone for 20 s", _one("rest_gone", "", 20.0)),
        ChaosScenario(
            "redis-empty",
            "all of Redis gone for 60 s, and back empty",
            _one("redis_empty", "", 60.0),
        ),
        ChaosScenario("disk", "no processor of that place can write to a file", _one("full_disk", "process-a", 10.0)),
        ChaosScenario("memory", "the writer gets no more memory", _one("no_memory", "writer", 10.0)),
        ChaosScenario("soak", "one or two faults at a time, by chance, for 3 minutes", soak(180.0)),
        ChaosScenario("soak-long", "one or two faults at a time, by chance, for 20 minutes", soak(1200.0)),
    )
}

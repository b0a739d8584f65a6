"""Faults as code: each is a block during which something is wrong, and after which it is as before, whatever happens.

What cannot be had without rights over the machine is not here: a step of a server's clock (Redis reads the kernel's), a
lossy disk. Packets are lost and late as TCP shows it, by the network of the tests.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from faults.network import OUTSIDE, Rule, cut, slow
from faults.places import PLACES, REST, STREAMS, Part, Pipeline
from support.pipeline import request

LOSE_FOR_S: Final = 1.2
"""How long a master writes on without its replicas before it is killed: within the two seconds that it may."""

MEMORY_LEFT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """What is to be wrong.

    Attributes:
        kind: Name of its injector.
        target: A part, a place, or a role that is looked up when it begins: `master`, `writer`.
        numbers: The injector's parameters.
    """

    kind: str
    target: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        told = " ".join(f"{name}={value:g}" for name, value in self.numbers.items())
        return " ".join(filter(None, (self.kind, self.target, told)))


class UnknownFaultError(ValueError):
    """No injector knows a fault."""


class FailureInjector(Protocol):
    """Makes one kind of fault."""

    def inject_failure(self, pipeline: Pipeline, spec: FaultSpec) -> contextlib.AbstractContextManager[None]:
        """Give the block during which the fault is active."""


def parts_of(pipeline: Pipeline, target: str) -> list[Part]:
    """Find parts: by name, by the beginning of their names, by place, or by what they do now.

    Raises:
        UnknownFaultError: If there is no such part.
    """
    if target == "master":
        target = f"redis-{pipeline.master()}"
    elif target == "writer":
        target = f"process-{pipeline.writer()}"
    found = [p for p in pipeline.parts.values() if p.name == target]
    found = found or [p for p in pipeline.parts.values() if target in (p.place, p.name.rpartition("-")[0])]
    if not found:
        raise UnknownFaultError(f"target = {target!r}: expected one of {', '.join(pipeline.parts)}, or a place")
    return found


def place_of(pipeline: Pipeline, target: str) -> str:
    """Find a place, by its name or by what is there now."""
    return target if target in (*PLACES, STREAMS, REST, OUTSIDE) else parts_of(pipeline, target)[0].place


@contextlib.contextmanager
def killed(parts: Sequence[Part]) -> Iterator[None]:
    """Kill, as a lost machine does, and start nothing again until the end."""
    for part in parts:
        part.held += 1
    try:
        for part in parts:
            part.signal(signal.SIGKILL)
        yield
    finally:
        for part in parts:
            part.held -= 1


@contextlib.contextmanager
def frozen(parts: Sequence[Part]) -> Iterator[None]:
    """Stop, and let go on."""
    try:
        for part in parts:
            part.signal(signal.SIGSTOP)
        yield
    finally:
        for part in parts:
            part.signal(signal.SIGCONT)


@contextlib.contextmanager
def ruled(pipeline: Pipeline, rules: Sequence[Rule]) -> Iterator[None]:
    """Have the network keep to rules."""
    with contextlib.ExitStack() as stack:
        for rule in rules:
            stack.enter_context(pipeline.network.rule(rule))
        yield


@contextlib.contextmanager
def limited(parts: Sequence[Part], what: int, soft: Callable[[int], int]) -> Iterator[None]:
    """Limit what processes may use."""
    before: list[tuple[int, tuple[int, int]]] = []
    try:
        for part in parts:
            before += part.limit(what, soft)
        yield
    finally:
        for pid, old in before:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, what, old)


def memory_of(pid: int) -> int:
    """Give the memory that a process has asked for so far, in bytes, and a little more."""
    with open(f"/proc/{pid}/statm") as told:
        return int(told.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY_LEFT


@contextlib.contextmanager
def scripted(pipeline: Pipeline, **spec: Any) -> Iterator[None]:
    """Script a fault at the exchange, and take it away."""
    made = request(f"{pipeline.exchange_url}/faults", spec)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            pipeline.forget_fault(made["id"])


@contextlib.contextmanager
def rolled_back(pipeline: Pipeline, lose_for_s: float) -> Iterator[None]:
    """Have the master write what no replica gets, and then lose the master."""
    master = pipeline.master()
    others = set(PLACES) - {master}
    server = pipeline.parts[f"redis-{master}"]
    with ruled(pipeline, cut({master}, others)):
        time.sleep(lose_for_s)
        stack = contextlib.ExitStack()
        stack.enter_context(killed([server]))
    with stack:
        yield


@contextlib.contextmanager
def emptied(pipeline: Pipeline) -> Iterator[None]:
    """Lose all of Redis with everything that it holds."""
    nodes = [part for part in pipeline.parts.values() if part.name.startswith(("redis", "sentinel"))]
    with killed(nodes):
        for part in nodes:
            if part.process is not None:
                part.process.wait()
        try:
            yield
        finally:
            for run in pipeline.members.runs:
                run.forget()


@contextlib.contextmanager
def powered_off(pipeline: Pipeline, place: str) -> Iterator[None]:
    """Lose a place as a machine is lost: the ends of connections are not sent."""
    others = {*PLACES, STREAMS, REST, OUTSIDE} - {place}
    with ruled(pipeline, cut({place}, others)), killed(parts_of(pipeline, place)):
        yield


Inject = Callable[[Pipeline, FaultSpec], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Injector:
    """An injector made of a function."""

    inject: Inject

    def inject_failure(self, pipeline: Pipeline, spec: FaultSpec) -> contextlib.AbstractContextManager[None]:
        """Give the block during which the fault is active."""
        return self.inject(pipeline, spec)


def _rest_of(pipeline: Pipeline, place: str) -> set[str]:
    """All places but one. The outside is the readers, who lose a place that is cut off from all others."""
    return {*PLACES, STREAMS, REST, OUTSIDE} - {place}


def _partition(pipeline: Pipeline, spec: FaultSpec, direction: str) -> contextlib.AbstractContextManager[None]:
    place = place_of(pipeline, spec.target)
    others = _rest_of(pipeline, place)
    rules = {"both": cut({place}, others), "out": cut({place}, others, both=False)}
    rules["in"] = cut(others, {place}, both=False)
    return ruled(pipeline, rules[direction])


def _slow(pipeline: Pipeline, spec: FaultSpec) -> contextlib.AbstractContextManager[None]:
    place = place_of(pipeline, spec.target)
    others = _rest_of(pipeline, place)
    return ruled(
        pipeline,
        slow({place}, others, delay_s=spec.numbers.get("delay_s", 0.0), loss=spec.numbers.get("loss", 0.0)),
    )


def _exchange_gone(pipeline: Pipeline, _: FaultSpec) -> contextlib.AbstractContextManager[None]:
    return ruled(pipeline, cut(set(PLACES), {STREAMS, REST}))


INJECTORS: dict[str, FailureInjector] = {
    name: Injector(inject)
    for name, inject in {
        "kill": lambda pipeline, spec: killed(parts_of(pipeline, spec.target)),
        "freeze": lambda pipeline, spec: frozen(parts_of(pipeline, spec.target)),
        "partition": lambda pipeline, spec: _partition(pipeline, spec, "both"),
        "partition_out": lambda pipeline, spec: _partition(pipeline, spec, "out"),
        "partition_in": lambda pipeline, spec: _partition(pipeline, spec, "in"),
        "slow": _slow,
        "power_off": lambda pipeline, spec: powered_off(pipeline, place_of(pipeline, spec.target)),
        "roll_back": lambda pipeline, spec: rolled_back(pipeline, spec.numbers.get("lose_for_s", LOSE_FOR_S)),
        "redis_empty": lambda pipeline, spec: emptied(pipeline),
        "full_disk": lambda pipeline, spec: limited(
            parts_of(pipeline, spec.target), resource.RLIMIT_FSIZE, lambda pid: 0
        ),
        "no_memory": lambda pipeline, spec: limited(parts_of(pipeline, spec.target), resource.RLIMIT_AS, memory_of),
        "exchange_gone": _exchange_gone,
        "rest_gone": lambda pipeline, spec: ruled(pipeline, cut(set(PLACES), {REST})),
        "rest_refuses": lambda pipeline, spec: scripted(
            pipeline, kind="rest_status", n=1_000_000, code=spec.numbers.get("code", 503)
        ),
        "lost_updates": lambda pipeline, spec: scripted(pipeline, kind="drop", n=spec.numbers.get("n", 3)),
    }.items()
}
"""By kind. A partition cuts a place off from all others, readers and the exchange included."""


@dataclass
class FailureInjection:
    """Faults that are active.

    Attributes:
        scenario_id: Of whose scenario.
        start_time: When the first of them began, by a monotonic clock, in seconds.
        active_injections: What is active.
    """

    scenario_id: str
    start_time: float = 0.0
    active_injections: list[FaultSpec] = field(default_factory=list)


def find_injector_for_failure(spec: FaultSpec, injectors: dict[str, FailureInjector]) -> FailureInjector:
    """Give the injector of a fault.

    Raises:
        UnknownFaultError: If there is none.
    """
    try:
        return injectors[spec.kind]
    except KeyError:
        raise UnknownFaultError(f"kind = {spec.kind!r}: expected one of {', '.join(injectors)}") from None


@contextlib.contextmanager
def inject_failures(
    pipeline: Pipeline,
    scenario_id: str,
    specs: Sequence[FaultSpec],
    injectors: dict[str, FailureInjector] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[FailureInjection]:
    """Have several faults at once; those that are active are undone, in reverse, if one cannot be made.

    Raises:
        UnknownFaultError: If one of them is not known.
    """
    known = INJECTORS if injectors is None else injectors
    with contextlib.ExitStack() as stack:
        injection = FailureInjection(scenario_id, clock())
        for spec in specs:
            stack.enter_context(find_injector_for_failure(spec, known).inject_failure(pipeline, spec))
            injection.active_injections.append(spec)
        try:
            yield injection
        finally:
            injection.active_injections.clear()

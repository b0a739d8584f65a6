"""The input of a decision about a move, as values: its record, what users request, and what is observed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sheetanchor_operator.names import FailoverKind, FailoverPhase, FailoverStep


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that was begun.

    Attributes:
        finished_us: When it ended, 0 while it goes on.
        message: What came of it.
    """

    name: FailoverStep
    started_us: int
    finished_us: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class FailoverRecord:
    """A move as the status holds it.

    Attributes:
        request: What asked for it: the value of the annotation.
        from_zone: Zone that is left.
        to_zone: Zone that was asked for, "" for any other.
        term: Term that the standby is to take, 0 before one is chosen.
        target: Pod of the standby that is to take it, "" before one is chosen.
        attempts: How often the present step has failed.
        rounds: How often the move was begun again.
        after_slot: Newest slot when verifying began: a sound prediction of a later one counts.
        message: What is the case, or why it ended.
    """

    request: str
    kind: FailoverKind
    phase: FailoverPhase
    step: FailoverStep
    from_zone: str = ""
    to_zone: str = ""
    term: int = 0
    target: str = ""
    attempts: int = 0
    rounds: int = 0
    after_slot: int = 0
    message: str = ""
    steps: tuple[StepRecord, ...] = ()

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.phase is FailoverPhase.RUNNING


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for.

    Attributes:
        value: The value of the annotation, by which a request is known.
        zone: The zone that is named; of a switchover "" for any.
    """

    kind: FailoverKind
    value: str
    zone: str


@dataclass(frozen=True, slots=True)
class ProcessorFacts:
    """A processor that has answered.

    Attributes:
        zone: Its zone, "" if that is not known.
        replica: What it calls itself.
        connected: Symbols for which it reaches Redis and whose state it knows.
        writes: Symbols that it writes.
    """

    pod: str
    zone: str
    replica: str
    connected: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a pipeline now.

    Attributes:
        zones: Zones in which its pods can run.
        lost: Those of them that count as silent or failed.
        term: Largest term that was ever seen, written ones among them.
        reported_term: Largest term that a pod reports now.
        writers: Pod that writes each symbol; one without a writer is absent.
        managed: Whether the operator runs its Redis.
        master: Pod of the Redis master, "" while none is known.
        master_zone: Its zone.
        leavers: Pods of inference and processors by zone, those that end among them.
        whole: Whether all pods of inference and processors that should be ready are.
        newest_slot: Newest slot of which a prediction was seen.
        sound_slot: Newest slot of which every symbol has a sound prediction, or a later one.
        at_rest: Why nothing runs that could be moved, "" if something does.
    """

    now_us: int
    symbols: tuple[str, ...]
    zones: tuple[str, ...]
    lost: frozenset[str] = frozenset()
    term: int = 0
    reported_term: int = 0
    processors: tuple[ProcessorFacts, ...] = ()
    writers: Mapping[str, str] = field(default_factory=dict)
    managed: bool = True
    master: str = ""
    master_zone: str = ""
    leavers: Mapping[str, int] = field(default_factory=dict)
    whole: bool = True
    newest_slot: int = 0
    sound_slot: int = 0
    at_rest: str = ""

    def zone_of(self, pod: str) -> str:
        """Give the zone of a processor that has answered, "" for any other."""
        return next((one.zone for one in self.processors if one.pod == pod), "")


@dataclass(frozen=True, slots=True)
class Take:
    """Have a standby take a term."""

    pod: str
    replica: str
    term: int
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """Have the Redis master hand its role over."""

    pod: str


Action = Take | HandOver


@dataclass(frozen=True, slots=True)
class Failed:
    """An action that was not carried out, as far as is known."""

    action: Action
    error: str

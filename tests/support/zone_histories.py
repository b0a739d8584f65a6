"""Scripted histories of zones, as a replica of the operator observes them once a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from sheetanchor_operator.names import ZoneHealth
from sheetanchor_operator.zones.judge import Bounds, Judgement, Round, Voice, ZoneAnswers, judge, verdict_of

ZONES = ("a", "b", "c")
BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Second:
    """The situation during one second.

    Attributes:
        cut: Zones whose pods the operator does not reach.
        down: Further zones that the Sentinels of other zones do not reach.
        up: Zones that they reach although the operator reaches no pod there.
        mute: Zones whose Sentinels do not report: they are in TILT, start, or end.
        lag_s: How late the operator's event loop is.
        gone: Zones without a pod that could answer.
        part: Zones of whose nodes not all were polled.
    """

    cut: frozenset[str] = frozenset()
    down: frozenset[str] = frozenset()
    up: frozenset[str] = frozenset()
    mute: frozenset[str] = frozenset()
    lag_s: float = 0.0
    gone: frozenset[str] = frozenset()
    part: frozenset[str] = frozenset()


CALM = Second()


def lost(*zones: str) -> Second:
    """A zone without power: no observer reaches it."""
    return Second(cut=frozenset(zones))


def round_of(second: Second, asked_s: float, own: str, zones: Iterable[str] = ZONES) -> Round:
    """Give the round that a second shows. Zones in `cut` are silent for Sentinels too, unless they are in `up`."""
    known = tuple(zones)
    answers = {
        zone: ZoneAnswers(
            pods=3,
            asked=0 if zone in second.gone else 2,
            answered=0 if zone in second.gone | second.cut else 2,
            complete=zone not in second.part,
        )
        for zone in known
    }
    silent = (second.cut | second.down) - second.up
    voices = tuple(
        Voice(speaker, about, about in silent)
        for speaker in known
        for about in known
        if about != speaker and speaker not in second.mute | second.gone | second.cut and about in silent | second.up
    )
    return Round(asked_s, asked_s + 1.0, own, answers, voices, second.lag_s)


@dataclass(slots=True)
class Replay:
    """One replica that lives through a history.

    Attributes:
        health: Verdicts on each zone, one a second.
        moves: Seconds at which a zone became silent or failed, from something better.
    """

    own: str = "a"
    zones: tuple[str, ...] = ZONES
    bounds: Bounds = BOUNDS
    judgement: Judgement = field(default_factory=Judgement)
    health: dict[str, list[ZoneHealth]] = field(default_factory=dict)
    at_s: float = 100.0

    def live(self, *seconds: Second) -> Replay:
        """Observe second after second."""
        for second in seconds:
            self.judgement = judge(self.judgement, round_of(second, self.at_s, self.own, self.zones))
            self.at_s += 1.0
            for zone, evidence in self.judgement.zones.items():
                self.health.setdefault(zone, []).append(verdict_of(evidence, self.bounds).health)
        return self

    def now(self) -> Mapping[str, ZoneHealth]:
        """Give the verdicts as they are."""
        return {zone: history[-1] for zone, history in self.health.items()}

    def losses(self, zone: str, health: ZoneHealth = ZoneHealth.FAILED) -> int:
        """Count how often a zone has come to count as something."""
        history = self.health[zone]
        return sum(now is health and before is not health for before, now in pairwise(history))

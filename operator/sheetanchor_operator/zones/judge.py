"""Whether a zone is lost: judged from the reports of two kinds of observers, round by round. Pure.

Every operator replica judges by itself, leader or not: once a second it asks pods of each zone over HTTP, and where a
zone is silent it asks the Sentinels of other zones whether they reach it. One observer alone proves nothing: what it
does not hear may be its own fault. So a zone's silence counts only

* while pods that run and are ready were asked on all nodes with pods of ours, and none of them has answered,
* while a Sentinel of a third zone, neither that one nor the operator's own, says the same and none there disagrees,
* while the operator reaches most zones, its own among them, so that it is not the one that is cut off,
* while its own event loop has kept time, so that what it missed was not missed by its own pause,
* and for one zone at a time, which is why the last one is never judged.

How long a silence has lasted under all of these conditions is the evidence; a pipeline's bounds make a verdict of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sheetanchor_operator.api.recovery_spec import Failover
from sheetanchor_operator.names import ZoneHealth, ZoneReason

LAG_MAX_S: Final = 0.5
"""An event loop that is later than this has not listened: what looks like silence may be its own."""

MISSES_MIN: Final = 3
"""Rounds in a row without an answer; a single one is a lost packet or a collection of garbage."""

ELAPSED_MAX_S: Final = 2.0
"""Between two rounds no more than this counts: a clock that jumps and a pause prove no silence."""

RETURN_S: Final = 15.0
"""A zone that answers again has done so for this long before it counts as healthy, longer than a flap takes."""

RETURN_MAX_S: Final = 240.0
FLAPPING_S: Final = 600.0
"""Each further loss within this time doubles the time that a return takes."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a pipeline takes a silent zone for what.

    Attributes:
        silent_s: Silence after which readers are sent elsewhere.
        failed_s: Silence after which the zone counts as lost.
    """

    silent_s: float = 4.0
    failed_s: float = 8.0


def bounds_of(failover: Failover) -> Bounds:
    """Give the bounds that a pipeline's specification sets."""
    return Bounds(failover.silent_s, failover.failed_s)


@dataclass(frozen=True, slots=True)
class ZoneAnswers:
    """What one round of questions to a zone's pods has brought.

    Attributes:
        pods: Pods of ours in the zone, also those that could not have answered.
        asked: Pods that run and are ready, and were asked.
        answered: How many of these answered in time.
        complete: Whether pods on every node with pods of ours were asked.
    """

    pods: int = 0
    asked: int = 0
    answered: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Voice:
    """What a Sentinel says about its peers in another zone.

    Attributes:
        zone: Where it is.
        about: The zone that it concerns.
        down: Whether it reaches none of those that it watches there.
    """

    zone: str
    about: str
    down: bool


@dataclass(frozen=True, slots=True)
class Round:
    """One round of questions.

    Attributes:
        asked_s: When it began, in monotonic seconds.
        at_s: When it is judged.
        lag_s: How late the operator's own event loop was at worst since the round before.
        own_zone: Zone of the operator; "" if it is not known.
        zones: Every zone with nodes.
        voices: Of Sentinels that are ready, and not in TILT.
    """

    asked_s: float
    at_s: float
    own_zone: str
    zones: Mapping[str, ZoneAnswers]
    voices: tuple[Voice, ...] = ()
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a zone. Times are seconds.

    Attributes:
        heard: Whether it has ever answered; what never did is not missed.
        witnesses: Whether it had pods that could answer in the last round.
        quiet_s: How long ago the last answer was, whatever the reason.
        misses: Rounds in a row without an answer that count.
        unheard_s: How long they have lasted.
        confirmed_s: How long the silence had lasted when both observers last agreed on it.
        confirmed: Whether they do in the last round.
        alive_s: How long it has been giving signs of life without a break.
        held_s: How long the silence had lasted from which it has not returned yet.
        lost_at_s: Ends of its last silences, for damping.
    """

    heard: bool = False
    witnesses: bool = False
    quiet_s: float = 0.0
    misses: int = 0
    unheard_s: float = 0.0
    confirmed_s: float = 0.0
    confirmed: bool = False
    alive_s: float = 0.0
    held_s: float = 0.0
    lost_at_s: tuple[float, ...] = ()

    @property
    def lost_s(self) -> float:
        """How long the silence has lasted that counts now."""
        return max(self.confirmed_s, self.held_s)


@dataclass(frozen=True, slots=True)
class Judgement:
    """All that a replica has concluded so far.

    Attributes:
        at_s: When the last round was judged.
        zones: Evidence by zone.
        abstains: Why silence did not count in the last round, in a few words; "" if it did.
    """

    at_s: float = 0.0
    zones: Mapping[str, Evidence] = field(default_factory=dict)
    abstains: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a zone counts as.

    Attributes:
        unreachable: Whether the silence is confirmed at this moment, and not only remembered.
    """

    health: ZoneHealth
    reason: ZoneReason
    unreachable: bool = False


def judge(before: Judgement, seen: Round) -> Judgement:
    """Take a round in.

    Args:
        before: What was concluded before it.
        seen: The round.
    """
    elapsed_s = min(max(0.0, seen.at_s - before.at_s), ELAPSED_MAX_S) if before.zones else 0.0
    abstains = _abstention(seen)
    # A zone without nodes and without pods is no more; one that was lost stays lost until it is heard.
    known = {zone: before.zones.get(zone, Evidence()) for zone in seen.zones}
    zones = {zone: _next(zone, known, seen, elapsed_s, abstains=bool(abstains)) for zone in known}
    return Judgement(seen.at_s, zones, abstains)


def verdict_of(evidence: Evidence, bounds: Bounds) -> Verdict:
    """Say what a zone counts as.

    Args:
        evidence: What is known of it.
        bounds: The pipeline's.
    """
    if evidence.lost_s >= bounds.silent_s:
        health = ZoneHealth.FAILED if evidence.lost_s >= bounds.failed_s else ZoneHealth.SILENT
        reason = ZoneReason.RETURNING if evidence.alive_s > 0 else ZoneReason.UNREACHABLE
        return Verdict(health, reason, evidence.confirmed and evidence.confirmed_s >= bounds.silent_s)
    if not evidence.heard or evidence.quiet_s >= bounds.failed_s:
        # Not confirmed, so that nothing is done about it; but the zone must not count as healthy.
        reason = ZoneReason.UNCONFIRMED if evidence.witnesses else ZoneReason.NO_WITNESSES
        return Verdict(ZoneHealth.UNKNOWN, reason)
    return Verdict(ZoneHealth.HEALTHY, ZoneReason.ANSWERS)


def silent_zones(seen: Round) -> frozenset[str]:
    """Name the zones of which all pods that could answer were asked, and none did."""
    return frozenset(zone for zone, one in seen.zones.items() if one.asked and not one.answered and one.complete)


def _abstention(seen: Round) -> str:
    """Say why this round's silence proves nothing, "" if it may prove something."""
    if seen.lag_s > LAG_MAX_S:
        return f"the event loop of this operator was late by more than {LAG_MAX_S:g} s"
    if not seen.own_zone:
        return "the zone of this operator is not known"
    inhabited = [zone for zone, one in seen.zones.items() if one.pods]
    heard = [zone for zone in inhabited if seen.zones[zone].answered]
    if not 2 * len(heard) > len(inhabited):
        return "fewer than a majority of the zones answer: this operator may be the one that is cut off"
    if seen.own_zone in inhabited and seen.own_zone not in heard:
        return "no pod answers in the zone of this operator"
    return ""


def _next(zone: str, known: Mapping[str, Evidence], seen: Round, elapsed_s: float, *, abstains: bool) -> Evidence:
    """Add a round to what is known of a zone."""
    now, answers = known[zone], seen.zones[zone]
    now = replace(now, witnesses=answers.asked > 0, confirmed=False)
    own_s = min(max(0.0, seen.at_s - seen.asked_s), ELAPSED_MAX_S)
    if answers.answered:
        # The answer may be as old as the round.
        heard = replace(now, heard=True, quiet_s=own_s, misses=0, unheard_s=own_s)
        return _alive(heard, seen.at_s, elapsed_s)
    now = replace(now, quiet_s=now.quiet_s + elapsed_s)
    down, up = _voices(zone, seen)
    if up:
        return _alive(replace(now, misses=0, unheard_s=0.0), seen.at_s, elapsed_s)
    if abstains or not now.heard or zone not in silent_zones(seen):
        return _proves_nothing(now)
    now = replace(now, misses=now.misses + 1, unheard_s=now.unheard_s + elapsed_s, alive_s=0.0)
    agreed = now.misses >= MISSES_MIN and down and not _another_is_out(zone, known, seen)
    return replace(now, confirmed=True, confirmed_s=now.unheard_s) if agreed else now


def _proves_nothing(now: Evidence) -> Evidence:
    """Keep what was concluded; silence that proves nothing is not added to silence that does: the count begins again.

    Otherwise two misses of pods that were then replaced, and the first of a new one, would be three in a row.
    """
    kept_s = now.confirmed_s
    return replace(now, misses=now.misses if kept_s else 0, unheard_s=kept_s, alive_s=0.0)


def _voices(zone: str, seen: Round) -> tuple[bool, bool]:
    """Say whether a third zone says that it does not reach a zone, and whether one says that it does."""
    third = [one.down for one in seen.voices if one.about == zone and one.zone not in (zone, seen.own_zone, "")]
    return any(third), not all(third)


def _another_is_out(zone: str, known: Mapping[str, Evidence], seen: Round) -> bool:
    others = silent_zones(seen) - {zone}
    return bool(others) or any(one.lost_s > 0 for name, one in known.items() if name != zone)


def _alive(now: Evidence, at_s: float, elapsed_s: float) -> Evidence:
    """Take in a sign of life: a silence ends, and after a while without another one the zone has returned."""
    if now.confirmed_s:
        lost_at_s = (*(at for at in now.lost_at_s if at_s - at < FLAPPING_S), at_s)
        now = replace(now, held_s=now.lost_s, confirmed_s=0.0, alive_s=0.0, lost_at_s=lost_at_s)
    now = replace(now, alive_s=now.alive_s + elapsed_s)
    return replace(now, held_s=0.0) if now.held_s and now.alive_s >= return_s(now) else now


def return_s(evidence: Evidence) -> float:
    """Give how long a zone has to answer before it counts as healthy again."""
    losses = max(1, len(evidence.lost_at_s))
    return min(RETURN_S * 2.0 ** min(losses - 1, 10), RETURN_MAX_S)

"""A zone is lost when two kinds of observers agree on it, and for no other reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from sheetanchor_operator.names import ZoneHealth, ZoneReason
from sheetanchor_operator.zones import judge as module
from sheetanchor_operator.zones.judge import (
    LAG_MAX_S,
    MISSES_MIN,
    RETURN_S,
    Bounds,
    Evidence,
    Judgement,
    Round,
    Voice,
    ZoneAnswers,
    judge,
    return_s,
    verdict_of,
)
from support.zone_histories import CALM, ZONES, Replay, Second, lost, round_of

HEALTHY, SILENT, FAILED, UNKNOWN = ZoneHealth.HEALTHY, ZoneHealth.SILENT, ZoneHealth.FAILED, ZoneHealth.UNKNOWN
LOST = (SILENT, FAILED)
BOUNDS = Bounds()

# Histories as scripts


def test_a_zone_without_power_is_silent_after_4_s_and_failed_after_8() -> None:
    """Counted from the last answer, which was at the beginning of the last calm second."""
    history = Replay().live(*[CALM] * 5, *[lost("c")] * 9)

    assert [HEALTHY] * 7 + [SILENT] * 4 + [FAILED] * 3 == history.health["c"]
    assert (HEALTHY, HEALTHY) == (history.now()["a"], history.now()["b"])


def test_a_partition_fails_the_zone_that_both_others_miss() -> None:
    """The zone that is cut off has no vote, whatever its own observations are."""
    outside = Replay("a").live(CALM, *[lost("c")] * 20)
    inside = Replay("c").live(CALM, *[lost("a", "b")] * 20)

    assert FAILED is outside.now()["c"]
    assert not {*LOST} & {*inside.health["a"], *inside.health["b"]}
    assert "cut off" in inside.judgement.abstains
    assert {UNKNOWN} == {inside.now()["a"], inside.now()["b"]}


def test_a_partition_between_the_operator_and_a_zone_is_no_loss() -> None:
    """One way is down, Sentinels of the third zone still reach it: nothing is done, and it is not called healthy."""
    one_way = Second(cut=frozenset("c"), up=frozenset("c"))
    history = Replay().live(CALM, *[one_way] * 60)

    assert not {*LOST} & {*history.health["c"]}
    assert UNKNOWN is history.now()["c"]


def test_a_partition_that_only_sentinels_see_is_no_loss() -> None:
    """The other way round: the operator reaches the zone."""
    history = Replay().live(CALM, *[Second(down=frozenset("c"))] * 60)

    assert {HEALTHY} == {*history.health["c"]}


def test_five_flaps_of_ten_seconds_are_one_loss() -> None:
    """A zone that comes and goes is lost once, and is back when it has stayed for long enough."""
    history = Replay().live(CALM, *([lost("c")] * 10 + [CALM] * 10) * 5)
    assert 1 == history.losses("c")
    assert FAILED is history.now()["c"]

    history.live(*[CALM] * int(return_s(history.judgement.zones["c"])))
    assert HEALTHY is history.now()["c"]
    assert 1 == history.losses("c")


def test_a_zone_returns_after_a_while() -> None:
    """It answers, and keeps its verdict for 15 s."""
    history = Replay().live(CALM, *[lost("c")] * 12, *[CALM] * int(RETURN_S - 1))
    assert FAILED is history.now()["c"]
    assert ZoneReason.RETURNING is verdict_of(history.judgement.zones["c"], BOUNDS).reason

    assert HEALTHY is history.live(CALM).now()["c"]


@pytest.mark.parametrize("paused_s", [1.0, 6.0, 60.0])
def test_a_paused_operator_has_not_listened(paused_s: float) -> None:
    """It wakes, and what it missed is no silence: neither of all zones nor of one whose answers come late."""
    history = Replay().live(*[CALM] * 5)
    history.at_s += paused_s
    history.live(replace(lost("b", "c"), lag_s=paused_s), replace(lost("c"), lag_s=paused_s), lost("c"), *[CALM] * 9)

    assert {HEALTHY} == {*history.health["b"], *history.health["c"]}


def test_an_operator_that_is_always_late_judges_nothing() -> None:
    """Five per cent of a CPU are no observer."""
    history = Replay().live(CALM, *[replace(lost("c"), lag_s=0.7)] * 60)

    assert not {*LOST} & {*history.health["c"]}


def test_a_network_policy_that_shuts_the_operator_out_is_no_loss() -> None:
    """All zones become silent at once."""
    history = Replay().live(*[CALM] * 3, *[Second(cut=frozenset(ZONES), up=frozenset())] * 60)

    assert all(not {*LOST} & {*of_zone} for of_zone in history.health.values())


def test_a_slow_node_is_no_loss_while_another_one_of_its_zone_answers() -> None:
    """A zone is all nodes that hold pods of ours."""
    one_of_two = ZoneAnswers(pods=4, asked=2, answered=1)
    seen = [
        Round(at, at + 1, "a", {**round_of(lost("c"), at, "a").zones, "c": one_of_two}, (Voice("b", "c", True),))
        for at in map(float, range(60))
    ]
    judgement = Judgement()
    for one in seen:
        judgement = judge(judgement, one)

    assert HEALTHY is verdict_of(judgement.zones["c"], BOUNDS).health


def test_a_pod_that_is_replaced_is_no_loss() -> None:
    """The only one of its zone: it ends, another one starts, and neither is a witness meanwhile."""
    history = Replay().live(CALM, *[Second(gone=frozenset("c"), down=frozenset("c"))] * 30, CALM)

    assert not {*LOST} & {*history.health["c"]}
    assert HEALTHY is history.now()["c"]


@pytest.mark.parametrize("between", [Second(gone=frozenset("c")), Second(part=frozenset("c"), cut=frozenset("c"))])
def test_misses_before_a_round_that_proves_nothing_do_not_count(between: Second) -> None:
    """Pods that missed two rounds and were replaced are no evidence against those that came after them."""
    missed = [lost("c")] * 2
    history = Replay().live(CALM, *missed, between, *missed, between, *missed)

    assert not {*LOST} & {*history.health["c"]}


def test_a_lost_zone_whose_pods_are_removed_stays_lost() -> None:
    """After a minute Kubernetes marks the pods as ending: no pod is left to poll, but the zone has not returned."""
    history = Replay().live(CALM, *[lost("c")] * 12, *[Second(gone=frozenset("c"), cut=frozenset("c"))] * 600)

    assert FAILED is history.now()["c"]


def test_two_zones_have_no_third_that_could_agree() -> None:
    """With two zones it cannot be decided which of them is cut off, so nothing is done."""
    history = Replay(zones=("a", "b")).live(CALM, *[lost("b")] * 60)

    assert not {*LOST} & {*history.health["b"]}
    assert UNKNOWN is history.now()["b"]


def test_the_documented_three_failures_of_thirty_seconds() -> None:
    """Wider bounds see the same rounds: 90 s since the last answer are nothing, 91 are silence, 95 a failure."""
    wide = Bounds(silent_s=91, failed_s=95)
    history = Replay(bounds=wide).live(CALM, *[lost("c")] * 89, *[CALM] * 20, *[lost("c")] * 100)

    assert [1, 1] == [history.losses("c", SILENT), history.losses("c")]
    assert history.health["c"].index(SILENT) == 1 + 89 + 20 + 90 - 1


# Rules as properties

FOUR = ("a", "b", "c", "d")


@st.composite
def histories(draw: st.DrawFn) -> tuple[Round, ...]:
    """Rounds of three to five zones in which runs of seconds are alike, so that silences last."""
    zones = draw(st.sampled_from([ZONES, FOUR, ("a", "b"), ("a", "b", "c", "d", "e")]))
    some, none = st.frozensets(st.sampled_from(zones), max_size=2), st.just(frozenset[str]())
    rarely = st.booleans().flatmap(
        lambda calm: none if calm else st.booleans().flatmap(lambda one: none if one else some)
    )
    second = st.builds(
        Second,
        cut=some,
        down=rarely,
        up=rarely,
        mute=rarely,
        gone=rarely,
        part=rarely,
        lag_s=st.sampled_from([0.0, 0.0, 0.0, 0.4, 0.6, 5.0]),
    )
    runs = draw(st.lists(st.tuples(second, st.integers(1, 12)), min_size=1, max_size=6))
    seconds = [CALM, *(one for one, length in runs for _ in range(length))]
    own = draw(st.sampled_from([zones[0], zones[0], ""]))
    return tuple(round_of(one, float(at), own, zones) for at, one in enumerate(seconds))


Step = tuple[Round, dict[str, ZoneHealth], dict[str, ZoneHealth]]


def steps(rounds: Sequence[Round]) -> list[Step]:
    """Give each round with the verdicts before and after it."""
    judgement, before, found = Judgement(), dict[str, ZoneHealth](), list[Step]()
    for seen in rounds:
        judgement = judge(judgement, seen)
        after = {zone: verdict_of(one, BOUNDS).health for zone, one in judgement.zones.items()}
        found.append((seen, before, after))
        before = after
    return found


def losses(rounds: Sequence[Round]) -> list[tuple[int, Round, str, ZoneHealth]]:
    """Give the moments at which a zone came to count as silent, or as failed."""
    return [
        (at, seen, zone, health)
        for at, (seen, before, after) in enumerate(steps(rounds))
        for zone, health in after.items()
        if health in LOST and before.get(zone) is not health and not (health is SILENT and before.get(zone) is FAILED)
    ]


def needs_a_voice(rounds: Sequence[Round]) -> bool:
    """One observer is not enough: a third zone has to agree, and none of the third zones may disagree."""
    return all(
        (said := [one.down for one in seen.voices if one.about == zone and one.zone not in (zone, seen.own_zone)])
        and all(said)
        for _, seen, zone, _ in losses(rounds)
    )


def needs_a_majority(rounds: Sequence[Round]) -> bool:
    """The operator reaches most zones, its own included, so it never judges the last zone or its own as lost."""
    return all(
        2 * sum(bool(one.answered) for one in seen.zones.values()) > len(seen.zones)
        and seen.own_zone
        and seen.zones[seen.own_zone].answered
        for _, seen, _, _ in losses(rounds)
    )


def needs_time(rounds: Sequence[Round]) -> bool:
    """The operator's own event loop has kept time throughout the silence that counts."""
    return all(
        all(one.lag_s <= LAG_MAX_S for one in rounds[at + 1 - MISSES_MIN : at + 1])
        for at, _, _, health in losses(rounds)
        if health is SILENT
    )


def needs_silence_of_all_nodes(rounds: Sequence[Round]) -> bool:
    """Three rounds in a row, in each of which pods on all nodes were asked and none answered."""
    return all(
        all(one.zones[zone].asked and not one.zones[zone].answered and one.zones[zone].complete for one in last)
        for at, _, zone, _ in losses(rounds)
        for last in [rounds[at + 1 - MISSES_MIN : at + 1]]
    )


def never_two(rounds: Sequence[Round]) -> bool:
    """At most one zone counts as lost at any moment, also while it is on its way back."""
    return all(sum(health in LOST for health in after.values()) <= 1 for _, _, after in steps(rounds))


def not_too_early(rounds: Sequence[Round]) -> bool:
    """A zone has been silent for 4 s when it counts as silent, and for 8 s when it counts as failed."""

    def silent_s(at: int, zone: str) -> float:
        answers = [one.asked_s for one in rounds[: at + 1] if one.zones[zone].answered]
        return rounds[at].at_s - max(answers)

    return all(
        silent_s(at, zone) >= (BOUNDS.failed_s if health is FAILED else BOUNDS.silent_s)
        for at, _, zone, health in losses(rounds)
    )


def returns_slowly(rounds: Sequence[Round]) -> bool:
    """A lost zone counts as something better only after it has given signs of life for fifteen seconds."""
    return all(
        all(alive(one, zone) for one in rounds[max(0, at + 1 - int(RETURN_S)) : at + 1])
        for at, (_, before, after) in enumerate(steps(rounds))
        for zone, health in after.items()
        if before.get(zone) in LOST and health not in LOST
    )


def alive(seen: Round, zone: str) -> bool:
    said = [one for one in seen.voices if one.about == zone and one.zone not in (zone, seen.own_zone)]
    return bool(seen.zones[zone].answered) or any(not one.down for one in said)


PROPERTIES: dict[str, Callable[[Sequence[Round]], bool]] = {
    one.__name__: one
    for one in (
        needs_a_voice,
        needs_a_majority,
        needs_time,
        needs_silence_of_all_nodes,
        never_two,
        not_too_early,
        returns_slowly,
    )
}


@pytest.mark.parametrize("name", PROPERTIES)
@given(histories())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rule(name: str, rounds: tuple[Round, ...]) -> None:
    """Whatever happens, no zone is lost, and none returns, against a rule."""
    assert PROPERTIES[name](rounds)


def hasty(step: Callable[..., Evidence]) -> Callable[..., Evidence]:
    """Have silence last two seconds longer than it has."""

    def next_of(zone: str, known: dict[str, Evidence], seen: Round, elapsed_s: float, *, abstains: bool) -> Evidence:
        now = step(zone, known, seen, elapsed_s, abstains=abstains)
        return replace(now, confirmed_s=now.confirmed_s + 2.0) if now.confirmed else now

    return next_of


def without(name: str) -> tuple[str, Any]:
    """Give a judge that lacks what a rule rests on, as the name and value to put into its module."""
    return {
        "needs_a_voice": ("_voices", lambda zone, seen: (True, False)),
        "needs_a_majority": ("_abstention", lambda seen: ""),
        "needs_time": ("LAG_MAX_S", 100.0),
        "needs_silence_of_all_nodes": (
            "silent_zones",
            lambda seen: frozenset(zone for zone, one in seen.zones.items() if not one.answered),
        ),
        "never_two": ("_another_is_out", lambda zone, known, seen: False),
        "not_too_early": ("_next", hasty(module._next)),
        "returns_slowly": ("return_s", lambda evidence: 0.0),
    }[name]


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_a_judge_without_the_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property fails for a judge that lacks what the rule rests on: the histories would bring it about."""
    monkeypatch.setattr(module, *without(name))

    found = find(
        histories(),
        lambda rounds: not PROPERTIES[name](rounds),
        settings=settings(max_examples=10_000, deadline=None, phases=[Phase.generate], derandomize=True),
    )

    assert len(found) >= MISSES_MIN


@given(st.integers(1, 40), st.floats(0.5, 5.0))
@settings(max_examples=50, deadline=None)
def test_a_clock_that_jumps_is_no_silence(rounds: int, step_s: float) -> None:
    """Between two rounds two seconds count at most, however far apart they are by the clock."""
    judgement = Judgement()
    at = 0.0
    for second in [CALM, *[lost("c")] * rounds]:
        seen = round_of(second, at, "a")
        judgement = judge(judgement, replace(seen, at_s=at + step_s * 10))
        at += step_s * 10

    assert judgement.zones["c"].unheard_s <= 2.0 * (rounds + 1)


@given(histories())
@settings(max_examples=60, deadline=None)
def test_a_zone_that_both_observers_miss_is_lost_in_time(rounds: tuple[Round, ...]) -> None:
    """Whatever was before: after a calm hour the next loss is silent within four seconds and failed within eight."""
    zones, own = tuple(rounds[0].zones), rounds[0].own_zone
    history = Replay(own=own, zones=zones)
    for one in rounds:
        history.judgement = judge(history.judgement, one)
    history.at_s = rounds[-1].asked_s + 1.0
    history.live(*[CALM] * 300, *[lost(zones[-1])] * 7)

    expected = [HEALTHY] * 2 + [SILENT] * 4 + [FAILED]
    assert history.health[zones[-1]][-7:] == (expected if own and len(zones) > 2 else [HEALTHY] * 6 + [UNKNOWN])

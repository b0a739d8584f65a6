"""Which readers leave a zone that cannot be reached."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.names import Component
from sheetanchor_operator.zones.withdrawal import unready_condition, withdrawal
from sheetanchor_operator.zones.witnesses import PodFacts

BTC = ("market", "btc")


def reader(name: str, component: Component = Component.INFER, pipeline: str = "btc") -> PodFacts:
    return PodFacts("market", name, name, "1", pipeline, component, "node", "10.0.0.1", True, False, True, False)


POD = st.builds(
    lambda pod, ready, withdrawn, running, ending: replace(
        pod, ready=ready, withdrawn=withdrawn and not ready, running=running, ending=ending
    ),
    st.builds(
        reader,
        st.uuids().map(str),
        st.sampled_from([Component.INFER, Component.REDIS]),
        st.sampled_from(["btc", "eth"]),
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
ZONES = st.fixed_dictionaries({zone: st.lists(POD, max_size=5) for zone in "abc"})


@given(ZONES, st.data())
def test_only_silent_readers_of_the_zone_leave_and_somebody_remains(
    zones: dict[str, list[PodFacts]], data: st.DataObject
) -> None:
    """Whatever there is: no pod of another zone, pipeline or component, none that answered or is left alone."""
    uids = [pod.uid for pods in zones.values() for pod in pods]
    some = st.frozensets(st.sampled_from(uids)) if uids else st.just(frozenset[str]())
    answered, left_alone = data.draw(some), data.draw(some)

    decided = withdrawal(BTC, "c", zones, answered, left_alone)

    may_leave = {
        pod.uid
        for pod in zones["c"]
        if pod.owner == BTC
        and pod.component == Component.INFER
        and (pod.running, pod.ready, pod.ending) == (True, True, False)
        and pod.uid not in answered | left_alone
    }
    remain = {
        pod.uid
        for zone in "ab"
        for pod in zones[zone]
        if pod.owner == BTC and pod.component == Component.INFER and pod.running and pod.ready and not pod.ending
    }
    if decided is None:
        assert not (may_leave and remain)
    else:
        assert may_leave == {pod.uid for pod in decided.pods}
        assert remain == {pod.uid for pod in decided.remaining}
        assert may_leave
        assert remain


def test_a_pod_that_has_been_withdrawn_is_not_withdrawn_again() -> None:
    """So that a second replica, or a second round, writes nothing."""
    gone = replace(reader("p"), ready=False, withdrawn=True)

    assert withdrawal(BTC, "c", {"a": [reader("q")], "c": [gone]}, set(), set()) is None


def test_the_condition_is_the_node_controllers() -> None:
    """Ready, False, and a reason of its own by which it is known again."""
    condition = unready_condition("c", "2026-01-01T00:00:00Z")

    assert ("Ready", "False", "ZoneUnreachable") == (condition["type"], condition["status"], condition["reason"])

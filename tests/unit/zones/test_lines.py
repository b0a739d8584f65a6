"""The lines of a pipeline: which there are, and which are bound to a zone."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor_operator.observation import Observed
from sheetanchor_operator.zones.lines import Line, lines
from support.pipeline_parts import NOW_US, pipeline, rendered


def deployments(*zones: str, bound: bool) -> dict[tuple[str, str], dict[str, Any]]:
    spec = {"zones": list(zones)}
    manifests = rendered(spec, Observed(NOW_US, zones=zones if bound else ()))
    return {(one["kind"], one["metadata"]["name"]): one for one in manifests if one["kind"] == "Deployment"}


@pytest.mark.parametrize(
    ("spec", "known", "zones", "expected"),
    [
        ([], [], (), "a b"),
        ([], [], ("only",), "a b"),
        ([], [], ("x", "y"), "x! y!"),
        ([], [], ("w", "x", "y", "z"), "w! x! y!"),
        (["y", "x"], [], ("x", "z"), "y x!"),
        ([], ["x", "y"], ("x", "y", "z"), "x! y! z!"),
        ([], ["x", "y"], ("y", "z"), "x y! z!"),
        ([], ["x", "y"], (), "x y"),
        ([], ["a", "b"], ("x", "y", "z"), "a b"),
        ([], [], ("Zone_A", "Zone_B"), "a b"),
        ([], [], ("x", "y.1", "z-"), "a b"),
        ([], [], ("Zone_A", "x", "y" * 32, "z"), "x! z!"),
        ([], ["Zone_A", "Zone_B"], ("Zone_A", "Zone_B"), "a b"),
        ([], ["x", "y"], ("x", "y", "Zone_C"), "x! y!"),
    ],
)
def test_lines_are_those_of_the_zones_and_are_remembered(
    spec: list[str], known: list[str], zones: tuple[str, ...], expected: str
) -> None:
    """As specified, else as they were, else by what nodes show; `!` is bound to its zone."""
    status = {"zones": [{"name": name, "ready": True, "pods": 1} for name in known]}

    found = lines(pipeline({"zones": spec}, status=status), Observed(NOW_US, zones=zones))

    assert expected == " ".join(line.name + "!" * line.bound for line in found)


def test_a_line_stays_bound_while_its_zone_is_gone() -> None:
    """Its pods wait for the zone rather than crowd into another."""
    live = deployments("x", "y", bound=True)

    found = lines(pipeline({"zones": ["x", "y"]}), Observed(NOW_US, children=live, zones=("y",)))

    assert (Line("x", True), Line("y", True)) == found


def test_a_line_runs_in_its_zone() -> None:
    """Node affinity names the zone; unbound lines only avoid each other."""
    bound = deployments("x", "y", bound=True)["Deployment", "btc-ingest-x"]["spec"]["template"]["spec"]
    loose = deployments("x", "y", bound=False)["Deployment", "btc-ingest-x"]["spec"]["template"]["spec"]

    required = bound["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expression = required["nodeSelectorTerms"][0]["matchExpressions"][0]
    assert {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["x"]} == expression
    assert ["podAntiAffinity"] == list(loose["affinity"])
    assert ["--line", "x"] == bound["containers"][0]["args"][-2:]

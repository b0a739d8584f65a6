"""Two installations of the operator in one place: one manages the pipelines, the other does not and reports that."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.apiserver import ApiServer
from support.operator_process import (
    OperatorProcess,
    apply_pipeline,
    children_of,
    pipeline_of,
    settled,
    until,
    versions_of,
)

WITHIN_S = 40


@pytest.fixture
def both(apiserver: ApiServer, where: str, tmp_path: Path) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """Two operators with Leases and default images of their own."""
    flags = ("--operator-resync-s", "1", "--no-operator-nodes")
    found = []
    for name in ("one", "two"):
        own = ("--operator-lease", f"lease-{name}")
        operator = OperatorProcess(apiserver, where, tmp_path, name, *flags, *own)
        operator.image = f"registry.example/{name}:1"
        found.append(operator.start())
    yield found[0], found[1]
    for operator in found:
        if operator.process is not None and operator.process.poll() is None:
            operator.end(signal.SIGKILL)


def claimed_by(server: ApiServer, where: str) -> str:
    return str((pipeline_of(server, where).get("status") or {}).get("operator", {}).get("name", ""))


def image_of(server: ApiServer, where: str) -> str:
    found = children_of(server, where)["Deployment/btc-infer"]
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"])


def kept_off(operator: OperatorProcess, where: str) -> bool:
    return operator.metrics().get(f'sheetanchor_operator_kept_off{{name="btc",namespace="{where}"}}') == 1.0


def annotate(server: ApiServer, where: str, value: str) -> None:
    server.kubectl("annotate", "pp", "btc", "-n", where, "--overwrite", f"sheetanchor.dev/operator={value}")


def events_of(server: ApiServer, where: str) -> list[dict[str, Any]]:
    found = server.ask(f"/apis/events.k8s.io/v1/namespaces/{where}/events")["items"]
    return [one for one in found if one["reason"] == "KeptOff"]


def test_one_acts_and_the_other_says_that_it_does_not(
    apiserver: ApiServer, where: str, both: tuple[OperatorProcess, OperatorProcess]
) -> None:
    """Nothing is rolled back and forth; the other one reports which one acts, and how to change that."""
    for operator in both:
        until(lambda one=operator: one.leads, within_s=WITHIN_S, what="leads", operator=operator)
    apply_pipeline(apiserver, where)
    until(lambda: settled(apiserver, where), within_s=WITHIN_S, what="children", operator=both[0])
    until(lambda: any(kept_off(one, where) for one in both), within_s=WITHIN_S, what="one keeps off")
    idle, acting = both if kept_off(both[0], where) else both[::-1]
    before = versions_of(apiserver, where)
    generations = {place: one["metadata"].get("generation") for place, one in children_of(apiserver, where).items()}
    time.sleep(10)

    assert f"{where}/lease-{acting.name}" == claimed_by(apiserver, where)
    assert f"registry.example/{acting.name}:1" == image_of(apiserver, where)
    assert not kept_off(acting, where)
    after = versions_of(apiserver, where)
    assert {place: version for place, version in before.items() if place != "pipeline"} == {
        place: version for place, version in after.items() if place != "pipeline"
    }
    assert set(generations.values()) <= {1, None}
    (reported,) = events_of(apiserver, where)
    assert f"{where}/lease-{acting.name}" in reported["note"]
    assert f"annotate pp btc --overwrite sheetanchor.dev/operator={where}/lease-{idle.name}" in reported["note"]

    annotate(apiserver, where, f"{where}/lease-{idle.name}")
    until(
        lambda: image_of(apiserver, where) == f"registry.example/{idle.name}:1",
        within_s=WITHIN_S,
        what="the other acts",
        operator=idle,
    )
    until(lambda: kept_off(acting, where), within_s=WITHIN_S, what="and the first keeps off", operator=acting)
    assert f"{where}/lease-{idle.name}" == claimed_by(apiserver, where)
    assert not kept_off(idle, where)


def test_one_that_is_gone_is_replaced_by_its_like(
    apiserver: ApiServer, where: str, both: tuple[OperatorProcess, OperatorProcess], tmp_path: Path
) -> None:
    """An operator of the same installation goes on at once; another one waits."""
    apply_pipeline(apiserver, where)
    until(lambda: settled(apiserver, where), within_s=WITHIN_S, what="children")
    acting, idle = both if claimed_by(apiserver, where).endswith("one") else both[::-1]
    until(lambda: kept_off(idle, where), within_s=WITHIN_S, what="the other keeps off", operator=idle)

    acting.end(signal.SIGTERM)
    apiserver.kubectl("delete", "service", "btc-infer", "-n", where)
    time.sleep(5)
    assert "Service/btc-infer" not in children_of(apiserver, where)
    acting.start()

    until(lambda: "Service/btc-infer" in children_of(apiserver, where), within_s=WITHIN_S, what="back")
    assert claimed_by(apiserver, where).endswith(acting.name)

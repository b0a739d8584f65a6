"""Several operators: one acts, another takes over; never two."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from sheetanchor_operator.kube.leader_election import DURATION_S
from support.apiserver import ApiServer
from support.operator_process import (
    OperatorProcess,
    apply_pipeline,
    children_of,
    holder,
    looks,
    operating,
    settled,
    until,
    versions_of,
)


@pytest.fixture
def where(apiserver: ApiServer, where: str) -> str:
    """A namespace with a pipeline."""
    apply_pipeline(apiserver, where)
    return where


def until_leading(operator: OperatorProcess, within_s: float = 30) -> None:
    until(lambda: operator.leads, within_s=within_s, what=f"{operator.name} leads", operator=operator)


def until_standing_by(operator: OperatorProcess) -> None:
    """Wait until an operator has looked at the Lease and is ready without leading."""
    until(lambda: operator.get("/health/ready")[0] == 200, within_s=30, what="ready", operator=operator)
    assert not operator.leads


def acts_within(server: ApiServer, where: str, operator: OperatorProcess, within_s: float) -> float:
    """Delete a child and wait until an operator has created it again."""
    server.kubectl("delete", "service", "btc-infer", "-n", where)
    return until(
        lambda: "Service/btc-infer" in children_of(server, where),
        within_s=within_s,
        what=f"{operator.name} acts",
        operator=operator,
    )


def test_one_that_is_terminated_hands_over_at_once(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """SIGTERM ends the leader with 0, and the other leads at once, not when the Lease would have run out."""
    with operating(apiserver, where, tmp_path, "one") as one, operating(apiserver, where, tmp_path, "two") as two:
        until(lambda: one.leads or two.leads, within_s=30, what="one leads", operator=one)
        leader, other = (one, two) if one.leads else (two, one)
        until_standing_by(other)
        until(lambda: settled(apiserver, where), within_s=30, what="children", operator=leader)

        code = leader.end(signal.SIGTERM)
        until(lambda: other.leads, within_s=20, what="the other leads", operator=other)

        assert 0 == code
        assert "the Lease is released" in leader.said()  # so no test waits for its end
        assert holder(apiserver, where).startswith(other.name)
        acts_within(apiserver, where, other, 15)


def test_one_that_is_killed_is_replaced(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """SIGKILL gives nothing back: the other acts once the Lease has run out, and changes nothing else."""
    with operating(apiserver, where, tmp_path, "one") as one:
        until_leading(one)
        until(lambda: settled(apiserver, where), within_s=30, what="children", operator=one)
        with operating(apiserver, where, tmp_path, "two") as two:
            until_standing_by(two)
            before = versions_of(apiserver, where)

            one.end(signal.SIGKILL)
            acts_within(apiserver, where, two, 2 * DURATION_S)
            target = looks(two) + 2
            until(lambda: looks(two) >= target, within_s=30, what="two more looks", operator=two)

            after = versions_of(apiserver, where)
            assert {"Service/btc-infer"} == {place for place, version in before.items() if after[place] != version}


def test_one_that_was_stopped_writes_nothing_when_it_goes_on(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """A leader that was asleep for longer than its Lease ends with 1 when it wakes, and puts nothing right."""
    with operating(apiserver, where, tmp_path, "one", "--operator-resync-s", "1") as one:
        until_leading(one)
        until(lambda: settled(apiserver, where), within_s=30, what="children", operator=one)
        with operating(apiserver, where, tmp_path, "two") as two:
            until_standing_by(two)
            assert one.process is not None
            one.process.send_signal(signal.SIGSTOP)
            until_leading(two, within_s=2 * DURATION_S)
            written = one.said().count("corrected") + one.said().count("created")

            one.process.send_signal(signal.SIGCONT)
            try:
                code = one.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"it goes on\n{one.said()[-2000:]}") from None

            assert 1 == code
            assert written == one.said().count("corrected") + one.said().count("created")
            assert holder(apiserver, where).startswith("two")


def test_one_whose_lease_is_taken_ends(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """An operator that finds the Lease in other hands stops acting at once."""
    with operating(apiserver, where, tmp_path, "one") as one:
        until_leading(one)
        path = f"/apis/coordination.k8s.io/v1/namespaces/{where}/leases/sheetanchor-operator"
        taken = {"spec": {"holderIdentity": "somebody-else"}}

        apiserver.ask(path, method="PATCH", body=taken, content_type="application/merge-patch+json")

        assert one.process is not None
        assert 1 == one.process.wait(timeout=60)
        assert "somebody-else" == holder(apiserver, where)

"""One namespace cannot take the operator away from all: a flood of requests, a real API server, a real operator."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from sheetanchor_operator.api.reanchor_spec import TERMINAL_PHASES
from sheetanchor_operator.kube.api_client import Body, Cluster
from sheetanchor_operator.kube.reconcile_timer import AT_LEAST, BEGIN_WITHIN_S, CURRENT_TIMER
from sheetanchor_operator.reanchors.stages.bound_queue import QUEUE_MAX
from support.apiserver import ApiServer
from support.operator_looks import Looker, connected
from support.operator_parts import namespace, reanchors
from support.operator_process import (
    CHILDREN_OF_ALL_KINDS,
    LEASE,
    OperatorProcess,
    apply_pipeline,
    operating,
    pipeline_of,
    settled,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLOOD = int(os.environ.get("SHEETANCHOR_TEST_FLOOD", "1500"))
"""With six thousand it takes some minutes: for trying out changes of this code."""

LOOK_S_MAX = 1.0

SLOW_ANSWER_S = 0.4
"""Thirty writes that take so long each, eight at once, take 1.6 s."""

LATE_MAX = AT_LEAST + 3
"""Writes that a reconcile may begin after its time: the first ones, a Job that is made, and the statuses of both."""

LONG_LOOK = re.compile(
    r"took ([0-9.]+) s; for ([0-9.]+) s it got no CPU; its longest wait for the API server was ([0-9.]+) s"
)

WITHIN_S = 120 + FLOOD // 20


@pytest.fixture
def where(apiserver: ApiServer, where: str) -> str:
    """A namespace with a pipeline whose budget is one rebuild an hour, and none left."""
    apply_pipeline(apiserver, where, reanchor={"rebuildsPerHour": 1, "history": {"successful": 1, "failed": 1}})
    return where


def ask(server: ApiServer, where: str, number: int) -> None:
    body: dict[str, Any] = {
        "apiVersion": "sheetanchor.dev/v1alpha1",
        "kind": "ReAnchor",
        "metadata": {"name": f"flood-{number:05}"},
        "spec": {"pipeline": "btc", "symbol": "BTCUSDT", "reason": f"gap {number}", "trigger": "sequence_gap"},
    }
    server.ask(f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/reanchors", method="POST", body=body)


def renewed(server: ApiServer, where: str) -> tuple[str, int]:
    """Give who holds the Lease, and how often it has changed hands."""
    spec = server.ask(f"/apis/coordination.k8s.io/v1/namespaces/{where}/leases/{LEASE}")["spec"]
    return str(spec["holderIdentity"]), int(spec.get("leaseTransitions", 0))


def own_time_s(operator: OperatorProcess) -> list[float]:
    """Give what looks over a second took of themselves: without the one answer and the processor they waited for."""
    looks = [[float(seconds) for seconds in one] for one in LONG_LOOK.findall(operator.said())]
    return [took_s - starved_s - longest_s for took_s, starved_s, longest_s in looks]


def served_after_s(server: ApiServer, where: str, level: str) -> float:
    """Change a pipeline; gives how long it takes until its status shows that this version was reconciled."""
    apply_pipeline(server, where, logLevel=level)
    generation = pipeline_of(server, where)["metadata"]["generation"]

    def is_served() -> bool:
        return bool((pipeline_of(server, where).get("status") or {}).get("observedGeneration") == generation)

    return until(is_served, within_s=60, what="the other pipeline is served")


def test_a_flood_takes_neither_the_lease_nor_the_looks(apiserver: ApiServer, where: str, tmp_path: Path) -> None:
    """No reconcile lasts as long as the flood, the Lease is kept, others are served, skipped requests are reported.

    A reconcile that waits for one answer of the API server lasts as long as that takes. Other tests run on this
    machine: CPU time that the operator did not get, by the kernel's count, does not count; and what does is compared
    with the time that the whole flood takes here, since the machine is as slow for both.
    """
    with (
        namespace(apiserver) as other,
        operating(apiserver, where, tmp_path, "one", "--operator-namespaces", other) as operator,
    ):
        apply_pipeline(apiserver, other)
        until(lambda: operator.leads, within_s=60, what="it leads", operator=operator)
        for each in (where, other):
            until(lambda each=each: settled(apiserver, each), within_s=60, what="children", operator=operator)
        before, looks_before, slow_before = renewed(apiserver, where), *looks_of(operator)
        begun_s = time.monotonic()
        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(ask, apiserver, where, number) for number in range(FLOOD)]:
                done.result()
        served_s = [served_after_s(apiserver, other, level) for level in ("debug", "info", "warning")]

        def waiting() -> int:
            time.sleep(5)  # reading six thousand objects is work for the server that the operator asks too
            path = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/reanchors"
            phases = [(one.get("status") or {}).get("phase") for one in apiserver.ask(path)["items"]]
            return len([phase for phase in phases if phase not in TERMINAL_PHASES])

        until(lambda: waiting() <= QUEUE_MAX, within_s=WITHIN_S, what="the rest is skipped", operator=operator)
        flood_s = time.monotonic() - begun_s
        looks, slow = looks_of(operator)
        own_s = own_time_s(operator)

        assert operator.leads
        assert before == renewed(apiserver, where)
        print(
            f"{slow - slow_before:.0f} of {looks - looks_before:.0f} looks took over {LOOK_S_MAX:g} s, of themselves "
            f"{max(own_s, default=0.0):.2f} s at most; "
            f"the other pipeline was served after {max(served_s):.1f} s at most; the flood took {flood_s:.1f} s"
        )
        assert looks - looks_before > 20
        assert slow - slow_before <= len(own_s)
        assert max(own_s, default=0.0) < flood_s / 4
        assert min(served_s) < flood_s / 4
        assert pipeline_of(apiserver, where)["status"]["phase"]
        until(lambda: operator.get("/health/live")[0] == 200, within_s=5, what="it is alive", operator=operator)


def looks_of(operator: OperatorProcess) -> tuple[float, float]:
    """Count the reconciles, and those that took over a second."""
    metrics, name = operator.metrics(), "sheetanchor_operator_reconcile_duration_seconds"
    return metrics[f"{name}_count"], metrics[f"{name}_count"] - metrics[f'{name}_bucket{{le="{LOOK_S_MAX}"}}']


class Slow(Cluster):
    """A connection to an API server that takes its time for each write."""

    delay_s = 0.0

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self.late: list[str] = []
        """Writes that a look has begun after its time was up."""

    async def ask(self, method: str, path: str, **named: Any) -> Body:
        if method != "GET":
            timer = CURRENT_TIMER.get()
            if timer is not None and time.monotonic() - timer.begun_s > BEGIN_WITHIN_S:
                self.late.append(f"{method} {path}")
            await asyncio.sleep(self.delay_s)
        return await super().ask(method, path, **named)


@pytest.fixture
async def looker(apiserver: ApiServer, where: str) -> AsyncIterator[tuple[Looker, Slow]]:
    async with connected(apiserver.kubeconfig, Slow) as cluster:
        yield Looker(apiserver, cluster, where), cluster


async def test_a_slow_server_makes_no_look_long(apiserver: ApiServer, where: str, looker: tuple[Looker, Slow]) -> None:
    """After half a second a reconcile starts no write that can wait, and waits for no Event; the next one continues."""
    looks, cluster = looker
    await looks.look()
    for number in range(60):
        ask(apiserver, where, number)

    cluster.delay_s, late = SLOW_ANSWER_S, []
    for _ in range(8):
        cluster.late.clear()
        await looks.look_once()
        late.append(cluster.late.copy())

    assert len(max(late, key=len)) <= LATE_MAX, max(late, key=len)
    assert all("phase" in one["status"] for one in reanchors(apiserver, where).values())


async def test_a_slow_server_makes_no_look_at_new_children_long(
    apiserver: ApiServer, where: str, looker: tuple[Looker, Slow]
) -> None:
    """Those for which a look has no time are left to the next, which comes at once, and in the end all are there."""
    looks, cluster = looker
    cluster.delay_s, late = SLOW_ANSWER_S, []

    while not settled(apiserver, where) and len(late) < CHILDREN_OF_ALL_KINDS:
        cluster.late.clear()
        await looks.look_once()
        late.append(cluster.late.copy())

    assert len(max(late, key=len)) <= LATE_MAX, max(late, key=len)
    assert settled(apiserver, where)
    assert len(late) > 5

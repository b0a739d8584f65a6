"""Zones are judged by every operator, and their readers sent elsewhere, on a real API server and over real HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from sheetanchor_operator import metrics
from sheetanchor_operator.controller.zones.actions import ZoneActions
from sheetanchor_operator.controller.zones.observer import ZoneObserver
from sheetanchor_operator.kube.api_client import POD, ApiConflict, Cluster
from sheetanchor_operator.kube.event_recorder import Publisher
from sheetanchor_operator.kube.zone_probe import ZoneProbe
from sheetanchor_operator.names import Component, ZoneHealth
from sheetanchor_operator.zones.judge import Bounds
from sheetanchor_operator.zones.withdrawal import unready_condition
from sheetanchor_operator.zones.witnesses import SAMPLE_MAX
from support.apiserver import ApiServer
from support.operator_looks import connected
from support.operator_parts import define, token_of
from support.operator_process import LEASE, OperatorProcess, operating
from support.patience import PATIENCE_S, limit_s
from support.rights import give_rights
from support.zone_pods import ZonePods, zone_pods

INSTALLATION = "sheetanchor-system/sheetanchor"
BOUNDS = Bounds()

LASTING_LEASE = """
from sheetanchor_operator.kube.leader_election import Election
Election._write.__kwdefaults__["duration_s"] = 3_600.0
"""
"""No standby leads within the time of a test, however slow the machine is: what it does it does as a standby."""


class Replica:
    """What judges zones in one operator."""

    def __init__(self, cluster: Cluster, where: str, own_node: str, unrenewed_s: float = 0.0) -> None:
        clock = asyncio.get_running_loop().time
        self.probe, self.publisher = ZoneProbe(), Publisher(cluster, "one")
        self.observer = ZoneObserver(cluster, self.probe, [where], own_node, clock)
        self.actions = ZoneActions(
            cluster, self.observer, self.probe, self.publisher, INSTALLATION, lambda: unrenewed_s, clock
        )
        self.observer.on_round = self.actions.after_round

    @asynccontextmanager
    async def judging(self) -> AsyncIterator[Replica]:
        tasks = [asyncio.create_task(self.observer.run()), asyncio.create_task(self.publisher.run())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await self.actions.aclose()
            await self.probe.aclose()
            assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended

    def health(self, zone: str) -> str:
        found = self.observer.verdicts(BOUNDS).get(zone)
        return str(found[0]) if found else ""


async def until(condition: Callable[[], Awaitable[bool]], within_s: float, what: str) -> float:
    """Poll until a condition holds; gives the seconds that it took."""
    clock = asyncio.get_running_loop().time
    started_s = clock()
    while not await condition():
        assert clock() - started_s < limit_s(within_s), f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.1)
    return clock() - started_s


@pytest.fixture
async def zones(apiserver: ApiServer, where: str) -> AsyncIterator[ZonePods]:
    await asyncio.to_thread(define, apiserver)
    async with zone_pods(apiserver, where) as zones:
        await zones.make_pipeline(INSTALLATION)
        yield zones


@pytest.fixture
async def start(zones: ZonePods) -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    """Starts operators, in zone a unless a test says otherwise, and waits until they have reached every zone."""
    async with AsyncExitStack() as stack:

        async def starting(letter: str = "a", kubeconfig: Path | None = None, unrenewed_s: float = 0.0) -> Replica:
            cluster = await stack.enter_async_context(connected(kubeconfig or zones.server.kubeconfig, Cluster))
            replica = Replica(cluster, zones.where, zones.node(letter), unrenewed_s)
            await stack.enter_async_context(replica.judging())

            async def healthy() -> bool:
                return all(replica.health(zone) == ZoneHealth.HEALTHY for zone in zones.zones.values())

            await until(healthy, 15, "every zone is healthy")
            return replica

        yield starting


Start = Callable[..., Awaitable[Replica]]


def withdrawn(zones: ZonePods, name: str = "btc-infer-c") -> Callable[[], Awaitable[bool]]:
    async def is_withdrawn() -> bool:
        ready = await zones.ready_of(name)
        return ("False", "ZoneUnreachable") == (ready["status"], ready.get("reason"))

    return is_withdrawn


async def test_readers_leave_a_silent_zone_and_a_living_kubelet_has_the_last_word(
    zones: ZonePods, start: Start
) -> None:
    """Two operators see it; the pod is unready within six seconds, the others stay; then its kubelet says otherwise."""
    first, second = await start("a"), await start("b")
    zones.cut.add("c")
    took_s = await until(withdrawn(zones), 7, "the reader in the zone is withdrawn")

    print(f"withdrawn after {took_s:.1f} s")
    assert took_s >= 2.9
    assert "True" == (await zones.ready_of("btc-infer-a"))["status"]
    assert "True" == (await zones.ready_of("btc-ingest-c"))["status"], "only readers leave"

    async def reported() -> bool:
        return "ReadersWithdrawn" in await zones.events()

    await until(reported, 5, "an Event says so")
    await zones.kubelet_says("btc-infer-c", "True")

    async def disputed() -> bool:
        return "ZoneDisputed" in await zones.events()

    await until(disputed, 5, "an Event says that the kubelet disagrees")
    await asyncio.sleep(3)
    assert "True" == (await zones.ready_of("btc-infer-c"))["status"], "it is left alone"

    async def failed() -> bool:
        return [ZoneHealth.FAILED] * 2 == [one.health(zones.zones["c"]) for one in (first, second)]

    await until(failed, 6, "the zone has failed")
    zones.cut.clear()
    await asyncio.sleep(2.5)
    assert ZoneHealth.FAILED == first.health(zones.zones["c"]), "a return takes its time"


async def test_a_kubelet_that_disagrees_is_reported_in_a_round_that_proves_nothing(
    zones: ZonePods, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silence counts still when this round brings no proof of it, as after a pause of the operator."""
    replica = await start()
    zones.cut.add("c")
    await until(withdrawn(zones), 7, "the reader in the zone is withdrawn")

    async def no_voices(_sentinels: object) -> tuple[()]:
        return ()

    monkeypatch.setattr(replica.observer, "_voices", no_voices)

    async def proves_nothing() -> bool:
        return not replica.observer.unreachable(BOUNDS)

    await until(proves_nothing, 3, "a round without proof")
    await zones.kubelet_says("btc-infer-c", "True")

    async def disputed() -> bool:
        return "ZoneDisputed" in await zones.events()

    await until(disputed, 5, "an Event says that the kubelet disagrees")


async def test_nobody_is_withdrawn_unless_somebody_remains(zones: ZonePods, start: Start) -> None:
    """The other reader answers, but is not ready: the zone has failed, and its reader stays."""
    replica = await start()
    zones.ready["btc-infer-a"] = False
    zones.cut.add("c")

    async def failed() -> bool:
        return replica.health(zones.zones["c"]) == ZoneHealth.FAILED

    took_s = await until(failed, 12, "the zone has failed")

    print(f"failed after {took_s:.1f} s")
    assert took_s >= 6.9
    assert "True" == (await zones.ready_of("btc-infer-c"))["status"]


async def test_an_operator_that_is_cut_off_does_nothing(zones: ZonePods, start: Start) -> None:
    """It reaches its own zone only, and then none at all."""
    replica = await start()
    zones.cut.update("bc")
    await asyncio.sleep(7)
    zones.cut.add("a")

    async def abstains() -> bool:
        return "cut off" in replica.observer.judgement.abstains

    await until(abstains, 5, "it says that it is cut off")
    await asyncio.sleep(3)
    assert not {"silent", "failed"} & {replica.health(zone) for zone in zones.zones.values()}
    assert "True" == (await zones.ready_of("btc-infer-c"))["status"]


async def test_an_operator_reports_zones_while_nobody_renews_the_lease(zones: ZonePods, start: Start) -> None:
    """It writes what the zones count as, and that the pipeline is degraded; one whose leader lives writes nothing."""
    with_leader, without_leader = await start("a"), await start("b", unrenewed_s=5.0)
    assert with_leader is not without_leader
    zones.cut.add("c")

    async def failed() -> bool:
        rows = {row["name"]: row.get("health") for row in (await zones.pipeline_status())["zones"]}
        return "failed" == rows[zones.zones["c"]]

    await until(failed, 12, "the status names the zone")

    status = await zones.pipeline_status()
    assert "Degraded" == status["phase"]
    assert {"healthy"} == {row["health"] for row in status["zones"] if row["name"] != zones.zones["c"]}
    assert all({"since", "reason", "ready", "pods"} <= row.keys() for row in status["zones"])
    assert {"ZoneSilent", "ZoneFailed"} <= (await zones.events()).keys()


async def test_the_charts_rights_suffice_and_without_them_judging_goes_on(
    apiserver: ApiServer, zones: ZonePods, start: Start, tmp_path: Path
) -> None:
    """With the right to patch `pods/status` taken away it is counted; given back, the next round does it."""
    where = zones.where

    def give(**without: tuple[str, ...]) -> None:
        give_rights(apiserver, where, account_of=where, without={"pods/status": without.get("pods_status", ())})

    await asyncio.to_thread(give, pods_status=("patch",))
    nodes = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": where}}
    account = {"kind": "ServiceAccount", "name": "operator", "namespace": where}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": where}
    await asyncio.to_thread(
        apiserver.apply,
        {**kind, "kind": "ClusterRole", "rules": [nodes]},
        {**kind, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [account]},
    )
    path = tmp_path / "restricted"
    path.write_text(apiserver.kubeconfig_text(await asyncio.to_thread(token_of, apiserver, where, "operator")))
    replica = await start("a", kubeconfig=path)
    refused = metrics.READERS_WITHDRAWN.labels("failed")._value.get()
    zones.cut.add("c")

    async def refusals() -> bool:
        return bool(metrics.READERS_WITHDRAWN.labels("failed")._value.get() > refused)

    await until(refusals, 8, "a refused patch is counted")
    assert "True" == (await zones.ready_of("btc-infer-c"))["status"]
    await asyncio.to_thread(give)
    await until(withdrawn(zones), 5, "the reader is withdrawn")
    assert replica.health(zones.zones["c"]) in (ZoneHealth.SILENT, ZoneHealth.FAILED)


async def test_a_withdrawal_needs_the_pod_as_it_was_seen_and_a_fresh_observation(zones: ZonePods, start: Start) -> None:
    """If another client has written the pod since, nothing is done; an observation of three seconds ago is too old."""
    replica = await start()
    pod = replica.observer.register.pods[zones.where, "btc-infer-c"]
    clock = asyncio.get_running_loop().time
    await zones.ask(
        zones.path(pod.name),
        method="PATCH",
        body={"metadata": {"annotations": {"somebody": "wrote"}}},
        content_type="application/merge-patch+json",
    )

    async with connected(zones.server.kubeconfig, Cluster) as cluster:
        with pytest.raises(ApiConflict):
            await cluster.set_condition(
                POD, *pod.place, pod.version, unready_condition("c", "2026-01-01T00:00:00Z"), timeout_s=PATIENCE_S
            )
    while (result := await replica.actions._patch(pod, "c", clock())) == "failed":
        pass  # the API server has not answered in time
    assert "conflict" == result
    assert "stale" == await replica.actions._patch(pod, "c", clock() - 3)
    assert "True" == (await zones.ready_of(pod.name))["status"]


async def test_a_hundred_pipelines_cost_eight_questions_a_zone_and_second(zones: ZonePods, start: Start) -> None:
    """However many pods there are; more only while a zone is silent."""
    for number in range(20):
        await zones.make_pod(f"p{number}-infer", "b", Component.INFER, pipeline=f"p{number}")
    replica = await start()

    async def all_known() -> bool:
        return len(replica.observer.register.pods) == 28

    await until(all_known, 5, "all pods are known")
    asked: list[int] = []

    def count() -> None:
        asked.append(zones.questions)
        replica.actions.after_round()

    replica.observer.on_round = count

    # A round that is late takes zones for silent; what it costs then is not what it costs every second.
    async def three_rounds_cost_that() -> bool:
        costs = [after - before for before, after in itertools.pairwise(asked)]
        return costs[-3:] == [SAMPLE_MAX + 3 + 3] * 3

    await until(three_rounds_cost_that, 10, "three rounds in a row ask so many questions")


async def test_a_zone_that_takes_the_leading_operator_with_it(
    apiserver: ApiServer, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two operators as processes: the one on standby withdraws the readers and writes the status before it leads."""
    async with zone_pods(apiserver, where) as zones, AsyncExitStack() as stack:
        await zones.make_pipeline(f"{where}/{LEASE}")

        async def start(name: str, letter: str) -> OperatorProcess:
            monkeypatch.setenv("NODE_NAME", zones.node(letter))
            operator = stack.enter_context(operating(apiserver, where, tmp_path, name, code=LASTING_LEASE))

            async def judges() -> bool:
                text = (await asyncio.to_thread(operator.get, "/health/detailed"))[1]
                of_zones = json.loads(text or "{}").get("checks", {}).get("zones", {}).get("zones", {})
                return {"healthy"} == {of_zones.get(zone) for zone in zones.zones.values()}

            await until(judges, 30, f"{name} judges zones")
            return operator

        leader = await start("leader", "c")

        async def reported() -> bool:
            return "healthy" == (await health_of("c"))

        async def health_of(letter: str) -> str:
            rows = {row["name"]: row for row in (await zones.pipeline_status())["zones"]}
            return str(rows[zones.zones[letter]].get("health"))

        await until(reported, 20, "the leader reports that the zone is healthy")
        standby = await start("standby", "a")
        assert await asyncio.to_thread(lambda: leader.leads and not standby.leads)
        zones.cut.add("c")
        await asyncio.to_thread(leader.end, signal.SIGKILL)

        withdrawn_s = await until(withdrawn(zones), 7, "the reader is withdrawn")

        async def failed() -> bool:
            return "failed" == await health_of("c")

        failed_s = withdrawn_s + await until(failed, 8, "the status names the zone")
        print(f"withdrawn after {withdrawn_s:.1f} s, reported as failed after {failed_s:.1f} s")
        assert not await asyncio.to_thread(lambda: standby.leads), "the Lease has not ended"
        assert 'sheetanchor_zone_healthy{zone="' + zones.zones["c"] + '"} 0.0' in standby.get("/metrics")[1]

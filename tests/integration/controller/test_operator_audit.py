"""A stale watch is detected: what it has shown is compared with what the API server lists."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp
import pytest

from sheetanchor.runtime.settings import REDIS_USERS
from sheetanchor.web.listeners import open_listeners, serving
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.controller.leader import STALE_WATCH_AFTER_S, Leader
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from sheetanchor_operator.controller.reconcile import Reconciler
from sheetanchor_operator.health import LastHealth, OperatorHealth, app
from sheetanchor_operator.kube.api_client import PIPELINE, REANCHOR, Cluster
from sheetanchor_operator.kube.cache import Cache
from sheetanchor_operator.kube.event_recorder import Publisher
from sheetanchor_operator.kube.watch import Place
from sheetanchor_operator.kube.workload_probe import PodResponses, Workloads
from support.apiserver import ApiServer
from support.operator_process import apply_pipeline, pipeline_of


@pytest.fixture
def where(apiserver: ApiServer, where: str) -> str:
    """A namespace with a pipeline."""
    apply_pipeline(apiserver, where)
    return where


def leader_of(cluster: Cluster, cache: Cache, where: str) -> Leader:
    """Make a leader whose watches show nothing."""
    publisher, workloads = Publisher(cluster, "one"), Workloads(cluster)
    reconciler = Reconciler(cluster, cache, workloads, publisher, PipelineMetrics(), Defaults(image="x"))
    return Leader(cluster, cache, reconciler, [where], nodes=False, workers=1)


async def test_what_a_watch_has_missed_is_noticed(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """A change that a watch does not show makes it stale after a minute, until it shows it."""
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(pipeline_of(apiserver, where))
    await leader._audit_place(Place(PIPELINE, where), 0.0)
    assert {} == leader.behind_s

    apply_pipeline(apiserver, where, logLevel="debug")
    await leader._audit_place(Place(PIPELINE, where), 0.0)
    assert [Place(PIPELINE, where)] == list(leader.behind_s)
    assert "" == leader.stale_watch
    leader.behind_s[Place(PIPELINE, where)] -= STALE_WATCH_AFTER_S + 1
    assert f"predictionpipelines in {where}" == leader.stale_watch

    cache.put(pipeline_of(apiserver, where))
    await leader._audit_place(Place(PIPELINE, where), 0.0)
    assert ("", {}) == (leader.stale_watch, leader.behind_s)


async def test_what_was_never_shown_is_noticed(where: str, cluster: Cluster) -> None:
    """A pipeline that a watch has never shown counts as missed."""
    leader = leader_of(cluster, Cache(), where)

    await leader._audit_place(Place(PIPELINE, where), 0.0)

    assert [Place(PIPELINE, where)] == list(leader.behind_s)


async def test_what_has_gone_unseen_is_dropped(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """An object whose deletion its watch missed leaves the cache, so that it is created again."""
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(pipeline_of(apiserver, where))
    apiserver.kubectl("delete", "predictionpipeline", "btc", "-n", where)

    await leader._audit_place(Place(PIPELINE, where), 0.0)

    assert [] == cache.pipelines()


@pytest.mark.parametrize(
    ("operator_health", "live", "ready"),
    [
        (OperatorHealth(leading=True, synced=True, stale_watch="", lease_age_s=1, pipelines=3), 200, 200),
        (OperatorHealth(leading=False, synced=False, stale_watch="", lease_age_s=1, pipelines=0), 200, 200),
        (OperatorHealth(leading=True, synced=False, stale_watch="", lease_age_s=1, pipelines=0), 200, 503),
        (OperatorHealth(leading=False, synced=False, stale_watch="", lease_age_s=600, pipelines=0), 200, 503),
        (OperatorHealth(leading=True, synced=True, stale_watch="Pod", lease_age_s=1, pipelines=3), 503, 200),
        (OperatorHealth(True, True, "", 1, 3, serves=True, refused={"pods in n2": "no"}), 200, 200),
        (OperatorHealth(True, True, "", 1, 3, serves=False, refused={"pods in n1": "no"}), 200, 503),
    ],
)
async def test_probes_show_what_a_restart_can_fix(operator_health: OperatorHealth, live: int, ready: int) -> None:
    """Only deafness asks for a new start; an API server that is away, or a list that is on its way, makes unready."""
    last = LastHealth(lambda: operator_health, time.monotonic)
    async with serving_operator(operator_health) as client:
        found = []
        for path in ("/health/live", "/health/ready", "/health"):
            async with client.get(path) as answer:
                found.append(answer.status)

    assert [live, ready, 200 if live == ready == 200 else 503] == found
    assert (live == 200, ready == 200) == (last.live(), last.ready())


@contextlib.asynccontextmanager
async def serving_operator(operator_health: OperatorHealth) -> AsyncIterator[aiohttp.ClientSession]:
    application, listeners = app(lambda: operator_health), open_listeners("localhost", 0)
    origin = f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    async with serving(application, listeners), aiohttp.ClientSession(origin) as client:
        yield client


def test_an_operator_that_has_stood_still_is_not_ready_and_in_the_end_not_alive() -> None:
    """Its probes answer in a thread of their own, from how it was when its event loop last turned."""
    now = [0.0]
    sound = OperatorHealth(leading=True, synced=True, stale_watch="", lease_age_s=1, pipelines=3)
    last = LastHealth(lambda: sound, lambda: now[0])

    found = []
    for now[0] in (0.0, 1.9, 2.1, 9.9, 10.1):
        found.append((last.live(), last.ready()))

    assert [(True, True), (True, True), (True, False), (True, False), (False, False)] == found


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "NOT_FOUND"), ("POST", "/health", 405, "METHOD_NOT_ALLOWED")],
)
async def test_the_operators_errors_have_the_shape_of_the_roles(method: str, path: str, status: int, code: str) -> None:
    """With a request id in header and body, and counted."""
    sound = OperatorHealth(leading=True, synced=True, stale_watch="", lease_age_s=1, pipelines=3)
    async with serving_operator(sound) as client:
        async with client.request(method, path, headers={"X-Request-Id": "abc"}) as response:
            body = (await response.json())["error"]
            assert (status, "abc") == (response.status, response.headers["X-Request-Id"])
        async with client.get("/metrics") as answer:
            metrics = await answer.text()

    assert (code, "abc") == (body["code"], body["request_id"])
    assert f'http_requests_total{{endpoint="{"other" if status == 404 else "/health"}",status="{status}"}}' in metrics


class Broken(Workloads):
    """Fails in an unexpected way."""

    async def ask(self, pods: Sequence[Mapping[str, Any]], symbols: Sequence[str]) -> PodResponses:
        raise RuntimeError("no one has thought of this")


async def test_a_defect_is_reported_and_affects_no_other_pipeline(
    apiserver: ApiServer, where: str, cluster: Cluster
) -> None:
    """A pipeline that the operator fails on says so in its status and is tried again later; the operator goes on."""
    cache = Cache()
    reconciler = Reconciler(
        cluster, cache, Broken(cluster), Publisher(cluster, "one"), PipelineMetrics(), Defaults(image="x")
    )
    leader = Leader(cluster, cache, reconciler, [where], nodes=False, workers=1)
    cache.put(pipeline_of(apiserver, where))

    await leader._reconcile((where, "btc"))

    (ready,) = [one for one in pipeline_of(apiserver, where)["status"]["conditions"] if one["type"] == "Ready"]
    assert ("False", "SpecRefused") == (ready["status"], ready["reason"])
    assert "RuntimeError: no one has thought of this" in ready["message"]
    due_s = leader._schedule.next_s()
    assert due_s is not None
    assert due_s > asyncio.get_running_loop().time() + 0.5


async def test_what_another_pipeline_has_left_is_taken_over(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """The passwords of a pipeline that was deleted and made again at once stay, and belong to the new one."""
    old = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": "PredictionPipeline", "name": "btc", "uid": "gone"}
    labels = {"sheetanchor.dev/pipeline": "btc", "app.kubernetes.io/managed-by": "sheetanchor-operator"}
    metadata = {"name": "btc-redis", "namespace": where, "labels": labels, "ownerReferences": [old]}
    users = {user: "b2xkLXBhc3N3b3Jk" for user in REDIS_USERS}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": users}
    path = f"/api/v1/namespaces/{where}/secrets"
    made = apiserver.ask(path, method="POST", body=secret)
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(made)
    cache.put(pipeline_of(apiserver, where))

    await leader._reconcile((where, "btc"))

    now = apiserver.ask(f"{path}/btc-redis")
    assert [pipeline_of(apiserver, where)["metadata"]["uid"]] == [
        one["uid"] for one in now["metadata"]["ownerReferences"]
    ]
    assert (made["metadata"]["uid"], users) == (now["metadata"]["uid"], now["data"])


async def test_a_password_that_an_earlier_version_did_not_make_is_added(
    apiserver: ApiServer, where: str, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis user that a new version adds gets a password; those that running pods know stay. No log shows one."""
    caplog.set_level("INFO")
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(pipeline_of(apiserver, where))
    await leader._reconcile((where, "btc"))
    path = f"/api/v1/namespaces/{where}/secrets/btc-redis"
    before = apiserver.ask(path)["data"]
    change = {"data": {REDIS_USERS[-1]: None}}
    earlier = apiserver.ask(path, method="PATCH", body=change, content_type="application/merge-patch+json")
    cache.put(earlier)

    # A new leader, as after an upgrade: this one remembers the content.
    await leader_of(cluster, cache, where)._reconcile((where, "btc"))

    now = apiserver.ask(path)["data"]
    kept = {user: password for user, password in before.items() if user != REDIS_USERS[-1]}
    assert kept == {user: password for user, password in now.items() if user != REDIS_USERS[-1]}
    assert now[REDIS_USERS[-1]] not in ("", before[REDIS_USERS[-1]])
    assert f"added {REDIS_USERS[-1]}" in caplog.text
    assert now[REDIS_USERS[-1]] not in caplog.text


async def test_a_strangers_secret_is_not_used_in_silence(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """An object with the name of a child that the operator did not create is reported, once."""
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "btc-redis", "namespace": where}}
    apiserver.ask(f"/api/v1/namespaces/{where}/secrets", method="POST", body=body)
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(pipeline_of(apiserver, where))

    await leader._reconcile((where, "btc"))

    reported = " ".join(one["message"] for one in pipeline_of(apiserver, where)["status"]["conditions"])
    assert "Secret btc-redis: an object of this name exists that does not belong to the operator" in reported


async def test_a_deaf_watch_of_requests_is_noticed(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """A ReAnchor that no watch has shown counts as missed; one that has come and gone does not."""
    leader = leader_of(cluster, Cache(), where)
    path = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/reanchors"
    spec = {"pipeline": "btc", "symbol": "BTCUSDT"}
    body = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": "ReAnchor", "metadata": {"name": "one"}, "spec": spec}
    apiserver.ask(path, method="POST", body=body)

    await leader._audit_place(Place(REANCHOR, where), 0.0)
    assert [Place(REANCHOR, where)] == list(leader.behind_s)

    audit = asyncio.create_task(leader._audit_place(Place(REANCHOR, where), 1.0))
    await asyncio.sleep(0.5)
    apiserver.ask(f"{path}/one", method="DELETE")
    await audit
    assert {} == leader.behind_s

"""A watch that has gone deaf is noticed: what it has shown is compared with what the API server lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from apiserver import ApiServer
from operator_parts import define, namespace
from operator_process import apply_pipeline, pipeline_of
from sheetanchor.settings import REDIS_USERS
from sheetanchor_operator.cache import Cache
from sheetanchor_operator.children import Defaults
from sheetanchor_operator.cluster import PIPELINE, REANCHOR, Cluster
from sheetanchor_operator.health import Standing, app
from sheetanchor_operator.leading import DEAF_AFTER_S, Leader
from sheetanchor_operator.measures import Measures
from sheetanchor_operator.publish import Publisher
from sheetanchor_operator.reconcile import Reconciler
from sheetanchor_operator.workloads import Answers, Workloads


@pytest.fixture
def where(apiserver: ApiServer) -> Iterator[str]:
    """A namespace with a pipeline."""
    define(apiserver)
    with namespace(apiserver) as name:
        apply_pipeline(apiserver, name)
        yield name


@pytest.fixture
async def cluster(apiserver: ApiServer) -> AsyncIterator[Cluster]:
    """A connection as the operator has it."""
    found = Configuration()
    await config.load_kube_config(config_file=str(apiserver.kubeconfig), client_configuration=found)
    cluster = Cluster(found)
    yield cluster
    await cluster.aclose()


def leader_of(cluster: Cluster, cache: Cache, where: str) -> Leader:
    """Make a leader that no watch tells anything."""
    publisher, workloads = Publisher(cluster, "one"), Workloads(cluster)
    reconciler = Reconciler(cluster, cache, workloads, publisher, Measures(), Defaults(image="x"))
    return Leader(cluster, cache, reconciler, [where], nodes=False, workers=1)


async def test_what_a_watch_has_missed_is_noticed(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """A change that a watch does not show makes it deaf after a minute; once it has shown it, it is not."""
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(pipeline_of(apiserver, where))
    await leader._audit_kind(PIPELINE, 0.0)
    assert {} == leader.behind_s

    apply_pipeline(apiserver, where, logLevel="debug")
    await leader._audit_kind(PIPELINE, 0.0)
    assert [PIPELINE.name] == list(leader.behind_s)
    assert "" == leader.deaf
    leader.behind_s[PIPELINE.name] -= DEAF_AFTER_S + 1
    assert PIPELINE.name == leader.deaf

    cache.put(pipeline_of(apiserver, where))
    await leader._audit_kind(PIPELINE, 0.0)
    assert ("", {}) == (leader.deaf, leader.behind_s)


async def test_what_was_never_shown_is_noticed(where: str, cluster: Cluster) -> None:
    """A pipeline that a watch has never told of counts as missed."""
    leader = leader_of(cluster, Cache(), where)

    await leader._audit_kind(PIPELINE, 0.0)

    assert [PIPELINE.name] == list(leader.behind_s)


async def test_what_has_gone_unseen_is_dropped(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """An object that is gone without its watch telling so is forgotten, so that it can be made again."""
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(pipeline_of(apiserver, where))
    apiserver.kubectl("delete", "predictionpipeline", "btc", "-n", where)

    await leader._audit_kind(PIPELINE, 0.0)

    assert [] == cache.pipelines()


@pytest.mark.parametrize(
    ("standing", "live", "ready"),
    [
        (Standing(leading=True, synced=True, deaf="", lease_age_s=1, pipelines=3), 200, 200),
        (Standing(leading=False, synced=False, deaf="", lease_age_s=1, pipelines=0), 200, 200),
        (Standing(leading=True, synced=False, deaf="", lease_age_s=1, pipelines=0), 200, 503),
        (Standing(leading=False, synced=False, deaf="", lease_age_s=600, pipelines=0), 200, 503),
        (Standing(leading=True, synced=True, deaf="Pod", lease_age_s=1, pipelines=3), 503, 200),
    ],
)
async def test_probes_tell_what_a_new_start_can_mend(standing: Standing, live: int, ready: int) -> None:
    """Only deafness asks for a new start; an API server that is away, or a list that is on its way, makes unready."""
    async with TestClient(TestServer(app(lambda: standing))) as client:
        found = [(await client.get(path)).status for path in ("/health/live", "/health/ready", "/health")]

    assert [live, ready, 200 if live == ready == 200 else 503] == found


class Broken(Workloads):
    """Fails in a way that nobody has thought of."""

    async def ask(self, pods: Sequence[Mapping[str, Any]], symbols: Sequence[str]) -> Answers:
        raise RuntimeError("no one has thought of this")


async def test_a_defect_is_told_and_takes_nobody_down(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """A pipeline that the operator fails on says so in its status and is tried again later; the operator goes on."""
    cache = Cache()
    reconciler = Reconciler(cluster, cache, Broken(cluster), Publisher(cluster, "one"), Measures(), Defaults(image="x"))
    leader = Leader(cluster, cache, reconciler, [where], nodes=False, workers=1)
    cache.put(pipeline_of(apiserver, where))

    await leader._look((where, "btc"))

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

    await leader._look((where, "btc"))

    now = apiserver.ask(f"{path}/btc-redis")
    assert [pipeline_of(apiserver, where)["metadata"]["uid"]] == [
        one["uid"] for one in now["metadata"]["ownerReferences"]
    ]
    assert (made["metadata"]["uid"], users) == (now["metadata"]["uid"], now["data"])


async def test_a_strangers_secret_is_not_used_in_silence(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """An object of the name of ours that nobody of us has made is told, and not asked for again at each look."""
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "btc-redis", "namespace": where}}
    apiserver.ask(f"/api/v1/namespaces/{where}/secrets", method="POST", body=body)
    cache = Cache()
    leader = leader_of(cluster, cache, where)
    cache.put(pipeline_of(apiserver, where))

    await leader._look((where, "btc"))

    told = " ".join(one["message"] for one in pipeline_of(apiserver, where)["status"]["conditions"])
    assert "Secret btc-redis: there is one of this name that is not the operator's" in told


async def test_a_deaf_watch_of_requests_is_noticed(apiserver: ApiServer, where: str, cluster: Cluster) -> None:
    """A ReAnchor that no watch has shown counts as missed; one that has come and gone does not."""
    leader = leader_of(cluster, Cache(), where)
    path = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{where}/reanchors"
    spec = {"pipeline": "btc", "symbol": "BTCUSDT"}
    body = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": "ReAnchor", "metadata": {"name": "one"}, "spec": spec}
    apiserver.ask(path, method="POST", body=body)

    await leader._audit_kind(REANCHOR, 0.0)
    assert [REANCHOR.name] == list(leader.behind_s)

    audit = asyncio.create_task(leader._audit_kind(REANCHOR, 1.0))
    await asyncio.sleep(0.5)
    apiserver.ask(f"{path}/one", method="DELETE")
    await audit
    assert {} == leader.behind_s

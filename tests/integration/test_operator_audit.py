"""A watch that has gone deaf is noticed: what it has shown is compared with what the API server lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp.test_utils import TestClient, TestServer
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from apiserver import ApiServer
from operator_parts import define, namespace
from operator_process import apply_pipeline, pipeline_of
from sheetanchor_operator.cache import Cache
from sheetanchor_operator.children import Defaults
from sheetanchor_operator.cluster import PIPELINE, Cluster
from sheetanchor_operator.health import Standing, app
from sheetanchor_operator.leading import DEAF_AFTER_S, Leader
from sheetanchor_operator.measures import Measures
from sheetanchor_operator.publish import Publisher
from sheetanchor_operator.reconcile import Reconciler
from sheetanchor_operator.workloads import Workloads


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

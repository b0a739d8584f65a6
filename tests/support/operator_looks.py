"""Reconciles of a pipeline without an operator process: a leader whose cache a list fills, on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from sheetanchor_operator.api.pipeline import Pipeline, parse
from sheetanchor_operator.apply.rollout_order import place_of
from sheetanchor_operator.children.manifests import children
from sheetanchor_operator.controller.leader import Leader
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from sheetanchor_operator.controller.reconcile import Reconciler
from sheetanchor_operator.kube.api_client import CHILDREN, KINDS, METADATA_ONLY, Cluster
from sheetanchor_operator.kube.cache import Cache
from sheetanchor_operator.kube.event_recorder import Publisher
from sheetanchor_operator.kube.watch import Place
from sheetanchor_operator.kube.workload_probe import Workloads
from sheetanchor_operator.names import API_VERSION, PIPELINE_KIND
from sheetanchor_operator.observation import Observed
from support.apiserver import ApiServer
from support.operator_process import pipeline_of
from support.pipeline_parts import DEFAULTS, password

Manifest = dict[str, Any]
Where = tuple[str, str]


Connection = TypeVar("Connection", bound=Cluster)


@asynccontextmanager
async def connected(kubeconfig: Path, kind: type[Connection]) -> AsyncIterator[Connection]:
    """Connect to an API server, with the rights of a kubeconfig's user."""
    configuration = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    cluster = kind(configuration)
    try:
        yield cluster
    finally:
        await cluster.aclose()


class Looker:
    """One leader, and what it remembers."""

    def __init__(self, server: ApiServer, cluster: Cluster, where: str) -> None:
        self.server, self.cluster, self.where = server, cluster, where
        self.cache = Cache()
        publisher, workloads = Publisher(cluster, "one"), Workloads(cluster)
        self.reconciler = Reconciler(cluster, self.cache, workloads, publisher, PipelineMetrics(), DEFAULTS)
        self.leader = Leader(cluster, self.cache, self.reconciler, [where], nodes=False, workers=1)

    async def look(self, times: int = 1) -> None:
        """Reconcile the pipeline until no write is left over for lack of time; all that the given number of times."""
        for _ in range(times):
            await self.look_once()
            while self.reconciler._applier.is_late((self.where, "btc")):
                await self.look_once()

    async def look_once(self) -> None:
        """Reconcile the pipeline as a leader does that has just listed everything."""
        self.cache.put(pipeline_of(self.server, self.where))
        for kind in (*CHILDREN, KINDS["ReAnchor"], KINDS["Job"]):
            listed: set[Where] = set()
            version = ""
            async for whole, items in self.cluster.pages(kind, self.where, metadata_only=kind in METADATA_ONLY):
                version = whole
                for body in items:
                    self.leader.seen("LISTED", body)
                    listed.add((self.where, body["metadata"]["name"]))
            self.leader.swept(Place(kind, self.where), listed, int(version))
        # In a context of its own: what follows is not part of the look.
        await asyncio.create_task(self.leader._reconcile((self.where, "btc")))
        await self.reconciler.publisher.publish_waiting()

    def try_again(self) -> None:
        """Forget what was refused, as after some seconds."""
        for refusals in (self.reconciler._applier.refusals, self.reconciler._writer.refusals):
            refusals.forget((self.where, "btc"))


def create(server: ApiServer, where: str, manifest: Manifest) -> Manifest:
    """Create an object; a field that no schema knows is an error."""
    path = f"{KINDS[manifest['kind']].path(where)}?fieldValidation=Strict"
    made: Manifest = server.ask(path, method="POST", body=manifest)
    return made


def pipeline_in(server: ApiServer, where: str, **spec: Any) -> Pipeline:
    """Create a pipeline."""
    body = {"apiVersion": API_VERSION, "kind": PIPELINE_KIND, "metadata": {"name": "btc"}}
    return parse(create(server, where, {**body, "spec": {"symbols": ["BTCUSDT"], **spec}}))


def rendered(pipeline: Pipeline) -> dict[tuple[str, str], Manifest]:
    """Give what a pipeline's children should be, by kind and name."""
    return {place_of(one): one for one in children(pipeline, Observed(0), DEFAULTS, password)}


def there(server: ApiServer, where: str, kind: str, name: str) -> Manifest:
    """Read an object."""
    found: Manifest = server.ask(KINDS[kind].path(where, name))
    return found
